"""A factored token table: V x r rows, then r x D."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import check_whole, configured, real
from .embedding import ConfiguredEmbedding, EmbeddingDefaults, row_of
from .head import ReadOut
from .init import normal


@dataclass(frozen=True)
class LowRankConfig(EmbeddingDefaults):
    """A table of rank `rank`; `std` of the product's initial entries."""

    kind: Literal["low-rank"] = "low-rank"
    rank: int = 64
    std: float = 0.02
    tieable: ClassVar[bool] = True

    def __post_init__(self):
        check_whole(self, "rank")
        real("std", self.std)

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """(V + D) r."""
        return (vocab_size + d_model) * self.rank

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """V r: the rows that belong to one token each."""
        return vocab_size * self.rank

    def flops(self, vocab_size: int, d_model: int) -> int:
        """2 r D for the second factor."""
        return 2 * self.rank * d_model

    def activations(self, vocab_size: int, d_model: int) -> int:
        """The looked-up row and the result."""
        return self.rank + d_model

    def read_out_rank(self, vocab_size: int) -> int:
        """A tied read-out keeps the factors."""
        return self.rank

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array | np.ndarray, " v"] | None = None, key: PRNGKeyArray
    ) -> "LowRankEmbedding":
        """The module."""
        return LowRankEmbedding(vocab_size, d_model, self, key=key)


class LowRankEmbedding(ConfiguredEmbedding):
    """`rows[ids] @ columns`: the plainest way to make a table smaller, and so a control for any cleverer one.

    From ALBERT's factored embedding (arXiv 1909.11942).
    """

    rows: Float[Array, "{self.vocab_size} {self.config.rank}"]
    columns: Float[Array, "{self.config.rank} {self.d_model}"]
    config: LowRankConfig = eqx.field(static=True)

    def __init__(
        self, vocab_size: int, d_model: int, config: LowRankConfig | None = None, *, key: PRNGKeyArray, **fields: Any
    ):
        """**Arguments:** `vocab_size`; `d_model`; a `config`, or its `fields` as keywords; `key`.

        **Raises:** `UserError` for a value out of its range.
        """
        super().__init__(vocab_size, d_model, configured(LowRankConfig, config, fields))
        rank = self.config.rank
        self.rows = normal(key, "rows", (vocab_size, rank), self.config.std)
        self.columns = normal(key, "columns", (rank, d_model), rank**-0.5)

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        return row_of(self.rows, ids) @ self.columns

    def materialize(self) -> Float[Array, "{self.vocab_size} {self.d_model}"]:
        """The product of the factors."""
        return self.rows @ self.columns

    def read_out(self) -> ReadOut:
        """The two factors: tied logits cost (D + V) r a token, not V D."""
        return ReadOut(self.rows, self.columns.T)
