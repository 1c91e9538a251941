"""Losses by how often a token occurs in the training text: classes of tokens, a run's means, a report's section."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..checks import whole
from .blocks import Block, Heading, Paragraph, Table
from .results import ArmResult, Results, finite
from .sentences import UNKNOWN, counted, number, percent, signed, span
from .statistics import paired_interval

By = Literal["rank", "mass"]

TOLD = (
    "Tokens in classes by how often they occur in the training text, class 1 the most frequent. By mass: the types in "
    "order of frequency, cut so that each class holds an equal share of the training tokens (a type belongs where the "
    "middle of its own share lies). By rank: the types that occur, cut into equally many. Unseen are types that the "
    "training text lacks. A class may be empty, where one type alone is more than a class. Losses are means over the "
    "validation tokens of a class at the end of the run, over all seeds at the arm's rate, nats a token."
)
CONTROL = (
    "Before anything is said of rare tokens: Adam alone treats rare rows of a table unlike frequent ones (arXiv "
    "2609.37535); repeat the study with other values of the optimizer's beta2."
)


def frequency_classes(counts: Sequence[int] | np.ndarray, by: By, classes: int = 10) -> np.ndarray:
    """The class of every id, int64[v]: 0 the most frequent, `classes` for ids that do not occur.

    **Arguments:** `counts`: how often each id occurs in the training text (`Stream.token_counts`). `by`: "rank" cuts
    the types that occur, in order of falling count (equal ones by id), into parts of equal number; "mass" puts
    a type into the part of the training tokens, in that order, where the middle of its own lies. With fewer types than
    classes, or a type of more tokens than a class, some classes are empty.
    """
    classes, counts = whole("frequency (--frequency)", classes, most=1000), np.asarray(counts, np.int64)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    if by == "rank":
        of_order = np.arange(len(order)) * classes // max(len(order), 1)
    else:
        ends = np.cumsum(counts[order])
        middles = 2 * ends - counts[order]  # of each type's tokens, twice
        of_order = middles * classes // max(2 * int(ends[-1]) if len(ends) else 1, 1)
    found = np.full(len(counts), classes)
    found[order] = of_order
    return found


class ByFrequency:
    """What a study needs to split its runs' losses: the classes of all validation tokens, of four kinds."""

    def __init__(self, counts: np.ndarray, batches: Sequence[np.ndarray], classes: int):
        """**Arguments:** as of `frequency_classes`; `batches`: the validation batches, int32[B, T + 1] each."""
        rows, self.classes = np.concatenate(batches), classes
        made: dict[By, np.ndarray] = {by: frequency_classes(counts, by, classes) for by in ("mass", "rank")}
        sides = {"input": rows[:, :-1], "target": rows[:, 1:]}
        self.kinds = {f"{side} by {by}": of[ids] for side, ids in sides.items() for by, of in made.items()}

    def means(self, losses: np.ndarray) -> dict[str, tuple[tuple[float | None, int], ...]]:
        """For each kind the mean loss and the number of validation tokens of every class, the unseen one last.

        **Arguments:** `losses`: nats of every validation token, `(rows, T)`, or of the last ones of every row, where a
        model reads no others. A class without tokens has no mean.
        """
        found = {}
        for kind, every in self.kinds.items():
            of = every[:, -losses.shape[1] :].ravel()
            sizes = np.bincount(of, minlength=self.classes + 1)
            sums = np.bincount(of, weights=losses.ravel().astype(np.float64), minlength=self.classes + 1)
            pairs = zip(sums.tolist(), sizes.tolist(), strict=True)
            found[kind] = tuple((finite(float(f"{s / n:.7g}")) if n else None, n) for s, n in pairs)
        return found


def frequency_table(split: Mapping[str, Sequence[tuple[float | None, int]]]) -> Table:
    """What `text_by_frequency` found, a column a class."""
    classes = len(next(iter(split.values()))) - 1
    rows: list[list[str]] = []
    for kind, found in split.items():
        rows.append([kind, *(number(mean) for mean, _ in found)])
        rows.append(["tokens", *(counted(size) for _, size in found)])
    return Table(["class", *map(str, range(1, classes + 1)), "unseen"], rows)


def by_frequency(results: Results) -> list[Block]:
    """The section: nothing where runs were not split (`RunConfig.frequency`)."""
    first = next((run for arm in results.arms.values() for run in arm.runs if run.by_frequency), None)
    if first is None:
        return []
    blocks: list[Block] = [Heading("Losses by frequency"), Paragraph(TOLD), Paragraph(CONTROL)]
    level = results.settings["confidence"]
    for kind, split in first.by_frequency.items():
        header = [kind, *map(str, range(1, len(split))), "unseen"]
        rows = [["validation tokens", *(counted(size) for _, size in split)]]
        seeds = {name: _seeds(arm, kind, len(split)) for name, arm in results.arms.items()}
        rows += [[name, *map(number, _means(own))] for name, own in seeds.items()]
        for each in results.comparisons:
            both = zip(seeds[each.arm], seeds[each.reference], strict=True)
            cells = [_difference(ours, theirs, level) for ours, theirs in both]
            rows.append([f"{each.arm} minus {each.reference}", *cells])
        blocks.append(Table(header, rows))
    said = f"Differences are over paired seeds with plain {percent(level)} t intervals, a class by itself."
    return [*blocks, Paragraph(said)]


def _seeds(arm: ArmResult, kind: str, classes: int) -> list[list[float | None]]:
    """For every class the means of all seeds; a run that diverged has none."""
    split = ([mean for mean, _ in run.by_frequency.get(kind, ())] or [None] * classes for run in arm.runs)
    return [list(column) for column in zip(*split, strict=True)]


def _means(seeds: list[list[float | None]]) -> list[float | None]:
    return [None if None in own else math.fsum(m or 0.0 for m in own) / len(own) for own in seeds]


def _difference(ours: list[float | None], theirs: list[float | None], level: float) -> str:
    both = [a - b for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if not both or len(both) < len(ours):
        return UNKNOWN
    interval = paired_interval(both, confidence=level)
    return signed(interval.mean) + ("" if len(both) == 1 else f" ({span(interval.low, interval.high)})")
