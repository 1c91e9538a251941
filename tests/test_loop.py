"""One training run: when it is evaluated, what it leaves, and that it repeats bit for bit."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tiny import LENGTH, ROWS, tiny_model, tiny_stream

from eqx_slm import OptimizerConfig, UserError, make_program, token_losses
from eqx_slm.train import RunConfig, eval_steps, train_run, train_runs
from eqx_slm.train.loop import evaluate

STREAM = tiny_stream()
OPTIMIZER = OptimizerConfig()


@pytest.fixture(scope="module")
def program():
    return make_program(tiny_model(), OPTIMIZER)


def run(program, *, model=None, stream=STREAM, seed=0, steps=8, learning_rate=1e-2, optimizer=OPTIMIZER, **options):
    options = {"evaluate_at": (2, steps), **options}
    return train_run(
        program,
        tiny_model() if model is None else model,
        stream,
        seed=seed,
        steps=steps,
        learning_rate=learning_rate,
        optimizer=optimizer,
        **options,
    )


@given(st.integers(1, 5000), st.integers(1, 40))
def test_evaluations_are_spread_over_the_run(steps, count):
    at = eval_steps(steps, count)
    assert list(at) == sorted(set(at))
    assert at[0] >= 1 and at[-1] == steps
    assert min(count, steps) <= len(at) <= max(count, 2)


def test_short_runs_have_as_many_evaluations_as_steps_allow():
    assert [len(eval_steps(steps)) for steps in range(1, 200)] == [min(steps, 12) for steps in range(1, 200)]
    assert eval_steps(240, 1) == (240,)
    assert eval_steps(14, 10) == (1, 2, 3, 4, 5, 6, 7, 8, 10, 14)


def test_evaluations_are_spaced_evenly_on_a_logarithm():
    at = np.array(eval_steps(6400, 12))
    assert at[0] == 100
    np.testing.assert_allclose(np.diff(np.log(at)), math.log(64) / 11, rtol=0.02)


def test_the_same_seed_gives_the_same_run_bit_for_bit(program):
    first, again, other = run(program), run(program), run(program, seed=1)
    assert first.evals == again.evals and first.stream_hash == again.stream_hash
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    assert first.evals != other.evals and first.stream_hash != other.stream_hash
    assert [(e.step, e.tokens) for e in first.evals] == [(2, 2 * ROWS * LENGTH), (8, 8 * ROWS * LENGTH)]


def test_the_stream_hash_is_of_the_batches_alone(program):
    wanted = run(program).stream_hash
    assert run(program, learning_rate=1.0).stream_hash == wanted
    assert run(program, stream=tiny_stream(lossless=False)).stream_hash == wanted
    assert run(program, stream=tiny_stream(seed=5)).stream_hash != wanted
    assert run(program, steps=7).stream_hash != wanted


class Spy:
    """A step that notes what it is given."""

    def __init__(self, step):
        self.step, self.batches, self.rates = step, [], []

    def __call__(self, state, batch, rate):
        self.batches.append(batch)
        self.rates.append(rate)
        return self.step(state, batch, rate)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_every_step_gets_its_batch_and_its_rate(program, schedule):
    spy = Spy(program.step)
    optimizer = OptimizerConfig(schedule=schedule, warmup=0.3)
    run(dataclasses.replace(program, step=spy), learning_rate=0.02, optimizer=optimizer, steps=10)
    assert len(spy.batches) == 10
    for index, batch in enumerate(spy.batches):
        np.testing.assert_array_equal(batch, STREAM.batch(0, index))
    np.testing.assert_allclose(spy.rates, [0.02 * optimizer.multiplier(i, 10) for i in range(10)], rtol=1e-6)
    assert {rate.dtype for rate in spy.rates} == {np.dtype("float32")}


def test_an_epoch_can_end_within_a_run(program):
    stream = tiny_stream(train_tokens=13 * LENGTH + 1)
    assert stream.steps_per_epoch == 3
    spy = Spy(program.step)
    run(dataclasses.replace(program, step=spy), stream=stream, steps=5)
    assert len(spy.batches) == 5
    assert not np.array_equal(np.sort(spy.batches[3], axis=0), np.sort(spy.batches[0], axis=0))


def test_evaluations_in_nats_a_token_and_bits_a_byte(program):
    record = run(program)
    model = program.model(record.params)
    losses, size = [], 0
    for batch in STREAM.eval_batches():
        for row in batch:
            features = model.features(model.embedding(jax.numpy.asarray(row[:-1])))
            losses.append(token_losses(features, model.read_out(), jax.numpy.asarray(row[1:])))
            size += sum(1 + int(token) % 3 for token in row[1:])  # what tiny_stream says that tokens stand for
    losses = np.concatenate(losses)
    last = record.evals[-1]
    assert len(losses) == 2 * ROWS * LENGTH
    np.testing.assert_allclose(last.nll, losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(last.bits_per_byte, losses.sum() / math.log(2) / size, rtol=1e-5)


def test_a_stream_that_loses_bytes_has_no_bits_per_byte(program):
    record = run(program, stream=tiny_stream(lossless=False))
    assert [e.bits_per_byte for e in record.evals] == [None, None]
    assert [e.nll for e in record.evals] == [e.nll for e in run(program).evals]


def test_a_run_that_diverges_says_so(program):
    assert not run(program).diverged
    record = run(program, learning_rate=1e30)
    assert record.diverged and not math.isfinite(record.evals[-1].nll)
    assert len(record.evals) == 2  # it ends as any other


def test_a_stream_that_ends_early_is_refused(program):
    class Short:
        batch_size, sequence_length = STREAM.batch_size, STREAM.sequence_length
        eval_batches, eval_bytes = STREAM.eval_batches, STREAM.eval_bytes

        def batches(self, seed, *, start=0):
            return itertools.islice(STREAM.batches(seed, start=start), 5)

    with pytest.raises(ValueError, match="the stream ended after 5 of 8 batches"):
        run(program, stream=Short())
    assert len(run(program, stream=Short(), steps=5, evaluate_at=(5,)).evals) == 1


def test_progress_tells_every_evaluation(program):
    told = []
    record = run(program, evaluate_at=(1, 4, 8), on_progress=told.append, progress_seconds=1e9)
    assert [p.evaluation for p in told] == record.evals and [p.step for p in told] == [1, 4, 8]
    assert all(p.tokens == p.step * ROWS * LENGTH and math.isfinite(p.loss) for p in told)
    assert math.isnan(told[0].tokens_per_second) and told[-1].tokens_per_second > 0
    often = []
    run(program, on_progress=often.append, progress_seconds=0.0)
    assert [p.step for p in often] == list(range(1, 9))


def test_speed_leaves_out_the_first_steps(program):
    record = run(program, steps=20)
    assert record.tokens_per_second > 0
    # The seconds are what 20 steps take at that speed.
    np.testing.assert_allclose(record.train_seconds * record.tokens_per_second, 20 * ROWS * LENGTH)
    short = run(program, steps=2)
    assert short.tokens_per_second == 0 and len(short.evals) == 1


def test_seeds_at_once_are_the_runs_one_at_a_time(program):
    """Same batches, same numbers within float32's rounding, each seed told of its own evaluations."""
    told = []
    records = train_runs(
        make_program(tiny_model(), OPTIMIZER, replicates=2),
        [tiny_model(), tiny_model(seed=1)],
        STREAM,
        seeds=(3, 1),
        steps=8,
        learning_rate=1e-2,
        optimizer=OPTIMIZER,
        evaluate_at=(2, 8),
        on_progress=lambda seed, progress: told.append((seed, progress.step, progress.evaluation)),
        progress_seconds=math.inf,
    )
    alone = [run(program, seed=3), run(program, seed=1, model=tiny_model(seed=1))]
    for seed, together, one in zip((3, 1), records, alone, strict=True):
        assert together.seed == one.seed == seed and together.stream_hash == one.stream_hash
        assert [e.step for e in together.evals] == [2, 8]
        np.testing.assert_allclose([e.nll for e in together.evals], [e.nll for e in one.evals], rtol=1e-5)
        leaves = zip(jax.tree.leaves(together.params), jax.tree.leaves(one.params), strict=True)
        for a, b in leaves:
            np.testing.assert_allclose(a, b, atol=1e-4)
        assert [t[2] for t in told if t[0] == seed] == together.evals
    assert not np.allclose(records[0].evals[-1].nll, records[1].evals[-1].nll, rtol=1e-4)


