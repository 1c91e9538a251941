"""The command behind `python -m eqx_slm.study`: reports of finished studies written again, and studies side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from ..commandline import subcommands
from ..errors import UserError
from ..visible import visible


@dataclass(frozen=True)
class Report:
    """Write report.md and report.html of a finished study again, from its rows; nothing is trained."""

    examples: ClassVar = ("eqx-slm report runs/quick-1",)

    folder: Positional[Path]
    """The run folder."""


@dataclass(frozen=True)
class Compare:
    """Put finished studies side by side: verdicts, curves, what differs; paired where they read the same batches."""

    examples: ClassVar = ("eqx-slm compare runs/quick-1 runs/quick-2 --out compared",)

    folders: Positional[tuple[Path, ...]]
    """The run folders, two or more; the first one's first arm is the reference."""
    out: Path | None = None
    """A folder for report.md, report.html and the pictures; only lines are printed without it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for what the user can mend (one line on standard error)."""
    known = {"report": (Report, _report), "compare": (Compare, _compare)}
    return subcommands(known, arguments, "eqx-slm", "Finished studies: their reports, and several side by side.")


def _report(options: Report) -> None:
    from ..files import Lock
    from .saved import load_results, sections_of, write_report

    results = load_results(options.folder)

    def write() -> None:
        lock = Lock(options.folder)
        try:
            sections, missing = sections_of(results)
            write_report([block for section in sections for block in section(results)], options.folder)
        finally:
            lock.release()
        if missing:
            print(f"left out, known only to the study's own script: {', '.join(missing)}")

    _writing(options.folder, write)
    print(visible(f"{options.folder}/report.html"))


def _compare(options: Compare) -> None:
    from .beside import beside, headline, labels, sections
    from .saved import load_results, write_report
    from .terminal import console, print_blocks

    folders = options.folders
    if len(folders) < 2:
        raise UserError(f"compare needs two or more run folders, {len(folders)} given")
    same = [folder for index, folder in enumerate(folders) if folder.resolve() in map(Path.resolve, folders[:index])]
    if same:
        raise UserError(f"the folder {same[0]} is given twice")
    out = options.out
    if out is not None:
        _check_out(out)
    both = beside(dict(zip(labels(folders), map(load_results, folders), strict=True)))
    if out is not None:
        _writing(out, lambda: out.mkdir(parents=True, exist_ok=True))  # before pictures are drawn in vain
        _writing(out, lambda: write_report(sections(both), out))
    print_blocks(headline(both, short=True), console())
    if out is not None:
        print(visible(f"{out}/report.html"))


def _check_out(out: Path) -> None:
    """Raises `UserError` where a comparison must not be written: over a study, or among other files."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    there = os.listdir(out) if out.exists() else []
    others = [name for name in there if Path(name).suffix not in (".md", ".html", ".png", ".svg")]
    if others:
        raise UserError(f"--out {out} holds files that are no comparison ({sorted(others)[0]}): name another folder")


def _writing(folder: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
