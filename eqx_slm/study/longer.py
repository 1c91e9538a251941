"""A finished run goes on: the checkpoints that a study keeps at its end, and a longer one that begins with them."""

from collections.abc import Collection, Sequence
from pathlib import Path

from ..errors import UserError
from ..files import folder_with
from ..train.loop import RunConfig
from ..train.resume import checkpoint_runs

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
