"""Token embeddings of a whole batch; a generator evaluates each distinct token once, in chunks of bounded memory."""

from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PyTree

from .embedding import TokenEmbedding
from .ops import inner_dtype

# Numbers in the largest array inside a chunk of a generator: 2 ** 20 are 4 MiB in float32, near a CPU's L2 cache.
CHUNK_NUMBERS = 2**20


class Distinct(NamedTuple):
    """The distinct tokens of a batch: `tokens.reshape(-1) == ids[inverse]`; `ids` beyond `number` are padding."""

    ids: Int32[Array, " n"]
    inverse: Int32[Array, " t"]
    number: Int32[Array, ""]


def distinct_tokens(tokens: Int[Array, "*t"], vocab_size: int) -> Distinct:
    """The distinct tokens of a batch in rising order, found on the device with static shapes (n is the most).

    By a mark for every id and a running count of the marks, O(t + vocab_size): a sort of the batch takes longer, unless
    the vocabulary is some fifty times its size. Ids outside the vocabulary count as its nearest.
    """
    flat = jnp.clip(tokens.reshape(-1).astype(jnp.int32), 0, vocab_size - 1)
    seen = jnp.zeros((vocab_size,), jnp.int32).at[flat].set(1, mode="promise_in_bounds")
    rank = jnp.cumsum(seen)
    inverse = rank.at[flat].get(mode="promise_in_bounds") - 1
    ids = jnp.zeros((min(flat.shape[0], vocab_size),), jnp.int32).at[inverse].set(flat, mode="promise_in_bounds")
    return Distinct(ids, inverse, rank[-1])


def embed_batch(
    embedding: TokenEmbedding, tokens: Int[Array, "*t"], *, distinct: Distinct | None = None
) -> Float[Array, "*t d"]:
    """Embeddings of `tokens` of any shape, equal to calling the embedding on each.

    For a generator (`embedding.distinct_pays`) the cost follows the number of distinct tokens, in the backward pass
    too, and the memory that of a chunk; one with a method `rows(ids, count)` is asked for its own fast form of that.
    This path is reverse mode only: call the module itself for forward mode.

    **Arguments:**

    - `embedding`: any module that maps ids of shape `(t,)` to vectors.
    - `tokens`: ids, any shape.
    - `distinct`: the batch's distinct tokens where the caller has them already.

    **Returns:** an array of shape `tokens.shape + (d_model,)`.
    """
    flat = tokens.reshape(-1)
    if not getattr(embedding, "distinct_pays", False) or flat.shape[0] == 0:
        return embedding(flat).reshape(*tokens.shape, -1)
    if distinct is None:
        distinct = distinct_tokens(flat, embedding.vocab_size)
    fast = getattr(embedding, "rows", None)
    compute: Any = fast if callable(fast) else partial(_rows, embedding)
    rows = compute(distinct.ids, distinct.number)
    return rows[distinct.inverse].reshape(*tokens.shape, -1)


def _chunk_size(embedding: TokenEmbedding, n: int) -> int:
    """Tokens a chunk: a power of two, as many as the memory bound allows and the batch needs."""
    allowed = max(8, CHUNK_NUMBERS // embedding.d_model)
    return min(1 << (allowed.bit_length() - 1), 1 << max(n - 1, 1).bit_length())


def _padded(ids: Int32[Array, " n"], chunk: int) -> Int32[Array, " m"]:
    return jnp.pad(ids, (0, -ids.shape[0] % chunk))


@eqx.filter_custom_vjp
def _rows(embedding: TokenEmbedding, ids: Int32[Array, " n"], count: Int32[Array, ""]) -> Float[Array, "n d"]:
    """`embedding(ids)`, of which only the first `count` rows are computed (the rest are zero)."""
    chunk = _chunk_size(embedding, ids.shape[0])
    padded = _padded(ids, chunk)

    def body(i: Array, rows: Array) -> Array:
        part = embedding(jax.lax.dynamic_slice_in_dim(padded, i * chunk, chunk))
        return jax.lax.dynamic_update_slice_in_dim(rows, part, i * chunk, 0)

    like = jax.eval_shape(embedding, padded[:1])
    empty = jnp.zeros((padded.shape[0], like.shape[1]), like.dtype)
    return jax.lax.fori_loop(0, _chunks(count, chunk), body, empty)[: ids.shape[0]]


def _chunks(count: Int32[Array, ""], chunk: int) -> Int32[Array, ""]:
    return (count + chunk - 1) // chunk


@_rows.def_fwd
def _rows_forward(
    perturbed: PyTree, embedding: TokenEmbedding, ids: Int32[Array, " n"], count: Int32[Array, ""]
) -> tuple[Float[Array, "n d"], None]:
    return _rows(embedding, ids, count), None


@_rows.def_bwd
def _rows_backward(
    residuals: None,
    grad_rows: Float[Array, "n d"],
    perturbed: PyTree,
    embedding: TokenEmbedding,
    ids: Int32[Array, " n"],
    count: Int32[Array, ""],
) -> PyTree:
    """Evaluates the generator again, chunk by chunk, and adds up the gradients of its parameters."""
    chunk = _chunk_size(embedding, ids.shape[0])
    padded = _padded(ids, chunk)
    grad_rows = jnp.pad(grad_rows, ((0, padded.shape[0] - ids.shape[0]), (0, 0)))
    params, static = eqx.partition(embedding, eqx.is_inexact_array)

    def body(i: Array, total: PyTree) -> PyTree:
        part = jax.lax.dynamic_slice_in_dim(padded, i * chunk, chunk)
        grad = jax.lax.dynamic_slice_in_dim(grad_rows, i * chunk, chunk)
        _, pull = jax.vjp(lambda p: eqx.combine(p, static)(part), params)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, pull(grad)[0])

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, inner_dtype(p)), params)
    total = jax.lax.fori_loop(0, _chunks(count, chunk), body, zero)
    return jax.tree.map(lambda g, p: g.astype(p.dtype), total, params)
