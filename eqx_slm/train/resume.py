"""Checkpoints of a run on its way: all that a step changes, saved whole, found damaged or not, and gone on from."""

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ..cores import check_cores, usable_cores
from ..errors import UserError
from ..files import FULL, check_space, json_ready, sealed, unsealed, write_bytes_atomic, write_json_atomic
from ..version import __version__
from .checkpoint import fill, save_model
from .processes import any_of, bytes_from_first, from_first, leads
from .record import Evaluation, RunRecord
from .step import TrainState

FORMAT = 3
KEPT = 2  # checkpoints of a run: of the last one a bit may be flipped
TOGETHER = 8  # steps between two times that several processes ask each other whether to save


class Stopped(Exception):
    """A run was told to stop, and did."""


@dataclass(frozen=True)
class Saved:
    """A run on its way: its state after `step` steps, the `mean` of its last weights, its records so far, the
    `seconds` that `counted` of its steps took, and how many CPU `cores` it had (None on another device)."""

    state: TrainState
    mean: PyTree[Array] | None
    step: int
    seconds: float
    counted: int
    records: list[RunRecord]
    cores: int | None


def cpu_cores() -> int | None:
    """The usable cores where they decide the order of sums: on a CPU."""
    return usable_cores() if jax.default_backend() == "cpu" else None


class Checkpoints:
    """The checkpoints of one run, or of the seeds that are trained at once: the last two of them.

    Where the disk is full, or has no room for another one, the run goes on unsaved after one line, and is saved again
    as soon as there is room; the checkpoints before stay.

    A checkpoint is `step-<n>.safetensors` and then `step-<n>.json`, which has the hash of the first: each appears whole
    or not at all, and without the second there is none. Batches are not part of it: a run that goes on reads those
    that it has seen once more, which gives their hash, and shows that they are the same.

    Of several processes the first writes and reads, and all go on from what it has read: arrays are saved whole, so
    that any number of processes can go on, on a mesh of the same axes.

    **Arguments:**

    - `folder`: of this run alone; made when something is saved, in a folder that is there.
    - `runs`: what is trained, as JSON, `key` being the hash of all that decides a run; one a seed.
    - `seconds`: how often the run is saved.
    - `stop`: asked after every step whether the run is to be saved and to end, by `Stopped`.
    - `say`: told in a line where a run goes on, and what is damaged.
    - `keep`: a folder for the checkpoint after step `keep_at`, which stays when the run is done.
    - `other_cores`: whether a run may go on on another number of CPU cores than it was saved on, by other sums.
    - `origin`: the JSON file of a shorter run's checkpoint, to begin with where this run has none of its own.
    """

    def __init__(
        self,
        folder: Path,
        runs: Sequence[dict[str, Any]],
        *,
        seconds: float = 60.0,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
        keep: Path | None = None,
        keep_at: int | None = None,
        origin: Path | None = None,
        other_cores: bool = False,
    ):
        self.folder, self.runs, self.seconds, self.stop, self.say = folder, json_ready(runs), seconds, stop, say
        self.keep, self.keep_at, self.origin = keep, keep_at, origin
        self.last, self.full, self.other_cores = time.monotonic(), False, other_cores

    def due(self, step: int) -> bool:
        """Whether the run is to be saved now, after `step`; several processes agree on it every few steps."""
        if step % TOGETHER and jax.process_count() > 1:
            return False
        return any_of(time.monotonic() - self.last >= self.seconds or self.stop())

    def save(
        self,
        state: TrainState,
        mean: PyTree[Array] | None,
        records: Sequence[RunRecord],
        hashes: Sequence[str],
        *,
        step: int,
        seconds: float,
        counted: int,
    ) -> None:
        """Saves a run after `step` steps, and drops its checkpoints but for the last two.

        **Arguments:** `state`, `mean`: whole (`Program.whole`).

        **Raises:** `Stopped` where `stop` says so; `UserError` where it cannot be written for another reason than a
        full disk: the one before stays.
        """
        content = {
            "format": FORMAT,
            "runs": self.runs,
            "step": step,
            "seconds": seconds,
            "counted": counted,
            "evaluations": [[asdict(each) for each in record.evals] for record in records],
            "stream_hashes": list(hashes),
            "averaged": mean is not None,
            "versions": {"eqx_slm": __version__, "jax": jax.__version__, "numpy": version("numpy")},
            "cores": cpu_cores(),
        }
        losses = [None if record.losses is None else jnp.asarray(np.float32(record.losses)) for record in records]
        lost = from_first(lambda: self._write({"state": _plain(state), "mean": mean, "losses": losses}, content))
        self.last, stop = time.monotonic(), any_of(self.stop())
        if lost and stop:
            self.say(f"stopped, and not saved after step {step}: {lost}")
        elif lost and not self.full:  # said once, until there is room again
            self.say(f"not saved after step {step}: {lost}, and the run goes on")
        elif stop:
            self.say(f"stopped, and saved after step {step}")
        self.full = bool(lost)
        if stop:
            raise Stopped

    def _write(self, tensors: dict[str, Any], content: dict[str, Any]) -> str:
        """Writes both files; **returns** why the disk takes no more, empty where it did."""
        file = self.folder / f"step-{content['step']}.safetensors"
        try:
            self.folder.parent.mkdir(exist_ok=True)  # not its parents: a run folder that was deleted stays deleted
            check_space(self.folder.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(tensors)))
            # The hash of the whole file stands in the other one.
            digest = save_model(file, tensors, hashed=False, buffers=False)
            write_json_atomic(file.with_suffix(".json"), sealed({**content, "tensors": digest}))
            if self.keep is not None and content["step"] == self.keep_at:
                for each in (file, file.with_suffix(".json")):
                    write_bytes_atomic(self.keep / each.name, each.read_bytes())
        except OSError as error:
            if error.errno not in FULL:
                raise UserError(f"cannot save the run in {self.folder}: {error.strerror or error}") from None
            return self._unsaved(file, error.strerror or "the disk is full")
        for old in _steps(self.folder)[KEPT:]:
            old.unlink(missing_ok=True)  # first the one without which the other counts for nothing
            old.with_suffix(".safetensors").unlink(missing_ok=True)
        return ""

    def _unsaved(self, file: Path, why: str) -> str:
        """The disk is full: nothing of this checkpoint is left."""
        if not file.with_suffix(".json").exists():
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        before = next(
            (f"the checkpoint after step {old.stem[5:]} stays" for old in _steps(self.folder)), "none is there"
        )
        return f"{why}; {before}"

    def load(self, like: TrainState) -> Saved | None:
        """The last checkpoint that is not damaged, on the device, where a step may donate it; None without one.

        **Arguments:** `like`: the state that the run would start with.

        **Raises:** `UserError` where it was saved on another number of CPU cores, unless `other_cores` allows it, and
        where a file that is whole is of a state of other names or shapes.
        """
        chosen: list[tuple[Path, dict[str, Any], bytes]] = []

        def choose() -> str | None:
            for file in _steps(self.folder):
                try:
                    chosen.append((file, *self._files(file)))
                except UserError as error:
                    self.say(f"not used: {error}")
                    continue
                return "own"
            if self.origin is None:
                return None
            chosen.append((self.origin, *self._files(self.origin, own=False)))
            return "origin"

        which = from_first(choose)
        if which is None:
            return None
        file, content, data = chosen[0] if leads() else (self.folder, {}, b"")
        saved = self._saved(file, from_first(lambda: content), bytes_from_first(data), like)
        if which == "own":
            if check_cores(saved.cores, now := from_first(cpu_cores), self.other_cores, "the run was saved"):
                self.say(f"it was begun on {saved.cores} cores and goes on on {now}: its sums come in another order")
            self.say(f"goes on after step {saved.step}")
        else:
            self.say(f"goes on after step {saved.step} of the shorter run")
        return saved

    def clear(self) -> None:
        """Removes them all: the run is done."""
        if not leads():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the last one closes the door
            self.folder.parent.rmdir()

    def _files(self, file: Path, own: bool = True) -> tuple[dict[str, Any], bytes]:
        """What the two files of a checkpoint hold; `UserError` where they are damaged, or of another run."""
        content = read_checkpoint(file)
        if own and content["runs"] != self.runs:
            raise UserError(f"{file} is of another run")
        path = file.with_suffix(".safetensors")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != content["tensors"]:
            raise UserError(f"{path} is damaged: its hash is not the one that was saved")
        return content, data

    def _saved(self, file: Path, content: dict[str, Any], data: bytes, like: TrainState) -> Saved:
        from safetensors.numpy import load

        tensors = load(data)
        losses = [tensors.pop(f"losses.{number}", None) for number in range(len(self.runs))]
        losses = [None if each is None else each.astype(np.float64) for each in losses]  # as `evaluate` gives them
        mean = like.params if content["averaged"] else None
        found = fill({"state": _plain(like), "mean": mean}, tensors, file, buffers=False)
        # Copies: what `fill` brought may lie in the file's own memory, and a step donates what it is given.
        found = jax.block_until_ready(jax.tree.map(jnp.copy, found))
        state = jax.tree.map(_like, found["state"], like)
        records = []
        for run, evals, last, digest in zip(
            self.runs, content["evaluations"], losses, content["stream_hashes"], strict=True
        ):
            record = RunRecord(run["seed"], run["learning_rate"], [Evaluation.of(each) for each in evals], last)
            record.stream_hash = digest
            records.append(record)
        return Saved(
            state, found["mean"], content["step"], content["seconds"], content["counted"], records, content["cores"]
        )


