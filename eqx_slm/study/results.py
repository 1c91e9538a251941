"""What a study leaves, typed: a `Row` a run, an arm with its runs, and all of it for analyses and reports to read."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..account.facts import Facts
from ..configs import to_dict
from ..files import sealed, unsealed
from ..train.record import Evaluation
from .statistics import Interval
from .worth import Worth

# Of the validation text: sequences with even number choose the rate, those with odd number judge.
Part = Literal["all", "choosing", "judging"]
Method = Literal["t", "moderated t", "anytime"]

Run = tuple[str, int, float]  # arm, seed, learning rate

FORMAT = 3  # of result.json


@dataclass(frozen=True)
class Row:
    """One run. `key` is the hash of everything that decides it: a row of the same key is the same run.

    `sequences`: the final loss of every validation sequence, nats a token; None where it is not finite. `averaged_nll`:
    that of the average of the last steps' weights, where there is one. `skipped`: steps without a finite gradient,
    which changed nothing. `by_frequency`: by kind, the mean loss and the validation tokens of every class
    (frequency.py). `cores`: usable ones, of a run on a CPU. `data`: the hash of what it read, where that is known.
    """

    key: str
    arm: str
    seed: int
    learning_rate: float
    evals: tuple[Evaluation, ...]
    stream_hash: str
    train_seconds: float = 0.0
    tokens_per_second: float = 0.0
    compile_seconds: float = 0.0
    temporary_bytes: int | None = None
    seeds_at_once: int = 1
    sample: str = ""
    sequences: tuple[float | None, ...] = ()
    averaged_nll: float | None = None
    skipped: int = 0
    by_frequency: dict[str, tuple[tuple[float | None, int], ...]] = field(default_factory=dict)
    cores: int | None = None
    data: str = ""

    @property
    def run(self) -> Run:
        """Which run of a study it is."""
        return self.arm, self.seed, self.learning_rate

    @property
    def final_nll(self) -> float | None:
        """The last validation loss, nats a token; None where it is not finite."""
        return finite(self.evals[-1].nll)

    @property
    def final_bits_per_byte(self) -> float | None:
        """The same in bits a byte; None where the tokenizer loses bytes."""
        return finite(self.evals[-1].bits_per_byte)

    @property
    def diverged(self) -> bool:
        """Whether the run ended at a loss that is not finite."""
        return self.final_nll is None

    @property
    def losses(self) -> dict[int, float]:
        """Token count -> validation loss, where that is finite."""
        return self.losses_on("all")

    def losses_on(self, part: Part) -> dict[int, float]:
        """The same on a part of the validation text; on all of it where an evaluation has no parts."""
        found = {each.tokens: on_part(each, part) for each in self.evals}
        return {tokens: nll for tokens, nll in found.items() if finite(nll) is not None}

    def final_on(self, part: Part) -> float | None:
        """The last loss on a part; None where it is not finite."""
        return finite(on_part(self.evals[-1], part))

    @property
    def line(self) -> str:
        """The row as a line of runs.jsonl."""
        return json.dumps(sealed(to_dict(self)), allow_nan=False) + "\n"

    @staticmethod
    def of(line: str | bytes) -> Row:
        """The row of a line; raises `ValueError`, `TypeError` or `KeyError` for a line that is none or is damaged."""
        data = unsealed(json.loads(line), "the row")
        evals = tuple(Evaluation.of(each) for each in data["evals"])
        split = {kind: tuple(map(tuple, own)) for kind, own in data.get("by_frequency", {}).items()}
        parts = {"evals": evals, "sequences": tuple(data.get("sequences", ())), "by_frequency": split}
        return Row(**{**data, **parts})


@dataclass(frozen=True)
class Bounds:
    """A mean with its interval, at a token count where it has one; None for what is not known or not finite."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    tokens: int | None = None

    @staticmethod
    def of(interval: Interval | None, tokens: int | None = None) -> Bounds:
        """An interval's."""
        mean, low, high = (finite(value) for value in (interval or (None,) * 3)[:3])
        return Bounds(mean, low, high, tokens)


