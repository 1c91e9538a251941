"""What every mixer promises, in float64: causality, decoding, batches, gradients. A new mixer is one more entry."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filled import as_numpy, filled, is_parameter
from refusals import refuses

from eqx_slm import (
    AttentionConfig,
    Block,
    ContinuumConfig,
    GatedAttentionConfig,
    HeadConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    TableConfig,
    TaperConfig,
    TitansConfig,
    TitansMACConfig,
    TitansMAGConfig,
    build,
    count_parameters,
    cross_entropy,
)
from eqx_slm.account.ledger import path_name
from eqx_slm.nn.attention import HeadsConfig
from eqx_slm.nn.titans.mac import MACState
from eqx_slm.train import make_optimizer

D, T, C = 8, 7, 3  # two chunks and a token
GROUPED = dict(n_heads=4, n_kv_heads=2, rotary_fraction=0.5)
MEMORY = TitansConfig(n_heads=2, chunk=C, expansion=2, memory_norm="none")
LINEAR = dataclasses.replace(MEMORY, memory_depth=1)
# name -> config, and how many tokens a row sees at least and at most (itself included)
MIXERS = {
    "attention": (AttentionConfig(n_heads=2), T, T),
    "grouped, normed, biased": (AttentionConfig(qk_norm="rms", bias="all", **GROUPED), T, T),
    "window": (AttentionConfig(n_heads=2, window=3), 3, 3),
    "wide window": (AttentionConfig(n_heads=2, window=5), 5, 5),
    "gated": (GatedAttentionConfig(qk_norm="zero-centred", **GROUPED), T, T),
    "gated headwise, window": (GatedAttentionConfig(n_heads=2, gate="headwise", window=4), 4, 4),
    "titans": (MEMORY, T, T),
    "titans exclusive, normed, persistent": (TitansConfig(n_heads=2, chunk=C, read="exclusive", persistent=2), T, T),
    # A memory at the chunk's start knows earlier chunks; of its own a row sees what window and convolutions reach.
    "mag": (TitansMAGConfig(memory=dataclasses.replace(LINEAR, persistent=2, read="chunk_start"), window=3), 4, T),
    "mac": (TitansMACConfig(memory=dataclasses.replace(MEMORY, persistent=2)), T, T),
}
CONFIGS = {name: config for name, (config, _, _) in MIXERS.items()}
every_mixer = pytest.mark.parametrize("name", MIXERS)
FAST = dict(compiler_options={"xla_backend_optimization_level": 0})  # half the time to compile


def tolerance(name):
    """Relative to the largest number: the memory's own norm divides by what may be small."""
    return 1e-8 if "titans" in name and "normed" in name else 1e-12


def make(config, dtype=np.float64):
    return filled(lambda key: config.build(D, key=key), dtype=dtype, std=0.5)


@functools.cache
def programs(config):
    """The mixer's forms as functions of its parameters, which compile once a shape."""
    shapes = eqx.filter_eval_shape(lambda key: config.build(D, key=key), jax.random.key(0))
    static = eqx.partition(shapes, is_parameter)[1]

    def form(name):
        return jax.jit(lambda params, *a: getattr(eqx.combine(params, static), name)(*a), **FAST)

    start = jax.jit(lambda params: eqx.combine(params, static).start(T), **FAST)
    return form("__call__"), start, form("prefill"), form("step")


