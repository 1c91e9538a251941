"""Initial values that depend on the seed and on the leaf's path, and on nothing else."""

import zlib

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Key, PRNGKeyArray, PyTree, UInt32


def subkey(key: PRNGKeyArray | Key[Array, ""] | UInt32[Array, "2"], name: str | int) -> PRNGKeyArray:
    """The key of the child `name`: `fold_in(key, crc32(name))`.

    Folding a path in name by name ("blocks", "3", "mixer", "w_q") gives every leaf a key that depends on the seed and
    on its own path alone. So a leaf with the same path and shape starts equal in every arm of a matched pair, whatever
    else the arms change; splitting keys in order of construction would not do that.
    """
    return jr.fold_in(key, zlib.crc32(str(name).encode()))


def normal(key: PRNGKeyArray, name: str, shape: tuple[int, ...], std: float) -> Float[Array, "..."]:
    """A leaf drawn from N(0, std^2) under the key of its own name. The scale is applied after the draw."""
    return std * jr.normal(subkey(key, name), shape)


def varying_like(tree: PyTree[Array], like: Array) -> PyTree[Array]:
    """The same arrays, varying over the mesh axes that `like` varies over; outside of `shard_map` nothing changes.

    A loop's carry and the cotangents of a custom gradient must agree in this with what they are added to; the
    transpose of becoming varying is the sum over the axes.
    """
    if not getattr(jax.typeof(like), "vma", True):  # no mesh: an addition of zero would be one more kernel a leaf
        return tree
    return jax.tree.map(lambda x: x + jnp.zeros_like(like, shape=(), dtype=x.dtype), tree)


def inner_dtype(*arrays: Array) -> jnp.dtype:
    """The precision for sums, norms and products inside a module: at least float32, and float64 where given float64."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
