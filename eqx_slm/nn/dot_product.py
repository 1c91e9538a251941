"""Softmax attention of given queries, keys and values: causal, within a window, after a prefix, from a cache."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from .ops import inner_dtype


class Prefix(NamedTuple):
    """Keys and values that every query sees, before the first token and whatever the window."""

    k: Float[Array, "s kv p"]
    v: Float[Array, "s kv p"]


class AttentionState(NamedTuple):
    """The last tokens' keys (turned by their positions) and values: token i is in row `i % size`."""

    k: Float[Array, "size kv p"]
    v: Float[Array, "size kv p"]
    length: Int32[Array, ""]


def causal_attention(
    q: Float[Array, "t n p"],
    k: Float[Array, "t kv p"],
    v: Float[Array, "t kv p"],
    window: int | None = None,
    prefix: Prefix | None = None,
) -> Float[Array, "t n p"]:
    """Scaled dot-product attention in which a token sees itself and what came before; n is a multiple of kv.

    With a `window` it sees that many tokens, itself included; long sequences then go block by block, in linear time.
    """
    t = q.shape[0]
    if window is not None and 2 * window < t:
        return _banded_attention(q, k, v, window, prefix)
    causal = jnp.tril(jnp.ones((t, t), bool))
    return masked_attention(q, k, v, causal if window is None or window >= t else jnp.triu(causal, 1 - window), prefix)


def _banded_attention(q: Array, k: Array, v: Array, window: int, prefix: Prefix | None) -> Array:
    """Blocks of `window` queries, each over its own keys and those of the block before."""
    (t, n, p), kv = q.shape, k.shape[1]
    blocks = -(-t // window)
    q, k, v = (jnp.pad(a, ((0, blocks * window - t), (0, 0), (0, 0))) for a in (q, k, v))
    k_bskp, v_bskp = (
        jnp.concatenate([jnp.pad(a, ((1, 0), (0, 0), (0, 0), (0, 0)))[:-1], a], axis=1)
        for a in (k.reshape(blocks, window, kv, p), v.reshape(blocks, window, kv, p))
    )
    query, key = jnp.arange(window)[None, :, None], jnp.arange(-window, window)[None, None, :]
    seen_bts = (key <= query) & (key > query - window)
    seen_bts = seen_bts & ((key >= 0) | (jnp.arange(blocks) > 0)[:, None, None])  # nothing is before the first block
    attend = jax.vmap(masked_attention, in_axes=(0, 0, 0, 0, None))
    return attend(q.reshape(blocks, window, n, p), k_bskp, v_bskp, seen_bts, prefix).reshape(-1, n, p)[:t]


def masked_attention(
    q: Float[Array, "t n p"],
    k: Float[Array, "s kv p"],
    v: Float[Array, "s kv p"],
    mask: Bool[Array, "t s"],
    prefix: Prefix | None = None,
) -> Float[Array, "t n p"]:
    """Scaled dot-product attention in which token t sees token s where `mask[t, s]`; every row sees one at least."""
    if q.shape[0] == 0:
        return jnp.zeros(q.shape, v.dtype)
    if prefix is not None:
        k, v = jnp.concatenate([prefix.k, k]), jnp.concatenate([prefix.v, v])
        mask = jnp.concatenate([jnp.ones((mask.shape[0], prefix.k.shape[0]), bool), mask], axis=1)
    (t, n, p), (s, kv, _) = q.shape, k.shape
    wide = inner_dtype(q)
    # Heads lead, so that every matmul is a plain batched one; a group of query heads shares one.
    q_knp = (q * (1 / math.sqrt(p))).reshape(t, kv, n // kv, p).transpose(1, 2, 0, 3).reshape(kv, -1, p)
    scores = jnp.einsum("knp,ksp->kns", q_knp, k.transpose(1, 0, 2), preferred_element_type=wide)
    scores_kgts = scores.reshape(kv, n // kv, t, s)
    scores_kgts = jnp.where(mask[None, None], scores_kgts, jnp.finfo(wide).min)
    weights = jnp.exp(scores_kgts - jax.lax.stop_gradient(scores_kgts.max(axis=-1, keepdims=True)))
    # The softmax's division comes after the values are mixed: it is then over p numbers a row instead of t.
    flat = weights.reshape(kv, -1, s).astype(v.dtype)
    mixed = jnp.einsum("kns,ksp->knp", flat, v.transpose(1, 0, 2), preferred_element_type=wide)
    mixed = (mixed / weights.sum(axis=-1).reshape(kv, -1, 1)).astype(v.dtype)
    return mixed.reshape(n, t, p).transpose(1, 0, 2)


def extended(
    q: Float[Array, "t n p"],
    k: Float[Array, "t kv p"],
    v: Float[Array, "t kv p"],
    cache: AttentionState,
    window: int | None = None,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "t n p"], AttentionState]:
    """What t more tokens mix of each other and of what is cached, and the cache after them: the oldest leave it."""
    t, size, before = q.shape[0], cache.k.shape[0], cache.length
    new_t, old_s = before + jnp.arange(t), cached_positions(before, size)
    position = jnp.concatenate([old_s, new_t])[None]
    seen = (position <= new_t[:, None]) & (position >= 0)
    if window is not None:
        seen = seen & (position > new_t[:, None] - window)
    k_all, v_all = (jnp.concatenate([old.astype(new.dtype), new]) for old, new in ((cache.k, k), (cache.v, v)))
    mixed = masked_attention(q, k_all, v_all, seen, prefix)
    # Each row holds the latest of its tokens: one of these, or still the one it held.
    latest_s = cached_positions(before + t, size)
    rows_s = jnp.where(latest_s >= before, size + latest_s - before, jnp.arange(size))
    k, v = (jnp.take(every, rows_s, axis=0).astype(cache.k.dtype) for every in (k_all, v_all))
    return mixed, AttentionState(k, v, before + t)


def appended(
    q: Float[Array, "1 n p"],
    k: Float[Array, "1 kv p"],
    v: Float[Array, "1 kv p"],
    cache: AttentionState,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "1 n p"], AttentionState]:
    """What one more token mixes of what the cache then holds, and the cache, of which it takes the oldest row."""
    size, before = cache.k.shape[0], cache.length
    k, v = (
        jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), before % size, axis=0)
        for old, new in ((cache.k, k), (cache.v, v))
    )
    held = cached_positions(before + 1, size) >= 0
    mixed = masked_attention(q, k.astype(q.dtype), v.astype(q.dtype), held[None], prefix)
    return mixed, AttentionState(k, v, before + 1)


def cached_positions(length: Int[Array, ""], size: int) -> Int[Array, "{size}"]:
    """The position of the token in every row of a cache after `length` tokens, negative where there is none yet."""
    last = length - 1
    return last - (last - jnp.arange(size)) % size