@dataclass(frozen=True)
class Comparison:
    """What two arms' runs say about each other; every difference is arm minus reference, nats a token.

    `differences` has each seed's final difference on the `part` of the validation text that judges, None where a run
    diverged; `low` and `high` are the plain t interval, `corrected_*` the one that the verdict comes from: by `method`,
    at its level of Holm's procedure. `p` is against no difference, `p_margin` against the margin by the method,
    `p_holm` that one adjusted. `sd` is of one paired difference. `text`: the mean over seeds with an interval over the
    `sequences`. `config_difference` lists `(field, reference's, arm's)`: empty
    for equal arms, None where nobody knows. `question` and `meaning` are a control's.
    """

    arm: str
    reference: str
    seeds: tuple[int, ...]
    differences: tuple[float | None, ...]
    mean: float | None
    low: float | None
    high: float | None
    corrected_low: float | None
    corrected_high: float | None
    corrected_confidence: float
    confidence: float
    margin: float
    p: float | None
    p_holm: float | None
    verdict: str
    note: str
    curve: tuple[Bounds, ...]
    crossings: tuple[float, ...]
    slope: Bounds
    parameter_ratio: float | None
    flops_ratio: float | None
    time_ratio: float | None
    config_difference: tuple[tuple[str, str, str], ...] | None
    question: str = ""
    meaning: str = ""
    method: Method = "t"
    pooling: str = ""
    p_margin: float | None = None
    sd: float | None = None
    seeds_to_resolve: int | None = None
    part: Part = "all"
    text: Bounds = Bounds()
    sequences: int = 0
    worth: tuple[Worth, ...] = ()

    @property
    def is_corrected(self) -> bool:
        """Whether the verdict's interval is not the plain one: Holm's correction, or another method."""
        bounds = (self.corrected_low, self.corrected_high)
        return bounds != (self.low, self.high) and None not in bounds


@dataclass(frozen=True)
class ArmResult:
    """An arm with its runs: `runs` at its learning rate, the best of those tried, `all_runs` at every rate.

    `levels` says where it stands in a grid, `match` how its budget was matched. `made_of` is its config or function.
    `judged`: the part of the validation text that verdicts come from.
    """

    name: str
    facts: Facts
    learning_rate: float
    runs: tuple[Row, ...] = ()
    all_runs: tuple[Row, ...] = ()
    levels: Mapping[str, str] = field(default_factory=dict)
    match: str | None = None
    made_of: Any = None
    judged: Part = "all"

    @property
    def diverged(self) -> bool:
        """Whether any of its runs did."""
        return any(run.diverged for run in self.runs)

    @property
    def compile_seconds(self) -> float | None:
        """Seconds that the first of its runs waited for its program."""
        return self.runs[0].compile_seconds if self.runs else None

    def mean(self, name: str) -> float | None:
        """The mean of a run's number; None where a run has none."""
        values = [value for run in self.runs if (value := finite(getattr(run, name))) is not None]
        return math.fsum(values) / len(values) if values and len(values) == len(self.runs) else None


@dataclass(frozen=True)
class Results:
    """Everything that analyses and reports read. `settings`: the fields of `RunConfig`, seeds, learning rates, margin,
    confidence, and the sizes of the stream."""

    name: str
    arms: dict[str, ArmResult]
    settings: dict[str, Any]
    stream: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    comparisons: tuple[Comparison, ...] = ()
    controls: tuple[Comparison, ...] = ()
    config: Any = None
    replay: str = ""
    version: str = ""
    created: str = ""
    seconds: float = 0.0

    @property
    def reference(self) -> str:
        """The first arm."""
        return next(iter(self.arms))

    def to_json(self) -> dict[str, Any]:
        """What result.json holds."""
        data = {name: value for name, value in vars(self).items() if value not in (None, "")}
        data |= {name: [to_dict(each) for each in data[name]] for name in ("comparisons", "controls")}
        return sealed(
            {"format": FORMAT, "reference": self.reference, **data, "arms": dict(map(_arm, self.arms.items()))}
        )


def _arm(item: tuple[str, ArmResult]) -> tuple[str, dict[str, Any]]:
    name, arm = item
    config = to_dict(arm.made_of) if dataclasses.is_dataclass(arm.made_of) else None
    own = {each: getattr(arm, each) for each in ("levels", "match", "learning_rate", "compile_seconds", "judged")}
    own |= {"seeds_at_once": arm.runs[0].seeds_at_once, "config": config}
    return name, to_dict(arm.facts) | own | {w: [_run(r) for r in getattr(arm, w)] for w in ("runs", "all_runs")}


def _run(run: Row) -> dict[str, Any]:
    ends = {name: getattr(run, name) for name in ("final_nll", "final_bits_per_byte", "diverged")}
    return {name: value for name, value in to_dict(run).items() if name not in ("arm", "sequences")} | ends


def best_rate(rows: Sequence[Row], rates: Sequence[float]) -> float:
    """The rate with the lowest mean final loss over the seeds, on the part of the validation text that does not judge;
    a diverged run counts as infinite."""

    def loss(rate: float) -> float:
        ends = [row.final_on("choosing") for row in rows if row.learning_rate == rate]
        return sum(math.inf if end is None else end for end in ends) / max(len(ends), 1)

    return min(rates, key=loss)


def on_part(evaluation: Evaluation, part: Part) -> float:
    """The loss on a part of the validation text; on all of it where it has no parts."""
    return evaluation.nll if part == "all" or not evaluation.halves else evaluation.halves[part == "judging"]


def finite(value: Any) -> float | None:
    """A number as a float; None for None, NaN and infinities."""
    return None if value is None or not math.isfinite(value) else float(value)
