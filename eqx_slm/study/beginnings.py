"""What runs may begin with: the kept checkpoints of a shorter study, or the weights of any finished one.

A longer run goes on with all that decided its steps. Of weights nothing else comes with them: moments, the step and the
place in the data begin anew, and so does the schedule.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from ..data.tokenizer import Tokenizer
from ..data.vocabulary import load_tokenizer
from ..errors import UserError
from ..files import folder_with
from ..train.checkpoint import named_arrays
from ..train.loop import RunConfig
from ..train.resume import checkpoint_runs
from .folder import load_run
from .text import VOCABULARY

KEPT = "kept"  # the folder within a run folder
# Fields of a `RunConfig` that decide how long a run is and what is told of it, not what its steps are.
LENGTH = ("steps", "evaluations", "average", "sample_tokens", "probe", "frequency", "patience")


class Shorter:
    """The kept checkpoints of a finished study, by what decided their runs' steps. All are after one `step`."""

    def __init__(self, folder: str | Path, config: RunConfig, trunks: Collection[str]):
        """**Arguments:** `folder`: the finished study's. `config`: of the longer runs. `trunks`: of all of them.

        **Raises:** `UserError` where the schedule is none that goes on, where a run has no checkpoint in the folder,
        and where the longer run is not longer.
        """
        least = can_go_on(config)
        self.folder = folder_with("runs.jsonl", "--go-on-from", folder)
        self.files: dict[tuple[str, ...], Path] = {}
        for at, runs in checkpoint_runs(self.folder / KEPT).items():
            self.files[tuple(run.get("trunk", "") for run in runs)] = max(at.glob("step-*.json"), key=_step)
        there = {trunk for each in self.files for trunk in each}
        if missing := [trunk for trunk in trunks if trunk not in there]:
            raise UserError(
                f"--go-on-from {folder}: {len(missing)} of {len(trunks)} runs have no checkpoint there; the study must "
                "have the same arms, seeds, rates, data and version, and have been run with --keep-checkpoints"
            )
        self.step = max(_step(file) for file in self.files.values())
        first = config.steps - round(config.average * config.steps)
        if not self.step <= min(least, first) or self.step >= config.steps:
            raise UserError(
                f"--go-on-from {folder}: its checkpoint is after step {self.step}, where {config.steps} steps have "
                f"already ended, begun to decay or begun their average: raise --steps"
            )

    def file(self, trunks: Sequence[str]) -> Path:
        """The JSON file of the checkpoint of runs that are trained at once; `UserError` where they were not."""
        found = self.files.get(tuple(trunks))
        if found is None:
            raise UserError(f"--go-on-from {self.folder}: its seeds were not trained at once as these are")
        return found


class FirstWeights:
    """The final weights of a finished study, by arm and seed, at the learning rate that the study chose for the arm."""

    def __init__(
        self,
        folder: str | Path,
        runs: Collection[tuple[str, int]],
        initial: Callable[[str, int], Any],
        tokenizer: Tokenizer | None = None,
    ):
        """**Arguments:** `folder`: the finished study's. `runs`: arm and seed of all that begin with its weights.
        `initial`: the model that a run would begin with otherwise; it says what has to be equal. `tokenizer`: of
        this study.

        **Raises:** `UserError` where the folder has no such run, where one is of another model, and where its ids are
        those of another tokenizer.
        """
        self.folder = folder_with("runs.jsonl", "--init-from", folder)
        own = self.folder / VOCABULARY
        if tokenizer is not None and own.is_file() and (theirs := load_tokenizer(own)).hash != tokenizer.hash:
            raise UserError(
                f"--init-from {folder}: its ids are of another tokenizer ({theirs.name}, this study's is "
                f"{tokenizer.name} of other tokens): give --tokenizer {own}"
            )
        self.hashes: dict[tuple[str, int], str] = {}
        for name, seed in dict.fromkeys(runs):
            model = self.model(name, seed)  # one at a time: all of them together may be more than fits
            if not alike(model, initial(name, seed)):
                raise UserError(f"--init-from {folder}: its arm {name!r} is another model than this study's")
            self.hashes[name, seed] = model_hash(model)

    def model(self, name: str, seed: int) -> Any:
        """The trained model of an arm and seed; `UserError` where there is none, or where it diverged."""
        try:
            return load_run(self.folder, arm=name, seed=seed)
        except UserError as error:
            raise UserError(f"--init-from: {error}") from None


def can_go_on(config: RunConfig) -> int:
    """The step up to which a run has the peak rate; `UserError` where its schedule has none."""
    branch = config.optimizer.branch(config.steps)
    if branch is None:
        raise UserError(
            f"a run by schedule {config.optimizer.schedule} cannot go on: its rate has fallen for its own number of "
            "steps, which a longer run's would not have; take --schedule wsd or constant, or begin a new run with its "
            "weights: --init-from FOLDER"
        )
    return branch


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def alike(one: Any, other: Any) -> bool:
    """Whether two models differ in the values of their parameters only."""
    shapes, others = ({k: (a.shape, a.dtype) for k, a in named_arrays(each).items()} for each in (one, other))
    fixed = [eqx.filter(each, eqx.is_inexact_array, inverse=True) for each in (one, other)]
    return shapes == others and bool(eqx.tree_equal(*fixed))


def model_hash(model: Any, text: str = "") -> str:
    """The sha256 of a text and of every array of a model, under its path."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    for path, leaf in named_arrays(model).items():
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
