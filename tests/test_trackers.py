"""Trackers: what they are told, that they cannot end a study, and that one that is not installed is named."""

import dataclasses
import importlib.machinery
import json
import math
import struct
import sys
import types

import pytest
from tiny import tiny_config, tiny_stream

from eqx_slm import UserError
from eqx_slm.files import folder_name
from eqx_slm.study import StreamConfig, Study, paired, study_main
from eqx_slm.study.trackers import MODULES, Tracker, check_tracker
from eqx_slm.train import RunConfig

RUN = RunConfig(steps=6, evaluations=3)
STUDY = Study("tiny", {"one": tiny_config(), "two/b": tiny_config()}, 2, (1e-2,), (paired("one"),), report=(), run=RUN)


class Fake(types.ModuleType):
    """A tracker's module that keeps what it is told, and fails at the call that it is asked to fail at."""

    def __init__(self, name, fails=""):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="here")
        self.told, self.fails = [], fails

    def _tell(self, call, *what):
        self.told.append((call, *what))
        if call == self.fails:
            raise ConnectionError("no network\nhere")

    def init(self, **options):
        self._tell("init", options)
        return self

    SummaryWriter = init

    def log(self, numbers, step):
        self._tell("log", numbers, step)

    def finish(self):
        self._tell("finish")


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    def open_tiny(config):
        stream = tiny_stream()
        stream.info["corpus"] = "tiny"
        return stream

    monkeypatch.setattr(StreamConfig, "open", open_tiny)


def run_with(kind, out, monkeypatch, capsys, fails=""):
    module = Fake(MODULES[kind], fails)
    monkeypatch.setitem(sys.modules, MODULES[kind], module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    code = study_main(STUDY, ["--out", str(out), "--track", kind])
    return code, module.told, capsys.readouterr()


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_run_of_the_tracker_for_every_run_with_the_numbers_of_metrics(kind, tmp_path, monkeypatch, capsys):
    code, told, _ = run_with(kind, tmp_path / "run", monkeypatch, capsys)
    assert code == 0
    begun = [options for call, *rest in told if call == "init" for options in rest]
    names = [f"{arm}/seed-{seed}/lr-0.01" for seed in (0, 1) for arm in ("one", folder_name("two/b"))]
    assert [options["name"] for options in begun] == names
    assert begun[0]["project"] == "run" and begun[0]["config"]["seed"] == 0
    assert begun[0]["config"]["study"]["run"]["steps"] == 6 and begun[0].get("mode") in (None, "offline")
    assert [call for call, *_ in told if call != "log"] == ["init", "finish"] * 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [(numbers, step) for call, *rest in told if call == "log" for numbers, step in [rest]]
    assert len(logged) == len(lines)
    for (numbers, step), line in zip(logged, lines, strict=True):
        assert step == line["step"] and numbers["train/loss"] == line["loss"]
        assert numbers.get("valid/loss") == (line["evaluation"] or {}).get("nll")
        assert numbers["norm/gradient/head"] == line["norms"]["gradient"]["head"]
        assert all(math.isfinite(value) for value in numbers.values())


def test_seeds_that_are_trained_together_are_told_one_after_the_other(tmp_path, monkeypatch, capsys):
    together = dataclasses.replace(STUDY, run=dataclasses.replace(STUDY.run, seeds_at_once=2))
    monkeypatch.setattr(f"{__name__}.STUDY", together)
    code, told, _ = run_with("wandb", tmp_path / "run", monkeypatch, capsys)
    assert code == 0 and [call for call, *_ in told if call != "log"] == ["init", "finish"] * 4
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [call for call, *_ in told].count("log") == len(lines)
    steps = [rest[1] for call, *rest in told if call == "log"]
    assert steps == sorted(steps[: len(steps) // 4]) * 4  # each run's in order, all alike


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_costs_one_line(fails, tmp_path, monkeypatch, capsys):
    code, told, output = run_with("wandb", tmp_path / "run", monkeypatch, capsys, fails)
    assert code == 0 and (tmp_path / "run" / "result.json").exists()
    lines = [line for line in output.out.splitlines() if "--track" in line]
    assert lines == [
        "warning: --track wandb failed (no network here): the study goes on without it, metrics.jsonl has all"
    ]
    assert [call for call, *_ in told].count(fails) == 1  # and it is not asked again


def test_one_that_is_not_installed_is_named_before_data_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "wandb").mkdir()  # what its runs leave behind is no package
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in MODULES.values():
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for kind, module in MODULES.items():
        with pytest.raises(UserError, match=rf"--track {kind} needs {module}: pip install 'eqx_slm\[track\]'"):
            check_tracker(kind)
    assert study_main(STUDY, ["--out", str(tmp_path / "run"), "--track", "wandb"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "run").exists()


def records(path):
    """The events of a file of TensorBoard's: length, its check, content, its check."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, at = path.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        yield event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
        at += 16 + size


def test_tensorboards_files_hold_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    assert study_main(STUDY, ["--out", str(tmp_path / "run"), "--track", "tensorboard"]) == 0
    (file,) = (tmp_path / "run" / "tensorboard" / "one" / "seed-1").glob("lr-0.01/events*")
    found = {(each.step, value.tag): value.simple_value for each in records(file) for value in each.summary.value}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    own = [line for line in lines if line["arm"] == "one" and line["seed"] == 1]
    for line in own:
        assert found[line["step"], "train/loss"] == pytest.approx(line["loss"])
        assert found[line["step"], "valid/loss"] == pytest.approx(line["evaluation"]["nll"])
    assert {step for step, _ in found} == {line["step"] for line in own}


def test_a_study_that_stops_closes_its_tracker(tmp_path, monkeypatch):
    module = Fake("wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    tracker = Tracker("wandb", tmp_path, {}, print)
    tracker.close()
    assert module.told == []
