"""Runs that are stopped and go on: equal to straight ones bit for bit, and what is damaged is found."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_model, tiny_stream

from eqx_slm import OptimizerConfig, UserError, make_program
from eqx_slm.study import Study, paired, run_study
from eqx_slm.study.folder import read_rows
from eqx_slm.train import Checkpoints, RunConfig, Stopped, resume, train_runs

STREAM, STEPS = tiny_stream(), 9
OPTIMIZER = OptimizerConfig()
PROGRAMS = {count: make_program(tiny_model(), OPTIMIZER, replicates=count) for count in (1, 2)}


class After:
    """Says stop at the n-th question and from then on."""

    def __init__(self, count):
        self.left = count

    def __call__(self):
        self.left -= 1
        return self.left < 0


def checkpoints(folder, seeds, count=10**9, **options):
    runs = [{"arm": "a", "seed": seed, "learning_rate": 1e-2, "key": f"key {seed}"} for seed in seeds]
    return Checkpoints(folder, runs, stop=After(count), **{"seconds": 1e9, **options})


def train(seeds=(3,), stream=STREAM, average=0.5, **options):
    models = [tiny_model(seed=seed) for seed in range(len(seeds))]
    return train_runs(
        PROGRAMS[len(seeds)],
        models,
        stream,
        seeds=seeds,
        steps=STEPS,
        learning_rate=1e-2,
        optimizer=OPTIMIZER,
        evaluate_at=(2, 5, STEPS),
        average=average,
        **options,
    )


def lasting(record):
    """A record without its times."""
    return dataclasses.replace(record, train_seconds=0.0, tokens_per_second=0.0, params=None, losses=None)


def assert_equal_runs(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert lasting(one) == lasting(other)
        np.testing.assert_array_equal(one.losses, other.losses)
        assert one.losses.dtype == other.losses.dtype
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


STRAIGHT = {}


@settings(max_examples=6)
@given(at=st.lists(st.integers(1, STEPS - 1), min_size=1, max_size=2, unique=True).map(sorted), many=st.booleans())
def test_a_run_that_was_stopped_is_the_straight_one(tmp_path_factory, at, many):
    """Over the steps at which it is stopped, with an average of weights, one seed or two at once."""
    seeds, folder, said = ((3, 1) if many else (3,)), tmp_path_factory.mktemp("run") / "kept" / "one", []
    if many not in STRAIGHT:
        STRAIGHT[many] = train(seeds)
    folder.parent.parent.mkdir(exist_ok=True)
    done = 0
    for step in at:
        with pytest.raises(Stopped):
            train(seeds, checkpoints=checkpoints(folder, seeds, step - done - 1, say=said.append))
        done = step
    assert said[-1] == f"stopped, and saved after step {at[-1]}"
    last = checkpoints(folder, seeds, say=said.append)
    assert_equal_runs(train(seeds, checkpoints=last), STRAIGHT[many])
    assert said[-1] == f"goes on after step {at[-1]}"
    last.clear()
    assert not folder.parent.exists()


def test_another_number_of_cores_is_refused_or_said(tmp_path, monkeypatch):
    folder, said = tmp_path / "kept" / "one", []
    with pytest.raises(Stopped):
        train(checkpoints=checkpoints(folder, (3,), 2))
    begun = resume.usable_cores()
    monkeypatch.setattr(resume, "usable_cores", lambda: begun + 1)
    with pytest.raises(
        UserError, match=f"saved on {begun} usable cores, and this process has {begun + 1}.*--other-cores"
    ):
        train(checkpoints=checkpoints(folder, (3,), say=said.append))
    assert not said
    train(checkpoints=checkpoints(folder, (3,), say=said.append, other_cores=True))
    assert said[0] == f"it was begun on {begun} cores and goes on on {begun + 1}: its sums come in another order"


def test_the_last_two_are_kept_and_one_that_is_damaged_is_not_used(tmp_path):
    folder, said = tmp_path / "kept" / "one", []
    straight = train()
    train(checkpoints=checkpoints(folder, (3,), seconds=0.0))
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"step-{n}.{kind}" for n in (7, 8) for kind in ("json", "safetensors")]
    # Every bit counts: of weights, and of what is said of them.
    for name, step in (("step-8.safetensors", 7), ("step-7.json", None)):
        data = bytearray((folder / name).read_bytes())
        data[-9] ^= 1
        (folder / name).write_bytes(data)
        assert_equal_runs(train(checkpoints=checkpoints(folder, (3,), say=said.append)), straight)
        assert said[0].startswith("not used: ") and "step-8.safetensors is damaged" in said[0] and "\n" not in said[0]
        assert said[1].startswith("goes on after step 7" if step else "not used: ") and len(said) == 2
        said.clear()


def test_a_full_disk_leaves_the_one_before_and_the_run_goes_on(tmp_path, monkeypatch):
    """Before either of a checkpoint's files is written whole, or before it is begun; said once, until there is room."""
    folder, straight, replace, left = tmp_path / "kept" / "one", train(), os.replace, [0]

    def full(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)

    for renames in (2, 3):  # the first checkpoint alone, or with one file of the second
        said, left[0] = [], renames
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            assert_equal_runs(train(checkpoints=checkpoints(folder, (3,), seconds=0.0, say=said.append)), straight)
        stays = "the checkpoint after step 1 stays, and the run goes on"
        assert said == [f"not saved after step 2: No space left on device; {stays}"]
        assert sorted(path.name for path in folder.iterdir()) == ["step-1.json", "step-1.safetensors"]
        assert_equal_runs(train(checkpoints=checkpoints(folder, (3,), say=said.append)), straight)
        assert said[1:] == ["goes on after step 1"]
        checkpoints(folder, (3,)).clear()
    said, space = [], iter([10**9, 1000, 1000, 10**9, 1000, *[10**9] * 9])
    with monkeypatch.context() as patch:
        patch.setattr("eqx_slm.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": next(space)}))
        train(checkpoints=checkpoints(folder, (3,), seconds=0.0, say=said.append))
    assert len(said) == 2 and said[0].startswith("not saved after step 2: 0.1 MB are needed and 0.0 MB are free")
    assert said[1].startswith("not saved after step 5: ") and "after step 4 stays" in said[1]
    checkpoints(folder, (3,)).clear()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("eqx_slm.files.shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
        train(checkpoints=checkpoints(folder, (3,), 2, say=said.append))
    assert said[2].startswith("stopped, and not saved after step 3: ") and said[2].endswith("; none is there")


def test_a_crash_between_writing_and_renaming_leaves_the_one_before(tmp_path, monkeypatch):
    folder, said = tmp_path / "kept" / "one", []
    with pytest.raises(Stopped):
        train(checkpoints=checkpoints(folder, (3,), 3))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replace, left = os.replace, [1]

    def crash(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(5, "Input/output error", str(target))
        replace(source, target)

    for renames in (0, 1):  # before either of a checkpoint's two files has its name
        left[0] = renames
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash)
            with pytest.raises(UserError, match=r"cannot save the run in .*: Input/output error"):
                train(checkpoints=checkpoints(folder, (3,), 1))
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert before.items() <= found.items() and not [name for name in found if name.endswith(".tmp")]
        assert len(found) == 2 + renames
    assert_equal_runs(train(checkpoints=checkpoints(folder, (3,), say=said.append)), train())
    assert said == ["goes on after step 4"]


def test_other_data_and_other_runs_are_refused(tmp_path):
    folder, said = tmp_path / "kept" / "one", []
    with pytest.raises(Stopped):
        train(checkpoints=checkpoints(folder, (3,), 3))
    with pytest.raises(UserError, match="the 4 batches before the checkpoint are other ones now"):
        train(stream=tiny_stream(seed=5), checkpoints=checkpoints(folder, (3,)))
    assert_equal_runs(train((4,), checkpoints=checkpoints(folder, (4,), say=said.append)), train((4,)))
    assert [line for line in said if "is of another run" in line]


def study(**changes):
    run = RunConfig(steps=6, evaluations=2, average=0.5)
    arms = {"one": tiny_config(), "two": tiny_config()}
    return Study("tiny", arms, 2, (1e-2,), (paired("one"),), report=(), run=run, **changes)


def rows_of(folder):
    """Rows without what a clock says."""
    times = {"train_seconds": 0.0, "tokens_per_second": 0.0, "compile_seconds": 0.0}
    return [dataclasses.replace(row, **times) for row in read_rows(folder / "runs.jsonl")]


def test_a_study_goes_on_within_a_run(tmp_path):
    straight, folder, events = tmp_path / "straight", tmp_path / "stopped", []
    run_study(study(), STREAM, out=straight)
    with pytest.raises(Stopped):
        run_study(study(), STREAM, out=folder, stop=After(4))
    assert rows_of(folder) == [] and len(list((folder / "checkpoints").glob("*/step-*.json"))) == 1
    other = dataclasses.replace(study(), arms={"one": tiny_config(norm="layer"), "two": tiny_config()})
    with pytest.raises(UserError, match="holds a run on its way of 'one', seed 0, rate 0.01, with another config"):
        run_study(dataclasses.replace(other, config=study().document()), STREAM, out=folder)
    run_study(study(), STREAM, out=folder, on_event=events.append)
    assert [event.text for event in events if event.kind == "said"] == ["goes on after step 4"]
    assert rows_of(folder) == rows_of(straight)
    for path in straight.glob("**/model.safetensors"):
        assert path.read_bytes() == (folder / path.relative_to(straight)).read_bytes()
    assert not (folder / "checkpoints").exists()


def test_a_folder_that_is_removed_under_a_run_is_one_line(tmp_path):
    folder = tmp_path / "run"

    def note(event):
        if event.kind == "progress" and folder.exists():
            (folder / "metrics.jsonl").unlink()
            (folder / "config.json").unlink()
            (folder / ".lock").unlink()
            folder.rmdir()

    with pytest.raises(UserError, match="was removed under the run"):
        run_study(study(), STREAM, out=folder, on_event=note)
    assert not folder.exists()


# A process that forks: its children start with everything imported. Each runs the same command; the first to its end,
# the others are stopped on their way, by a signal that comes with a batch or by --stop-after, until the last
# is left alone.
SCRIPT = r"""
import json, os, signal, sys, time, traceback
from pathlib import Path
from tiny import tiny_config, tiny_stream
import eqx_slm.study.report, eqx_slm.study.study, eqx_slm.study.terminal, rich.console
from eqx_slm.study import Study, StreamConfig, paired, study_main
from eqx_slm.train import RunConfig

for each in (signal.SIGINT, signal.SIGHUP):  # a job in the background or under nohup inherits them ignored
    signal.signal(each, signal.SIG_DFL)
out, number, at = Path(sys.argv[1]), None, 0
def open_tiny(config):
    stream = tiny_stream()
    stream.info["corpus"] = "tiny"
    batches = stream.batches
    def signalled(*args, **kwargs):
        for index, batch in enumerate(batches(*args, **kwargs)):
            if number is not None and index == at:
                os.kill(os.getpid(), number)
            yield batch
    stream.batches = signalled
    return stream

StreamConfig.open = open_tiny
arms = {"one": tiny_config(), "two": tiny_config()}
long = Study("tiny", arms, 1, (1e-2,), (paired("one"),), report=(), run=RunConfig(steps=800, evaluations=6))

def child(folder, *options, signalled=(None, 0)):
    global number, at
    pid = os.fork()
    if pid:
        return pid
    number, at = signalled
    try:
        os.dup2(os.open(out / f"{folder}.err", os.O_CREAT | os.O_APPEND | os.O_WRONLY), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = study_main(long, ["--out", str(out / folder), *options])
        sys.stderr.flush()
        os._exit(code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

def end(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])

codes = [end(child("straight"))]
for each in ((signal.SIGTERM, 40), (signal.SIGINT, 300), (signal.SIGHUP, 700)):
    codes.append(end(child("stopped", signalled=each)))
codes.append(end(child("stopped", "--stop-after", "0.01")))
codes.append(end(child("stopped")))
json.dump(codes, sys.stdout)
"""


def test_signals_and_stop_after_save_and_exit_with_one_code(tmp_path):
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [0, 75, 75, 75, 75, 0]
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "straight")
    said = (tmp_path / "stopped.err").read_text().splitlines()
    assert len(said) == 4 and all(
        re.fullmatch(r"stopped; go on with: .* --out \S+/stopped( .*)?", line) for line in said
    )
    assert (tmp_path / "straight.err").read_text() == ""
