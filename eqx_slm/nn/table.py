"""The dense token table: one learned row a token."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import configured, real
from .embedding import ConfiguredEmbedding, EmbeddingDefaults, row_of
from .head import ReadOut
from .init import normal


@dataclass(frozen=True)
class TableConfig(EmbeddingDefaults):
    """A V x D table; `std` of its initial values."""

    kind: Literal["table"] = "table"
    std: float = 0.02
    tieable: ClassVar[bool] = True

    def __post_init__(self):
        real("std", self.std)

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """V D."""
        return vocab_size * d_model

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """All of them."""
        return vocab_size * d_model

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array | np.ndarray, " v"] | None = None, key: PRNGKeyArray
    ) -> "TableEmbedding":
        """The module."""
        return TableEmbedding(vocab_size, d_model, self, key=key)


class TableEmbedding(ConfiguredEmbedding):
    """`table[ids]`, the baseline everything here is compared with."""

    table: Float[Array, "{self.vocab_size} {self.d_model}"]
    config: TableConfig = eqx.field(static=True)

    def __init__(
        self, vocab_size: int, d_model: int, config: TableConfig | None = None, *, key: PRNGKeyArray, **fields: Any
    ):
        """**Arguments:** `vocab_size`; `d_model`; a `config`, or its `fields` as keywords; `key`.

        **Raises:** `UserError` for a value out of its range.
        """
        super().__init__(vocab_size, d_model, configured(TableConfig, config, fields))
        self.table = normal(key, "table", (vocab_size, d_model), self.config.std)

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        return row_of(self.table, ids)

    def materialize(self) -> Float[Array, "{self.vocab_size} {self.d_model}"]:
        """The table itself."""
        return self.table

    def read_out(self) -> ReadOut:
        """The table itself: a tied head has no leaf of its own."""
        return ReadOut(self.table)
