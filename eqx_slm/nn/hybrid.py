"""Rows of their own for the most frequent tokens, a generator for the tail."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from ..checks import check_choices, check_whole, configured, real
from ..errors import UserError
from ..pytree import Fixed
from .embedding import ConfiguredEmbedding, EmbeddingDefaults, OrderKind, check_order, known_or_nan, position_of
from .init import normal
from .leviathan import LeviathanConfig, LeviathanEmbedding


@dataclass(frozen=True)
class HybridConfig(EmbeddingDefaults):
    """A table of `rows` rows and a `generator` for all other tokens; `std` of the rows' initial values.

    `ranking` says who gets the rows: the most frequent tokens of the training split ("frequency"), or the lowest ids
    ("tokenizer"). The generator's coordinate order is its own. With as many rows as tokens there is no generator.
    """

    kind: Literal["hybrid"] = "hybrid"
    rows: int = 1024
    ranking: Literal["frequency", "tokenizer"] = "frequency"
    generator: LeviathanConfig = LeviathanConfig()
    std: float = 0.02
    tieable: ClassVar[bool] = False

    def __post_init__(self):
        check_choices(self)
        check_whole(self, "rows", least=0)
        real("std", self.std)

    @property
    def order(self) -> OrderKind:
        """The generator's."""
        return self.generator.order

    @property
    def coordinates(self) -> int:
        """The generator's."""
        return self.generator.coordinates

    def check(self, vocab_size: int, d_model: int) -> None:
        """**Raises:** `UserError` for rows that no token would use."""
        if self.rows > vocab_size:
            raise UserError(f"rows={self.rows}: there are only {vocab_size} tokens; take at most {vocab_size} rows")

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """K D and the generator's."""
        return self.rows * d_model + (self.generator.parameters(vocab_size, d_model) if self.rows < vocab_size else 0)

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """K D: the rows that belong to one token each."""
        return self.rows * d_model

    def buffer_bytes(self, vocab_size: int) -> int:
        """Four bytes a token for the ranking, and the generator's."""
        ranking = 0 if self.ranking == "tokenizer" else 4 * vocab_size
        return ranking + (self.generator.buffer_bytes(vocab_size) if self.rows < vocab_size else 0)

    def flops(self, vocab_size: int, d_model: int) -> int:
        """The generator's, as if every token were of the tail: how many are, only a text tells. An upper bound."""
        return self.generator.flops(vocab_size, d_model) if self.rows < vocab_size else 0

    def build(
        self,
        vocab_size: int,
        d_model: int,
        *,
        order: Int32[Array | np.ndarray, " v"] | None = None,
        ranking: Int32[Array | np.ndarray, " v"] | None = None,
        key: PRNGKeyArray,
    ) -> "HybridEmbedding":
        """The module."""
        return HybridEmbedding(vocab_size, d_model, self, order=order, ranking=ranking, key=key)


class HybridEmbedding(ConfiguredEmbedding):
    """`rows[ranking[i]]` for the first tokens of the ranking, `generator(i)` for the others.

    A batch evaluates the generator for its distinct tokens of the tail alone. Calling the module evaluates it for all.
    """

    rows: Float[Array, "k {self.d_model}"]
    generator: LeviathanEmbedding | None
    ranking: Fixed | Int32[Array, "{self.vocab_size}"] | None
    config: HybridConfig = eqx.field(static=True)
    distinct_pays: ClassVar[bool] = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        config: HybridConfig | None = None,
        *,
        order: Int32[Array | np.ndarray, " v"] | None = None,
        ranking: Int32[Array | np.ndarray, " v"] | None = None,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `vocab_size`; `d_model`; a `config`, or its other `fields` as keywords; `order` of the
        generator; `ranking`, a permutation of the ids, 0 for the first to get a row (None: the ids themselves); `key`.

        **Raises:** `UserError` for a value out of its range, more rows than tokens, and what is no permutation.
        """
        config = configured(HybridConfig, config, fields)
        super().__init__(vocab_size, d_model, config)
        self.rows = normal(key, "rows", (config.rows, d_model), config.std)
        tail = config.rows < vocab_size
        # Under the embedding's own key: its leaves start as those of an arm that has the generator alone.
        self.generator = config.generator.build(vocab_size, d_model, order=order, key=key) if tail else None
        self.ranking = check_order(ranking, vocab_size)

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        has_row, rows = self._rows(ids)
        return rows if self.generator is None else jnp.where(has_row[..., None], rows, self.generator(ids))

    def first_rows(self, ids: Int[Array, " n"], count: Int32[Array, ""] | int) -> Float[Array, "n {self.d_model}"]:
        """As everywhere; the generator is evaluated for those of the tail alone."""
        has_row, rows = self._rows(ids)
        if self.generator is None:
            return rows
        tail = ~has_row & (jnp.arange(ids.shape[0], dtype=jnp.int32) < count)
        at = jnp.argsort(~tail, stable=True)  # the tail's first: the generator makes as many rows as they are
        made = self.generator.first_rows(ids[at], tail.sum(dtype=jnp.int32))
        return jnp.where(has_row[:, None], rows, jnp.zeros_like(made).at[at].set(made, unique_indices=True))

    def _rows(self, ids: Int[Array, "*t"]) -> tuple[Bool[Array, "*t"], Float[Array, "*t {self.d_model}"]]:
        """Whether each token has a row, and the rows; NaN for what is no token."""
        if self.rows.shape[0] == 0:
            ids = position_of(ids, None)  # checks them
            return jnp.zeros(ids.shape, bool), jnp.zeros((*ids.shape, self.d_model), self.rows.dtype)
        ids = position_of(ids, None)
        rank = position_of(ids, self.ranking)
        rows = self.rows.at[rank].get(mode="clip")
        return rank < self.rows.shape[0], known_or_nan(ids, self.vocab_size, rows)
