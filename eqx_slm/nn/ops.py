"""Small operations on arrays that several modules share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree


def inner_dtype(*arrays: Array | DTypeLike) -> jnp.dtype:
    """The precision for sums, norms and products inside a module: at least float32, and float64 where given float64."""
    with jax.numpy_dtype_promotion("standard"):  # also where conversions have to be written out
        return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def standardize(x: Float[Array, "*t d"], eps: float) -> Float[Array, "*t d"]:
    """Zero mean and unit variance over the last axis: LayerNorm without its two vectors."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)


def unit_length(x: Float[Array, "*t h"], eps: float) -> Float[Array, "*t h"]:
    """Vectors over the last axis divided by their length."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + eps)


def with_axes(x: Any, ndim: int) -> Any:
    """The same array with axes of one before its own, `ndim` in all: ranks are not promoted silently here."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def sum_of_outer_products(
    x: Float[Array, "t i"], y: Float[Array, "t o"], *, preferred_element_type: Any = None
) -> Float[Array, "i o"]:
    """sum_t x_ti y_to: the gradient of a matmul with respect to its matrix.

    On a CPU by a transposed copy of x, which is the one to be small: XLA is slower there at matmuls whose left side is
    contracted over its rows, and without the barrier would fold the transposition back into the matmul.
    """
    left = jax.lax.optimization_barrier(x.mT) if jax.default_backend() == "cpu" else x.mT
    return jnp.matmul(left, y, preferred_element_type=preferred_element_type)


def varying_like(tree: PyTree[Array], like: Array) -> PyTree[Array]:
    """The same arrays, varying over the mesh axes that `like` varies over; outside of `shard_map` nothing changes.

    A loop's carry and the cotangents of a custom gradient must agree in this with what they are added to; the
    transpose of becoming varying is the sum over the axes.
    """
    if not getattr(jax.typeof(like), "vma", True):  # no mesh: an addition of zero would be one more kernel a leaf
        return tree
    return jax.tree.map(lambda x: x + jnp.zeros_like(like, shape=(), dtype=x.dtype), tree)
