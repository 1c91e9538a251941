"""Losses by frequency: what the classes hold, means that add up to the loss, and a study that is split."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config, tiny_stream

from eqx_slm import UserError
from eqx_slm.study import PAIR, Study, Table, by_frequency, frequency_classes, paired, run_study
from eqx_slm.study.frequency import ByFrequency
from eqx_slm.study.results import Row
from eqx_slm.train import RunConfig

STREAM = tiny_stream()
all_counts = st.lists(st.one_of(st.integers(0, 30), st.integers(0, 10**9)), min_size=1, max_size=60).map(np.array)


@given(all_counts, st.integers(1, 12), st.sampled_from(["rank", "mass"]))
def test_classes_hold_equal_parts(counts, classes, by):
    types = int((counts > 0).sum())
    of = frequency_classes(counts, by, classes)
    assert ((of == classes) == (counts == 0)).all()
    seen = of < classes
    sizes = np.bincount(of[seen], minlength=classes)
    masses = np.bincount(of[seen], weights=counts[seen], minlength=classes)
    # Only where one has to be is a class empty: fewer types than classes, or a type of more than a class' mass.
    assert (sizes > 0).all() or types < classes or (by == "mass" and counts.max() * classes > counts.sum())
    if by == "rank":
        assert sizes.max() - sizes.min() <= 1
    else:  # a type at either end of a class sticks out by half of itself at most
        assert np.abs(masses - counts.sum() / classes).max() <= counts.max() * (1 + 1e-9)
    order = np.argsort(-counts, kind="stable")[:types]
    assert (np.diff(of[order]) >= 0).all()  # no rarer type stands in a more frequent class


def test_classes_by_hand():
    counts = [4, 0, 1, 2, 1]
    assert frequency_classes(counts, "mass", 2).tolist() == [0, 2, 1, 1, 1]
    assert frequency_classes(counts, "rank", 2).tolist() == [0, 2, 1, 0, 1]
    assert frequency_classes([90, 1, 2, 3], "mass", 4).tolist() == [1, 3, 3, 3]
    assert frequency_classes([3, 0, 2], "rank", 3).tolist() == [0, 3, 1]


def test_no_classes_are_refused():
    with pytest.raises(UserError, match="frequency"):
        frequency_classes([1, 1], "rank", 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_means_add_up_to_the_loss(seed, classes):
    rng = np.random.default_rng(seed)
    batches = [rng.integers(0, 24, (2, 6)) for _ in range(2)]
    counts = rng.integers(0, 2, 24) * rng.integers(20, 40, 24)
    counts[:6] = 30
    losses = rng.exponential(3, (4, 5))
    split = ByFrequency(counts, batches, classes).means(losses)
    assert list(split) == ["input by mass", "input by rank", "target by mass", "target by rank"]
    rows = np.concatenate(batches)
    for kind, own in split.items():
        assert len(own) == classes + 1 and sum(n for _, n in own) == losses.size
        assert sum((mean or 0) * n for mean, n in own) == pytest.approx(losses.sum())
        of = frequency_classes(counts, "mass" if "mass" in kind else "rank", classes)
        tokens = rows[:, :-1] if kind.startswith("input") else rows[:, 1:]
        for number, (mean, count) in enumerate(own):
            mine = losses[of[tokens] == number]
            assert len(mine) == count and (mean is None) == (count == 0)
            assert mean is None or mean == pytest.approx(mine.mean(), rel=1e-5)


def test_a_study_is_split(tmp_path):
    study = Study(
        "split",
        arms={"small": tiny_config(), "same": tiny_config()},
        seeds=2,
        rates=(1e-2,),
        analyses=(paired(against="small"),),
        report=(by_frequency,),
        run=RunConfig(steps=2, evaluations=1, frequency=4),
    )
    folder, results = run_study(study, STREAM, out=tmp_path / "split")
    rows = [Row.of(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert {row.key: row.by_frequency for row in rows} == {
        run.key: run.by_frequency for arm in results.arms.values() for run in arm.runs
    }
    for row in rows:
        for own in row.by_frequency.values():
            total = sum((mean or 0) * n for mean, n in own) / sum(n for _, n in own)
            assert total == pytest.approx(row.final_nll, rel=1e-5)
    assert json.loads((folder / "result.json").read_text())["arms"]["small"]["runs"][0]["by_frequency"]
    tables = [block for block in by_frequency(results) if isinstance(block, Table)]
    assert [table.header[0] for table in tables] == list(rows[0].by_frequency)
    names = [row[0] for row in tables[0].rows]
    assert names == ["validation tokens", "small", "same", "same minus small"]
    assert tables[0].header[-1] == "unseen" and all(
        len(row) == len(table.header) for table in tables for row in table.rows
    )
    assert {cell for cell in tables[3].rows[-1][1:]} <= {"0 (0 to 0)", "n/a"}  # the same config twice
    assert by_frequency in PAIR and by_frequency(_without(results)) == []


def test_more_classes_than_types_leave_some_empty():
    split = ByFrequency(STREAM.token_counts(), STREAM.eval_batches(), 70)
    losses = np.ones((len(STREAM.eval_batches()) * STREAM.batch_size, STREAM.sequence_length))
    for own in split.means(losses).values():
        assert len(own) == 71 and (None, 0) in own and {mean for mean, n in own if n} == {1.0}


def test_frequencies_that_a_stream_does_not_know_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    def unknown(self):
        raise UserError("not known")

    monkeypatch.setattr(type(STREAM), "token_counts", unknown)
    study = Study("split", {"small": tiny_config()}, 1, (1e-2,), run=RunConfig(steps=2, frequency=2), report=())
    with pytest.raises(UserError, match="not known"):
        run_study(study, STREAM, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def _without(results):
    def plain(arm):
        return dataclasses.replace(arm, runs=tuple(dataclasses.replace(run, by_frequency={}) for run in arm.runs))

    return dataclasses.replace(results, arms={name: plain(arm) for name, arm in results.arms.items()})
