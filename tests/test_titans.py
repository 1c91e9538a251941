"""Titans' memory as a mixer: exact in every form, causal to the last bit, counted to the digit."""

import dataclasses
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled, is_parameter
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm import HeadConfig, MLPConfig, ModelConfig, TaperConfig, build, count_parameters
from eqx_slm.nn.titans import TitansConfig, TitansMemory, TitansState
from eqx_slm.nn.titans.sizes import group_size
from eqx_slm.train.optimizer import parameter_groups
from eqx_slm.train.step import cast

D, C = 8, 4
FAST = dict(compiler_options={"xla_backend_optimization_level": 0})  # half the time to compile
CONFIG = TitansConfig(n_heads=2, chunk=C)


@functools.cache
def programs():
    """The module's forms, each a function that compiles once a shape."""
    shapes = eqx.filter_eval_shape(lambda key: CONFIG.build(D, key=key), jax.random.key(0))
    static = eqx.partition(shapes, is_parameter)[1]

    def form(name):
        return jax.jit(lambda params, *a: getattr(eqx.combine(params, static), name)(*a), **FAST)

    return {name: form(name) for name in ("__call__", "batch")}


def module(config, seed=0):
    """In float64, at a scale where memory and gates matter."""
    return filled(lambda key: config.build(D, key=key), seed=seed, std=0.5, dtype=np.float64)


def numbers(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def close(a, b, tolerance):
    a, b = jax.tree.leaves(as_numpy(a)), jax.tree.leaves(as_numpy(b))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * (np.abs(y).max() + 1e-30))


@given(seed=st.integers(0, 2**31))
def test_a_batch_is_its_sequences(seed):
    with jax.enable_x64(True):
        mixer, x = module(CONFIG, seed), numbers(2, 2 * C + 1, D, seed=seed)
        params = eqx.filter(mixer, eqx.is_inexact_array)
        both = programs()["batch"](params, x)
        for i in range(2):
            close(both[i], programs()["__call__"](params, x[i]), 1e-8)


def silu(x):
    return x / (1 + np.exp(-x))


