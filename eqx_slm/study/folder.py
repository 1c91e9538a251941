"""A study on disk: the folder, the rows that are done, the models; and models read back."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from ..configs import differences, from_dict, read_json, to_dict
from ..errors import UserError
from ..files import FULL, LOCK, Lock, check_space, folder_name, json_hash, json_ready, unsealed, write_json_atomic
from ..model import ModelConfig, build, side_like
from ..train.checkpoint import load_model, named_arrays, save_model
from ..train.processes import from_first
from ..train.resume import checkpoint_runs
from .progress import Event
from .results import Row, Run

# What may grow in a folder: the runs that are there stay what they are.
GROWING = ("arms", "settings", "seeds", "learning_rates", "until")


def config_hash(document: Any) -> str:
    """Eight hex digits of everything in a config."""
    return json_hash(json_ready(to_dict(document)))[:8]


def check_folder(path: Path, document: Any, *, in_use: bool = True) -> None:
    """Raises `UserError` where a study with this config document cannot go into, or go on in, a folder.

    **Arguments:** `in_use`: whether another process in it counts.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is a file: name a folder")
    above = path
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "no permission to write there" if above.is_dir() else "it is a file"
        raise UserError(f"cannot make the run folder {path} in {above}: {why}")
    if above != path:
        return
    file = path / "config.json"
    if not file.exists():
        if any(name != LOCK for name in os.listdir(path)):
            raise UserError(f"--out {path} holds files that are no run: name a new or an empty folder")
        return
    both = read_json(file), json_ready(to_dict(document))
    if not isinstance(both[0], dict):
        raise UserError(f"{file} is no config of a study: name another folder")
    changed = differences(*({k: v for k, v in data.items() if k not in GROWING} for data in both))
    if changed:
        shown = "; ".join(f"{field} {old} -> {new}" for field, old, new in changed[:5])
        raise UserError(f"--out {path} holds a run of another config ({shown}): name another folder")
    if both[0].get("until") and not both[1].get("until"):
        raise UserError(
            f"--out {path} was begun with --until-resolved: its seeds were added until they said something, which only "
            "its intervals allow for; go on with --until-resolved, or name another folder"
        )
    if in_use:
        Lock(path).release()


class Folder:
    """A run folder while a study runs: config.json, runs.jsonl, metrics.jsonl, and a model a run."""

    def __init__(self, out: str | Path | None, document: Any, *, name: str = "study", runs: Path = Path("runs")):
        """**Arguments:** `out`: the folder, new, empty, or one of this study; None makes `runs/<name>-<hash>-<n>` with
        the first free n. `document`: what config.json holds.

        **Raises:** `UserError` where the folder holds something else, or another process works in it.
        """
        self.document = document
        try:
            self.path = _new_folder(runs, f"{name}-{config_hash(document)}") if out is None else Path(out)
            check_folder(self.path, document)
            self.path.mkdir(parents=True, exist_ok=True)
            self.checkpoints = self.path / "checkpoints"
            self.lock = Lock(self.path)
        except OSError as error:
            raise UserError(f"cannot make the run folder {out or runs}: {error.strerror}") from None
        try:
            check_folder(self.path, document, in_use=False)
            self.rows = read_rows(self.path / "runs.jsonl")
        except BaseException:
            self.lock.release()
            raise

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.lock.release()
        if not isinstance(error, OSError):
            return
        # Removed, made read-only or full under the run; a write to a full disk names no file.
        if error.errno in FULL or Path(str(error.filename)).is_relative_to(self.path):
            raise UserError(f"cannot write in the run folder {self.path}: {error}") from None

    def begin(self, keys: Mapping[Run, str], data: str) -> None:
        """Writes config.json, and removes checkpoints that are of no use any more.

        **Arguments:** `keys` of all runs, and the hash of their `data`.

        **Raises:** `UserError` where a row that is there, or a run on its way, was another run.
        """

        def check(what: str, run: Mapping[str, Any], instead: str) -> None:
            if keys.get((run["arm"], run["seed"], run["learning_rate"]), run["key"]) == run["key"]:
                return
            why = "another config, other data or another version"
            if known := run.get("data"):
                why = "another config or another version" if known == data else "another text or another tokenizer"
            raise UserError(
                f"{self.path} holds {what} of {run['arm']!r}, seed {run['seed']}, rate {run['learning_rate']:g}, with "
                f"{why}: {instead}"
            )

        half = checkpoint_runs(self.checkpoints)
        done = {row.key for row in self.rows}
        for at, runs in half.items():
            if any(run["key"] in done for run in runs):
                shutil.rmtree(at, ignore_errors=True)
                continue
            for run in runs:
                check("a run on its way", run, f"name another folder, or remove {at}")
        for row in self.rows:
            check("a run", vars(row), "name another folder")
        write_json_atomic(self.path / "config.json", to_dict(self.document))

    def note(self, event: Event, made_of: Any) -> None:
        """Writes what an event brings: progress to metrics.jsonl; a run's model, and then its row."""
        if not self.path.is_dir():  # whoever writes a model would make it anew, and the rows be lost
            raise UserError(f"the run folder {self.path} was removed under the run: begin again")
        told = {"arm": event.arm, "seed": event.seed, "learning_rate": event.learning_rate}
        if event.progress is not None:
            line = json.dumps(json_ready({**told, **dataclasses.asdict(event.progress)}), allow_nan=False)
            _append(self.path / "metrics.jsonl", line + "\n")
        if event.kind == "run" and event.row is not None:
            at = self.path / folder_name(event.arm) / f"seed-{event.seed}" / f"lr-{float(event.learning_rate)!r}"
            # The last checkpoint is still there: a run whose model finds no room is not lost.
            check_space(self.path, sum(leaf.nbytes for leaf in named_arrays(event.model).values()))
            if isinstance(made_of, ModelConfig):
                document = json_ready(to_dict(made_of))
                write_json_atomic(at / "model.json", document)
                told["config"] = json_hash(document)
            save_model(at / "model.safetensors", event.model, metadata=told)
            with open(self.path / "runs.jsonl", "a", encoding="utf-8") as file:
                file.write(event.row.line)
                file.flush()
                os.fsync(file.fileno())


