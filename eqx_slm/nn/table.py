"""The dense token table: one learned row a token."""

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
class TableConfig:
    """A V x D table; `std` of its initial values."""

    kind: Literal["table"] = "table"
    std: float = 0.02
    tieable: ClassVar[bool] = True

    def __post_init__(self):
        check_scale(std=self.std)

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """V D."""
        return vocab_size * d_model

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """All of them."""
        return vocab_size * d_model

    def buffer_bytes(self, vocab_size: int) -> int:
        """None."""
        return 0

    def flops(self, vocab_size: int, d_model: int) -> int:
        """A lookup multiplies nothing."""
        return 0

    def activations(self, vocab_size: int, d_model: int) -> int:
        """Only the result."""
        return d_model

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array | np.ndarray, " v"] | None = None, key: PRNGKeyArray
    ) -> "TableEmbedding":
        """The module."""
        return TableEmbedding(vocab_size, d_model, std=self.std, key=key)


class TableEmbedding(TokenEmbedding):
    """`table[ids]`, the baseline everything here is compared with."""

    table: Float[Array, "{self.vocab_size} {self.d_model}"]
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    std: float = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, vocab_size: int, d_model: int, *, std: float = 0.02, key: PRNGKeyArray):
        """**Arguments:** `vocab_size`; `d_model`; `std` of the initial values; `key`."""
        check_sizes(vocab_size=vocab_size, d_model=d_model)
        check_scale(std=std)
        self.table = normal(key, "table", (vocab_size, d_model), std)
        self.vocab_size = int(vocab_size)
        self.d_model = int(d_model)
        self.std = std

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        return row_of(self.table, ids)

    def materialize(self) -> Float[Array, "{self.vocab_size} {self.d_model}"]:
        """The table itself."""
        return self.table

    def read_out(self) -> ReadOut:
        """The table itself: a tied head has no leaf of its own."""
        return ReadOut(self.table)
