"""The front of loss against compute, by its definition; the section; the ladder's script."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
from hypothesis import given
from hypothesis import strategies as st
from tiny import VOCAB, tiny_stream

from eqx_slm.nn.ladder import CONVENTIONS, FlatConfig, StackConfig
from eqx_slm.study import PAIR, Study, on_the_front, run_study
from eqx_slm.study.blocks import Table
from eqx_slm.study.pareto import front
from eqx_slm.train import RunConfig

ROOT = Path(__file__).resolve().parents[1]
place = st.integers(0, 9).map(float)
points = st.lists(st.tuples(place, place), max_size=12)


@given(points)
def test_the_front_is_what_no_other_point_beats(points):
    def beaten(a):
        return any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points)

    assert front(points) == sorted({point for point in points if not beaten(point)})


def tiny_arms():
    sizes = {"vocab_size": VOCAB, "context": 16, "d_model": 16}
    stack = StackConfig(**sizes, depth=1, n_heads=2, d_ff=16)
    return {"linear": FlatConfig(**sizes), "last": stack, "every": dataclasses.replace(stack, targets="every")}


def test_a_study_of_the_ladder_runs_goes_on_and_has_its_section(tmp_path):
    report = (*PAIR, on_the_front)  # as experiments/ladder.py has it
    study = Study("tiny-ladder", tiny_arms(), 1, run=RunConfig(steps=4, evaluations=2, frequency=2), report=report)
    events = []
    folder, results = run_study(study, tiny_stream(), out=tmp_path / "run")
    again = run_study(study, tiny_stream(), out=folder, on_event=events.append)[1]
    assert {event.kind for event in events} == {"kept"} and len(events) == 3
    heading, table, told = on_the_front(again)
    assert isinstance(table, Table)
    assert {row[0]: row[2] for row in table.rows} == {n: f"{a.mean('final_nll'):.4f}" for n, a in results.arms.items()}
    assert "| arm | training FLOPs | loss | on the front |" in (folder / "report.md").read_text()
    tokens = results.settings["tokens"]
    own = results.arms["last"].facts.flops_per_token
    assert own["total"] * tokens == 3 * tiny_arms()["last"].flops() * tokens / 16
    report = (folder / "report.md").read_text()
    assert "as written" in report and all(told in report for told in CONVENTIONS.values())
    split = results.arms["every"].runs[0].by_frequency["target by rank"]
    assert sum(size for _, size in split) == sum(map(len, tiny_stream().eval_batches()))  # one target a window
    # Same start and same windows: what differs is which targets were trained on, and so is what config.json says.
    assert results.arms["last"].runs[0].stream_hash == results.arms["every"].runs[0].stream_hash
    assert results.to_json()["arms"]["every"]["config"]["targets"] == "every"


def test_seeds_at_once_are_the_seeds_one_by_one(tmp_path):
    arms = {"last": tiny_arms()["last"]}
    one = Study("one", arms, 2, run=RunConfig(steps=2, evaluations=1), report=())
    both = dataclasses.replace(one, run=RunConfig(steps=2, evaluations=1, seeds_at_once=2))
    losses = [[r.final_nll for r in run_study(s, tiny_stream(), runs=None)[1].arms["last"].runs] for s in (one, both)]
    assert jax.numpy.allclose(*map(jax.numpy.asarray, losses), rtol=1e-4) and losses[0][0] != losses[0][1]


def test_the_script_says_which_studies_there_are():
    command = [sys.executable, str(ROOT / "experiments" / "ladder.py")]
    for given_, told in ((["rungs"], "no study 'rungs'"), ([], "no study is named")):
        done = subprocess.run([*command, *given_], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {told}: write ladder.py STUDY")
        assert "blocks, every, positions" in done.stderr and done.stderr.count("\n") == 1