def test_the_average_is_that_of_the_last_steps_weights_and_changes_nothing_else(program):
    """Against runs that stop earlier; a constant rate, so that those are the same steps."""
    flat = dataclasses.replace(OPTIMIZER, schedule="constant", warmup=0.0)
    ends = [run(program, steps=steps, optimizer=flat).params for steps in (6, 7, 8)]
    mean = jax.tree.map(lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves) / 3, *ends)
    mean = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, np.float32), mean)
    wanted = evaluate(program, mean, STREAM, step=8, tokens=8)[0][0].nll
    record = run(program, optimizer=flat, average=3 / 8)
    np.testing.assert_allclose(record.averaged_nll, wanted, rtol=1e-5)
    plain = run(program, optimizer=flat)
    assert plain.averaged_nll is None and record.evals == plain.evals
    assert abs(record.averaged_nll - plain.evals[-1].nll) > 1e-4
    assert run(program, optimizer=flat, average=1 / 8).averaged_nll == plain.evals[-1].nll
    with pytest.raises(UserError, match="average=1.5: it is a share of a run's steps"):
        RunConfig(average=1.5)


def test_models_seeds_and_replicates_are_of_one_number(program):
    arguments = dict(steps=1, learning_rate=1e-2, optimizer=OPTIMIZER, evaluate_at=(1,))
    with pytest.raises(ValueError, match="2 models, 2 seeds, a program of 1 replicates"):
        train_runs(program, [tiny_model()] * 2, STREAM, seeds=(0, 1), **arguments)


WRONG = {
    "steps": (0, -1, 10**30, 2**31),
    "evaluations": (0, -3, 10**9),
    "sample_tokens": (-1, -(10**20), 10**9),
    "seeds_at_once": (0, -1, 10**12),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, wrong in WRONG.items() for value in wrong])
def test_settings_that_no_run_could_use_are_refused(name, value):
    with refuses(f"^{name}.*=") as error:
        RunConfig(**{name: value})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("value", [2.5, "10", True, None, float("nan"), [3]])
def test_a_number_of_steps_is_a_whole_number(value):
    """Called as a user's process does it, without the type checks of the tests."""
    config = object.__new__(RunConfig)
    config.__dict__.update(vars(RunConfig()) | {"steps": value})
    with pytest.raises(UserError, match="steps="):
        RunConfig.__post_init__(config)
