"""Modules filled with NumPy's numbers instead of their own draws: nothing to compile, no parameter without effect."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def filled(make, *, seed=0, std=1.0, dtype=np.float32, order=None):
    """`make(key)` with all parameters from N(0, std^2): norms far from one, biases far from zero, signs mixed.

    Float64 needs `jax.enable_x64`. Buffers are filled too: orders of ids run backwards unless one is given here, and
    spellings are made of the pieces 0 and 1, and of none.
    """
    rng = np.random.default_rng(seed)

    def fill(shape):
        if is_parameter(shape):
            return jnp.asarray((std * rng.normal(size=shape.shape)).astype(dtype))
        if not isinstance(shape, jax.ShapeDtypeStruct):
            return shape
        return (
            jnp.arange(shape.size)[::-1] if shape.ndim == 1 else jnp.asarray(rng.integers(-1, 2, shape.shape), "int32")
        )

    module = jax.tree.map(fill, eqx.filter_eval_shape(make, jax.random.key(0)))
    if order is None:
        return module
    return eqx.tree_at(lambda e: e.order, module, jnp.asarray(order), is_leaf=lambda x: x is None)


def is_parameter(leaf):
    """Whether a leaf of `eqx.filter_eval_shape` is one that is trained."""
    return isinstance(leaf, jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def as_numpy(tree):
    """The tree's arrays as NumPy's: comparing those compiles nothing."""
    return jax.tree.map(np.asarray, eqx.filter(tree, eqx.is_array))
