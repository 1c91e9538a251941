"""Gated attention against transformers' Qwen3-Next and by its formula; attention and windows against torch and JAX."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm import Attention, AttentionConfig, GatedAttention, GatedAttentionConfig, ModelConfig, count_parameters
from eqx_slm.nn.dot_product import causal_attention
from eqx_slm.nn.norm import ZeroCentredRMSNorm

T = 7


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_equals_qwen3_next_with_copied_weights():
    """Its fused projection is split a head: [query | gate]. Norm weights 1 + w, a quarter of each head is turned."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextRotaryEmbedding

    d_model, heads, kv, p = 24, 4, 2, 16
    config = Qwen3NextConfig(
        hidden_size=d_model, num_attention_heads=heads, num_key_value_heads=kv, head_dim=p, vocab_size=8,
        intermediate_size=8, num_hidden_layers=4,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    theirs = Qwen3NextAttention(config, 3).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(std=0.5 if "norm" in name else 0.3)

    def copied(parameter):
        return jnp.asarray(parameter.detach().numpy().T.copy())

    fused = copied(theirs.q_proj.weight).reshape(d_model, heads, 2, p)
    weights = [
        fused[:, :, 0].reshape(d_model, -1),
        fused[:, :, 1].reshape(d_model, -1),
        *(copied(part.weight) for part in (theirs.k_proj, theirs.v_proj, theirs.o_proj, theirs.q_norm, theirs.k_norm)),
    ]
    ours = filled(
        lambda key: GatedAttention(
            d_model, n_heads=heads, n_kv_heads=kv, d_head=p, rotary_fraction=0.25, qk_norm="zero-centred", key=key
        )
    )
    ours = eqx.tree_at(
        lambda a: [a.w_q, a.w_gate, a.w_k, a.w_v, a.w_o, a.q_norm.weight, a.k_norm.weight], ours, weights
    )
    x = normal(T, d_model)
    with torch.no_grad():
        inputs = torch.from_numpy(x)[None]
        positions = Qwen3NextRotaryEmbedding(config)(inputs, torch.arange(T)[None])
        expected = theirs(inputs, positions, None)[0][0].numpy()
    got = np.asarray(eqx.filter_jit(ours)(jnp.asarray(x)))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "kv"), [(4, 4), (6, 2)])
def test_equals_torch_attention(n, kv):
    torch = pytest.importorskip("torch")
    q, k, v = normal(T, n, 8), normal(T, kv, 8, seed=1), normal(T, kv, 8, seed=2)
    heads_first = [torch.from_numpy(a).transpose(0, 1)[None] for a in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
    got = jax.jit(causal_attention)(*(jnp.asarray(a) for a in (q, k, v)))
    np.testing.assert_allclose(got, expected[0].transpose(0, 1).numpy(), rtol=1e-5, atol=1e-6)


WINDOW_T = 13


@settings(max_examples=10)
@given(window=st.integers(1, WINDOW_T + 2))
def test_a_window_is_jaxs_local_window(window):
    """Both forms: the band of blocks (ragged ends included) below half the length, the mask above."""
    q, k, v = (jnp.asarray(normal(WINDOW_T, heads, 4, seed=s)) for s, heads in enumerate((4, 2, 2)))
    pull = jnp.asarray(normal(WINDOW_T, 4, 4, seed=3))

    def theirs(q, k, v):
        with jax.numpy_rank_promotion("allow"):
            return jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=(window - 1, 0))

    @jax.jit
    def both(*arguments):
        pairs = (jax.vjp(f, *arguments) for f in (lambda *a: causal_attention(*a, window), theirs))
        return [(y, pulled(pull)) for y, pulled in pairs]

    (y, ours), (expected, others) = both(q, k, v)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["elementwise", "headwise"])
def test_the_gate_is_its_formula(gate):
    mixer = filled(lambda key: GatedAttention(8, gate=gate, n_heads=2, key=key), std=0.5)
    plain = filled(lambda key: Attention(8, n_heads=2, key=key))
    same = {name: getattr(mixer, name) for name in ("w_q", "w_k", "w_v")}
    plain = eqx.tree_at(lambda a: [a.w_q, a.w_k, a.w_v, a.w_o], plain, [*same.values(), jnp.eye(8)])
    x = jnp.asarray(normal(T, 8))
    call = eqx.filter_jit(lambda module, x: module(x))
    heads = np.asarray(call(plain, x)).reshape(T, 2, 4)
    gates = 1 / (1 + np.exp(-np.asarray(x) @ np.asarray(mixer.w_gate)))
    gates = gates.reshape(T, 2, 4 if gate == "elementwise" else 1)
    expected = (heads * gates).reshape(T, 8) @ np.asarray(mixer.w_o)
    np.testing.assert_allclose(call(mixer, x), expected, rtol=1e-4, atol=1e-5)
    closed = eqx.tree_at(lambda a: a.w_gate, mixer, jnp.zeros_like(mixer.w_gate))  # every gate is exactly a half
    plain = eqx.tree_at(lambda a: a.w_o, plain, mixer.w_o / 2)
    np.testing.assert_allclose(call(closed, x), call(plain, x), rtol=1e-5, atol=1e-6)


def test_it_starts_as_attention_does_with_a_gate_near_a_half(getkey):
    key = getkey()
    gated, plain = GatedAttention(64, key=key), Attention(64, key=key)
    for name in ("w_q", "w_k", "w_v", "w_o"):
        np.testing.assert_array_equal(getattr(gated, name), getattr(plain, name))
    np.testing.assert_allclose(np.std(np.asarray(gated.w_gate)), 0.02, rtol=0.1)


def test_published_and_tiny_totals():
    published = dict(n_heads=32, n_kv_heads=4, d_head=128)
    base = AttentionConfig(**published).parameters(2048)
    extra = [
        24 * (GatedAttentionConfig(gate=g, **published).parameters(2048) - base) for g in ("elementwise", "headwise")
    ]
    assert extra == [201_326_592, 1_572_864]  # "201.3M" and "1.57M"


def test_a_zero_centred_norm_is_the_norm_of_its_weight_plus_one():
    x = jnp.asarray(normal(3, 5))
    norm = filled(lambda key: ZeroCentredRMSNorm(5))
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + norm.eps) * (1 + np.asarray(norm.weight))[None]
    np.testing.assert_allclose(norm(x), expected, rtol=1e-5)
    assert not ZeroCentredRMSNorm(5).weight.any() and ZeroCentredRMSNorm.no_decay == ()  # decayed towards a weight of 1


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda key: Attention(8, window=0, key=key), "window=0: it must be at least 1"),
        (lambda key: ModelConfig(d_model=12, mixer=GatedAttentionConfig(n_heads=4)), "head width 3 is odd"),
    ],
)
def test_bad_options_are_refused_in_one_line(make, named, getkey):
    with refuses(named, (ValueError, TypeError)):
        make(getkey())


def test_d_ff_can_pay_for_the_gate():
    from eqx_slm.study.arms import Tuned, make_arm

    base = ModelConfig(vocab_size=64, d_model=48, depth=2, context=8)
    wide, matched = (make_arm(name, base, Tuned()).config for name in ("gated-wide", "gated"))
    assert count_parameters(wide) - count_parameters(base) == 2 * 48 * 48
    assert count_parameters(matched) == count_parameters(base)
    assert matched.widths == (4 * 48 - 16,) * 2  # H p / 3 narrower
    assert dataclasses.replace(matched, channel=base.channel) == wide