class SharedFolder:
    """The run folder of a study, of one process or of several: the first has the `Folder` itself, tells the others what
    it has read, and whether it could write. Every method is called by all."""

    def __init__(self, out: str | Path | None, document: Any, *, name: str, runs: Path):
        """**Arguments:** as `Folder`; **raises** as it does, in every process."""
        self.own: Folder | None = None
        self.failed: Exception | None = None

        def begin() -> tuple[str, list[str]]:
            self.own = Folder(out, document, name=name, runs=runs)
            return str(self.own.path), [row.line for row in self.own.rows]

        path, lines = from_first(begin)
        self.path, self.rows = Path(path), [Row.of(line) for line in lines]
        self.checkpoints = self.path / "checkpoints"

    def __enter__(self) -> "SharedFolder":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.own is not None:
            self.own.__exit__(kind, error, trace)

    def write(self, make: Callable[[Folder], Any]) -> None:
        """Something written by the first; the others go on when it is there, or raise what it raised."""

        def write() -> None:
            assert self.own is not None
            if self.failed is not None:
                raise self.failed
            make(self.own)

        from_first(write)

    def note(self, event: Event, made_of: Any) -> None:
        """`Folder.note`; of progress, which every process has at other times, without waiting: where that cannot be
        written and others would wait for this process, it is raised when the run is written."""
        if event.kind == "run":
            self.write(lambda folder: folder.note(event, made_of))
        elif self.own is not None:
            try:
                self.own.note(event, made_of)
            except (OSError, UserError) as error:
                if jax.process_count() == 1:
                    raise
                self.failed = error


