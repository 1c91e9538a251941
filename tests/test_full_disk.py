"""A study whose disk is full: a small one in memory where this process may mount it."""

import contextlib
import dataclasses
import errno
import subprocess

import numpy as np
import pytest
from tiny import tiny_config, tiny_stream

from eqx_slm import UserError
from eqx_slm.study import Study, paired, run_study
from eqx_slm.study.folder import Folder, read_rows
from eqx_slm.train import RunConfig, Stopped

RUN = RunConfig(steps=8, evaluations=2)
STUDY = Study("tiny", {"one": tiny_config(), "two": tiny_config()}, 1, (1e-2,), (paired("one"),), report=(), run=RUN)


@pytest.fixture
def disk(tmp_path):
    """A file system of 400 kB: room for a few checkpoints of the tiny model."""
    made = tmp_path / "disk"
    made.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "eqx_slm", str(made)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("this process may not mount")
    yield made
    subprocess.run(["umount", str(made)], check=True)


def losses(folder):
    return [[each.nll for each in row.evals] for row in read_rows(folder / "runs.jsonl")]


def test_a_study_on_a_full_disk_says_so_and_goes_on_when_there_is_room(disk, tmp_path):
    straight, folder, said = tmp_path / "straight", disk / "run", []
    ballast = disk / "ballast"

    def note(event):
        """Fills the disk when the second arm has a checkpoint."""
        if event.kind == "said":
            said.append(event.text)
        if event.arm == "two" and event.kind == "progress" and event.progress.step >= 3 and not ballast.exists():
            with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(np.zeros(4096, np.uint8).tobytes())

    every = {"out": folder, "on_event": note, "checkpoint_seconds": 0.0}
    study = dataclasses.replace(STUDY, run=dataclasses.replace(RUN, evaluations=8))
    run_study(study, tiny_stream(), out=straight)
    with pytest.raises(UserError, match=f"cannot write in the run folder {folder}: .*are needed and .* are free"):
        run_study(study, tiny_stream(), **every)
    assert len(said) == 1 and said[0].startswith("not saved after step ") and "stays, and the run goes on" in said[0]
    assert len(losses(folder)) == 1
    ballast.write_bytes(b"")
    said.clear()
    with pytest.raises(Stopped):
        run_study(study, tiny_stream(), **every, stop=lambda: bool(said))
    run_study(study, tiny_stream(), **every)
    assert said[0].startswith("goes on after step ")
    assert losses(folder) == losses(straight)


def test_metrics_that_find_no_room_end_no_run(tmp_path, monkeypatch):
    folder = Folder(tmp_path / "run", STUDY.document())
    with pytest.raises(UserError, match="cannot write in the run folder .*: .*No space left"), folder:
        raise OSError(errno.ENOSPC, "No space left on device")
    from eqx_slm.study import folder as module

    path = tmp_path / "metrics.jsonl"
    path.write_text("a\n")

    class Full:
        def __init__(self, *args, **kwargs):
            self.file = open(*args, **kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, text):
            self.file.write(text[:3])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "open", Full, raising=False)
    module._append(path, "a whole line\n")
    assert path.read_text() == "a\n"
