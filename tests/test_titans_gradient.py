"""The gradient of Titans' chunks is JAX's own: forward and reverse mode agree, and no chunk's activations are kept."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from filled import filled, is_parameter

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


def test_the_backward_pass_keeps_memories_and_no_activations(monkeypatch):
    """Temporary bytes of a gradient, against those of the same loop without rematerialisation."""
    config = TitansConfig(n_heads=1, chunk=32)
    mixer = eqx.filter_eval_shape(lambda key: config.build(16, key=key), jax.random.key(0))
    params, static = eqx.partition(mixer, is_parameter)
    x = jax.ShapeDtypeStruct((8 * 32, 16), jnp.float32)

    def temporary():
        def loss(params, x):
            return eqx.combine(params, static)(x).sum()

        return jax.jit(jax.grad(loss), **FAST).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    kept = temporary()
    monkeypatch.setattr(jax, "checkpoint", lambda f, **_: f)
    assert kept < 0.8 * temporary()