def read_checkpoint(file: Path) -> dict[str, Any]:
    """What a checkpoint's JSON file holds; `UserError` where it is damaged, or of another format."""
    try:
        content = json.loads(file.read_bytes())
        if "sha256" not in content:
            raise ValueError
    except (OSError, ValueError, TypeError, RecursionError):
        raise UserError(f"{file} is damaged: it cannot be read") from None
    content = unsealed(content, file)
    if content["format"] != FORMAT:
        raise UserError(f"{file} has format {content['format']}, this version reads {FORMAT}")
    return content


def checkpoint_runs(folder: Path) -> dict[Path, list[dict[str, Any]]]:
    """The runs that are half done, by the folder of their checkpoints, where `folder` holds those of a study."""
    found = {}
    for own in sorted(folder.glob("*/")):
        for file in _steps(own):
            with contextlib.suppress(UserError):
                found[own] = read_checkpoint(file)["runs"]
                break
    return found


def reread(batches: Iterator[np.ndarray], digest: Any, count: int, wanted: str) -> None:
    """Takes `count` batches that a run has seen into its `digest`; `UserError` where their hash is not `wanted`."""
    for _, batch in zip(range(count), batches, strict=False):
        digest.update(np.ascontiguousarray(batch).tobytes())
    if digest.hexdigest() != wanted:
        raise UserError(f"the {count} batches before the checkpoint are other ones now: name another folder")


def _steps(folder: Path) -> list[Path]:
    """The JSON files of a folder's checkpoints, the last step first."""
    found = [file for file in folder.glob("step-*.json") if re.fullmatch(r"step-\d+", file.stem)]
    return sorted(found, key=lambda file: int(file.stem[5:]), reverse=True)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(tree: Any) -> Any:
    """A tree whose random keys are the integers that they are made of."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _like(leaf: Array, like: Array) -> Array:
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf
