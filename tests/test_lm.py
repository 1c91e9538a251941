"""Whole models: causality, the batched path, tied read-outs, initial values that arms share."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm import (
    MLP,
    AttentionConfig,
    CompositionalConfig,
    HeadConfig,
    LayerNorm,
    LeviathanConfig,
    LowRankConfig,
    MLPConfig,
    ModelConfig,
    RMSNorm,
    TableConfig,
    TaperConfig,
    build,
)
from eqx_slm.account.ledger import path_name
from eqx_slm.testing import model_configs

# All sizes are 8, so that draws of many leaves are one compiled function.
GENERATOR = LeviathanConfig(seed_size=8, n_heads=2, knots=4, rank=8)
BASE = ModelConfig(
    vocab_size=8, d_model=8, depth=2, context=8, mixer=AttentionConfig(n_heads=2), channel=MLPConfig(d_ff=8)
)
small_configs = model_configs(
    min_vocab_size=2, max_vocab_size=30, max_d_model=12, max_depth=2, max_width=8, max_context=8,
    mixers=("attention", "gated-attention"),  # a memory takes its time to compile: tests/test_mixers.py
)  # fmt: skip


def leaves(model):
    """Path -> NumPy array, of every parameter."""
    pairs = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_inexact_array))[0]
    return {path_name(path): np.asarray(leaf) for path, leaf in pairs}


@settings(max_examples=6)
@given(small_configs, st.data())
def test_any_model_is_causal_and_its_batched_path_is_the_plain_one(config, data):
    model = filled(lambda key: build(config, key=key), std=0.5)
    t, ids = min(config.context, 5), st.integers(0, config.vocab_size - 1)
    tokens = np.array(data.draw(st.lists(ids, min_size=t, max_size=t)), np.int32)
    keep = data.draw(st.integers(1, t))
    changed = np.array([*tokens[:keep], *data.draw(st.lists(ids, min_size=t - keep, max_size=t - keep))], np.int32)

    @eqx.filter_jit
    def forms(model, batch):
        plain = jax.vmap(lambda x: model.features(model.embed(x)))(batch)
        return jax.lax.map(model, batch), plain, model.batch_features(batch)

    logits, plain, batched = as_numpy(forms(model, jnp.asarray(np.stack([tokens, changed]))))
    assert logits.shape == (2, t, config.vocab_size) and logits.dtype == np.float32
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits[0, :keep], logits[1, :keep])  # bit for bit: no future reaches the past
    np.testing.assert_allclose(batched, plain, rtol=2e-3, atol=2e-3 * np.abs(plain).max())


@pytest.mark.parametrize("embedding", [TableConfig(), GENERATOR], ids=lambda e: e.kind)
def test_every_earlier_token_reaches_a_logit(embedding):
    """The other half of causality, without which the test above could pass on a model that mixes nothing."""
    model = filled(lambda key: build(dataclasses.replace(BASE, embedding=embedding), key=key))

    @eqx.filter_jit
    def derivative(model):
        return jax.jacrev(lambda x: model.logits(model.features(x)))(model.embedding(jnp.array([3, 6, 3, 7, 0])))

    jacobian = derivative(model)
    influence = np.abs(np.asarray(jacobian)).max(axis=(1, 3))
    assert (influence[np.triu_indices(5, 1)] == 0).all()
    assert (influence[np.tril_indices(5)] > 0).all()


@pytest.mark.parametrize(
    "embedding", [TableConfig(), LowRankConfig(rank=3), CompositionalConfig()], ids=lambda e: e.kind
)
def test_tied_means_one_leaf_with_both_gradients(embedding):
    config = dataclasses.replace(BASE, depth=1, embedding=embedding, head=HeadConfig("tied"))
    model = filled(lambda key: build(config, key=key))
    assert model.head is None and not any(name.startswith("head") for name in leaves(model))
    tokens, targets = jnp.array([[1, 2, 3]]), jnp.array([4, 5, 6])

    def loss(reader, writer):
        """The loss with one copy of the embedding as input and another as output."""
        features = eqx.tree_at(lambda m: m.embedding, model, reader).batch_features(tokens)[0]
        return -jax.nn.log_softmax(writer.read_out().logits(features))[jnp.arange(3), targets].mean()

    @eqx.filter_jit
    def gradients(embedding):
        both = eqx.filter_grad(lambda e: loss(e, e))(embedding)
        return (
            both,
            eqx.filter_grad(loss)(embedding, embedding),
            eqx.filter_grad(lambda w: loss(embedding, w))(embedding),
        )

    both, reading, writing = (jax.tree.leaves(as_numpy(g)) for g in gradients(model.embedding))
    for total, a, b in zip(both, reading, writing, strict=True):
        assert np.abs(a).max() > 1e-6 and np.abs(b).max() > 1e-6
        np.testing.assert_allclose(total, a + b, rtol=1e-4, atol=1e-5)


VARIANTS = {
    "tied": dict(head=HeadConfig("tied")),
    "low-rank table": dict(embedding=LowRankConfig(rank=8)),
    "leviathan": dict(embedding=GENERATOR),
    "leviathan, generated": dict(embedding=GENERATOR, head=HeadConfig("generated")),
    "tapered": dict(taper=TaperConfig("cosine", 1.5, 0.5, 4)),
    "deeper": dict(depth=3),
    "learned positions": dict(positions="learned"),
    "layer norm": dict(norm="layer"),
}


@pytest.fixture(scope="module")
def base():
    return build(BASE, key=jax.random.key(0))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_leaves_with_the_same_path_and_shape_start_equal_in_every_arm(changes, base):
    mine, other = leaves(base), leaves(build(dataclasses.replace(BASE, **changes), key=jax.random.key(0)))
    shared = [name for name in mine if name in other and mine[name].shape == other[name].shape]
    assert {f"blocks.{i}.mixer.w_{w}" for i in range(2) for w in "qkvo"} <= set(shared)
    assert set(mine) != set(other) or any(mine[name].shape != other[name].shape for name in mine)
    for name in shared:
        np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def test_another_key_changes_every_draw_and_no_two_leaves_share_one(base):
    mine, other = leaves(base), leaves(build(BASE, key=jax.random.key(1)))
    drawn = [name for name in mine if "norm" not in name]
    assert len(drawn) == 2 + 2 * 7
    for name in drawn:
        assert not np.isclose(mine[name], other[name], rtol=1e-3).all()
    # Standardized, because a shared draw may be scaled: the first numbers of each leaf are its own.
    starts = {tuple(np.round(mine[name].ravel()[:6] / mine[name].ravel()[0], 3)) for name in drawn}
    assert len(starts) == len(drawn)


def test_depth_scaled_branches_are_the_same_draw_scaled(base):
    mine = leaves(base)
    scaled = leaves(build(dataclasses.replace(BASE, residual_init="depth"), key=jax.random.key(0)))
    ends = re.compile(r"blocks\.\d\.(mixer\.w_o|channel\.down)")
    assert sum(bool(ends.fullmatch(name)) for name in mine) == 4
    for name, leaf in mine.items():
        factor = np.float32((2 * BASE.depth) ** -0.5) if ends.fullmatch(name) else np.float32(1)
        np.testing.assert_array_equal(scaled[name], leaf * factor, err_msg=name)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_heads_scale_multiplies_every_logit(placement):
    """Prefill and single steps too."""
    config = dataclasses.replace(BASE, head=HeadConfig("tied"), placement=placement)
    scaled = dataclasses.replace(config, head=HeadConfig("tied", scale=0.25))
    tokens = jnp.array([3, 1, 4, 1, 5], jnp.int32)

    @eqx.filter_jit
    def forms(model):
        first, state = model.prefill(tokens[:3], model.start(8))
        second = model.step(tokens[3], state).y
        return model(tokens), model.logits(model.batch_features(tokens[None])[0]), model.logits(first), second

    plain, ours = (forms(filled(lambda key, c=c: build(c, key=key))) for c in (config, scaled))
    for one, other in zip(plain, ours, strict=True):
        np.testing.assert_allclose(other, 0.25 * one, rtol=1e-5)


@pytest.mark.parametrize("kind", ["tied", "generated"])
@pytest.mark.parametrize(
    "embedding", [TableConfig(), LowRankConfig(), CompositionalConfig(), GENERATOR], ids=lambda e: e.kind
)
def test_heads_that_do_not_belong_to_an_embedding_are_refused(kind, embedding):
    legal = (kind == "tied") == (embedding is not GENERATOR)
    if legal:
        assert ModelConfig(embedding=embedding, head=HeadConfig(kind)).head.has_leaves is False
        return
    with refuses(f'head "{kind}" needs a .*{embedding.kind} embedding say', ValueError):
        ModelConfig(embedding=embedding, head=HeadConfig(kind))


@pytest.mark.parametrize("field", ["vocab_size", "d_model", "depth", "context"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0.*at least 1"):
        ModelConfig(**{field: 0})


def test_orders_that_depend_on_a_corpus_must_be_given(getkey):
    config = dataclasses.replace(BASE, embedding=CompositionalConfig(order="frequency"))
    with pytest.raises(ValueError, match='embedding.order="frequency".*order='):
        build(config, key=getkey())
    with pytest.raises(ValueError, match=r"order of shape \(7,\)"):
        build(config, order=np.arange(7, dtype=np.int32), key=getkey())
    order = np.arange(8, dtype=np.int32)[::-1].copy()
    model = build(config, order=order, key=getkey())
    np.testing.assert_array_equal(model.embedding.order, order)


@pytest.mark.parametrize("size", [1, 5, 8])
def test_norms_are_their_formulas(size):
    x = np.random.default_rng(0).normal(3, 2, size=(4, size)).astype(np.float32)
    rms, layer = filled(lambda key: RMSNorm(size, eps=0.1)), filled(lambda key: LayerNorm(size, eps=0.1))
    a, b = as_numpy(jax.jit(lambda x: (rms(x), layer(x)))(jnp.asarray(x)))
    wide = x.astype(np.float64)
    np.testing.assert_allclose(
        a, wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 0.1) * np.asarray(rms.weight)[None], rtol=1e-5
    )
    centred = wide - wide.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 0.1) * np.asarray(layer.weight)[None]
    np.testing.assert_allclose(b, expected + np.asarray(layer.bias)[None], rtol=1e-4, atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("activation", ["swiglu", "gelu", "relu"])
def test_mlps_are_their_formulas(activation, bias):
    mlp = filled(lambda key: MLP(5, 7, activation=activation, bias=bias, key=key))
    w = {name: np.asarray(leaf, np.float64) for name, leaf in vars(mlp).items() if eqx.is_array(leaf)}
    assert sorted(w) == sorted(
        ["up", "down"]
        + ["gate"] * (activation == "swiglu")
        + (["b_up", "b_down"] + ["b_gate"] * (activation == "swiglu")) * (bias == "all")
    )
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    up = x @ w["up"] + w.get("b_up", 0)
    if activation == "swiglu":
        gate = x @ w["gate"] + w.get("b_gate", 0)
        hidden = gate * sigmoid(gate) * up
    elif activation == "gelu":
        hidden = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    else:
        hidden = np.maximum(up, 0)
    expected = hidden @ w["down"] + w.get("b_down", 0)
    np.testing.assert_allclose(eqx.filter_jit(mlp)(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)
