"""Several studies in one folder with a report over all of them: lengths, passes over the data, corpora."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..commandline import parse
from ..errors import UserError
from ..train.processes import join, leads
from .blocks import Block
from .command import again, guarded, run_with
from .options import StudyOptions
from .results import Results
from .saved import load_results, write_report
from .stopping import Stopping
from .study import Study

SeriesSection = Callable[[Mapping[str, Results]], list[Block]]


def series_main(
    name: str,
    studies: Mapping[str, Study],
    report: Sequence[SeriesSection],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a script's studies one after the other, each in its own folder of one folder, and reports on all.

    Every study's folder is an ordinary run folder: what is stopped goes on, and more `--seeds` extend it.

    **Arguments:** `name`: of the folder. `studies`: by the name of their folders. `report`: sections over the results
    of all studies, by name; they make the `report.md` above them. `arguments`: the options of `StudyOptions` but
    `--steps`, which the studies differ in; words before them choose studies whose names begin so.

    **Returns:** the exit code, as `study_main` does.
    """

    def run(stopping: Stopping) -> int:
        given = list(sys.argv[1:] if arguments is None else arguments)
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
        options = parse(StudyOptions, given[len(words) :], Path(sys.argv[0]).name)
        if lost := [word for word in words if not any(part.startswith(word) for part in studies)]:
            raise UserError(f"no study of {name} begins with {lost[0]!r}; there are {', '.join(studies)}")
        if options.steps is not None:
            raise UserError(f"--steps {options.steps}: the studies of {name} have their own lengths; leave it out")
        join(options.processes)
        folder = _folder(name) if options.out is None else Path(options.out)
        for part in (part for part in studies if not words or part.startswith(tuple(words))):
            if leads():
                print(f"== {part}")
            own = options if options.dry_run else dataclasses.replace(options, out=str(folder / part))
            if code := run_with(studies[part], own, stopping, lambda _: again(arguments)(folder)):
                return code
        if leads() and not options.dry_run:
            # Of all that are there: some may have been finished before.
            found = {part: load_results(folder / part) for part in studies if (folder / part / "result.json").exists()}
            print(write_report([block for section in report for block in section(found)], folder))
        return 0

    return guarded(run)


def _folder(name: str) -> Path:
    """The first `runs/<name>-<n>` that is not there."""
    return next(path for n in itertools.count() if not (path := Path("runs") / f"{name}-{n}").exists())
