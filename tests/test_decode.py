"""Decoding: prefill and steps equal the whole pass at every split, in blocks and models, and sample the same text."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from tiny import LENGTH, tiny_config

from eqx_slm import MLP, Attention, AttentionConfig, Block, LeviathanConfig, ModelConfig, build, generate, materialize
from eqx_slm.nn.block import Mixer

D, T = 8, 7
KEY = jax.random.key(0)


def in_float64(make, **options):
    return filled(make, dtype=np.float64, std=0.5, **options)


def model_of(config):
    return filled(lambda key: build(config, key=key), std=0.5)


@pytest.mark.parametrize(("positions", "placement", "norm"), [("rotary", "pre", "rms"), ("learned", "post", "layer")])
def test_a_model_decodes_what_it_computes_at_once(positions, placement, norm):
    config = ModelConfig(
        vocab_size=11, d_model=D, depth=2, context=T, mixer=AttentionConfig(n_heads=2), positions=positions,
        placement=placement, norm=norm,
    )  # fmt: skip
    with jax.enable_x64(True):
        model = in_float64(lambda key: build(config, key=key))
        tokens = jnp.asarray([3, 1, 10, 3, 3])

        whole = np.asarray(eqx.filter_jit(lambda m, t: m.features(m.embedding(t)))(model, tokens))
        room = T if positions == "learned" else T + 2
        prefill = eqx.filter_jit(lambda m, t: m.prefill(t, m.start(room)))
        step = eqx.filter_jit(lambda m, t, state: m.step(t, state))
        for split in range(1, len(tokens) + 1):
            features, state = prefill(model, tokens[:split])
            got = list(np.asarray(features))
            for token in tokens[split:]:
                feature, state = step(model, token, state)
                got.append(np.asarray(feature))
            assert int(state.length) == len(tokens)
            np.testing.assert_allclose(np.stack(got), whole, rtol=1e-12, atol=1e-12)


def test_states_are_of_a_fixed_size_and_of_the_type_asked_for():
    mixer = filled(lambda key: Attention(D, n_heads=4, n_kv_heads=2, key=key))
    state = mixer.start(5, jnp.bfloat16)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert numbers == AttentionConfig(n_heads=4, n_kv_heads=2).state_numbers(D, 5)
    _, after = jax.eval_shape(mixer.step, jnp.ones(D), state)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert after.k.dtype == jnp.bfloat16


def test_another_mixers_state_is_refused_in_one_line():
    mixer, other = (filled(lambda key, n=n: Attention(D, n_heads=n, key=key)) for n in (2, 4))
    for call in (lambda s: mixer.step(jnp.ones(D), s), lambda s: mixer.prefill(jnp.ones((3, D)), s)):
        with pytest.raises(ValueError, match=r"is a tuple, but Attention decodes with a AttentionState.*start\(\)"):
            call((1, 2))
        with pytest.raises(ValueError, match=r"heads of shape \(4, 2\), this attention \(2, 4\)"):
            call(other.start(4))
    model, deeper = (model_of(tiny_config(depth=depth)) for depth in (1, 2))
    with pytest.raises(ValueError, match="is a AttentionState: take it from this model's"):
        model.step(jnp.asarray(1), mixer.start(4))
    with pytest.raises(ValueError, match="is of 2 blocks, the model has 1"):
        model.prefill(jnp.asarray([1]), deeper.start(4))
    with pytest.raises(ValueError, match="context=0"):
        mixer.start(0)


class Shift(Mixer):
    """A mixer that cannot decode."""

    def __call__(self, x):
        return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def test_a_mixer_without_a_state_still_generates():
    decoding = model_of(tiny_config())
    block = filled(lambda key: Block(Shift(), MLP(16, 8, key=key), d_model=16))
    model = eqx.tree_at(lambda m: m.blocks[0], decoding, block)
    assert not model.decodes and decoding.decodes
    with pytest.raises(ValueError, match="Shift keeps no decode state"):
        model.start(4)
    got = generate(model, jnp.asarray([3]), tokens=4, context=LENGTH, temperature=0.0, key=KEY)
    assert got.shape == (4,)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_both_ways_of_sampling_give_the_same_tokens(positions, monkeypatch):
    model = model_of(tiny_config(positions=positions, depth=2))
    prompt = jnp.asarray([5, 9, 60])
    taken = []
    for decodes in (True, False):
        with monkeypatch.context() as patch:
            if not decodes:
                patch.setattr(type(model), "decodes", property(lambda self: False))
            taken.append(
                [
                    generate(model, prompt, tokens=LENGTH - 3, context=LENGTH, temperature=t, key=KEY).tolist()
                    for t in (0.0, 1.0)
                ]
            )
    assert taken[0] == taken[1]
    assert taken[0][0] != taken[0][1] and len(set(taken[0][1])) > 3


def test_a_materialized_generator_decodes_at_a_tables_cost():
    generator = LeviathanConfig(seed_size=8, n_heads=2, knots=4, rank=4)
    config = tiny_config(embedding=generator)
    table, slow = (model_of(c) for c in (tiny_config(), config))

    def cost(model):
        def step(token):
            features, state = model.step(token, model.start(LENGTH))
            return model.logits(features[None]), state

        return jax.jit(step).lower(jnp.asarray(3)).compile().cost_analysis()["flops"]

    assert cost(materialize(slow)) == cost(table) < cost(slow)
