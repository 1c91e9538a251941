"""MAG and MAC: FLOPs and what is refused. What every mixer promises is held in test_mixers.py."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled, is_parameter
from refusals import refuses

from eqx_slm import ModelConfig
from eqx_slm.nn.dot_product import masked_attention
from eqx_slm.nn.titans import TitansConfig, TitansMACConfig, TitansMAGConfig
from eqx_slm.nn.titans.sizes import group_size

D, C, T = 8, 3, 8
MEMORY = TitansConfig(n_heads=2, chunk=C, persistent=2, memory_norm="none")
FAST = dict(compiler_options={"xla_backend_optimization_level": 0})  # half the time to compile
CONFIGS = {"mag": TitansMAGConfig(memory=MEMORY, window=3), "mac": TitansMACConfig(memory=MEMORY)}


def test_groups_of_segments_change_nothing():
    """Rematerialised groups (of 34 segments) against none, in the output and in every gradient."""
    assert 1 < group_size(34) < 34
    with jax.enable_x64(True):
        x, pull = (jnp.asarray(np.random.default_rng(seed).normal(size=(2 * 33 + 1, D))) for seed in (1, 2))

        def value_and_gradient(remat):
            config = TitansMACConfig(memory=dataclasses.replace(MEMORY, chunk=2, remat=remat))
            mixer = filled(lambda key: config.build(D, key=key), std=0.5, dtype=np.float64)
            params, static = eqx.partition(mixer, eqx.is_inexact_array)

            def loss(params):
                return (eqx.combine(params, static)(x) * pull).sum()

            return as_numpy(jax.jit(jax.value_and_grad(loss), **FAST)(params))

        grouped, plain = value_and_gradient("groups"), value_and_gradient("none")
    for a, b in zip(jax.tree.leaves(grouped), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max())


def test_blocks_of_a_window_are_the_mask_of_the_whole_sequence():
    """MAG's attention over a long sequence, ragged end included, in the output and in the gradient."""
    t, w = 2 * 3 + 2, 3
    with jax.enable_x64(True):
        mixer = filled(lambda key: CONFIGS["mag"].build(D, key=key), std=0.5, dtype=np.float64)
        x, pull = (jnp.asarray(np.random.default_rng(seed).normal(size=(t, D))) for seed in (1, 2))

        def masked(x):
            at = jnp.arange(t)
            mask = (at[None] <= at[:, None]) & (at[None] > at[:, None] - w)
            mixed = masked_attention(*mixer._projected(x, 0), mask, mixer._prefix(x))
            return mixer.attention.output(x, mixed)

        @jax.jit
        def both(x, pull):
            return [(y, pulled(pull)[0]) for y, pulled in (jax.vjp(f, x) for f in (mixer._windows, masked))]

        (blocks, blocks_gradient), (whole, whole_gradient) = both(x, pull)
        np.testing.assert_allclose(blocks, whole, rtol=0, atol=1e-12)
        np.testing.assert_allclose(blocks_gradient, whole_gradient, rtol=0, atol=1e-12)


def test_positions_count_from_the_first_persistent_token():
    """MAG's attention is plain attention over [P, x]; so is MAC's within a segment, where recall gives nothing."""
    config = TitansMAGConfig(memory=MEMORY, window=T + 2)
    mac_config = TitansMACConfig(memory=dataclasses.replace(MEMORY, chunk=T))
    with jax.enable_x64(True):
        mag, mac = (
            filled(lambda key, c=c: c.build(D, key=key), std=0.5, dtype=np.float64) for c in (config, mac_config)
        )
        mac = eqx.tree_at(lambda m: m.recall_norm.weight, mac, jnp.zeros(D))
        causal = np.tril(np.ones((T, T), bool))
        mask = jnp.asarray(np.concatenate([causal, np.ones((T, 2), bool), causal], axis=1))

        @eqx.filter_jit
        def forms(mag, mac, x):
            whole = mag.attention(jnp.concatenate([mag.memory.persistent, x]))[2:]
            q, k, v = mac.attention.project(jnp.concatenate([mac.persistent, x]), 0)
            k, v = (jnp.concatenate([jnp.zeros_like(a[2:]), a]) for a in (k, v))  # what was recalled, at any position
            y = mac.attention.output(x, masked_attention(q[2:], k, v, mask))
            return (mag._windows(x), whole), (mac(x), mac._gated(y, mac.memory(y)))

        for got, expected in forms(mag, mac, jnp.asarray(np.random.default_rng(1).normal(size=(T, D)))):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [TitansMAGConfig, TitansMACConfig])
def test_flops_equal_xlas_count_of_one_segment(kind):
    """A context of one chunk. XLA also counts the masked half of attention; MAG's last write is unused."""
    d, context = 1024, 256
    memory = TitansConfig(n_heads=4, chunk=context)
    config = kind(memory=memory, window=context) if kind is TitansMAGConfig else kind(memory=memory)
    params, static = eqx.partition(
        eqx.filter_eval_shape(lambda key: config.build(d, key=key), jax.random.key(0)), is_parameter
    )
    x = jax.ShapeDtypeStruct((context, d), jnp.float32)
    run = jax.jit(lambda params, x: eqx.combine(params, static)(x))
    cost = run.lower(params, x).cost_analysis()
    counted = (cost[0] if isinstance(cost, list) else cost)["flops"] / context
    masked = 2 * d * context * (1 if kind is TitansMAGConfig else 2)
    unused = 4 * memory.memory_numbers(d) if kind is TitansMAGConfig else 0
    assert counted - masked + unused == pytest.approx(config.flops(d, context), rel=0.02)


def test_bad_sizes_and_states_are_refused_in_one_line():
    odd = "d_model=8 is not divisible by 2 x n_heads=8.*take d_model 16"
    for config, named in (
        (lambda: TitansMAGConfig(window=0), "window=0: it must be at least 1"),
        (
            lambda: TitansMAGConfig(memory=TitansConfig(n_heads=8)),
            odd,
        ),
        (
            lambda: TitansMACConfig(memory=TitansConfig(n_heads=8)),
            odd,
        ),
        (lambda: TitansMACConfig(memory=TitansConfig(n_heads=3)), "d_model=8 is not divisible by 2 x n_heads=3"),
        (lambda: TitansMACConfig(memory=TitansConfig(chunk=0)), "chunk=0: it must be at least 1"),
    ):
        with refuses(named):
            ModelConfig(d_model=8, mixer=config())
    mag, mac = (filled(lambda key, c=c: c.build(D, key=key)) for c in CONFIGS.values())
    for mixer, other, named in (
        (mag, mac, "MACState.*TitansMAG decodes"),
        (mac, mag, "MAGState.*TitansMAC decodes"),
    ):
        state = jax.eval_shape(lambda other=other: other.start(T))
        for call in (mixer.step, mixer.prefill):
            with pytest.raises(ValueError, match=named):
                call(jnp.ones((D,) if call == mixer.step else (2, D)), state)
