"""Several studies in one folder with a report over all of them: lengths, passes over the data, corpora."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..commandline import complain, parse
from ..errors import UserError
from ..train.processes import join, leads
from .blocks import Block
from .command import StudyOptions, again, study_main
from .results import Results
from .saved import load_results, write_report
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
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
    given = given[len(words) :]
    options = parse(StudyOptions, given, Path(sys.argv[0]).name)
    if lost := [word for word in words if not any(part.startswith(word) for part in studies)]:
        complain(f"no study of {name} begins with {lost[0]!r}; there are {', '.join(studies)}")
        return 2
    every = list(studies)
    if words:
        studies = {part: study for part, study in studies.items() if part.startswith(tuple(words))}
    if options.steps is not None:
        complain(f"--steps {options.steps}: the studies of {name} have their own lengths; leave it out")
        return 2
    try:
        join(options.processes)
    except UserError as error:
        complain(error)
        return 2
    found: dict[str, Results] = {}
    folder = _folder(name) if options.out is None else Path(options.out)
    for part, study in studies.items():

        def keep(results: Results, part: str = part) -> list[Block]:
            found[part] = results
            return []

        if leads():
            print(f"== {part}")
        kept = dataclasses.replace(study, report=(*study.report, keep))
        own = given if options.dry_run else [*_without_out(given), "--out", str(folder / part)]
        if code := study_main(kept, own, again_with=again(arguments)(folder)):
            return code
    if not options.dry_run:
        for part in every:  # finished before, and not asked for now: the report is of all that is there
            if part not in found and (folder / part / "result.json").exists():
                found[part] = load_results(folder / part)
        found = {part: found[part] for part in every if part in found}
        blocks = [block for section in report for block in section(found)]
        if leads():
            print(write_report(blocks, folder))
    return 0


def _without_out(given: list[str]) -> list[str]:
    """Arguments but the folder of the series: its studies have folders of their own in it."""
    at = given.index("--out") if "--out" in given else len(given)
    return [word for word in given[:at] + given[at + 2 :] if not word.startswith("--out=")]


def _folder(name: str) -> Path:
    """The first `runs/<name>-<n>` that is not there."""
    return next(path for n in itertools.count() if not (path := Path("runs") / f"{name}-{n}").exists())
