"""Hashed bigrams: a row for the token and the one before it, added to any embedding."""

from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, UInt32

from ..checks import check_sizes, check_whole_or_none, real, whole
from .init import normal


@dataclass(frozen=True)
class BigramConfig:
    """`rows` rows, shared by all pairs of tokens of the same hash; 0 is none at all.

    `rank`: the rows' width, with one map of all rows to d_model; None gives them that width. `std` of the result's
    entries at the start; at 0 a model starts as it would without.
    """

    rows: int = 0
    rank: int | None = None
    std: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "rows", whole("rows", self.rows, least=0))
        check_whole_or_none(self, "rank")
        real("std", self.std)

    def parameters(self, d_model: int) -> int:
        """R D, or R r + r D."""
        return self.rows * self._width(d_model) + (self.rank * d_model if self.rows and self.rank else 0)

    def flops(self, d_model: int) -> int:
        """2 r D for the map; a lookup has none."""
        return 2 * self.rank * d_model if self.rows and self.rank else 0

    def activations(self, d_model: int) -> int:
        """The row, and the result where that is another."""
        return (self._width(d_model) + (d_model if self.rank else 0)) if self.rows else 0

    def build(self, d_model: int, *, key: PRNGKeyArray) -> "HashedBigrams | None":
        """The module, or None."""
        return HashedBigrams(d_model, rows=self.rows, rank=self.rank, std=self.std, key=key) if self.rows else None

    def _width(self, d_model: int) -> int:
        return d_model if self.rank is None else self.rank


class HashedBigrams(eqx.Module):
    """`rows[hash(previous, id) mod R]`, times a map where they are narrower than the model; zero for a first token.

    Pairs that share a row are told apart by nothing. From hash embeddings of n-grams (as in over-encoding, arXiv
    2501.16975).
    """

    rows: Float[Array, "_ _"]
    columns: Float[Array, "_ {self.d_model}"] | None
    d_model: int = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, d_model: int, *, rows: int, rank: int | None = None, std: float = 0.0, key: PRNGKeyArray):
        """**Arguments:** `d_model`; `rows`, at least 1; `rank`, `std`: see `BigramConfig`; `key`."""
        check_sizes(d_model=d_model, rows=rows, **({} if rank is None else {"rank": rank}))
        real("std", std)
        self.rows = normal(key, "rows", (rows, d_model if rank is None else rank), std)
        self.columns = None if rank is None else normal(key, "columns", (rank, d_model), rank**-0.5)
        self.d_model = int(d_model)

    def __call__(self, previous: Int[Array, "*t"], ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        """What is added to the embeddings of `ids`; `previous` is the id before each, negative where there is none."""
        rows = self.rows[pair_hash(previous, ids) % jnp.uint32(self.rows.shape[0])]
        rows = jnp.where((previous >= 0)[..., None], rows, jnp.zeros_like(rows))
        return rows if self.columns is None else rows @ self.columns


def pair_hash(previous: Int[Array, "*t"], ids: Int[Array, "*t"]) -> UInt32[Array, "*t"]:
    """32 mixed bits of an ordered pair: two odd multipliers, then the finalizer of MurmurHash3 (a bijection)."""
    h: Any = previous.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + ids.astype(jnp.uint32) * jnp.uint32(0x85EBCA77)
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def before_each(ids: Int[Array, "*b t"], previous: Int32[Array, ""] | None = None) -> Int32[Array, "*b t"]:
    """The id before each of a sequence's; before the first stands `previous` (None: -1, no token)."""
    ids = ids.astype(jnp.int32)
    first = jnp.full_like(ids[..., :1], -1) if previous is None else jnp.broadcast_to(previous, ids[..., :1].shape)
    return jnp.concatenate([first, ids[..., :-1]], axis=-1)
