"""Corners of the optimizers: Muon with periods and factors, on ladder models and bigrams; schedules; accumulation."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GENERATOR, LENGTH, VOCAB, tiny_config, tiny_model

from eqx_slm import BigramConfig, ContinuumConfig, HeadConfig, OptimizerConfig, make_program
from eqx_slm.nn.ladder import CHUNK, FlatConfig, StackConfig
from eqx_slm.train.checkpoint import named_arrays
from eqx_slm.train.guard import group
from eqx_slm.train.optimizer import lr_multipliers, make_optimizer, matrix_groups, parameter_groups, update_periods
from eqx_slm.train.step import batch_loss

MUON = OptimizerConfig(kind="muon", clip_norm=1e9, weight_decay=0.1, muon_lr=0.5)
HOPE = tiny_config(channel=ContinuumConfig(d_ff=32, periods=(1, 3)))
STACK = StackConfig(vocab_size=11, context=CHUNK + 8, d_model=8, dropout=0.3, depth=2, n_heads=2, d_ff=12)
FLAT = FlatConfig(vocab_size=11, context=6, d_model=4, dropout=0.0, hidden=(7, 5))
KINDS = {
    "hope": HOPE,
    "bigrams": tiny_config(bigrams=BigramConfig(rows=40, rank=3)),
    "generator": tiny_config(embedding=GENERATOR),
    "tied": tiny_config(head=HeadConfig("tied")),
    "stack": STACK,
    "flat": FLAT,
}


def params_of(kind):
    config = KINDS[kind]
    model = config(jax.random.key(0)) if isinstance(config, StackConfig | FlatConfig) else tiny_model(config)
    return eqx.filter(model, eqx.is_inexact_array)


def gradients_of(params, seed):
    leaves, form = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(form, [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


def updates_of(config, params, gradients):
    optimizer = make_optimizer(config, params)
    update, state, found = jax.jit(optimizer.update), optimizer.init(params), []
    for each in gradients:
        updates, state = update(each, state, params)
        found.append(named_arrays(updates))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_groups_sum_to_all_parameters_and_muon_has_the_hidden_matrices(kind):
    params = params_of(kind)
    arrays, kinds = named_arrays(params), matrix_groups(params)
    assert kinds.keys() == arrays.keys() == parameter_groups(params).keys() == update_periods(params).keys()
    sizes = {of: sum(arrays[name].size for name, own in kinds.items() if own == of) for of in ("muon", "adamw")}
    assert sum(sizes.values()) == sum(leaf.size for leaf in jax.tree.leaves(params)) and sizes["muon"] > 0
    outer = {"embedding", "head", "positions", "bigrams", "norms"}
    assert not {name for name, own in kinds.items() if own == "muon" and group(name) in outer}
    hidden = [name for name, leaf in arrays.items() if name.split(".")[0] in ("blocks", "layers") and leaf.ndim >= 2]
    assert all(kinds[name] == "muon" for name in hidden)
    # Every leaf has an update, of the size that its optimizer gives it.
    same = [gradients_of(params, 0)] * max(update_periods(params).values())
    *_, found = updates_of(dataclasses.replace(MUON, weight_decay=0.0), params, same)
    for name, update in found.items():
        # Newton and Schulz bring singular values near 1, not to it.
        # Adam's update by one gradient again and again is that gradient's sign.
        expected = (0.5 * 0.2, 0.5) if kinds[name] == "muon" else (1.0, 1e-3)
        size = float(jnp.sqrt(jnp.mean(jnp.square(update))))
        assert size == pytest.approx(expected[0], rel=expected[1]), name


def test_muon_at_a_period_updates_by_the_summed_gradient():
    """A level of period 3 stays for two steps, and moves at the third as Muon moves by the sum of the three."""
    params = params_of("hope")
    periods, kinds = update_periods(params), matrix_groups(params)
    slow = [name for name, period in periods.items() if period == 3]
    assert {kinds[name] for name in slow} == {"muon", "adamw"}
    gradients = [gradients_of(params, seed) for seed in range(6)]
    found = updates_of(MUON, params, gradients)
    plain = eqx.filter(tiny_model(tiny_config(channel=ContinuumConfig(d_ff=32, periods=(1, 1)))), eqx.is_inexact_array)
    assert jax.tree.leaves(plain)[0].shape == jax.tree.leaves(params)[0].shape
    form = jax.tree.structure(plain)
    sums = [jax.tree.map(lambda *g: sum(g), *gradients[start : start + 3]) for start in (0, 3)]
    sums = [jax.tree.unflatten(form, jax.tree.leaves(each)) for each in sums]
    wanted = updates_of(MUON, jax.tree.unflatten(form, jax.tree.leaves(params)), sums)
    every = updates_of(
        MUON,
        jax.tree.unflatten(form, jax.tree.leaves(params)),
        [jax.tree.unflatten(form, jax.tree.leaves(g)) for g in gradients],
    )
    for name, period in periods.items():
        for step, updates in enumerate(found):
            if period == 1:
                np.testing.assert_allclose(updates[name], every[step][name], rtol=1e-5, atol=1e-6)
            elif step % 3 < 2:
                assert not np.asarray(updates[name]).any()
            else:
                np.testing.assert_allclose(updates[name], wanted[step // 3][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@settings(max_examples=4)
@given(factor=st.sampled_from([0.0, 0.25, 3.0]), part=st.sampled_from(["blocks.*.mixer", "embedding", "head", "*"]))
def test_factors_multiply_the_updates_of_their_leaves_alone(kind, factor, part):
    config = dataclasses.replace(MUON, kind=kind)
    plain = tiny_model(tiny_config(depth=2))
    scaled = tiny_model(tiny_config(depth=2, lr_multipliers=f"{part}={factor}"))
    one, other = (eqx.filter(model, eqx.is_inexact_array) for model in (plain, scaled))
    gradients = gradients_of(one, 1)
    (wanted,) = updates_of(config, one, [gradients])
    (found,) = updates_of(config, other, [jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(gradients))])
    factors = lr_multipliers(scaled)
    assert set(factors.values()) == ({factor} if part == "*" else {factor, 1.0})
    for name, update in found.items():
        np.testing.assert_allclose(update, factors[name] * np.asarray(wanted[name]), rtol=1e-5, atol=1e-7)


@given(st.integers(1, 300), st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.1, 1.0]))
def test_linear_is_optaxs_after_warm_up(steps, warmup, floor):
    config = OptimizerConfig(schedule="linear", warmup=warmup, floor=floor)
    rates = [config.multiplier(step, steps) for step in range(steps)]
    first = max(1, round(warmup * steps)) if warmup else 0
    falls = optax.linear_schedule(1.0, floor, max(1, steps - first))
    np.testing.assert_allclose(rates[first:], [falls(i + 1) for i in range(steps - first)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rates[:first], [(i + 1) / (first + 1) for i in range(min(first, steps))])


def test_parts_of_a_batch_draw_dropout_of_their_own():
    """The step's loss is the mean of its parts', each under the key of its number: written out part by part."""
    model = STACK(jax.random.key(0))
    batch = np.random.default_rng(0).integers(0, 11, (8, STACK.context + 1), np.int32)
    batch[4:] = batch[:4]  # equal rows would have equal losses if the parts drew alike
    program = make_program(model, OptimizerConfig(clip_norm=1e9), accumulate=2)
    state = program.start(model, seeds=[5])
    params, key = jax.tree.map(jnp.copy, state.params), jax.random.fold_in(state.key, 0)

    def loss(params, part, number):
        return batch_loss(eqx.combine(params, program.static), part, jax.random.fold_in(key, number))

    values, gradients = zip(
        *(jax.jit(jax.value_and_grad(loss))(params, batch[4 * i : 4 * i + 4], np.int32(i)) for i in (0, 1)), strict=True
    )
    state, metrics = program.step(state, batch, np.float32(0.0))
    assert abs(float(values[0]) - float(values[1])) > 1e-4
    np.testing.assert_allclose(metrics.loss, np.mean(values), rtol=1e-5)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *gradients)
    np.testing.assert_allclose(metrics.gradient_norm, optax.tree.norm(mean), rtol=1e-4)


def test_four_parts_of_eight_are_thirty_two_in_one():
    """With a generator whose tokens are embedded once a part: the same loss and gradient, and after three steps the
    same parameters within float32's rounding."""
    model = tiny_model(tiny_config(embedding=GENERATOR))
    batches = np.random.default_rng(2).zipf(1.5, (3, 32, LENGTH + 1)).clip(max=VOCAB - 1).astype(np.int32)
    ends = []
    for accumulate in (1, 4):
        program = make_program(model, OptimizerConfig(eps=1e-4), accumulate=accumulate)
        state, losses = program.start(model), []
        for batch in batches:
            state, metrics = program.step(state, batch, np.float32(1e-2))
            losses.append((float(metrics.loss), float(metrics.gradient_norm)))
        ends.append((losses, jax.tree.leaves(state.params)))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=1e-4)
    for one, other in zip(ends[0][1], ends[1][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
