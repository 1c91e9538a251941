"""A fixed code of the id's bits: one linear map to the model's width, or none, and then no parameter at all."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import configured, one_of, real
from ..errors import UserError
from .embedding import ConfiguredEmbedding, EmbeddingDefaults, check_ids, known_or_nan
from .head import ReadOut
from .init import normal
from .ops import inner_dtype, with_axes

Map = Literal["linear", "none"]


@dataclass(frozen=True)
class BinaryConfig(EmbeddingDefaults):
    """The bits of an id as signs. `map`: "linear" trains a map to d_model; "none" repeats the signs over its width, so
    that nothing is trained. `std` of the embedding's entries, at the start or (without a map) for good."""

    kind: Literal["binary"] = "binary"
    map: Map = "linear"
    std: float = 0.02
    tieable: ClassVar[bool] = True

    def __post_init__(self):
        one_of("map", self.map, ("linear", "none"))
        real("std", self.std)

    def check(self, vocab_size: int, d_model: int) -> None:
        """**Raises:** `UserError` where the repeated signs of two ids would be the same."""
        bits = id_bits(vocab_size)
        if self.map == "none" and d_model < bits:
            raise UserError(
                f"d_model={d_model}: without a map it has no room for the {bits} bits of {vocab_size} ids; take a "
                f'd_model of at least {bits}, or map="linear"'
            )

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """D bits(V), or none."""
        return id_bits(vocab_size) * d_model if self.map == "linear" else 0

    def flops(self, vocab_size: int, d_model: int) -> int:
        """2 bits(V) D for the map."""
        return 2 * self.parameters(vocab_size, d_model)

    def activations(self, vocab_size: int, d_model: int) -> int:
        """The code and the result."""
        return d_model + (id_bits(vocab_size) if self.map == "linear" else 0)

    def read_out_rank(self, vocab_size: int) -> int | None:
        """A tied read-out keeps its factors: code times map."""
        return id_bits(vocab_size) if self.map == "linear" else None

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array | np.ndarray, " v"] | None = None, key: PRNGKeyArray
    ) -> "BinaryEmbedding":
        """The module."""
        return BinaryEmbedding(vocab_size, d_model, self, key=key)


def id_bits(vocab_size: int) -> int:
    """The fewest bits that tell the ids apart, at least one."""
    return max(1, (vocab_size - 1).bit_length())


class BinaryEmbedding(ConfiguredEmbedding):
    """The signs of the id's bits, lowest first, scaled to length one, times a trained map; or, without a map, the signs
    repeated up to the model's width (`code[i mod bits]`), a fixed input without a parameter.

    From fixed minimal binary token codes (arXiv 2605.09751), which repeats them; the map is a variant of this library.
    """

    weight: Float[Array, "{self.bits} {self.d_model}"] | None
    config: BinaryConfig = eqx.field(static=True)
    bits: int = eqx.field(static=True)

    def __init__(
        self, vocab_size: int, d_model: int, config: BinaryConfig | None = None, *, key: PRNGKeyArray, **fields: Any
    ):
        """**Arguments:** `vocab_size`; `d_model`; a `config`, or its `fields` as keywords; `key`.

        **Raises:** `UserError` for a value out of its range, and a width without room for the bits.
        """
        super().__init__(vocab_size, d_model, configured(BinaryConfig, config, fields))
        self.bits = id_bits(self.vocab_size)
        mapped = self.config.map == "linear"
        self.weight = normal(key, "weight", (self.bits, d_model), self.config.std) if mapped else None

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        ids = check_ids(ids)
        return known_or_nan(ids, self.vocab_size, self._mapped(self._signs(ids)))

    def read_out(self) -> ReadOut:
        """Code times map: tied logits cost (V + D) bits a token. Without a map, the fixed rows."""
        ids = jnp.arange(self.vocab_size, dtype=jnp.int32)
        if self.weight is None:
            return ReadOut(self(ids))
        return ReadOut(self._code(ids), self.weight.T)

    def _signs(self, ids: Int[Array, "*t"]) -> Int[Array, "*t bits"]:
        """+1 and -1, lowest bit first."""
        shifts = with_axes(jnp.arange(self.bits, dtype=ids.dtype), ids.ndim + 1)
        return 2 * (ids[..., None] >> shifts & 1) - 1

    def _code(self, ids: Int[Array, "*t"]) -> Float[Array, "*t bits"]:
        assert self.weight is not None
        return self._signs(ids).astype(self.weight.dtype) * self.bits**-0.5

    def _mapped(self, signs: Int[Array, "*t bits"]) -> Float[Array, "*t {self.d_model}"]:
        if self.weight is not None:
            return (signs.astype(self.weight.dtype) * self.bits**-0.5) @ self.weight
        places = jnp.arange(self.d_model) % self.bits
        return signs[..., places].astype(inner_dtype(jnp.float32)) * self.config.std
