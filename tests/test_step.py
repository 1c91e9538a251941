"""The compiled step: donation, one compile for all rates, precision, buffers, tied gradients."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import GENERATOR, LENGTH, ROWS, VOCAB, WIDTH, tiny_config, tiny_model, tiny_stream

from eqx_slm import HeadConfig, LanguageModel, OptimizerConfig, make_program, random_order
from eqx_slm.nn.block import Block, Channel
from eqx_slm.train.checkpoint import named_arrays
from eqx_slm.train.step import batch_loss, compile_step

STREAM = tiny_stream()
BATCH = STREAM.batch(0, 0)
RATE = np.float32(1e-2)
RANDOM_ORDER = tiny_config(embedding=dataclasses.replace(GENERATOR, order="random"))


@functools.cache
def program_of(config=None, **options):
    model = tiny_model(config)
    return model, make_program(model, OptimizerConfig(), **options)


def bytes_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_the_state_is_donated():
    model, program = program_of()
    state = program.start(model)
    lowered = program.step.lower(state, BATCH, RATE)
    # Parameters and both moments are written where they were read.
    assert lowered.compile().memory_analysis().alias_size_in_bytes >= 3 * bytes_of(state.params)
    after, metrics = program.step(state, BATCH, RATE)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert np.isfinite(metrics.loss) and after.step == 1


def test_the_given_model_survives_training():
    model, program = program_of()
    before = named_arrays(model)
    state = program.start(model)
    for _ in range(2):
        state, _ = program.step(state, BATCH, RATE)
    assert not any(leaf.is_deleted() for leaf in before.values())
    assert np.isfinite(model(jnp.asarray(BATCH[0, :-1]))).all()
    after = named_arrays(program.model(state.params))
    assert after.keys() == before.keys()
    assert all((after[path] != before[path]).any() for path in before)


def test_two_learning_rates_compile_once():
    model, program = program_of()
    finals, before = [], program.step._cache_size()
    for rate in (1e-3, 3e-2):
        state, _ = program.step(program.start(model), BATCH, np.float32(rate))
        finals.append(state.params)
    assert program.step._cache_size() == max(before, 1)
    moved = [abs(final.head.weight - model.head.weight).max() for final in finals]
    np.testing.assert_allclose(moved[1] / moved[0], 30, rtol=1e-3)


@pytest.mark.parametrize(("config", "fall"), [(None, 0.5), (RANDOM_ORDER, 0.15)], ids=["table", "generator"])
def test_the_loss_falls(config, fall):
    model, program = program_of(config)
    state = program.start(model)
    losses = []
    for step in range(80):
        state, metrics = program.step(state, STREAM.batch(0, step), 3 * RATE)
        losses.append(float(metrics.loss))
    assert losses[0] == pytest.approx(np.log(VOCAB), abs=0.5)
    assert np.mean(losses[-5:]) < losses[0] - fall
    assert metrics.gradient_norm > 0


def test_the_metrics_are_those_of_the_parameters_before_the_step():
    model, program = program_of()
    loss, gradients = eqx.filter_jit(eqx.filter_value_and_grad(batch_loss))(model, jnp.asarray(BATCH))
    _, metrics = program.step(program.start(model), BATCH, RATE)
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    squares = sum(float(jnp.sum(jnp.square(leaf))) for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(metrics.gradient_norm, squares**0.5, rtol=1e-5)
    summed = program.evaluate(eqx.filter(model, eqx.is_inexact_array), BATCH)
    assert summed.shape == (ROWS, LENGTH)
    np.testing.assert_allclose(summed.mean(), loss, rtol=1e-6)


def test_a_step_compiled_ahead_is_the_same_step():
    model, program = program_of()
    compiled = compile_step(program, model, BATCH)
    assert compiled.report.seconds > 0
    assert compiled.report.temporary_bytes >= 4 * ROWS * LENGTH * VOCAB  # at least the logits
    ahead, _ = compiled.program.step(compiled.program.start(model), BATCH, RATE)
    late, _ = program.step(program.start(model), BATCH, RATE)
    jax.tree.map(np.testing.assert_array_equal, ahead, late)


def test_bfloat16_compute_keeps_float32_masters():
    model, program = program_of(compute_dtype="bfloat16")
    state = program.start(model)
    text = program.evaluate.lower(state.params, BATCH).as_text()
    dots = [line.split(" : ")[-1] for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(dots) == 10  # q, k, v, scores, values, o, gate, up, down, logits
    assert all(dot.split("->")[0].count("xbf16>") == 2 for dot in dots)
    # A step of 1e-3 is below half of bfloat16's spacing at 1: only masters in float32 keep it.
    state, metrics = program.step(state, BATCH, np.float32(1e-3))
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, metrics[:4]))} == {jnp.dtype("float32")}
    gain = np.asarray(state.params.norm.weight)
    assert ((gain != 1) & (abs(gain - 1) < 2e-3)).all()
    wide = program_of()[1].evaluate(program.start(model).params, BATCH)
    narrow = program.evaluate(program.start(model).params, BATCH)
    np.testing.assert_allclose(narrow, wide, rtol=2e-2)
    assert (narrow != wide).any() and narrow.dtype == jnp.float32


def test_integer_buffers_never_change():
    model, program = program_of(RANDOM_ORDER)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(program.start(model).params))
    state = program.start(model)
    for _ in range(3):
        state, _ = program.step(state, BATCH, RATE)
    order = program.model(state.params).embedding.order
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(order, random_order(VOCAB))
    assert not any(leaf.shape == (VOCAB,) for leaf in jax.tree.leaves(state))


def test_a_tied_table_gets_the_sum_of_both_gradients():
    tied = tiny_model(tiny_config(head=HeadConfig("tied")))
    untied = tiny_model()
    untied = eqx.tree_at(
        lambda m: (m.embedding, m.blocks, m.norm, m.head.weight),
        untied,
        (tied.embedding, tied.blocks, tied.norm, tied.embedding.table),
    )
    gradient = eqx.filter_jit(eqx.filter_grad(batch_loss))
    both, apart = gradient(tied, jnp.asarray(BATCH)), gradient(untied, jnp.asarray(BATCH))
    assert both.head is None
    assert abs(apart.embedding.table).max() > 0 and abs(apart.head.weight).max() > 0
    summed = apart.embedding.table + apart.head.weight
    np.testing.assert_allclose(both.embedding.table, summed, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(both.norm.weight, apart.norm.weight, rtol=1e-4, atol=1e-7)


class TheirChannel(Channel):
    """A channel as users write them: a function among the leaves, a weakly typed scalar, a buffer of integers."""

    mlp: eqx.nn.MLP
    gain: jax.Array
    places: jax.Array
    name: str

    def __call__(self, x):
        return self.gain * jax.vmap(self.mlp)(x[:, self.places])


def test_a_module_with_functions_among_its_leaves_trains(getkey):
    model = tiny_model()
    theirs = TheirChannel(
        eqx.nn.MLP(WIDTH, WIDTH, 8, 1, key=getkey()), jnp.asarray(1.0), jnp.arange(WIDTH)[::-1], "theirs"
    )
    model = LanguageModel(
        embedding=model.embedding,
        positions=None,
        blocks=(Block(model.blocks[0].mixer, theirs, d_model=WIDTH),),
        norm=model.norm,
        head=model.head,
    )
    program = compile_step(make_program(model, OptimizerConfig()), model, BATCH).program
    state = program.start(model)
    for _ in range(2):
        state, metrics = program.step(state, BATCH, RATE)
    trained = program.model(state.params).blocks[0].channel
    assert trained.gain != 1 and (trained.places == theirs.places).all() and trained.name == "theirs"
    assert np.isfinite(metrics.loss)


def test_the_step_lowers_for_tpu_and_gpu():
    generator = tiny_config(embedding=GENERATOR)
    for config, loop in ((None, "unrolled"), (generator, "runs")):
        model, program = program_of(config, compute_dtype="bfloat16", loop=loop, remat="full" if config else "none")
        state = jax.eval_shape(lambda p=program, m=model: p.start(m))
        exported = jax.export.export(program.step, platforms=["tpu", "cuda"])(
            state, jax.ShapeDtypeStruct(BATCH.shape, BATCH.dtype), jax.ShapeDtypeStruct((), jnp.float32)
        )
        assert exported.platforms == ("tpu", "cuda")


def test_compiling_ahead_reports_time_memory_and_flops():
    model, program = program_of()
    report = compile_step(program, model, BATCH).report
    assert report.seconds > 0 and report.temporary_bytes > 0 and report.flops > 0
