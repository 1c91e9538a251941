"""A sum of terms over many rows, a chunk of rows at a time: only the chunks that are wanted, in bounded memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PyTree, Shaped

from .ops import inner_dtype, varying_like

# Numbers in the largest array inside a chunk. On a CPU 2 ** 19 are 2 MiB in float32, the size of a second-level cache;
# an accelerator wants large matmuls.
CHUNK_NUMBERS = {"cpu": 2**19}
CHUNK_NUMBERS_ACCELERATOR = 2**26


def chunk_size(rows: int, numbers: int) -> int:
    """Rows a chunk, where each makes `numbers` numbers: what the bound allows, but about eight chunks at least, so that
    little of the last one is waste.

    An odd multiple of 16: whole vectors, and rows of arrays that do not all fall into the same lines of a cache.
    """
    bound = CHUNK_NUMBERS.get(jax.default_backend(), CHUNK_NUMBERS_ACCELERATOR)
    return 32 * (min(bound // numbers, rows // 8) // 32) + 16


def chunked_sum(
    function: Callable[[Any, Array], Float[Array, "t d"]],
    terms: PyTree[Shaped[Array, "h ..."]],
    rows: Shaped[Array, "n ..."],
    count: Int32[Array, ""] | int,
    *,
    chunk: int,
) -> Float[Array, "n d"]:
    r"""$\sum_l f(\theta_l, x_i)$ for the first `count` rows $x_i$; what stands in the rows beyond means nothing.

    The loop over chunks ends where `count` does, a number that only the data tells (how many distinct tokens a batch
    has): JAX does not differentiate such a loop in reverse, so the gradient is a second loop written here, which
    evaluates `function` again, chunk by chunk. Nothing is kept but the arguments. Reverse mode only.

    **Arguments:**

    - `function`: maps the parameters of a term and a chunk of rows to the chunk's results.
    - `terms`: what its first argument is made of, terms first. They run one after the other, so that on a CPU all that
      one of them makes of a chunk fits into the cache, and its gradient is added up in place.
    - `rows`: one row a result: numbers, which get a gradient, or ids, which do not.
    - `count`: how many rows are wanted.
    - `chunk`: rows at a time.
    """
    terms = varying_like(terms, rows)
    if rows.shape[0] <= chunk:  # no loop over chunks, and what JAX keeps for the gradient is one chunk's
        return jax.lax.scan(
            lambda total, term: (total + function(term, rows), None), _start(function, terms, rows, chunk), terms
        )[0]
    padded = jnp.pad(rows, ((0, -rows.shape[0] % chunk), *((0, 0),) * (rows.ndim - 1)))
    total: Array = _sum(function, chunk, terms, padded, jnp.asarray(count, jnp.int32))
    return total[: rows.shape[0]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum(function: Any, chunk: int, terms: Any, rows: Array, count: Int32[Array, ""]) -> Float[Array, "n d"]:
    def add_term(total: Array, term: Any) -> tuple[Array, None]:
        def body(i: Array, total: Array) -> Array:
            return _add(total, function(term, _slice(rows, i, chunk)), i, chunk)

        return jax.lax.fori_loop(0, _chunks(count, chunk), body, total), None

    return jax.lax.scan(add_term, _start(function, terms, rows, chunk), terms)[0]


def _start(function: Any, terms: Any, rows: Array, chunk: int) -> Float[Array, "n d"]:
    """Zeros of the results' shape; under `shard_map` a loop must start from what varies over the mesh as they do."""
    like = jax.eval_shape(function, jax.tree.map(lambda x: x[0], terms), rows[:chunk])
    return varying_like(jnp.zeros((rows.shape[0], *like.shape[1:]), like.dtype), rows)


def _forward(function: Any, chunk: int, terms: Any, rows: Array, count: Array) -> tuple[Array, Any]:
    return _sum(function, chunk, terms, rows, count), (terms, rows, count)


def _backward(function: Any, chunk: int, residuals: Any, grad_total: Float[Array, "n d"]) -> tuple[Any, Any, None]:
    terms, rows, count = residuals
    has_gradient = eqx.is_inexact_array(rows)

    def zeros(x: Array) -> Array:
        return varying_like(jnp.zeros(x.shape, inner_dtype(x)), rows)

    def add_term(grad_rows: Array | None, term: Any) -> tuple[Array | None, Any]:
        params, rest = eqx.partition(term, eqx.is_inexact_array)

        def body(i: Array, carry: tuple[Array | None, Any]) -> tuple[Array | None, Any]:
            part, grad = _slice(rows, i, chunk), _slice(grad_total, i, chunk)
            if has_gradient:
                _, pull = jax.vjp(lambda p, x: function(eqx.combine(p, rest), x), params, part)
                grad_params, grad_part = pull(grad)
                grad_rows = _add(carry[0], grad_part, i, chunk)
            else:
                _, pull = jax.vjp(lambda p: function(eqx.combine(p, rest), part), params)
                (grad_params,), grad_rows = pull(grad), None
            return grad_rows, jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry[1], grad_params)

        return jax.lax.fori_loop(0, _chunks(count, chunk), body, (grad_rows, jax.tree.map(zeros, params)))

    grad_rows, grad_terms = jax.lax.scan(add_term, zeros(rows) if has_gradient else None, terms)
    params = eqx.filter(terms, eqx.is_inexact_array)
    grad_terms = jax.tree.map(lambda g, x: g.astype(x.dtype), grad_terms, params)
    return grad_terms, None if grad_rows is None else grad_rows.astype(rows.dtype), None


_sum.defvjp(_forward, _backward)


def _chunks(count: Int32[Array, ""], chunk: int) -> Int32[Array, ""]:
    return (count + chunk - 1) // chunk


def _slice(x: Array, i: Int32[Array, ""], chunk: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk)


def _add(x: Any, part: Array, i: Int32[Array, ""], chunk: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, _slice(x, i, chunk) + part.astype(x.dtype), i * chunk, 0)
