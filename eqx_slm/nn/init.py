"""Initial values that depend on the seed and on the leaf's path, and on nothing else."""

import zlib

import jax.random as jr
from jaxtyping import Array, Float, Key, PRNGKeyArray, UInt32


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
