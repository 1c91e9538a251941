"""A finished run goes on: equal to the straight one bit for bit where their rates are, refused in a line elsewhere."""

import dataclasses
import json

import pytest
from refusals import refuses
from tiny import tiny_config, tiny_stream

from eqx_slm import OptimizerConfig, UserError
from eqx_slm.study import Study, paired, run_study
from eqx_slm.study.folder import read_rows
from eqx_slm.train import RunConfig, Stopped

STREAM = tiny_stream()
ARMS = {"one": tiny_config(), "two": tiny_config()}  # one program for both


def study(steps, schedule="constant", warmup=0.0, seeds=2, **run):
    optimizer = OptimizerConfig(schedule=schedule, warmup=warmup, decay=0.25)
    config = RunConfig(steps=steps, evaluations=2, optimizer=optimizer, **run)
    return Study("tiny", ARMS, seeds, (1e-2,), (paired("one"),), report=(), run=config)


def ends(folder):
    """What the last step left: loss, that of every sequence, the batches, and the weights' own files."""
    rows = read_rows(folder / "runs.jsonl")
    models = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("**/model.safetensors")}
    return [(r.arm, r.seed, r.evals[-1], r.sequences, r.stream_hash, r.averaged_nll) for r in rows], models


@pytest.mark.parametrize("schedule, step, options", [("constant", 8, {}), ("wsd", 6, {"seeds_at_once": 2})], ids=str)
def test_a_longer_run_is_the_straight_one(schedule, step, options, tmp_path):
    short, straight, longer = (tmp_path / name for name in ("short", "straight", "longer"))
    run_study(study(8, schedule, **options), STREAM, out=short, keep_checkpoints=True)
    kept = sorted(path.name for path in (short / "kept").glob("*/*"))
    assert set(kept) == {f"step-{step}.json", f"step-{step}.safetensors"} and not (short / "checkpoints").exists()
    run_study(study(14, schedule, average=0.3, **options), STREAM, out=straight)
    said = []

    def note(event):
        if event.kind == "said":
            said.append(event.text)

    how = {"out": longer, "on_event": note, "go_on_from": short}
    with pytest.raises(Stopped):  # on its way too it is stopped and goes on
        asked = iter([False] * 4 + [True] * 99)
        run_study(study(14, schedule, average=0.3, **options), STREAM, stop=lambda: next(asked), **how)
    with pytest.raises(UserError, match="holds a run on its way of"):  # the run would not be what it began as
        run_study(study(14, schedule, average=0.3, **options), STREAM, out=longer)
    run_study(study(14, schedule, average=0.3, **options), STREAM, **how)
    assert said[0] == f"goes on after step {step} of the shorter run"
    assert ends(longer) == ends(straight)
    assert json.loads((longer / "result.json").read_text())["settings"]["go_on_from"]["step"] == step
    before = {path: path.read_bytes() for path in short.glob("kept/*/*")}
    run_study(study(8, schedule, **options), STREAM, out=short, keep_checkpoints=True)  # nothing is run again
    assert before == {path: path.read_bytes() for path in short.glob("kept/*/*")}


def test_what_cannot_go_on_says_why(tmp_path):
    short = tmp_path / "short"
    run_study(study(8, "wsd", seeds=1), STREAM, out=short, keep_checkpoints=True)
    run_study(study(8, "wsd", seeds=1), STREAM, out=tmp_path / "bare")

    def refused(said, asked, folder=short, **options):
        with refuses(said):
            run_study(asked, STREAM, out=tmp_path / "new", go_on_from=folder, **options)
        assert not (tmp_path / "new").exists()

    for schedule in ("cosine", "linear"):
        refused(f"a run by schedule {schedule} cannot go on: its rate has fallen", study(14, schedule))
        with pytest.raises(UserError, match=f"a run by schedule {schedule} cannot go on"):
            run_study(study(14, schedule), STREAM, out=tmp_path / "new", keep_checkpoints=True)
    refused("after step 6, where 7 steps have already ended, begun to decay", study(7, "wsd", seeds=1))
    refused("begun their average: raise --steps", study(12, "wsd", seeds=1, average=0.9))
    refused("2 of 4 runs have no checkpoint there", study(14, "wsd"))
    refused("2 of 2 runs have no checkpoint there", study(14, "wsd", seeds=1), folder=tmp_path / "bare")
    refused("2 of 2 runs have no checkpoint there", study(14, "constant", seeds=1))
    refused("no such folder", study(14, "wsd", seeds=1), folder=tmp_path / "none")
    other = dataclasses.replace(study(14, "wsd", seeds=1), rates=(2e-2,))
    refused("have no checkpoint there", other)


def test_past_its_warm_up_a_longer_run_stays_at_the_peak(tmp_path):
    """20 steps of 30% warm-up would rise to step 6 again: the rate of what goes on is the peak's."""
    short, folder = tmp_path / "short", tmp_path / "longer"
    run_study(study(4, warmup=0.3, seeds=1), STREAM, out=short, keep_checkpoints=True)
    run_study(study(20, warmup=0.3, seeds=1), STREAM, out=folder, go_on_from=short)
    run_study(study(20, warmup=0.05, seeds=1), STREAM, out=tmp_path / "straight")  # one step of warm-up, as the short
    assert ends(folder) == ends(tmp_path / "straight")
