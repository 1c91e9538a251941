"""An embedding composed of pieces: the mean of the rows of a token's pieces in a smaller vocabulary."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import check_scale, check_sizes, whole
from ..pytree import Fixed
from .embedding import TokenEmbedding, check_ids, known_or_nan
from .init import normal
from .ops import inner_dtype
from .spelling import SpellingKind, check_spelling


@dataclass(frozen=True)
class ComposedConfig:
    """A table of `pieces` rows: the 256 bytes and the tokenizer's first `pieces` - 256 merges; `std` of its values.

    A token's bytes are encoded by those merges; its pieces beyond the first `longest` are left out. `spelling`: "text",
    or "ids", the digits of the id in base `pieces`: a control. A tokenizer without merges has 256 pieces.
    """

    kind: Literal["composed"] = "composed"
    pieces: int = 4096
    longest: int = 16
    spelling: SpellingKind = "text"
    std: float = 0.02
    tieable: ClassVar[bool] = True

    def __post_init__(self):
        whole("pieces", self.pieces, least=2)
        check_sizes(longest=self.longest)
        check_scale(std=self.std)

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """Pieces times D, whatever the vocabulary."""
        return self.pieces * d_model

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """None: a row belongs to a piece, which many tokens have."""
        return 0

    def buffer_bytes(self, vocab_size: int) -> int:
        """Four bytes for each piece of a token, up to `longest`."""
        return 4 * vocab_size * self.longest

    def flops(self, vocab_size: int, d_model: int) -> int:
        """Lookups and a mean multiply no matrices."""
        return 0

    def activations(self, vocab_size: int, d_model: int) -> int:
        """Only the result."""
        return d_model

    def build(
        self,
        vocab_size: int,
        d_model: int,
        *,
        order: Int32[Array | np.ndarray, " v"] | None = None,
        spelling: Int32[Array | np.ndarray, "v p"] | None = None,
        key: PRNGKeyArray,
    ) -> "ComposedEmbedding":
        """The module."""
        sizes = {"pieces": self.pieces, "longest": self.longest, "std": self.std}
        return ComposedEmbedding(vocab_size, d_model, spelling=spelling, key=key, **sizes)


class ComposedEmbedding(TokenEmbedding):
    """`rows[spelling[ids]].mean(axis=-2)`, over the pieces that there are: tokens that share a piece share its row.

    Two tokens of the same pieces in another order are one; a token without pieces is the zero vector.
    """

    rows: Float[Array, "{self.pieces} {self.d_model}"]
    spelling: Fixed | Int32[Array, "{self.vocab_size} {self.longest}"]
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    pieces: int = eqx.field(static=True)
    longest: int = eqx.field(static=True)
    std: float = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        pieces: int = 4096,
        longest: int = 16,
        std: float = 0.02,
        spelling: Int32[Array | np.ndarray, "v p"] | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:** `vocab_size`; `d_model`; `pieces`, `longest`, `std`: see `ComposedConfig`; `spelling`, the
        pieces of every id, -1 after the last (None: the ids' digits in base `pieces`); `key`."""
        check_sizes(vocab_size=vocab_size, d_model=d_model, longest=longest)
        whole("pieces", pieces, least=2)
        check_scale(std=std)
        self.rows = normal(key, "rows", (pieces, d_model), std)
        self.spelling = check_spelling(spelling, vocab_size, pieces=pieces, longest=longest)
        self.vocab_size = int(vocab_size)
        self.d_model = int(d_model)
        self.pieces = int(pieces)
        self.longest = int(longest)
        self.std = std

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        ids = check_ids(ids)
        spelled, dtype = jnp.asarray(self.spelling).at[ids].get(mode="clip"), inner_dtype(self.rows)
        here = spelled >= 0
        total = jnp.where(here[..., None], self.rows[jnp.maximum(spelled, 0)].astype(dtype), 0).sum(axis=-2)
        mean = total / jnp.maximum(here.sum(axis=-1, keepdims=True), 1).astype(dtype)
        return known_or_nan(ids, self.vocab_size, mean.astype(self.rows.dtype))
