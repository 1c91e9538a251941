"""An embedding composed of pieces: the mean of the rows of a token's pieces in a smaller vocabulary."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import check_choices, check_whole, configured, real
from ..pytree import Fixed
from .embedding import ConfiguredEmbedding, EmbeddingDefaults, check_ids, known_or_nan
from .init import normal
from .ops import inner_dtype
from .spelling import SpellingKind, check_spelling


@dataclass(frozen=True)
class ComposedConfig(EmbeddingDefaults):
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
        check_choices(self)
        check_whole(self, "pieces", least=2)
        check_whole(self, "longest")
        real("std", self.std)

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """Pieces times D, whatever the vocabulary."""
        return self.pieces * d_model

    def buffer_bytes(self, vocab_size: int) -> int:
        """Four bytes for each piece of a token, up to `longest`."""
        return 4 * vocab_size * self.longest

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
        return ComposedEmbedding(vocab_size, d_model, self, spelling=spelling, key=key)


class ComposedEmbedding(ConfiguredEmbedding):
    """`rows[spelling[ids]].mean(axis=-2)`, over the pieces that there are: tokens that share a piece share its row.

    Two tokens of the same pieces in another order are one; a token without pieces is the zero vector.
    """

    rows: Float[Array, "{self.config.pieces} {self.d_model}"]
    spelling: Fixed | Int32[Array, "{self.vocab_size} {self.config.longest}"]
    config: ComposedConfig = eqx.field(static=True)

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        config: ComposedConfig | None = None,
        *,
        spelling: Int32[Array | np.ndarray, "v p"] | None = None,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `vocab_size`; `d_model`; a `config`, or its other `fields` as keywords; `spelling`, the pieces
        of every id, -1 after the last (None: the ids' digits in base `pieces`); `key`.

        **Raises:** `UserError` for a value out of its range, and for what is no spelling.
        """
        super().__init__(vocab_size, d_model, configured(ComposedConfig, config, fields))
        pieces, longest = self.config.pieces, self.config.longest
        self.rows = normal(key, "rows", (pieces, d_model), self.config.std)
        self.spelling = check_spelling(spelling, vocab_size, pieces=pieces, longest=longest)

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        ids = check_ids(ids)
        spelled, dtype = jnp.asarray(self.spelling).at[ids].get(mode="clip"), inner_dtype(self.rows)
        here = spelled >= 0
        total = jnp.where(here[..., None], self.rows[jnp.maximum(spelled, 0)].astype(dtype), 0).sum(axis=-2)
        mean = total / jnp.maximum(here.sum(axis=-1, keepdims=True), 1).astype(dtype)
        return known_or_nan(ids, self.vocab_size, mean.astype(self.rows.dtype))
