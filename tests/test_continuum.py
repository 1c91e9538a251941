"""Continuum memory: its formula, its widths, the update rule, one level as the Transformer, and learning in context."""

import dataclasses
import functools
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from filled import as_numpy, filled
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tiny import LENGTH, ROWS, VOCAB, tiny_config, tiny_model

from eqx_slm import Block, ContinuumConfig, InContext, MLPConfig, ModelConfig, OptimizerConfig, TaperConfig, build
from eqx_slm.account import memory
from eqx_slm.account.ledger import path_name
from eqx_slm.configs import from_dict, set_field, to_dict
from eqx_slm.nn.norm import RMSNorm
from eqx_slm.train import make_optimizer, make_program
from eqx_slm.train.checkpoint import named_arrays
from eqx_slm.train.optimizer import parameter_groups, update_every, update_periods

T, D = 5, 8


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def block_of(channel, **options):
    from eqx_slm import AttentionConfig

    mixer = AttentionConfig(n_heads=2)
    return filled(
        lambda key: Block(mixer.build(D, key=key), channel.build(D, key=key), d_model=D, **options),
        dtype=np.float64,
        std=0.5,
    )


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("form", ["chain", "independent"])
def test_a_block_is_the_written_chain(form, placement):
    with jax.enable_x64(True):
        block = block_of(ContinuumConfig(d_ff=9, periods=(1, 2, 4), multiple=1, form=form), placement=placement)
        x = jnp.asarray(normal(T, D))

        @eqx.filter_jit
        def forms(block, x):
            first, levels = block.channel_norm, block.channel.levels
            if placement == "pre":
                z = x + block.mixer(block.mixer_norm(x))
            else:
                z = block.mixer_norm(x + block.mixer(x))
            if form == "independent":
                inner = first(z) if placement == "pre" else z
                z = z + sum(beta * level.mlp(inner) for beta, level in zip(block.channel.beta, levels, strict=True))
                z = z if placement == "pre" else first(z)
            else:
                for norm, level in zip([first, *(level.norm for level in levels[1:])], levels, strict=True):
                    z = z + level.mlp(norm(z)) if placement == "pre" else norm(z + level.mlp(z))
            return block(x), z, block.channel(x), block.channel.stream(x, lambda y: y, "pre")

        got, written, alone, streamed = as_numpy(forms(block, x))
        np.testing.assert_allclose(got, written, rtol=1e-11, atol=1e-12)
        if form == "chain" and placement == "pre":  # the channel alone, without the block's norm
            np.testing.assert_allclose(alone - streamed, -x, rtol=1e-11, atol=1e-12)


@given(
    total=st.integers(1, 400),
    shares=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    multiple=st.sampled_from([1, 3, 8, 16]),
)
def test_level_widths_are_the_largest_remainders(total, shares, multiple):
    config = ContinuumConfig(d_ff=total, periods=(1,) * len(shares), shares=tuple(shares), multiple=multiple)
    units = total // multiple
    quotas = [units * share / sum(shares) for share in shares]
    try:
        widths = config.level_widths(D)
    except ValueError as error:
        assert len(shares) > 1 and min(quotas) < 1 and "too narrow" in str(error) and "\n" not in str(error)
        return
    assert sum(widths) == total
    if len(shares) > 1:
        first = widths[0] - total % multiple
        given_units = [first // multiple, *(width // multiple for width in widths[1:])]
        assert [u * multiple for u in given_units] == [first, *widths[1:]]
        # Hamilton's method: within the quota, and no one rounded up has a smaller remainder than one rounded down.
        assert all(abs(u - q) < 1 for u, q in zip(given_units, quotas, strict=True))
        up = [q % 1 for u, q in zip(given_units, quotas, strict=True) if u > q]
        down = [q % 1 for u, q in zip(given_units, quotas, strict=True) if u < q]
        assert not up or not down or min(up) >= max(down) - 1e-9


def test_a_taper_acts_on_the_total():
    config = ModelConfig(
        d_model=64, depth=4, channel=ContinuumConfig(d_ff=176), taper=TaperConfig("cosine", multiple=8)
    )
    assert config.widths == (264, 224, 128, 88)
    assert [channel.level_widths(64) for channel in config.channels()] == [(136, 128), (112, 112), (64, 64), (48, 40)]
    narrow = dataclasses.replace(config, channel=ContinuumConfig(d_ff=24), taper=TaperConfig("cosine", multiple=4))
    with pytest.raises(ValueError, match="width 12 is too narrow for 2 levels in multiples of 8: give it 16 or more"):
        jax.eval_shape(lambda: build(narrow, key=jax.random.key(0)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(periods=(1, 0)), r"periods=\(1, 0\).*at least 1 optimizer step"),
        (dict(periods=()), r"periods=\(\)"),
        (dict(shares=(1,)), r"shares=\(1,\) for 2 levels"),
        (dict(multiple=0), "multiple=0"),
    ],
)
def test_levels_that_make_no_sense_are_refused_in_one_line(changes, named):
    with refuses(named):
        ContinuumConfig(**changes)


