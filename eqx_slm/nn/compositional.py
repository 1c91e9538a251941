"""A sum of codebook rows picked by a token's digits: Leviathan's codebooks without its splines."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import check_choices, check_whole, configured, real
from ..pytree import Fixed
from .digits import coordinate_base, to_coordinates
from .embedding import (
    ConfiguredEmbedding,
    EmbeddingDefaults,
    OrderKind,
    check_ids,
    check_order,
    known_or_nan,
    position_of,
)
from .init import normal


@dataclass(frozen=True)
class CompositionalConfig(EmbeddingDefaults):
    """A sum over `coordinates` codebooks; `std` of the sum's initial entries; the coordinate `order` of the ids."""

    kind: Literal["compositional"] = "compositional"
    coordinates: int = 3
    std: float = 0.02
    order: OrderKind = "tokenizer"
    tieable: ClassVar[bool] = True

    def __post_init__(self):
        check_choices(self)
        check_whole(self, "coordinates")
        real("std", self.std)

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """k b D."""
        return self.coordinates * coordinate_base(vocab_size, self.coordinates) * d_model

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """None: every row is shared by many tokens (with one coordinate it is a table)."""
        return self.parameters(vocab_size, d_model) if self.coordinates == 1 else 0

    def buffer_bytes(self, vocab_size: int) -> int:
        """Four bytes a token for an order other than the tokenizer's."""
        return 0 if self.order == "tokenizer" else 4 * vocab_size

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array | np.ndarray, " v"] | None = None, key: PRNGKeyArray
    ) -> "CompositionalEmbedding":
        """The module."""
        return CompositionalEmbedding(vocab_size, d_model, self, order=order, key=key)


class CompositionalEmbedding(ConfiguredEmbedding):
    r"""$E_i = \sum_r C_r[i_r]$ over the base-b digits of the id: the control that leaves out the splines.

    From compositional embeddings by complementary partitions (arXiv 1909.02107).
    """

    codebooks: Float[Array, "{self.coordinates} {self.base} {self.d_model}"]
    order: Fixed | Int32[Array, "{self.vocab_size}"] | None
    config: CompositionalConfig = eqx.field(static=True)
    coordinates: int = eqx.field(static=True)
    base: int = eqx.field(static=True)

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        config: CompositionalConfig | None = None,
        *,
        order: Int32[Array | np.ndarray, " v"] | None = None,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `vocab_size`; `d_model`; a `config`, or its other `fields` as keywords; `order`, an int32
        permutation of the ids (None: the tokenizer's); `key`.

        **Raises:** `UserError` for a value out of its range, and an order that is no permutation.
        """
        super().__init__(vocab_size, d_model, configured(CompositionalConfig, config, fields))
        self.coordinates = c = self.config.coordinates
        self.base = coordinate_base(vocab_size, c)
        self.codebooks = normal(key, "codebooks", (c, self.base, d_model), self.config.std * c**-0.5)
        self.order = check_order(order, vocab_size)

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        ids = check_ids(ids)
        digits = to_coordinates(position_of(ids, self.order), self.base, self.coordinates)
        vectors = self.codebooks[jnp.arange(self.coordinates), digits].sum(axis=-2)
        return known_or_nan(ids, self.vocab_size, vectors)