def _append(path: Path, line: str) -> None:
    """A line more of the metrics; on a full disk none, and no part of one: the run goes on without."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        if error.errno not in FULL:
            raise
        with contextlib.suppress(OSError):
            os.truncate(path, before)


def read_rows(path: Path) -> list[Row]:
    """The rows of a runs.jsonl, none without a file; a last line that was cut while it was written is dropped."""
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        os.truncate(path, len(whole))
    rows: dict[Run, Row] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = Row.of(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(f"{path}, line {number}: this is no run; remove the line, or name another folder") from None
        rows[row.run] = row
    return list(rows.values())


def load_run(path: str | Path, *, arm: str | None = None, seed: int | None = None, rate: float | None = None) -> Any:
    """The trained model of a run.

    **Arguments:**

    - `path`: a run folder, or a folder in it that holds one model (`<arm>/seed-<n>`).
    - `arm`, `seed`, `rate`: which model of a run folder; None is the first arm, seed 0, and the learning rate that the
      study chose for the arm.

    **Returns:** the `LanguageModel`. `open_run` gives its config and tokenizer too.

    **Raises:** `UserError` where there is no such model, naming those there are, where the arm was a function, and
    where model.json or the weights are not what was saved together.
    """
    return load_model_of(Path(path), model_folder(Path(path), arm=arm, seed=seed, rate=rate))


def model_folder(folder: Path, *, arm: str | None, seed: int | None, rate: float | None) -> Path:
    """The folder of the one model that is meant, as `load_run` says."""
    models = {file.parent.relative_to(folder).as_posix(): file.parent for file in folder.glob("**/model.safetensors")}
    if not models:
        raise UserError(f"{folder} holds no run: no <arm>/seed-<n>/lr-<rate>/model.safetensors in it")
    if (folder / "config.json").exists():
        rows = read_rows(folder / "runs.jsonl")
        if arm is None and not rows:
            raise UserError(f"{folder} has lost its runs.jsonl: say which arm, or name the folder of one model in it")
        arm = rows[0].arm if arm is None and rows else arm or ""
        wanted = f"{folder_name(arm)}/seed-{0 if seed is None else seed}"
        if rate is None and (folder / "result.json").exists():
            rate = _chosen_rate(folder / "result.json", arm)
        found = {name: at for name, at in models.items() if name.startswith(wanted + "/")}
        if not found:
            there = ", ".join(sorted({name.rpartition("/")[0] for name in models}))
            raise UserError(f"{folder} has no model {wanted}; there are: {there}")
        models = found
    chosen = [at for name, at in models.items() if rate is None or at.name == f"lr-{float(rate)!r}"]
    if len(chosen) != 1:
        fit = f"{len(chosen)} models fit" if chosen else f"none is of learning rate {rate:g}"
        raise UserError(f"{folder}: {fit}; say which of {', '.join(sorted(models))}")
    if not (chosen[0] / "model.json").exists():
        raise UserError(f"{chosen[0]}: its arm was a function, use eqx_slm.train.load_model(file, like)")
    return chosen[0]


def load_model_of(folder: Path, at: Path) -> Any:
    """The model in a folder `at`, held against its model.json and, inside of a run folder, against where it lies."""
    document = read_json(at / "model.json")
    # What shows in no shape (a window, a rotary base) makes another function of the same weights.
    expected: dict[str, Any] = {"config": json_hash(document)}
    if (folder / "config.json").exists():
        *_, seed_folder, rate_folder = at.parts
        names = {folder_name(row.arm): row.arm for row in read_rows(folder / "runs.jsonl")}
        expected |= {"seed": int(seed_folder[5:]), "learning_rate": float(rate_folder[3:])}
        expected |= {"arm": names[at.parts[-3]]} if at.parts[-3] in names else {}
    config = from_dict(ModelConfig, document)
    side = side_like(config)  # its values come from the file
    like = eqx.filter_eval_shape(lambda key: build(config, key=key, **side), jax.random.key(0))
    model = load_model(at / "model.safetensors", like, expected=expected)
    for name, leaf in named_arrays(model).items():
        if not bool(jax.numpy.isfinite(leaf).all()):
            raise UserError(f"{at}: {name} holds numbers that are not finite: the run diverged")
    return model


def _chosen_rate(file: Path, arm: str) -> float | None:
    """The rate that a finished study chose for an arm; None where it does not know the arm."""
    data = unsealed(read_json(file), file)
    try:
        return data["arms"].get(arm, {}).get("learning_rate")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is no study's result: say which model by rate=") from None


def _new_folder(runs: Path, stem: str) -> Path:
    runs.mkdir(parents=True, exist_ok=True)
    n = 0
    while True:
        try:  # making a folder is one step: of two that start at once each gets its own
            (runs / f"{stem}-{n}").mkdir()
            return runs / f"{stem}-{n}"
        except FileExistsError:
            n += 1
