"""Softmax attention of given queries, keys and values: causal, within a window, after a prefix, from a cache."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from .ops import inner_dtype


class Prefix(NamedTuple):
    """Keys and values that every query sees, before the first token and whatever the window."""

    k: Float[Array, "u g h"]
    v: Float[Array, "u g h"]


class AttentionState(NamedTuple):
    """The last tokens' keys (turned by their positions) and values: token i is in row `i % size`. Heads lead, as the
    matmuls of a step want them: otherwise it would turn the whole cache around for every token."""

    k: Float[Array, "g size h"]
    v: Float[Array, "g size h"]
    length: Int32[Array, ""]


def causal_attention(
    q: Float[Array, "t n h"],
    k: Float[Array, "t g h"],
    v: Float[Array, "t g h"],
    window: int | None = None,
    prefix: Prefix | None = None,
) -> Float[Array, "t n h"]:
    """Scaled dot-product attention in which a token sees itself and what came before; n is a multiple of g.

    With a `window` it sees that many tokens, itself included; long sequences then go block by block, in linear time.
    """
    t = q.shape[0]
    if window is not None and 2 * window < t:
        return _banded_attention(q, k, v, window, prefix)
    causal = jnp.tril(jnp.ones((t, t), bool))
    return masked_attention(q, k, v, causal if window is None or window >= t else jnp.triu(causal, 1 - window), prefix)


def _banded_attention(q: Array, k: Array, v: Array, window: int, prefix: Prefix | None) -> Array:
    """Blocks of `window` queries, each over its own keys and those of the block before."""
    (t, n, h), g = q.shape, k.shape[1]
    blocks = -(-t // window)
    # Rows of zeros fill the last block: no earlier token sees them.
    q, k, v = (jnp.pad(a, ((0, blocks * window - t), (0, 0), (0, 0))) for a in (q, k, v))
    # A window of w tokens that ends in a block begins in the block before: 2 w keys a block, never t.
    k_2w, v_2w = (
        jnp.concatenate([jnp.pad(a, ((1, 0), (0, 0), (0, 0), (0, 0)))[:-1], a], axis=1)
        for a in (k.reshape(blocks, window, g, h), v.reshape(blocks, window, g, h))
    )
    query, key = jnp.arange(window)[None, :, None], jnp.arange(-window, window)[None, None, :]
    seen = (key <= query) & (key > query - window)
    seen = seen & ((key >= 0) | (jnp.arange(blocks) > 0)[:, None, None])  # nothing is before the first block
    attend = jax.vmap(masked_attention, in_axes=(0, 0, 0, 0, None))
    return attend(q.reshape(blocks, window, n, h), k_2w, v_2w, seen, prefix).reshape(-1, n, h)[:t]


def masked_attention(
    q: Float[Array, "t n h"],
    k: Float[Array, "u g h"],
    v: Float[Array, "u g h"],
    mask: Bool[Array, "t u"],
    prefix: Prefix | None = None,
) -> Float[Array, "t n h"]:
    """Scaled dot-product attention in which token t sees token s where `mask[t, s]`; every row sees one at least."""
    if q.shape[0] == 0:
        return jnp.zeros(q.shape, v.dtype)
    if prefix is not None:
        k, v = jnp.concatenate([prefix.k, k]), jnp.concatenate([prefix.v, v])
        mask = jnp.concatenate([jnp.ones((mask.shape[0], prefix.k.shape[0]), bool), mask], axis=1)
    (t, n, h), (u, g, _) = q.shape, k.shape
    wide = inner_dtype(q)
    # Heads lead, so that every matmul is a plain batched one; the queries of a group of heads share one key head, and
    # are rows of one matmul. The scale goes to the queries, which are fewer than the scores.
    q_gxh = (q * (1 / math.sqrt(h))).reshape(t, g, n // g, h).transpose(1, 2, 0, 3).reshape(g, -1, h)
    scores = jnp.einsum("gxh,guh->gxu", q_gxh, k.transpose(1, 0, 2), preferred_element_type=wide)
    scores = scores.reshape(g, n // g, t, u)
    # The lowest finite number and not -inf, whose difference with itself would be NaN.
    scores = jnp.where(mask[None, None], scores, jnp.finfo(wide).min)
    # Any constant may be taken from a row of scores: the maximum keeps exp in range, and needs no gradient.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    # The softmax's division comes after the values are mixed: it is then over h numbers a row instead of u.
    weights_gxu = weights.reshape(g, -1, u).astype(v.dtype)
    mixed = jnp.einsum("gxu,guh->gxh", weights_gxu, v.transpose(1, 0, 2), preferred_element_type=wide)
    mixed = (mixed / weights.sum(axis=-1).reshape(g, -1, 1)).astype(v.dtype)
    return mixed.reshape(n, t, h).transpose(1, 0, 2)


def extended(
    q: Float[Array, "t n h"],
    k: Float[Array, "t g h"],
    v: Float[Array, "t g h"],
    cache: AttentionState,
    window: int | None = None,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "t n h"], AttentionState]:
    """What t more tokens mix of each other and of what is cached, and the cache after them: the oldest leave it."""
    t, size, before = q.shape[0], cache.k.shape[1], cache.length
    # The cache is a ring: a row's token is told from how many have been, so that no position is stored.
    new_t = before + jnp.arange(t, dtype=jnp.int32)
    position = jnp.concatenate([cached_positions(before, size), new_t])[None]
    seen = (position <= new_t[:, None]) & (position >= 0)
    if window is not None:
        seen = seen & (position > new_t[:, None] - window)
    k_all, v_all = (
        jnp.concatenate([old.swapaxes(0, 1).astype(new.dtype), new]) for old, new in ((cache.k, k), (cache.v, v))
    )
    mixed = masked_attention(q, k_all, v_all, seen, prefix)
    # Each row holds the latest of its tokens: one of these, or still the one it held.
    latest = cached_positions(before + t, size)
    rows = jnp.where(latest >= before, size + latest - before, jnp.arange(size, dtype=jnp.int32))
    k, v = (jnp.take(every, rows, axis=0).astype(cache.k.dtype).swapaxes(0, 1) for every in (k_all, v_all))
    return mixed, AttentionState(k, v, before + t)


def appended(
    q: Float[Array, "1 n h"],
    k: Float[Array, "1 g h"],
    v: Float[Array, "1 g h"],
    cache: AttentionState,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "1 n h"], AttentionState]:
    """What one more token mixes of what the cache then holds, and the cache, of which it takes the oldest row."""
    size, before = cache.k.shape[1], cache.length
    k, v = (
        jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(0, 1).astype(old.dtype), before % size, axis=1)
        for old, new in ((cache.k, k), (cache.v, v))
    )
    held = cached_positions(before + 1, size) >= 0
    k_all, v_all = (every.swapaxes(0, 1).astype(q.dtype) for every in (k, v))
    mixed = masked_attention(q, k_all, v_all, held[None], prefix)
    return mixed, AttentionState(k, v, before + 1)


def cached_positions(length: Int[Array, ""], size: int) -> Int[Array, "{size}"]:
    """The position of the token in every row of a cache after `length` tokens, negative where there is none yet."""
    last = length - 1
    return last - (last - jnp.arange(size, dtype=jnp.int32)) % size
