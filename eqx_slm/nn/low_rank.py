"""A factored token table: V x r rows, then r x D."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import check_scale, check_sizes
from .embedding import TokenEmbedding, row_of
from .head import ReadOut
from .init import normal


@dataclass(frozen=True)
class LowRankConfig:
    """A table of rank `rank`; `std` of the product's initial entries."""

    kind: Literal["low-rank"] = "low-rank"
    rank: int = 64
    std: float = 0.02
    tieable: ClassVar[bool] = True

    def __post_init__(self):
        check_sizes(rank=self.rank)
        check_scale(std=self.std)

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """(V + D) r."""
        return (vocab_size + d_model) * self.rank

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """V r: the rows that belong to one token each."""
        return vocab_size * self.rank

    def buffer_bytes(self, vocab_size: int) -> int:
        """None."""
        return 0

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
        return LowRankEmbedding(vocab_size, d_model, rank=self.rank, std=self.std, key=key)


class LowRankEmbedding(TokenEmbedding):
    """`rows[ids] @ columns`: the plainest way to make a table smaller, and so a control for any cleverer one.

    From ALBERT's factored embedding (arXiv 1909.11942).
    """

    rows: Float[Array, "{self.vocab_size} {self.rank}"]
    columns: Float[Array, "{self.rank} {self.d_model}"]
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    std: float = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, vocab_size: int, d_model: int, *, rank: int = 64, std: float = 0.02, key: PRNGKeyArray):
        """**Arguments:** `vocab_size`; `d_model`; `rank`; `std` of the product's initial entries; `key`."""
        check_sizes(vocab_size=vocab_size, d_model=d_model, rank=rank)
        check_scale(std=std)
        self.rows = normal(key, "rows", (vocab_size, rank), std)
        self.columns = normal(key, "columns", (rank, d_model), rank**-0.5)
        self.vocab_size = int(vocab_size)
        self.d_model = int(d_model)
        self.rank = int(rank)
        self.std = std

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        return row_of(self.rows, ids) @ self.columns

    def materialize(self) -> Float[Array, "{self.vocab_size} {self.d_model}"]:
        """The product of the factors."""
        return self.rows @ self.columns

    def read_out(self) -> ReadOut:
        """The two factors: tied logits cost (D + V) r a token, not V D."""
        return ReadOut(self.rows, self.columns.T)