HOPE = tiny_config(channel=ContinuumConfig(d_ff=32))
BATCHES = np.random.default_rng(0).integers(0, VOCAB, (9, ROWS, LENGTH + 1)).astype(np.int32)


def trained(config, steps=4, **options):
    """Parameters after each of some steps, the first of them the initial values."""
    model = tiny_model(config)
    program = make_program(model, OptimizerConfig(**options))
    state = program.start(model)
    history = [named_arrays(as_numpy(state.params))]
    for batch in BATCHES[:steps]:
        state, _ = program.step(state, batch, np.float32(1e-2))
        history.append(named_arrays(as_numpy(state.params)))
    return history


def test_one_level_is_the_transformer_bit_for_bit():
    one, plain = (trained(tiny_config(channel=c)) for c in (ContinuumConfig(d_ff=32, periods=(1,)), MLPConfig(d_ff=32)))
    for left, right in zip(one, plain, strict=True):
        left = {name.replace("channel.levels.0.mlp", "channel"): leaf for name, leaf in left.items()}
        assert left.keys() == right.keys()
        for name, leaf in left.items():
            np.testing.assert_array_equal(leaf, right[name], err_msg=name)
    assert any((one[0][name] != one[-1][name]).any() for name in one[0])


def test_a_level_moves_at_its_period_only():
    history = trained(HOPE, steps=9)
    for step in range(1, 10):
        for name, leaf in history[step].items():
            slow = "levels.1" in name
            assert (leaf != history[step - 1][name]).any() == (not slow or step % 4 == 0), (step, name)


def test_period_one_everywhere_is_plain_adamw():
    """optax's own, with the gradient clipped and the same leaves decayed: the same numbers, bit for bit."""
    params = eqx.filter(build(set_field(HOPE, "channel.periods", "1,1"), key=jax.random.key(0)), eqx.is_inexact_array)
    assert set(update_periods(params).values()) == {1}
    config, rate, groups = OptimizerConfig(weight_decay=0.1), 1e-2, parameter_groups(params)
    mine = optax.chain(make_optimizer(config, params), optax.scale_by_learning_rate(rate))
    mask = jax.tree_util.tree_map_with_path(lambda path, _: groups[path_name(path)] == "decay", params)
    adamw = optax.adamw(rate, config.beta1, config.beta2, config.eps, weight_decay=0.1, mask=mask)
    plain = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
    gradient = jax.tree.map(lambda p: jnp.cos(p) / 10, params)

    def two(optimizer):
        first, state = optimizer.update(gradient, optimizer.init(params), params)
        return first, optimizer.update(first, state, params)[0]

    with jax.numpy_dtype_promotion("standard"):  # optax's own needs it
        ours, theirs = (jax.tree.leaves(jax.jit(lambda o=o: two(o))()) for o in (mine, plain))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@given(period=st.integers(1, 5), rates=st.lists(st.floats(0.01, 1), min_size=7, max_size=7))
def test_sgd_is_the_written_update_rule(period, rates):
    """Eq. 71: at multiples of the period the sum of that many gradients is taken, in between nothing moves."""
    gradients = normal(7, 2).astype(np.float32)
    history = as_numpy(sgd(period)(jnp.asarray(gradients), jnp.asarray(rates, jnp.float32)))
    expected = {"fast": np.zeros(2), "slow": np.zeros(2)}
    for i, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        expected["fast"] = expected["fast"] - rate * g
        if i % period == 0:
            expected["slow"] = expected["slow"] - rate * gradients[i - period : i].sum(axis=0)
        for name, value in expected.items():
            np.testing.assert_allclose(history[name][i - 1], value, rtol=1e-4, atol=1e-5)


