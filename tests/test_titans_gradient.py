"""The gradient of Titans' chunks is JAX's own: forward and reverse mode agree, and no chunk's activations are kept."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from filled import filled

from eqx_slm import TitansConfig

D = 8
FAST = dict(compiler_options={"xla_backend_optimization_level": 0})


def test_forward_mode_agrees_with_reverse_mode():
    config = TitansConfig(n_heads=2, chunk=3)
    with jax.enable_x64(True):
        mixer = filled(lambda key: config.build(D, key=key), std=0.5, dtype=np.float64)
        rng = np.random.default_rng(0)
        x, dx, pull = (jnp.asarray(rng.normal(size=(7, D))) for _ in range(3))
        params, static = eqx.partition(mixer, eqx.is_inexact_array)

        @functools.partial(jax.jit, **FAST)
        def both(params, x, dx, pull):
            def run(x):
                return eqx.combine(params, static)(x)

            return (jax.jvp(run, (x,), (dx,))[1] * pull).sum(), (jax.vjp(run, x)[1](pull)[0] * dx).sum()

        forward, reverse = both(params, x, dx, pull)
    assert abs(float(forward)) > 1e-3
    np.testing.assert_allclose(forward, reverse, rtol=1e-8)


def test_the_backward_pass_keeps_no_more_than_the_memories_between_chunks():
    """A chunk more costs two memories and its rows, not its activations (which are three times that)."""

    def temporary(chunks, size=64, width=32):
        config = TitansConfig(n_heads=1, chunk=size, remat="none")
        mixer = eqx.filter_eval_shape(lambda key: config.build(width, key=key), jax.random.key(0))
        params, static = eqx.partition(mixer, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

        def loss(params, x):
            return eqx.combine(params, static)(x).sum()

        x = jax.ShapeDtypeStruct((chunks * size, width), jnp.float32)
        return jax.jit(jax.grad(loss), **FAST).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    a_chunk = (temporary(24) - temporary(12)) / 12 / 4
    memories, coefficients, rows = 2 * 2 * 32 * 128, 3 * 64 * 64, 64 * 32
    assert a_chunk < memories + 2 * coefficients + 20 * rows
