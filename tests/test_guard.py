"""Steps without a finite gradient: skipped, counted, told, and the end of a run where they go on."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_model, tiny_stream

from eqx_slm import OptimizerConfig, make_program
from eqx_slm.study import PAIR, StreamConfig, Study, alignment, load_run, paired, run_study, study_main
from eqx_slm.study.finished import main as finished_main
from eqx_slm.train import RunConfig, train_runs
from eqx_slm.train.guard import group, group_norms
from eqx_slm.train.stack import stack_blocks

BAD = 63  # the token of a batch whose loss is NaN
CONSTANT = OptimizerConfig(schedule="constant", warmup=0.0)


class Poisoned(eqx.Module):
    """A model that has no finite loss on a batch that begins with `BAD`."""

    model: eqx.Module

    def batch_features(self, tokens):
        return self.model.batch_features(tokens) * jnp.where(tokens[0, 0] == BAD, jnp.nan, 1.0)

    def read_out(self):
        return self.model.read_out()


class Batches:
    """A tiny stream some of whose batches begin with `BAD`."""

    def __init__(self, bad):
        self.stream, self.bad = tiny_stream(), bad

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def batches(self, seed, *, start=0):
        for index, batch in enumerate(self.stream.batches(seed, start=start)):
            batch = batch.copy()
            batch[0, 0] = BAD if index in self.bad else 0
            yield batch


PROGRAM = make_program(Poisoned(tiny_model()), CONSTANT)


def trained(bad, steps=8, patience=25, evaluate_at=()):
    how = {"learning_rate": 1e-2, "optimizer": CONSTANT, "patience": patience}
    model, told = Poisoned(tiny_model()), []
    record = train_runs(
        PROGRAM,
        [model],
        Batches(bad),
        seeds=[0],
        steps=steps,
        evaluate_at=evaluate_at or (steps,),
        on_progress=lambda _, progress: told.append(progress),
        **how,
    )[0]
    return record, told


class OneBad(Batches):
    """All batches of seed 1 are bad, and no other's."""

    def batches(self, seed, *, start=0):
        return Batches(range(99) if seed == 1 else ()).batches(seed, start=start)


def test_of_seeds_together_only_the_stuck_one_has_no_averaged_loss():
    model = Poisoned(tiny_model())
    program = make_program(model, CONSTANT, replicates=2)
    how = {"learning_rate": 1e-2, "optimizer": CONSTANT, "evaluate_at": (8,), "average": 0.5, "patience": 2}
    good, stuck = train_runs(program, [model, model], OneBad(()), seeds=[0, 1], steps=8, **how)
    alone = train_runs(PROGRAM, [model], Batches(()), seeds=[0], steps=8, **how)[0]
    assert stuck.averaged_nll is None and stuck.diverged
    np.testing.assert_allclose(good.averaged_nll, alone.averaged_nll, rtol=1e-5)