@functools.cache
def sgd(period):
    """The parameters after each step, from gradients and rates of all steps."""
    optimizer = update_every(optax.identity(), {"fast": 1, "slow": period}.__getitem__)

    def step(carry, given):
        (params, state), (g, rate) = carry, given
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            updates, state = optimizer.update({"fast": g, "slow": g}, state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return (params, state), params

    @jax.jit
    def run(gradients, rates):
        start = {"fast": jnp.zeros(2), "slow": jnp.zeros(2)}
        return jax.lax.scan(step, (start, optimizer.init(start)), (gradients, rates))[1]

    return run


def test_slow_gradients_are_in_the_memory_account():
    once = set_field(HOPE, "channel.periods", "1,1")
    more = memory(HOPE, batch_size=2).optimizer - memory(once, batch_size=2).optimizer
    params = eqx.filter(jax.eval_shape(lambda: build(HOPE, key=jax.random.key(0))), lambda leaf: True)
    slow = [leaf for name, leaf in named_arrays(params).items() if update_periods(params)[name] > 1]
    assert more == 4 * sum(leaf.size for leaf in slow) > 0


def test_kind_and_fields_from_a_command_line_keep_the_width():
    config = set_field(tiny_config(channel=MLPConfig(d_ff=48, activation="gelu")), "channel.kind", "continuum")
    assert config.channel == ContinuumConfig(d_ff=48, activation="gelu")
    assert set_field(config, "channel.periods", "1,4,16").channel.periods == (1, 4, 16)
    config = set_field(config, "mixer.kind", "gated-attention")
    assert config.mixer.kind == "gated-attention" and config.mixer.n_heads == 2
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


IN_CONTEXT = InContext(chunks=(4, 8), rates=(0.3, 0.1))
MODEL = ModelConfig(
    vocab_size=13, d_model=D, depth=2, context=32,
    mixer=dataclasses.replace(tiny_config().mixer, n_heads=2), channel=ContinuumConfig(d_ff=6, multiple=1),
)  # fmt: skip
IDS = np.random.default_rng(3).integers(0, 13, 19).astype(np.int32)


def in_float64(**changes):
    return filled(lambda key: build(dataclasses.replace(MODEL, **changes), key=key), dtype=np.float64, std=0.4)


@eqx.filter_jit
def in_context_forms(model, tokens):
    """Features in chunks, at rate zero, and of the model that does not learn."""
    frozen = dataclasses.replace(IN_CONTEXT, rates=(0.0, 0.0))
    static = model.features(model.embedding(tokens))
    return IN_CONTEXT.features(model, tokens), frozen.features(model, tokens), static


in_context_step = eqx.filter_jit(IN_CONTEXT.step)  # one program for all lengths


@pytest.mark.parametrize("t", [1, 8, 19])
def test_chunks_equal_the_stream_and_rate_zero_equals_the_static_model(t):
    with jax.enable_x64(True):
        model, tokens = in_float64(), jnp.asarray(IDS[:t])
        chunked, frozen, static = as_numpy(in_context_forms(model, tokens))
        np.testing.assert_allclose(frozen, static, rtol=1e-12, atol=1e-12)
        state, streamed = IN_CONTEXT.start(model, 32), []
        for token in tokens:
            y, state = in_context_step(model, token, state)
            streamed.append(np.asarray(y))
        np.testing.assert_allclose(np.stack(streamed), chunked, rtol=1e-11, atol=1e-11)
        learned = np.abs(np.asarray(chunked - static)).max(axis=1) > 1e-6
        assert learned.tolist() == [i >= 4 for i in range(t)]  # and it does learn, from the second chunk on


def test_levels_learn_by_the_written_rule():
    """After n chunks a level has lost its rate times the gradients of the chunks before its last boundary."""
    with jax.enable_x64(True):
        model, ids = in_float64(depth=1), jnp.asarray(IDS)

        def where(m):
            return [level.mlp for level in m.blocks[0].channel.levels]

        @eqx.filter_jit
        def chunk(mlps, tokens, labels, state):
            def loss(mlps):
                features, after = eqx.tree_at(where, model, mlps).prefill(tokens, state)
                logits = model.logits(features)
                nll = jax.nn.logsumexp(logits, axis=-1) - logits[jnp.arange(len(labels)), labels]
                return nll.sum(), (features, after)

            return eqx.filter_grad(loss, has_aux=True)(mlps)

        state, gradients, expected = model.start(32), [], []
        for n in range(4):
            mlps = list(where(model))
            for s, (every, rate) in enumerate([(1, 0.3), (2, 0.1)]):
                for gradient in gradients[: n // every * every]:
                    mlps[s] = eqx.apply_updates(mlps[s], jax.tree.map(lambda g, r=rate: -r * g, gradient[s]))
            gradient, (features, state) = chunk(mlps, ids[4 * n : 4 * n + 4], ids[4 * n + 1 : 4 * n + 5], state)
            gradients.append(gradient)
            expected.append(features)
        got = eqx.filter_jit(IN_CONTEXT.features)(model, ids[:17])
        np.testing.assert_allclose(got[:16], np.concatenate(expected), rtol=1e-10, atol=1e-11)


def test_nothing_leaks_in_context_and_a_batch_is_its_sequences():
    with jax.enable_x64(True):
        model = in_float64()
        changed = np.tile(IDS, (len(IDS), 1))
        changed[np.arange(len(IDS)), np.arange(len(IDS))] = (IDS + 1) % 13
        run = eqx.filter_jit(lambda m, batch: jax.lax.map(lambda row: IN_CONTEXT.features(m, row), batch))
        outputs = np.asarray(run(model, jnp.asarray(np.concatenate([IDS[None], changed]))))
        for i, other in enumerate(outputs[1:]):
            np.testing.assert_array_equal(other[:i], outputs[0, :i])
            assert (other[i:] != outputs[0, i:]).any(axis=1).all()
        both = eqx.filter_jit(lambda m, batch: jax.vmap(lambda row: IN_CONTEXT.features(m, row))(batch))
        batch = np.asarray(both(model, jnp.asarray(np.stack([IDS, changed[2]]))))
        np.testing.assert_allclose(batch, outputs[[0, 3]], rtol=1e-11, atol=1e-12)


def test_the_outer_gradient_is_first_order_unless_asked():
    """ "full" is the derivative of what is computed, by finite differences; "first-order" leaves a part of it out."""
    with jax.enable_x64(True):
        model, tokens = in_float64(depth=1), jnp.asarray(IDS[:9])

        def value(model, how="full"):
            return jnp.sum(jnp.sin(dataclasses.replace(IN_CONTEXT, outer=how).features(model, tokens)))

        params = eqx.filter(model, eqx.is_inexact_array)
        rng = np.random.default_rng(5)
        direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
        run = eqx.filter_jit(lambda m, d, by: value(eqx.apply_updates(m, jax.tree.map(lambda leaf: by * leaf, d))))
        slope = (run(model, direction, jnp.asarray(1e-5)) - run(model, direction, jnp.asarray(-1e-5))) / 2e-5

        def along(how):
            gradient = eqx.filter_jit(eqx.filter_grad(lambda m: value(m, how)))(model)
            return sum(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.vdot(a, b)), gradient, direction)))

        assert along("full") == pytest.approx(float(slope), rel=1e-6)
        assert np.isfinite(along("first-order")) and abs(along("first-order") - slope) > 1e-3


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: InContext(chunks=(4, 6)), r"chunks=\(4, 6\).*multiples of the smallest"),
        (lambda: InContext(chunks=(4,)), "1 chunks and 2 rates"),
        (lambda: InContext((4,), (0.1,)).start(filled(lambda key: build(HOPE, key=key)), 8), "1 chunks.*of 2 levels"),
        (lambda: InContext().start(filled(lambda key: build(tiny_config(), key=key)), 8), "no continuum memory"),
    ],
)
def test_learning_in_context_that_makes_no_sense_is_refused(make, named):
    with refuses(named, ValueError):
        make()


def test_the_levels_own_norms_are_of_the_kind_asked_for():
    memory = filled(lambda key: ContinuumConfig(d_ff=16).build(D, key=key))
    assert memory.levels[0].norm is None and isinstance(memory.levels[1].norm, RMSNorm)