def test_an_online_linear_memory_is_transformers_delta_rule():
    """Chunk 1, one matrix that starts at zero, no residual, norm, momentum or forgetting, and theta = beta."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    t, heads, p = 11, 2, D // 2
    config = TitansConfig(n_heads=heads, memory_depth=1, memory_norm="none", memory_residual="none", chunk=1)
    mixer = filled(lambda key: config.build(D, key=key), std=0.5)
    never = jnp.concatenate([jnp.full(2 * heads, -1e4), mixer.b_inner[2 * heads :]])  # gates alpha and eta at exactly 0
    still = mixer.w_inner.at[:, : 2 * heads].set(0)
    mixer = eqx.tree_at(lambda m: [m.initial[0], m.b_inner, m.w_inner], mixer, [jnp.zeros((heads, p, p)), never, still])
    w = {name: np.asarray(leaf, np.float64) for name, leaf in vars(mixer).items() if eqx.is_array(leaf)}
    x = np.random.default_rng(1).normal(size=(t, D))
    u = np.concatenate([np.zeros((3, 3 * D)), np.concatenate([x @ w[f"w_{name}"] for name in "qkv"], axis=1)])
    mixed = silu(sum(w["conv"][j] * u[j : j + t] for j in range(4)))
    q, k, v = (part.reshape(1, t, heads, p) for part in np.split(mixed, 3, axis=1))
    beta = 1 / (1 + np.exp(-(x @ w["w_inner"] + w["b_inner"])[None, :, 2 * heads :]))

    def unit(a):
        return a / np.sqrt((a**2).sum(axis=-1, keepdims=True) + 1e-6)

    out, _ = torch_recurrent_gated_delta_rule(
        *(torch.from_numpy(a) for a in (unit(q) * math.sqrt(p), unit(k), v, 0 * beta, beta))
    )
    y = out[0].numpy()
    y = y / np.sqrt((y**2).mean(axis=-1, keepdims=True) + 1e-6) * np.asarray(mixer.out_norm.weight)
    expected = (y.reshape(t, D) * silu(x @ w["w_gate"])) @ w["w_o"]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(
        jax.jit(lambda x: mixer(x), **FAST)(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-4
    )


def test_groups_of_chunks_change_nothing_and_every_leaf_learns():
    """Rematerialised groups (34 chunks: six of five and one of four) against none."""
    config = TitansConfig(n_heads=2, chunk=2, persistent=1)
    assert group_size(34) == 5
    with jax.enable_x64(True):
        x, pull = numbers(66, D), numbers(66, D, seed=2)

        def value_and_gradient(remat):
            params, static = eqx.partition(module(dataclasses.replace(config, remat=remat)), eqx.is_inexact_array)

            def loss(params):
                return (eqx.combine(params, static)(x) * pull).sum()

            return jax.jit(jax.value_and_grad(loss), **FAST)(params)

        grouped, plain = value_and_gradient("groups"), value_and_gradient("none")
    close(grouped, plain, 1e-10)
    for leaf in jax.tree.leaves(as_numpy(grouped[1])):
        assert np.isfinite(leaf).all() and (np.abs(leaf) > 0).mean() > 0.9
    assert len(jax.tree.leaves(grouped[1])) == 13


def test_backward_memory_grows_with_the_square_root_of_the_chunks():
    """Temporary bytes of the gradient at 4,096 tokens, at most three times those at 1,024."""

    def temporary(context):
        config = TitansConfig(n_heads=1, chunk=8, memory_depth=1)
        params, static = eqx.partition(
            eqx.filter_eval_shape(lambda key: config.build(32, key=key), jax.random.key(0)), is_parameter
        )

        def loss(params, x):
            return eqx.combine(params, static)(x).sum()

        x = jax.ShapeDtypeStruct((context, 32), jnp.float32)
        return jax.jit(jax.grad(loss), **FAST).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 3 * temporary(1024)


@given(st.integers(1, 5000))
def test_groups_are_near_the_root_and_nearly_full(chunks):
    group = group_size(chunks)
    assert 1 <= group <= max(32, 1.5 * math.sqrt(chunks)) and group >= min(chunks, math.sqrt(chunks) / 1.5)
    assert -chunks % group <= 0.1 * chunks + 1


def test_published_totals():
    assert TitansConfig(n_heads=2).parameters(64) == 38_118
    tiny = ModelConfig(
        vocab_size=64,
        d_model=64,
        depth=4,
        mixer=TitansConfig(n_heads=2),
        channel=MLPConfig(d_ff=176),
        taper=TaperConfig("cosine", 1.5, 0.5, 8),
        head=HeadConfig("tied"),
    )
    assert tiny.widths == (264, 224, 128, 88) and count_parameters(tiny) == 292_312
    shapes = eqx.filter_eval_shape(lambda key: build(tiny, key=key), jax.random.key(0))
    assert count_parameters(shapes) == 292_312


@given(
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    depth=st.integers(1, 3),
    expansion=st.integers(1, 4),
    persistent=st.integers(0, 3),
    norm=st.sampled_from(["layer", "none"]),
)
def test_closed_forms_equal_the_leaves(heads, width, depth, expansion, persistent, norm):
    config = TitansConfig(
        n_heads=heads, memory_depth=depth, expansion=expansion, persistent=persistent, memory_norm=norm
    )
    d = heads * width
    shapes = eqx.filter_eval_shape(lambda key: config.build(d, key=key), jax.random.key(0))
    assert config.parameters(d) == count_parameters(shapes)
    mixer = filled(lambda key: config.build(d, key=key))
    state = jax.eval_shape(lambda: mixer.start(7))
    assert config.state_numbers(d, 7) == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state) if leaf.shape)


def test_groups_of_parameters():
    groups = parameter_groups(filled(lambda key: TitansMemory(8, n_heads=2, persistent=1, key=key)))
    kept = {"b_inner", "initial.0", "initial.1", "gain", "persistent", "out_norm.weight"}
    assert {name for name, group in groups.items() if group == "no decay"} == kept
    assert {name for name, group in groups.items() if group == "decay"} == {
        "w_q", "w_k", "w_v", "w_gate", "w_o", "conv", "w_inner",
    }  # fmt: skip


@pytest.mark.parametrize(
    "change", [{}, dict(read="chunk_start"), dict(memory_depth=1), dict(memory_depth=3, expansion=2)]
)
def test_flops_equal_xlas_count_of_one_chunk(change):
    """Outputs and the memory after one chunk: no loop. One projection more would be beyond the tolerance."""
    config = dataclasses.replace(TitansConfig(n_heads=4, chunk=256), **change)
    d, context = 1024, 256
    params, static = eqx.partition(
        eqx.filter_eval_shape(lambda key: config.build(d, key=key), jax.random.key(0)), is_parameter
    )

    @jax.jit
    def chunk(params, x):
        mixer = eqx.combine(params, static)
        return mixer.group(mixer.fresh(1, x.dtype), x, context)

    cost = chunk.lower(params, jax.ShapeDtypeStruct((1, context, d), jnp.float32)).cost_analysis()
    ours = config.flops(d, context)
    assert (cost[0] if isinstance(cost, list) else cost)["flops"] / context == pytest.approx(ours, rel=0.02)
    assert 2 * d**2 > 0.03 * ours


def test_flops_of_many_chunks_are_those_of_one():
    config = TitansConfig(n_heads=2, chunk=16)
    assert config.flops(64, 16) == config.flops(64, 4096)
    assert config.flops(64, 8) < config.flops(64, 16)  # a context below a chunk has shorter sums
    by_hand = 10 * 64**2 + 22 * 64 * 128 + 4 * 16 * 2 * (32 + 128) + 2 * 16**2 * 2 + 6 * 64 * 2 + 24 * 64
    assert config.flops(64, 512) == by_hand
    assert dataclasses.replace(config, persistent=16).flops(64, 64) == by_hand * 80 // 64


def test_a_prefill_over_groups_of_chunks_goes_on_where_the_first_ended():
    """79 tokens in chunks of 2 after 3, which end within a chunk: more chunks than one group holds."""
    config, t = dataclasses.replace(CONFIG, chunk=2, memory_norm="none"), 79
    assert group_size(math.ceil(t / 2)) < math.ceil(t / 2)
    with jax.enable_x64(True):
        mixer, x = module(config), numbers(t, D)

        def both(x):
            head, state = mixer.prefill(x[:3], mixer.start(t))
            return mixer(x), jnp.concatenate([head, mixer.prefill(x[3:], state).y])

        whole, parts = jax.jit(both, **FAST)(x)
    close(parts, whole, 1e-12)


def test_a_state_of_other_sizes_is_refused(getkey):
    mixer, other = (TitansMemory(D, n_heads=2, chunk=C, expansion=e, key=getkey()) for e in (2, 4))
    for call in (lambda s: mixer.step(jnp.ones(D), s), lambda s: mixer.prefill(jnp.ones((3, D)), s)):
        with pytest.raises(ValueError, match=r"memories of shapes \[\(2, 4, 16\).* has \[\(2, 4, 8\).*start\(\)"):
            call(other.start(4))


def test_a_prefill_of_no_tokens_changes_nothing(getkey):
    for chunk in (1, C):
        mixer = TitansMemory(D, n_heads=2, chunk=chunk, key=getkey())
        y, state = mixer.prefill(jnp.ones((0, D)), mixer.start(4))
        assert y.shape == (0, D)
        close(state, mixer.start(4), 0)


def test_gates_and_memory_keep_their_precision_under_bfloat16():
    """A bias near -6 has steps of 0.03 in bfloat16; what a module names in `full_precision` stays as it is."""
    mixer = TitansMemory(D, n_heads=2, chunk=C, key=jax.random.key(0))
    params = eqx.filter({"blocks": (mixer,)}, eqx.is_inexact_array)
    low = cast(params, "bfloat16")["blocks"][0]
    kept = jax.tree.leaves((low.w_inner, low.b_inner, low.initial, low.gain))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32")}
    assert low.w_q.dtype == low.out_norm.weight.dtype == jnp.bfloat16
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2 * C + 1, D)), jnp.bfloat16)

    def loss(mixer, x):
        return mixer(x).astype(jnp.float32).sum()

    gradient, wide = (jax.jit(jax.grad(loss))(m, y) for m, y in ((low, x), (mixer, x.astype(jnp.float32))))
    for a, b in zip(jax.tree.leaves(as_numpy(gradient)), jax.tree.leaves(as_numpy(wide)), strict=True):
        np.testing.assert_allclose(a.astype(np.float32), b, rtol=0, atol=0.1 * np.abs(b).max())


def test_bfloat16_outside_float32_inside():
    mixer = TitansMemory(D, n_heads=2, chunk=C, key=jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2 * C + 1, D)), jnp.bfloat16)
    y, prefilled, state = jax.jit(lambda x: (mixer(x), *mixer.prefill(x, mixer.start(9, jnp.bfloat16))))(x)
    assert y.dtype == prefilled.dtype == jnp.bfloat16 and np.isfinite(np.asarray(y, np.float32)).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}


def test_the_step_size_is_of_the_model_and_not_of_the_chunk_it_runs_at():
    mixers = [TitansMemory(D, n_heads=2, chunk=c, chunk_train=6, key=jax.random.key(0)) for c in (2, 5)]
    x = jnp.ones(D)
    one, other = (as_numpy(jax.jit(lambda x, m=m: m.step(x, m.start(1)))(x)) for m in mixers)
    np.testing.assert_array_equal(one.y, other.y)
    assert TitansMemory(D, n_heads=2, chunk=5, key=jax.random.key(0)).chunk_train == 5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(n_heads=3), "d_model=8 is not divisible by n_heads=3: take d_model 6 or 9"),
        (dict(n_heads=16), "d_model=8 is not divisible by n_heads=16: take d_model 16"),
        (dict(n_heads=0), "n_heads=0: it must be at least 1"),
        (dict(chunk=0), "chunk=0: it must be at least 1"),
        (dict(chunk_train=0), "chunk_train=0: it must be at least 1, or None"),
        (dict(memory_depth=0), "memory_depth=0"),
        (dict(expansion=0), "expansion=0"),
        (dict(persistent=-1), "persistent=-1: it must be at least 0"),
        (dict(step_size=0.0), "step_size=0.0: it must be positive"),
    ],
)
def test_bad_values_are_refused_in_one_line(options, named):
    with refuses(named):
        ModelConfig(d_model=8, mixer=dataclasses.replace(TitansConfig(), **options))


@pytest.mark.parametrize("name", ["read", "memory_norm", "memory_residual", "remat"])
def test_unknown_kinds_are_refused(name):
    config = TitansConfig()
    object.__setattr__(config, name, "other")  # the constructor is type-checked here, and not for a user
    with pytest.raises(ValueError, match=f"{name}='other': it is one of "):
        config.check(8)


def test_another_mixers_state_is_refused():
    mixer = filled(lambda key: TitansMemory(D, n_heads=2, key=key))
    for call in (lambda: mixer.step(jnp.ones(D), (1,)), lambda: mixer.prefill(jnp.ones((2, D)), (1,))):
        with pytest.raises(ValueError, match="is a tuple, but TitansMemory decodes with a TitansState"):
            call()
    assert isinstance(mixer.start(3), TitansState)
