"""Decay groups, AdamW against optax's, and schedules."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tiny import GENERATOR, VOCAB, tiny_config, tiny_model

from eqx_slm import (
    AttentionConfig,
    CompositionalConfig,
    HeadConfig,
    LowRankConfig,
    MLPConfig,
    OptimizerConfig,
    UserError,
)
from eqx_slm.train import make_optimizer, make_program, parameter_groups
from eqx_slm.train.checkpoint import named_arrays

LINEAR_SKIP = dataclasses.replace(GENERATOR, skip="linear", order="random")
MODELS = {
    "dense": tiny_config(),
    "tied": tiny_config(head=HeadConfig("tied")),
    "low-rank": tiny_config(embedding=LowRankConfig(rank=4), head=HeadConfig("low-rank", rank=4)),
    "compositional": tiny_config(embedding=CompositionalConfig()),
    "leviathan": tiny_config(embedding=LINEAR_SKIP),
    "biases": tiny_config(
        mixer=AttentionConfig(n_heads=2, bias="all", qk_norm="rms"),
        channel=MLPConfig(d_ff=32, bias="all"),
        norm="layer",
        positions="learned",
    ),
}
NORMS = {"mixer_norm.weight", "mixer_norm.bias", "channel_norm.weight", "channel_norm.bias"}
NORMS |= {"mixer.q_norm.weight", "mixer.k_norm.weight"}
BIASES = {f"mixer.b_{which}" for which in "qkvo"} | {f"channel.b_{which}" for which in ("gate", "up", "down")}
EXEMPT = {f"blocks.0.{name}" for name in NORMS | BIASES}
EXEMPT |= {"norm.weight", "norm.bias", "embedding.norm_weight", "embedding.norm_bias"}


@pytest.mark.parametrize("name", MODELS)
def test_norms_and_biases_are_not_decayed_and_everything_else_is(name):
    model = tiny_model(MODELS[name])
    groups = parameter_groups(model)
    parameters = named_arrays(eqx.filter(model, eqx.is_inexact_array), buffers=False)
    assert groups == {path: "no decay" if path in EXEMPT else "decay" for path in parameters}
    assert parameter_groups(eqx.filter(model, eqx.is_inexact_array)) == groups


def test_the_rules_meet_every_kind_of_leaf():
    """The test above would say nothing of leaves that these models do not have."""
    groups = {name: parameter_groups(tiny_model(config)) for name, config in MODELS.items()}
    assert EXEMPT == {path for each in groups.values() for path, group in each.items() if group == "no decay"}
    decayed = {"embedding.codebooks", "embedding.spline_offset", "embedding.w_in", "embedding.w_out"}
    assert decayed | {"embedding.w_skip", "head.weight"} <= groups["leviathan"].keys()
    assert "embedding.order" not in groups["leviathan"]
    assert "positions.table" in groups["biases"] and "head.weight" not in groups["tied"]


class Inner(eqx.Module):
    gain: jax.Array
    matrices: tuple[jax.Array, ...]
    no_decay = ("matrices",)


class Theirs(eqx.Module):
    """A module that knows nothing of decay, with every kind of child."""

    scalar: jax.Array
    vector: jax.Array
    matrix: jax.Array
    nested: dict
    inner: Inner
    ids: jax.Array
    linear: eqx.nn.Linear
    width: int = eqx.field(static=True)
    activation: object = jax.nn.relu


def test_a_module_that_does_not_say_is_decayed_from_two_axes_on(getkey):
    theirs = Theirs(
        scalar=jnp.ones(()),
        vector=jnp.ones(3),
        matrix=jnp.ones((3, 3)),
        nested={"deep": [jnp.ones(2), jnp.ones((2, 2, 2))]},
        inner=Inner(gain=jnp.ones(3), matrices=(jnp.ones((2, 2)), jnp.ones(2))),
        ids=jnp.arange(4),
        linear=eqx.nn.Linear(3, 2, key=getkey()),
        width=3,
    )
    assert parameter_groups(theirs) == {
        "scalar": "no decay",
        "vector": "no decay",
        "matrix": "decay",
        "nested.deep.0": "no decay",
        "nested.deep.1": "decay",
        "inner.gain": "decay",  # a module that says decides for all of its own leaves
        "inner.matrices.0": "no decay",
        "inner.matrices.1": "no decay",
        "linear.weight": "decay",
        "linear.bias": "no decay",
    }
    assert set(parameter_groups(theirs)) == set(named_arrays(eqx.filter(theirs, eqx.is_inexact_array), buffers=False))


@pytest.mark.parametrize("clip_norm", [1e9, 0.5])
def test_ten_steps_are_those_of_optax_adamw(clip_norm):
    params = eqx.filter(tiny_model(MODELS["biases"]), eqx.is_inexact_array)
    groups = parameter_groups(params)
    config = OptimizerConfig(clip_norm=clip_norm, weight_decay=0.3, beta1=0.8, beta2=0.95)
    rates = [3e-2 * config.multiplier(step, 10) for step in range(10)]
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: groups[jax.tree_util.keystr(path, simple=True, separator=".")] == "decay", params
    )
    reference = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            lambda count: jnp.asarray(rates)[count], b1=0.8, b2=0.95, eps=config.eps, weight_decay=0.3, mask=mask
        ),
    )
    ours = make_optimizer(config, params)

    @jax.jit
    def both(params, state, wanted, wanted_state, gradients, rate):
        updates, state = ours.update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types
            updates, wanted_state = reference.update(gradients, wanted_state, wanted)
        return params, state, optax.apply_updates(wanted, updates), wanted_state

    rng = np.random.default_rng(0)
    start = wanted = params
    state, wanted_state = ours.init(params), reference.init(params)
    for rate in rates:
        gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        params, state, wanted, wanted_state = both(params, state, wanted, wanted_state, gradients, jnp.float32(rate))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, wanted)
    moved = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), params, start)
    assert all(jax.tree.leaves(moved))


def test_decay_pulls_only_its_group():
    """Without a gradient nothing moves but what is decayed, and that towards zero by rate x decay."""
    params = eqx.filter(tiny_model(MODELS["leviathan"]), eqx.is_inexact_array)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.25), params)
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    groups, before = parameter_groups(params), named_arrays(params)
    for path, update in named_arrays(updates, buffers=False).items():
        share = 0.25 if groups[path] == "decay" else 0.0
        np.testing.assert_allclose(update, share * before[path], rtol=1e-6)


FACTORS = "embedding=3, embedding.codebooks=0.1, blocks.*.mixer=0.5, blocks.1=2, blocks.1.mixer.w_q=0"


def test_a_leafs_update_is_multiplied_by_the_last_factor_that_fits():
    config = dataclasses.replace(MODELS["leviathan"], depth=2)
    params = eqx.filter(tiny_model(dataclasses.replace(config, lr_multipliers=FACTORS)), eqx.is_inexact_array)
    plain = eqx.filter(tiny_model(config), eqx.is_inexact_array)
    rng = np.random.default_rng(0)
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)

    def updates(params, gradients):
        optimizer = make_optimizer(OptimizerConfig(), params)
        return named_arrays(jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0], buffers=False)

    ours = updates(params, gradients)
    theirs = updates(plain, jax.tree.unflatten(jax.tree.structure(plain), jax.tree.leaves(gradients)))
    seen = set()
    for path, update in ours.items():
        factor = 3.0 if path.startswith("embedding") else 1.0
        factor = 0.1 if path == "embedding.codebooks" else factor
        factor = 0.5 if path.startswith("blocks.0.mixer.") else factor
        factor = 2.0 if path.startswith("blocks.1.") else factor
        factor = 0.0 if path == "blocks.1.mixer.w_q" else factor
        np.testing.assert_allclose(update, factor * theirs[path], rtol=1e-6)
        seen.add(factor)
    assert seen == {0.0, 0.1, 0.5, 1.0, 2.0, 3.0}


def test_factors_that_fit_nothing_or_split_a_scan_are_refused():
    model = tiny_model(tiny_config(depth=3, lr_multipliers="embedding.codebooks=0.1"))
    with pytest.raises(UserError, match="no parameter's path begins with embedding.codebooks"):
        make_optimizer(OptimizerConfig(), model)
    split = tiny_model(tiny_config(depth=3, lr_multipliers="blocks.2=0.1"))
    assert make_program(split, OptimizerConfig())
    with pytest.raises(UserError, match='trained unlike block 0, with which it is scanned: use loop="unrolled"'):
        make_program(split, OptimizerConfig(), loop="runs")
    for factors, loop in (("blocks.2=0.1", "unrolled"), ("blocks=0.1", "runs")):
        deep = tiny_model(tiny_config(depth=8, lr_multipliers=factors))
        assert make_program(deep, OptimizerConfig(), loop="auto").loop == loop
    alike = tiny_model(tiny_config(depth=3, lr_multipliers="blocks.*.mixer=0.1"))
    assert make_program(alike, OptimizerConfig(), loop="runs")


def test_the_state_holds_moments_of_parameters_alone():
    model = tiny_model(MODELS["leviathan"])
    params = eqx.filter(model, eqx.is_inexact_array)
    state = make_optimizer(OptimizerConfig(), model).init(params)
    integers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.integer)]
    assert all(leaf.shape == () for leaf in integers)  # counters: no order of VOCAB ids among them
    floats = sum(leaf.size for leaf in jax.tree.leaves(state) if eqx.is_inexact_array(leaf))
    assert floats == 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert model.embedding.order.shape == (VOCAB,)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules

shares = st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.5])
schedules = st.sampled_from(["cosine", "wsd", "constant"])


@given(schedules, shares, st.sampled_from([0.01, 0.1, 0.2, 0.5]), st.sampled_from([0.0, 0.1, 1.0]), st.integers(1, 200))
def test_every_multiplier_is_a_share_of_the_peak(schedule, warmup, decay, floor, steps):
    config = OptimizerConfig(schedule=schedule, warmup=warmup, decay=decay, floor=floor)
    values = np.array([config.multiplier(step, steps) for step in range(steps)])
    assert (values <= 1).all() and (values[:-1] > 0).all() and values[-1] >= 0
    top = int(values.argmax())
    assert (np.diff(values[: top + 1]) > 0).all()  # up to the peak, then never up again
    assert (np.diff(values[top:]) <= 1e-12).all()


def values(steps=100, **options):
    return np.array([OptimizerConfig(**options).multiplier(step, steps) for step in range(steps)])


def test_warm_up_rises_in_a_line_and_then_stays():
    rates = values(schedule="constant", warmup=0.2)
    np.testing.assert_allclose(rates[:20], np.arange(1, 21) / 21)
    assert (rates[20:] == 1).all()
    assert (values(schedule="constant", warmup=0.0) == 1).all()


@pytest.mark.parametrize("steps", [1, 7, 40, 240])
def test_warm_up_is_optaxs_shifted_by_one(steps):
    """No step at a rate of 0, and the last one below the peak: step i is step i + 1 of a rise over w + 1 steps."""
    ours, warmup = values(steps, schedule="constant", warmup=0.2), max(1, round(0.2 * steps))
    optaxs = optax.linear_schedule(0.0, 1.0, warmup + 1)
    np.testing.assert_allclose(ours, [optaxs(step + 1) for step in range(steps)], rtol=1e-6)
    usual = optax.linear_schedule(0.0, 1.0, warmup)
    assert usual(0) == 0 < ours[0] and ours[warmup - 1] == pytest.approx(warmup / (warmup + 1)) and usual(warmup) == 1


def test_cosine_ends_at_its_floor():
    rates = values(schedule="cosine", warmup=0.1, floor=0.25)
    assert rates[-1] == pytest.approx(0.25, abs=1e-12)
    assert rates[54] == pytest.approx((1 + 0.25) / 2)  # half way between the end of warm-up and the last step
    assert (np.diff(rates[10:]) < 0).all()


def test_wsd_stays_and_then_falls_in_a_line():
    rates = values(schedule="wsd", warmup=0.1, decay=0.2, floor=0.1)
    assert (rates[10:80] == 1).all()
    np.testing.assert_allclose(rates[80:], 1 - 0.9 * np.arange(1, 21) / 20)


NOT_A_SHARE = (-0.1, 1.1, float("nan"), float("inf"))
WRONG = {
    "beta1": (-0.1, 1.0, 1.5, 1 - 1e-9, float("nan")),
    "beta2": (-0.1, 1.0, 1.5, 1 - 1e-9, float("nan"), float("inf")),
    "eps": (-1.0, 0.0, 1e-50, float("nan"), float("inf")),
    "weight_decay": (-1.0, -1e-12, float("nan"), float("inf")),
    "clip_norm": (0.0, -1.0, float("nan"), float("inf")),
    "warmup": (1.0, *NOT_A_SHARE),
    "decay": (0.0, *NOT_A_SHARE),
    "floor": NOT_A_SHARE,
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, wrong in WRONG.items() for value in wrong])
def test_what_no_run_could_use_is_refused(name, value):
    with refuses(f"{name}="):
        OptimizerConfig(schedule="wsd", **{name: value})


def test_shares_have_to_fit_into_the_run():
    with pytest.raises(UserError, match="warmup=0.5, decay=0.6"):
        OptimizerConfig(schedule="wsd", warmup=0.5, decay=0.6)


def test_only_wsd_asks_for_a_decay_that_fits():
    assert OptimizerConfig(schedule="cosine", warmup=0.9).multiplier(95, 100) < 1