@settings(max_examples=5)
@given(st.sets(st.integers(0, 38), max_size=9))
def test_a_bad_step_leaves_nothing_behind(bad):
    """At a constant rate the steps that are left make the same model as if the others had never been: to the bit."""
    record, told = trained(bad, steps=40)
    assert record.skipped == len(bad) and told[-1].skipped == len(bad)
    state = PROGRAM.start(Poisoned(tiny_model()))
    for index, batch in enumerate(Batches(()).batches(0)):
        if index == 40:
            break
        if index not in bad:
            state, _ = PROGRAM.step(state, batch, np.float32(1e-2))
    for a, b in zip(jax.tree.leaves(record.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(record.evals[-1].nll)


def test_bad_steps_that_go_on_end_the_run_and_its_weights_stay():
    bad = set(range(6, 100))
    record, _ = trained(bad, steps=60, patience=5, evaluate_at=(2, 6, 60))
    good, _ = trained((), steps=6)
    for a, b in zip(jax.tree.leaves(record.params), jax.tree.leaves(good.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert record.diverged and [each.step for each in record.evals] == [2, 6, 15] and np.isnan(record.evals[-1].nll)
    assert 5 <= record.skipped <= 10 and record.losses is None
    assert record.stream_hash == trained(bad, steps=60, patience=100)[0].stream_hash  # the same batches for every arm


def test_at_the_last_step_too():
    record, _ = trained(set(range(23, 100)), steps=30, patience=7)
    assert record.diverged and [each.step for each in record.evals] == [30] and record.skipped == 7
    assert not trained(set(range(24, 100)), steps=30, patience=7)[0].diverged


def test_norms_of_all_groups_make_the_whole():
    model = tiny_model(tiny_config(depth=2))
    for form in (model, stack_blocks(model, loop="runs"), stack_blocks(model, remat="full")):
        params = eqx.filter(form, eqx.is_inexact_array)
        norms = group_norms(params)
        assert set(norms) == {"embedding", "mixers", "channels", "norms", "head"}
        whole = sum(float(np.square(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(params))
        np.testing.assert_allclose(sum(float(norm) ** 2 for norm in norms.values()), whole, rtol=1e-5)
    assert group("readout.weight") == "readout" and group("blocks.0.gate") == "blocks"


def test_metrics_hold_the_norms(tmp_path):
    _, told = trained(())
    state = PROGRAM.start(Poisoned(tiny_model()))
    for index, batch in enumerate(Batches(()).batches(0)):
        if index == 8:
            break
        before = state.params
        before = jax.tree.map(np.asarray, before)
        state, metrics = PROGRAM.step(state, batch, np.float32(1e-2))
    last = told[-1]
    np.testing.assert_allclose(last.gradient_norm, metrics.gradient_norm, rtol=1e-6)
    np.testing.assert_allclose(sum(n**2 for n in last.norms["gradient"].values()) ** 0.5, last.gradient_norm, rtol=1e-5)
    moved = group_norms(jax.tree.map(lambda a, b: jnp.asarray(b - np.asarray(a)), before, state.params))
    for name, norm in group_norms(jax.tree.map(jnp.asarray, before)).items():
        np.testing.assert_allclose(last.norms["parameter"][name], norm, rtol=1e-6)
    for name, norm in moved.items():
        np.testing.assert_allclose(norm, last.norms["update"][name], rtol=1e-3)
    json.dumps(dataclasses.asdict(last))


def test_a_study_says_which_run_diverged(tmp_path, monkeypatch, capsys):
    def opened(config):
        stream = tiny_stream()
        stream.info["corpus"] = "tiny"
        return stream

    def broken(key):
        model = tiny_model()
        return eqx.tree_at(lambda m: m.norm.weight, model, model.norm.weight * jnp.nan)

    monkeypatch.setattr(StreamConfig, "open", opened)
    run = RunConfig(steps=8, evaluations=2, patience=2)
    study = Study("tiny", {"one": tiny_config(), "two": broken}, 2, (1e-2,), (paired("one"),), report=(), run=run)
    assert study_main(study, ["--out", str(tmp_path / "run")]) == 3
    output = capsys.readouterr()
    assert (
        output.err == "error: diverged: two, seed 0; two, seed 1: no verdict is drawn from these; take a lower --lr\n"
    )
    assert "without a finite gradient changed nothing, and ended there" in output.out
    assert "because a run diverged" in output.out
    rows = [json.loads(line) for line in (tmp_path / "run" / "runs.jsonl").read_text().splitlines()]
    assert {row["arm"]: row["skipped"] for row in rows} == {"one": 0, "two": 4}
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(load_run(tmp_path / "run"), eqx.is_array))
    )


def test_every_section_of_a_report_can_do_without_what_diverged(tmp_path):
    """One arm whose first seed alone diverged, beside one that did not: all sections there are."""

    def make(key):
        model = tiny_model()
        first = bool(jnp.all(jax.random.key_data(key) == jax.random.key_data(jax.random.key(0))))
        return eqx.tree_at(lambda m: m.norm.weight, model, model.norm.weight * (jnp.nan if first else 1.0))

    run = RunConfig(steps=8, evaluations=3, patience=2, frequency=4, probe="cosines", average=0.25, sample_tokens=4)
    arms = {"one": tiny_config(), "two": make}
    study = Study("tiny", arms, 2, (1e-2, 2e-2), (paired("one"),), report=(*PAIR, alignment()), run=run)
    folder, results = run_study(study, tiny_stream(), out=tmp_path / "run")
    assert [run.diverged for run in results.arms["two"].runs] == [True, False]
    said = (folder / "report.md").read_text()
    assert "Losses by frequency" in said and "Channels against the stream" in said and "because a run diverged" in said
    assert finished_main(["report", str(folder)]) == 0


def test_patience_is_a_number():
    with pytest.raises(ValueError, match="patience"):
        RunConfig(patience=0)