def tokens(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def close(a, b, bound):
    for x, y in zip(jax.tree.leaves(as_numpy(a)), jax.tree.leaves(as_numpy(b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=bound * (1 + np.abs(y).max(initial=0)))


def live(state):
    """A decode state without the rows of a segment's cache that hold nothing any more."""
    if not isinstance(state, MACState):
        return state
    return state._replace(cache=jax.tree.map(lambda a: a[: int(state.memory.phase)], state.cache))


@every_mixer
def test_prefill_and_steps_equal_the_call_at_every_split(name):
    """A prefill to any split, then steps; and one prefill after another. The state is the same either way.

    Splits below, at and across chunks and windows; steps are one program however many tokens came before.
    """
    config, bound = CONFIGS[name], tolerance(name)
    with jax.enable_x64(True):
        (call, start, prefill, step), x = programs(config), tokens(T, D)
        params = eqx.filter(make(config), eqx.is_inexact_array)
        whole, first = np.asarray(call(params, x)), start(params)
        assert np.abs(whole).max() > 0.1

        def stepped(state, begin):
            outputs = []
            for i in range(begin, T):
                y, state = step(params, x[i], state)
                outputs.append(np.asarray(y)[None])
            return outputs, state

        outputs, state = stepped(first, 0)
        close(np.concatenate(outputs), whole, bound)
        close(call(params, x[: C - 1]), whole[: C - 1], bound)  # a context shorter than a chunk
        for split in range(1, T):
            head, mid = prefill(params, x[:split], first)
            tail, end = prefill(params, x[split:], mid)
            close(np.concatenate([head, tail]), whole, bound)
            close(live(end), live(state), bound)
            rest, end = stepped(mid, split)
            close(np.concatenate(rest), whole[split:], bound)
            close(live(end), live(state), bound)
        assert step._cache_size() == 1


@every_mixer
def test_no_row_depends_on_a_later_one_nor_on_what_left_the_window(name):
    """Exactly zero, through the call and (without a memory: it takes long to compile) a prefill that goes on."""
    config, least, most = MIXERS[name]
    with jax.enable_x64(True):
        mixer, x = make(config), tokens(T, D)

        def pieces(x):
            head, state = mixer.prefill(x[: C + 1], mixer.start(T))
            return jnp.concatenate([head, mixer.prefill(x[C + 1 :], state).y])

        forms = (mixer, pieces) if isinstance(config, HeadsConfig) else (mixer,)
        jacobians = jax.jit(lambda x: [jax.jacrev(f)(x) for f in forms], **FAST)(x)
    age = np.arange(T)[:, None] - np.arange(T)[None, :]
    for jacobian in jacobians:
        influence = np.abs(np.asarray(jacobian)).max(axis=(1, 3))  # of token j on row i
        assert (influence[(age < 0) | (age >= most)] == 0).all()
        assert (influence[(age >= 0) & (age < least)] > 1e-9).all()


@every_mixer
def test_nothing_leaks_through_a_prefill_that_goes_on(name):
    """Another token j: what comes before it is the same to the last bit, in both prefills."""
    with jax.enable_x64(True):
        (_, start, prefill, _), x = programs(CONFIGS[name]), tokens(T, D)
        params = eqx.filter(make(CONFIGS[name]), eqx.is_inexact_array)

        def parts(x):
            head, state = prefill(params, x[: C + 1], start(params))
            return np.concatenate([head, prefill(params, x[C + 1 :], state).y])

        before = parts(x)
        for j in range(T):
            after = parts(x.at[j].add(1.0))
            np.testing.assert_array_equal(after[:j], before[:j])
            assert (after[j] != before[j]).any()


@every_mixer
def test_a_batch_is_its_sequences_and_every_leaf_has_a_gradient(name):
    with jax.enable_x64(True):
        mixer, x, pull = make(CONFIGS[name]), tokens(2, T, D), tokens(2, T, D, seed=2)
        params, static = eqx.partition(mixer, eqx.is_inexact_array)

        def loss(params):
            mixer = eqx.combine(params, static)
            batch = (getattr(mixer, "batch", None) or jax.vmap(mixer))(x)
            return jnp.sum(jnp.sin(batch) * pull), batch

        gradient, batch = jax.jit(jax.grad(loss, has_aux=True), **FAST)(params)
        call = programs(CONFIGS[name])[0]
        close(batch, np.stack([call(params, row) for row in x]), tolerance(name))
    for path, leaf in jax.tree_util.tree_flatten_with_path(as_numpy(gradient))[0]:
        # A bias of the keys moves every score of a row alike: softmax does not see it, unless a norm or rotation does.
        assert np.isfinite(leaf).all() and (np.abs(leaf) > 1e-9).mean() > 0.9, path_name(path)


@every_mixer
def test_the_config_counts_its_parameters_and_its_state(name):
    config = CONFIGS[name]
    mixer = jax.eval_shape(lambda: config.build(D, key=jax.random.key(0)))
    assert count_parameters(mixer) == config.parameters(D)
    for context in (1, 2, T, 3 * T):
        state = jax.eval_shape(lambda context=context: config.build(D, key=jax.random.key(0)).start(context))
        assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == config.state_numbers(D, context)
        assert config.flops(D, context) >= 0 and config.activations(D, context) > 0  # matmuls only: some have none


@every_mixer
def test_bfloat16_in_and_out(name):
    """A state for bfloat16 keeps its shapes and types from step to step."""
    mixer = filled(lambda key: CONFIGS[name].build(D, key=key), std=D**-0.5, dtype=jnp.bfloat16)

    @functools.partial(jax.jit, **FAST)
    def forms(x):
        start = mixer.start(T, jnp.bfloat16)
        y, after = mixer.step(x[0], start)
        return mixer(x), y, start, after

    whole, first, start, after = as_numpy(forms(tokens(T, D).astype(jnp.bfloat16)))
    assert whole.dtype == first.dtype == jnp.bfloat16
    whole, first = whole.astype(np.float32), first.astype(np.float32)
    assert np.isfinite(whole).all() and np.abs(whole).max() > 0.01
    np.testing.assert_allclose(first, whole[0], rtol=0, atol=0.05 * np.abs(whole).max())
    before, after = (jax.tree.map(lambda a: (a.shape, a.dtype), state) for state in (start, after))
    assert before == after


@every_mixer
def test_a_decode_state_of_another_mixer_is_refused_in_one_line(name):
    mixer = filled(lambda key: CONFIGS[name].build(D, key=key))
    own = type(jax.eval_shape(lambda: mixer.start(T)))
    for other in ("attention", "titans", "mag", "mac"):
        state = jax.eval_shape(lambda other=other: make(CONFIGS[other], np.float32).start(T))
        if type(state) is own:
            continue
        for call, x in ((mixer.step, jnp.ones(D)), (mixer.prefill, jnp.ones((2, D)))):
            with refuses(f"is a {type(state).__name__}, but .* decodes with", ValueError):
                call(x, state)


@every_mixer
def test_a_taper_moves_parameters_of_any_mixers_model_and_adds_none(name):
    flat = ModelConfig(d_model=16, depth=5, mixer=CONFIGS[name], channel=MLPConfig(d_ff=48))
    falling, rising, even = (
        dataclasses.replace(flat, taper=TaperConfig("cosine", start, 2 - start, 8)) for start in (1.5, 0.5, 1.0)
    )
    assert falling.widths == rising.widths[::-1] and list(falling.widths) == sorted(falling.widths, reverse=True)
    assert falling.widths[0] == 72 and even.widths == flat.widths and even.channels() == flat.channels()
    assert len({count_parameters(config) for config in (flat, falling, rising, even)}) == 1


# By kind; the sequences are no multiple of the memory's chunk.
LEARNERS = {
    "attention": {},
    "gated": dict(mixer=GatedAttentionConfig(n_heads=2)),
    "titans": dict(mixer=TitansConfig(n_heads=2, chunk=C)),
    "mag": dict(mixer=TitansMAGConfig(memory=LINEAR, window=3)),
    "mac": dict(mixer=TitansMACConfig(memory=LINEAR)),
    "hope": dict(channel=ContinuumConfig(d_ff=64)),
}


@pytest.mark.parametrize("changes", LEARNERS.values(), ids=LEARNERS)
def test_four_sequences_are_learned_by_heart_in_fifty_steps(changes):
    """Through the optimizer that runs use, a level's period included."""
    config = ModelConfig(
        vocab_size=16, d_model=32, depth=1, context=T, embedding=TableConfig(std=0.5),
        mixer=AttentionConfig(n_heads=2), channel=MLPConfig(d_ff=64),
    )  # fmt: skip
    model = build(dataclasses.replace(config, **changes), key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.0), params)
    sequences = np.random.default_rng(0).integers(0, 16, (4, T + 1))
    sequences[:, 0] = np.arange(4)  # which one it is
    inputs, targets = jnp.asarray(sequences[:, :-1]), jnp.asarray(sequences[:, 1:])

    def loss(params):
        model = eqx.combine(params, static)
        return cross_entropy(model.batch_features(inputs), model.read_out(), targets).loss

    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, jax.tree.map(lambda u: -2e-2 * u, updates)), state), value

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=51), **FAST)
    losses = np.asarray(run((params, optimizer.init(params)))[1])
    assert losses[0] > 2 and losses[-1] < 0.1, losses[::10]


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
    "titans": (dict(mixer=TitansConfig(n_heads=2)), 292_312),
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


