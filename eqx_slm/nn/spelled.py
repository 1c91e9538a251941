"""An embedding of the token's spelling: a fixed code of its bytes and their places, and one linear map."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, UInt32

from ..checks import check_choices, check_whole, configured, real
from ..errors import UserError
from ..pytree import Fixed
from .embedding import ConfiguredEmbedding, EmbeddingDefaults, check_ids, known_or_nan
from .init import normal
from .ops import inner_dtype, with_axes
from .orders import hashes
from .spelling import SpellingKind, check_spelling

Code = Literal["kronecker", "fourier"]


@dataclass(frozen=True)
class SpelledConfig(EmbeddingDefaults):
    """The code of (byte, place): "kronecker" has one place for each pair, 256 `longest`; "fourier" has `size` waves.

    Bytes beyond the first `longest` of a token are left out: tokens that differ only there are one. `spelling`: "text",
    the tokenizer's bytes, or "ids", the digits of the id in base 256: a control. `std` of the entries at the start.
    """

    kind: Literal["spelled"] = "spelled"
    code: Code = "kronecker"
    size: int = 128
    longest: int = 32
    spelling: SpellingKind = "text"
    std: float = 0.02
    tieable: ClassVar[bool] = False
    pieces: ClassVar[int] = 256

    def __post_init__(self):
        check_choices(self)
        check_whole(self, "size", "longest")
        if self.size % 2:
            raise UserError(f"size={self.size}: waves come in pairs, a cosine and a sine; take size {self.size + 1}")
        real("std", self.std)

    @property
    def features(self) -> int:
        """Size of the code."""
        return self.size if self.code == "fourier" else self.pieces * self.longest

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """Size of the code times D, whatever the vocabulary."""
        return self.features * d_model

    def buffer_bytes(self, vocab_size: int) -> int:
        """Four bytes for each byte of a token, up to `longest`."""
        return 4 * vocab_size * self.longest

    def flops(self, vocab_size: int, d_model: int) -> int:
        """2 size D for the map of waves; a pair with its own place is a lookup."""
        return 2 * self.size * d_model if self.code == "fourier" else 0

    def build(
        self,
        vocab_size: int,
        d_model: int,
        *,
        order: Int32[Array | np.ndarray, " v"] | None = None,
        spelling: Int32[Array | np.ndarray, "v p"] | None = None,
        key: PRNGKeyArray,
    ) -> "SpelledEmbedding":
        """The module."""
        return SpelledEmbedding(vocab_size, d_model, self, spelling=spelling, key=key)


class SpelledEmbedding(ConfiguredEmbedding):
    r"""$E_i = n_i^{-1/2} \sum_{p < n_i} \gamma(b_p, p)\, W$ over the $n_i$ bytes of a token, $\gamma$ of length one.

    "kronecker": $\gamma$ is one-hot in the pair, so that the sum picks a row of W a byte. From Kronecker embeddings
    (arXiv 2605.29459), with their 32 bytes; how they scale the code is not known to us. "fourier": $\gamma$ has the
    cosine and sine of $2 \pi (f_k b + g_k p)$ at fixed pseudo-random frequencies: as many parameters as one wants.

    A token without bytes (a padded vocabulary has such) is the zero vector.
    """

    weight: Float[Array, "{self.config.features} {self.d_model}"]
    spelling: Fixed | Int32[Array, "{self.vocab_size} {self.config.longest}"]
    config: SpelledConfig = eqx.field(static=True)
    distinct_pays: ClassVar[bool] = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        config: SpelledConfig | None = None,
        *,
        spelling: Int32[Array | np.ndarray, "v p"] | None = None,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `vocab_size`; `d_model`; a `config`, or its other `fields` as keywords; `spelling`, the bytes
        of every id, -1 after the last (None writes the ids themselves in base 256); `key`.

        **Raises:** `UserError` for a value out of its range, and for what is no spelling.
        """
        super().__init__(vocab_size, d_model, configured(SpelledConfig, config, fields))
        config = self.config
        self.weight = normal(key, "weight", (config.features, d_model), config.std)
        self.spelling = check_spelling(spelling, vocab_size, pieces=config.pieces, longest=config.longest)

    @property
    def numbers(self) -> int:
        """A number for every byte and wave, or byte and channel."""
        return self.config.longest * max(self.d_model, self.config.size if self.config.code == "fourier" else 1)

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        ids = check_ids(ids)
        spelled, dtype = jnp.asarray(self.spelling).at[ids].get(mode="clip"), inner_dtype(self.weight)
        here = spelled >= 0
        scale = jax.lax.rsqrt(jnp.maximum(here.sum(axis=-1, keepdims=True), 1).astype(dtype))
        if self.config.code == "kronecker":
            places = with_axes(256 * jnp.arange(self.config.longest, dtype=jnp.int32), spelled.ndim)
            rows = self.weight[jnp.maximum(spelled, 0) + places]
            total = jnp.where(here[..., None], rows.astype(dtype), 0).sum(axis=-2)
            vectors = (total * scale).astype(self.weight.dtype)
        else:
            total = jnp.where(here[..., None], _waves(spelled, self.weight.shape[0] // 2, dtype), 0).sum(axis=-2)
            vectors = (total * scale).astype(self.weight.dtype) @ self.weight
        return known_or_nan(ids, self.vocab_size, vectors)


def _waves(spelled: Int[Array, "*t p"], count: int, dtype: Any) -> Float[Array, "*t p features"]:
    """The waves of every byte in its place: cosines, then sines, of length one together."""
    by_byte, by_place = frequencies(count)
    # A turn is 2^32, so that phases are exact: integers wrap where angles do.
    at = jnp.arange(spelled.shape[-1], dtype=jnp.uint32)[:, None] * by_place[None]
    of_bytes = jnp.maximum(spelled, 0).astype(jnp.uint32)[..., None] * with_axes(by_byte, spelled.ndim + 1)
    turns = of_bytes + with_axes(at, spelled.ndim + 1)
    angles = turns.astype(dtype) * (2 * math.pi / 2**32)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1) * count**-0.5


def frequencies(count: int) -> tuple[UInt32[np.ndarray, " {count}"], UInt32[np.ndarray, " {count}"]]:
    """`count` pseudo-random frequencies of bytes and as many of places, in turns of 2^32."""
    drawn = (hashes(2 * count, seed=256) >> np.uint64(32)).astype(np.uint32)
    return drawn[:count], drawn[count:]
