"""What every mixer promises, in float64: causality, decoding, batches, gradients. A new mixer is one more entry."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled

from eqx_slm import (
    AttentionConfig,
    Block,
    ContinuumConfig,
    GatedAttentionConfig,
    HeadConfig,
    MLPConfig,
    ModelConfig,
    TaperConfig,
    build,
    count_parameters,
)
from eqx_slm.account.ledger import path_name

D, T = 8, 9
GROUPED = dict(n_heads=4, n_kv_heads=2, rotary_fraction=0.5)
# name -> config, and how many tokens a row sees (itself included; None: all before it)
MIXERS = {
    "attention": (AttentionConfig(n_heads=2), None),
    "grouped, normed, biased": (AttentionConfig(qk_norm="rms", bias="all", **GROUPED), None),
    "window": (AttentionConfig(n_heads=2, window=3), 3),
    "wide window": (AttentionConfig(n_heads=2, window=6), 6),
    "gated": (GatedAttentionConfig(qk_norm="zero-centred", **GROUPED), None),
    "gated headwise, window": (GatedAttentionConfig(n_heads=2, gate="headwise", window=4), 4),
}
every_mixer = pytest.mark.parametrize(("config", "sees"), MIXERS.values(), ids=MIXERS)


def make(config):
    return filled(lambda key: config.build(D, key=key), dtype=np.float64, std=0.5)


def tokens(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@every_mixer
def test_prefill_and_steps_equal_the_call_at_every_split(config, sees):
    """A prefill to any split, then steps; and one prefill after another. The state is the same either way."""
    with jax.enable_x64(True):
        mixer, x = make(config), tokens(T, D)
        prefill, step = (eqx.filter_jit(lambda m, x, s, name=n: getattr(m, name)(x, s)) for n in ("prefill", "step"))
        whole = np.asarray(eqx.filter_jit(mixer)(x))
        state = start = mixer.start(T)
        for i in range(T):
            y, state = step(mixer, x[i], state)
            np.testing.assert_allclose(y, whole[i], rtol=1e-12, atol=1e-12)
        for split in range(1, T):
            head, mid = prefill(mixer, x[:split], start)
            tail, end = prefill(mixer, x[split:], mid)
            np.testing.assert_allclose(np.concatenate([head, tail]), whole, rtol=1e-12, atol=1e-12)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), end, state)
            for i in range(split, T):
                y, mid = step(mixer, x[i], mid)
                np.testing.assert_allclose(y, whole[i], rtol=1e-12, atol=1e-12)


@every_mixer
def test_no_row_depends_on_a_later_one_nor_on_what_left_the_window(config, sees):
    """Exactly zero, through the call and through a prefill that goes on from a state."""
    with jax.enable_x64(True):
        mixer, x = make(config), tokens(T, D)

        def pieces(x):
            head, state = mixer.prefill(x[:4], mixer.start(T))
            return jnp.concatenate([head, mixer.prefill(x[4:], state).y])

        for function in (mixer, pieces):
            jacobian = np.asarray(jax.jit(jax.jacrev(function))(x))
            influence = np.abs(jacobian).max(axis=(1, 3))  # of token j on row i
            age = np.arange(T)[:, None] - np.arange(T)[None, :]
            seen = (age >= 0) & (age < (T if sees is None else sees))
            assert (influence[~seen] == 0).all()
            assert (influence[seen] > 1e-9).all()


@every_mixer
def test_a_batch_is_its_sequences_and_every_leaf_has_a_gradient(config, sees):
    with jax.enable_x64(True):
        mixer, x = make(config), tokens(2, T, D)

        @eqx.filter_jit
        def forms(mixer, x):
            def loss(mixer):
                return jnp.sum(jnp.sin(jax.vmap(mixer)(x)))

            return jax.vmap(mixer)(x), [mixer(row) for row in x], eqx.filter_grad(loss)(mixer)

        batch, singles, gradient = as_numpy(forms(mixer, x))
        np.testing.assert_allclose(batch, np.stack(singles), rtol=1e-12, atol=1e-12)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        # A bias of the keys moves every score of a row alike: softmax does not see it, unless a norm or rotation does.
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-9, path_name(path)


@every_mixer
def test_the_config_counts_its_parameters_and_its_state(config, sees):
    mixer = jax.eval_shape(lambda: config.build(D, key=jax.random.key(0)))
    assert count_parameters(mixer) == config.parameters(D)
    for context in (2, T):
        state = jax.eval_shape(lambda context=context: config.build(D, key=jax.random.key(0)).start(context))
        assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == config.state_numbers(D, context)


def test_bfloat16_in_and_out(getkey):
    for config in (MIXERS["window"][0], MIXERS["gated"][0]):
        mixer = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), config.build(D, key=getkey()))
        state = mixer.start(4)
        y, after = mixer.step(jnp.ones(D, jnp.bfloat16), state)
        assert y.dtype == jnp.bfloat16 and jnp.isfinite(y).all()
        assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(lambda a: a.dtype, state)


# One small shape for all mixers: tied, QK-norm on, cosine at multiple 8.
TINY = ModelConfig(
    vocab_size=64,
    d_model=64,
    depth=4,
    context=64,
    head=HeadConfig("tied"),
    mixer=AttentionConfig(n_heads=2, qk_norm="rms"),
    channel=MLPConfig(d_ff=176),
    taper=TaperConfig("cosine", multiple=8),
)
TOTALS = {
    "transformer": ({}, 205_632),
    "gated": (dict(mixer=GatedAttentionConfig(n_heads=2, qk_norm="rms")), 222_016),
    "gated headwise": (dict(mixer=GatedAttentionConfig(n_heads=2, qk_norm="rms", gate="headwise")), 206_144),
    "hope": (dict(channel=ContinuumConfig(d_ff=176)), 205_888),
}


@pytest.mark.parametrize(("changes", "total"), TOTALS.values(), ids=TOTALS)
def test_totals_of_the_tiny_configuration(changes, total):
    config = dataclasses.replace(TINY, **changes)
    assert config.widths == (264, 224, 128, 88)
    assert count_parameters(config) == total
    assert count_parameters(jax.eval_shape(lambda: build(config, key=jax.random.key(0)))) == total


@pytest.mark.parametrize(
    "channel", [ContinuumConfig(d_ff=8, multiple=1), ContinuumConfig(d_ff=8, form="independent", multiple=1)]
)
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_blocks_of_any_channel_decode_and_batch(channel, placement):
    with jax.enable_x64(True):
        block = filled(
            lambda key: Block(
                AttentionConfig(n_heads=2).build(D, key=key), channel.build(D, key=key), d_model=D, placement=placement
            ),
            dtype=np.float64,
            std=0.5,
        )
        x = tokens(2, T, D)

        @eqx.filter_jit
        def forms(block, x):
            head, state = block.prefill(x[0, :5], block.start(T))
            rest = []
            for row in x[0, 5:]:
                y, state = block.step(row, state)
                rest.append(y)
            return jnp.concatenate([head, jnp.stack(rest)]), block(x[0]), block.batch(x), jax.vmap(block)(x)

        decoded, whole, batch, mapped = as_numpy(forms(block, x))
        np.testing.assert_allclose(decoded, whole, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(batch, mapped, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(mapped[0], whole, rtol=1e-12, atol=1e-12)