UNGROUPED = TitansConfig(n_heads=4, remat="none")
PLANNED = {
    "attention": AttentionConfig(n_heads=4),
    "window": AttentionConfig(n_heads=4, window=32),
    "gated": GatedAttentionConfig(n_heads=4),
    "titans": UNGROUPED,
    "titans, long chunks": dataclasses.replace(UNGROUPED, chunk=64),
    "mag": TitansMAGConfig(memory=UNGROUPED, window=32),
    "mac": TitansMACConfig(memory=UNGROUPED),
    "mac in groups": TitansMACConfig(memory=dataclasses.replace(UNGROUPED, remat="groups")),
}


@pytest.mark.parametrize("name", PLANNED)
def test_activations_are_near_what_xla_plans(name):
    """XLA's temporaries also hold what a backward pass needs for a while; nothing runs."""
    config, width, t = PLANNED[name], 64, 768
    shapes = eqx.filter_eval_shape(lambda key: config.build(width, key=key), jax.random.key(0))
    params, static = eqx.partition(shapes, is_parameter)
    loss = jax.grad(lambda params, x: eqx.combine(params, static)(x).sum())
    planned = jax.jit(loss).lower(params, jax.ShapeDtypeStruct((t, width), jnp.float32)).compile().memory_analysis()
    assert 0.45 < 4 * t * config.activations(width, t) / planned.temp_size_in_bytes < 1.3


@every_mixer
def test_a_fresh_state_can_be_donated(name):
    """Its fields share no buffer, with one another or with the mixer's parameters."""
    mixer = make(CONFIGS[name], np.float32)
    state = mixer.start(T)
    leaves = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state, eqx.filter(mixer, eqx.is_array)))]
    assert len(set(leaves)) == len(leaves)


@every_mixer
def test_no_tokens_and_no_sequences(name):
    mixer = make(CONFIGS[name], np.float32)
    assert jax.eval_shape(mixer, jnp.ones((0, D))).shape == (0, D)
    assert jax.eval_shape(mixer.prefill, jnp.ones((0, D)), mixer.start(T)).y.shape == (0, D)
    batch = getattr(mixer, "batch", None) or jax.vmap(mixer)
    assert jax.eval_shape(batch, jnp.ones((0, T, D))).shape == (0, T, D)
