"""Runs of equal blocks, stacked and scanned, and rematerialisation: the same values in another form."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_model, tiny_stream

from eqx_slm import MLPConfig, OptimizerConfig, TaperConfig, build, make_program, taper_widths
from eqx_slm.testing import model_configs
from eqx_slm.train.stack import Run, first_blocks, loop_of, run_lengths, stack_blocks, unstack_blocks
from eqx_slm.train.step import batch_loss

STREAM = tiny_stream()
BATCH = STREAM.batch(0, 0)
# Widths 48, 48, 16, 16: two runs of two.
TAPERED = tiny_config(depth=4, channel=MLPConfig(d_ff=32), taper=TaperConfig("cosine", multiple=16))


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(as_numpy(a), as_numpy(b))


@pytest.mark.parametrize("loop", ["unrolled", "runs"])
def test_unstacking_is_the_exact_inverse(loop):
    model = tiny_model(TAPERED)
    stacked = stack_blocks(model, loop=loop, remat="full")
    assert [run.length for run in stacked.blocks] == ([2, 2] if loop == "runs" else [1, 1, 1, 1])
    assert first_blocks(stacked) == ((0, 2) if loop == "runs" else (0, 1, 2, 3))
    assert_same(unstack_blocks(stacked), model)
    assert unstack_blocks(model) is model and stack_blocks(model) is model
    shapes = jax.eval_shape(lambda: model)
    assert unstack_blocks(stack_blocks(shapes, loop=loop, remat="full")) == shapes


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_runs_are_as_long_as_they_can_be(kinds):
    blocks = tuple({"weight": jax.ShapeDtypeStruct((2, 2 + kind), jnp.float32)} for kind in kinds)
    lengths = run_lengths(blocks)
    assert sum(lengths) == len(kinds)
    starts = np.cumsum((0, *lengths))[:-1]
    for start, length in zip(starts, lengths, strict=True):
        assert len(set(kinds[start : start + length])) == 1
    assert all(kinds[start] != kinds[start - 1] for start in starts[1:])


@pytest.mark.parametrize(("depth", "loop"), [(1, "unrolled"), (7, "unrolled"), (8, "runs")])
def test_auto_scans_deep_models(depth, loop):
    model = jax.eval_shape(lambda: tiny_model(tiny_config(depth=depth)))
    assert loop_of(model) == loop and len(stack_blocks(model, loop="auto").blocks) == (1 if loop == "runs" else depth)
    assert loop_of(eqx.nn.Linear(2, 2, key=jax.random.key(0))) == "unrolled"


def test_a_deep_taper_has_few_runs_at_a_coarse_multiple():
    for multiple, runs in ((128, 9), (16, 44)):
        widths = taper_widths(52, 1024, multiple=multiple)
        assert sum(a != b for a, b in zip(widths, widths[1:], strict=False)) + 1 == runs


FORMS = [("runs", "none"), ("runs", "full"), ("runs", "dots"), ("unrolled", "full"), ("unrolled", "dots")]


@settings(max_examples=max(5, settings.default.max_examples // 5))  # every example compiles
@given(
    model_configs(
        min_vocab_size=2,
        max_vocab_size=20,
        max_d_model=6,
        max_depth=4,
        max_width=8,
        max_context=5,
        embeddings=("table",),
        mixers=("attention", "gated-attention"),
    ),
    st.sampled_from(FORMS),
    st.integers(0, 2**31),
)
def test_every_form_has_the_same_values_and_gradients(config, form, seed):
    with jax.enable_x64(True):
        model = filled(lambda key: build(config, key=key), seed=seed, std=0.5, dtype=np.float64)
        batch = np.random.default_rng(seed).integers(0, config.vocab_size, (2, config.context + 1)).astype(np.int32)

        @eqx.filter_jit
        def both(model, batch):
            found = []
            for loop, remat in (("unrolled", "none"), form):
                params, static = eqx.partition(stack_blocks(model, loop=loop, remat=remat), eqx.is_inexact_array)
                value, gradient = jax.value_and_grad(lambda p, s=static: batch_loss(eqx.combine(p, s), batch))(params)
                found.append((value, unstack_blocks(gradient)))
            return found

        plain, other = as_numpy(both(model, jnp.asarray(batch)))
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * largest)


@functools.cache
def trained(loop, remat):
    """Parameters in public form, and losses, of three steps."""
    model = tiny_model(TAPERED)
    program = make_program(model, OptimizerConfig(weight_decay=0.5), loop=loop, remat=remat)
    state, losses = program.start(model), []
    for step in range(3):
        state, metrics = program.step(state, STREAM.batch(0, step), np.float32(1e-2))
        losses.append(float(metrics.loss))
    return (
        eqx.filter(program.model(state.params), eqx.is_array),
        losses,
        float(program.evaluate(state.params, BATCH).sum()),
    )


@pytest.mark.parametrize(("loop", "remat"), [("runs", "none"), ("runs", "dots"), ("unrolled", "full")])
def test_every_form_trains_the_same_model(loop, remat):
    plain, losses, evaluated = trained("unrolled", "none")
    model, others, other = trained(loop, remat)
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    np.testing.assert_allclose(other, evaluated, rtol=1e-5)
    assert jax.tree.structure(model) == jax.tree.structure(plain)
    moved = [np.abs(np.subtract(a, b)).max() for a, b in zip(*map(jax.tree.leaves, (plain, model)), strict=True)]
    assert max(moved) < 2e-4  # AdamW's first steps are near the sign of the gradient: 3 steps of 1e-2 move by 3e-2


def test_the_optimizer_decays_the_same_leaves():
    model = tiny_model(TAPERED)
    zero = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    updates = {}
    for loop in ("unrolled", "runs"):
        program = make_program(model, OptimizerConfig(weight_decay=0.5), loop=loop)
        params = program.start(model).params
        none = jax.tree.map(jnp.zeros_like, params)
        update, _ = program.optimizer.update(none, program.optimizer.init(params), params)
        updates[loop] = eqx.filter(program.model(update), eqx.is_inexact_array)
    assert_same(updates["runs"], updates["unrolled"])
    changed = [bool(jnp.any(leaf)) for leaf in jax.tree.leaves(updates["runs"])]
    assert any(changed) and not all(changed) and len(changed) == len(jax.tree.leaves(zero))


def test_rematerialisation_keeps_less():
    config = tiny_config(depth=4, channel=MLPConfig(d_ff=512))
    model = tiny_model(config)
    sizes = []
    for remat in ("none", "full"):
        program = make_program(model, OptimizerConfig(), loop="runs", remat=remat)
        compiled = program.step.lower(program.start(model), BATCH, np.float32(0)).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.7 * sizes[0]


def test_wrong_forms_are_named():
    with pytest.raises(ValueError, match="Linear has none: take loop='unrolled'"):
        stack_blocks(eqx.nn.Linear(2, 2, key=jax.random.key(0)), loop="runs")
    assert isinstance(stack_blocks(tiny_model(), loop="runs").blocks[0], Run)
