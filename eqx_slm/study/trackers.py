"""Trackers beside metrics.jsonl: what a run tells, sent to TensorBoard, trackio or Weights & Biases; never fatal.

They are the extra `track`. A tracker is told numbers that are written anyway: without it a study is the same, bit for
bit, and with one that fails it goes on after one line.
"""

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from ..configs import to_dict
from ..errors import UserError
from ..files import folder_name, json_ready
from .progress import Event

Track = Literal["tensorboard", "trackio", "wandb"]
# The module of each; TensorBoard's files are written by tensorboardX, which needs neither torch nor TensorFlow.
MODULES: dict[str, str] = {"tensorboard": "tensorboardX", "trackio": "trackio", "wandb": "wandb"}


class _TensorBoard:
    def __init__(self, writer: Any):
        self.writer = writer

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Logger:
    """trackio's and Weights & Biases' runs, which have the same two methods."""

    def __init__(self, run: Any):
        self.run = run

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def close(self) -> None:
        self.run.finish()


class Tracker:
    """Sends the events of a study to a tracker: one run of it for every arm, seed and learning rate.

    Weights & Biases and trackio are told one run at a time, as they have it: what seeds that are trained together tell
    waits until the one before is done. All stay on this machine unless their own variables say otherwise
    (`WANDB_MODE=online` and the like).
    """

    def __init__(self, kind: Track, folder: Path, config: Any, say: Callable[[str], None]):
        """**Arguments:** `folder`: of the study, named after which the tracker has its project. `config`: of the
        study, which the tracker shows with every run's own settings. `say`: told in a line that the tracker failed.

        **Raises:** `UserError` where the tracker is not installed.
        """
        check_tracker(kind)
        self.kind, self.folder, self.config, self.say = kind, folder, config, say
        self.run: tuple[str, int, float] | None = None
        self.sink: _TensorBoard | _Logger | None = None
        self.waiting: dict[tuple[str, int, float], list[tuple[dict[str, float], int]]] = {}
        self.failed = False

    def __call__(self, event: Event) -> None:
        """Sends an event's progress; the first error ends tracking, and only that."""
        if self.failed:
            return
        run = (event.arm, event.seed, event.learning_rate)
        if event.progress is not None:
            self.waiting.setdefault(run, []).append((numbers_of(event), event.progress.step))
        if event.kind == "run" or (event.progress is not None and self.run in (None, run)):
            self._send(run, last=event.kind == "run")

    def close(self) -> None:
        """Ends the run that is open, and tells of those that wait."""
        if self.run is not None:
            self._send(self.run, last=True)
        for run in list(self.waiting):
            self._send(run, last=True)

    def _send(self, run: tuple[str, int, float], last: bool) -> None:
        """Sends what waits of a run, all of it where it is its `last`."""
        if self.failed:
            return
        try:
            told = self.waiting.pop(run, [])
            if run != self.run and told:
                self._close()
                self.run, self.sink = run, self._open(*run)
            for numbers, step in told:
                assert self.sink is not None
                self.sink.log(numbers, step)
            if last and run == self.run:
                self._close()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failed = True
        why = " ".join(str(error).split())[:200] or type(error).__name__
        self.say(f"warning: --track {self.kind} failed ({why}): the study goes on without it, metrics.jsonl has all")

    def _close(self) -> None:
        sink, self.sink, self.run = self.sink, None, None
        if sink is not None:
            sink.close()

    def _open(self, arm: str, seed: int, rate: float) -> _TensorBoard | _Logger:
        module = importlib.import_module(MODULES[self.kind])
        name = f"{folder_name(arm)}/seed-{seed}/lr-{rate!r}"
        if self.kind == "tensorboard":
            return _TensorBoard(module.SummaryWriter(str(self.folder / "tensorboard" / name)))
        project = folder_name(self.folder.resolve().name)
        told = {"arm": arm, "seed": seed, "learning_rate": rate, "study": json_ready(to_dict(self.config))}
        if self.kind == "trackio":
            return _Logger(module.init(project=project, name=name, config=told))
        mode = os.environ.get("WANDB_MODE", "offline")
        return _Logger(module.init(project=project, name=name, config=told, dir=str(self.folder), mode=mode))


def check_tracker(kind: Track) -> None:
    """Raises `UserError` for a tracker that there is none of, or that is not installed."""
    if kind not in get_args(Track):
        raise UserError(f"--track {kind}: it must be one of {', '.join(get_args(Track))}")
    found = importlib.util.find_spec(MODULES[kind])
    if found is None or found.origin is None:  # a folder "wandb" of earlier runs is a package without a file
        raise UserError(f"--track {kind} needs {MODULES[kind]}: pip install 'eqx_slm[track]'")


def numbers_of(event: Event) -> dict[str, float]:
    """What a tracker is told of an event's progress, by name; numbers that are not finite are left out."""
    progress = event.progress
    if progress is None:
        return {}
    found = {
        "train/loss": progress.loss,
        "train/gradient_norm": progress.gradient_norm,
        "train/skipped": float(progress.skipped),
        "train/tokens": float(progress.tokens),
        "train/tokens_per_second": progress.tokens_per_second,
        **{f"norm/{kind}/{name}": norm for kind, own in progress.norms.items() for name, norm in own.items()},
    }
    if progress.evaluation is not None:
        found["valid/loss"] = progress.evaluation.nll
        if progress.evaluation.bits_per_byte is not None:
            found["valid/bits_per_byte"] = progress.evaluation.bits_per_byte
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}
