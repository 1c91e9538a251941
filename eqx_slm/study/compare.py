"""From the runs of several arms to comparisons: differences over paired seeds, intervals, verdicts, curves, ratios."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checks import check_number
from ..configs import differences
from ..errors import UserError
from .judge import rules_for
from .results import ArmResult, Bounds, Comparison, Row, finite
from .statistics import (
    Number,
    check_confidence,
    check_margin,
    holm,
    holm_levels,
    mean_and_sd,
    p_value,
    paired_interval,
    slope_against_log_tokens,
    verdict,
)
from .worth import Points, Worth, worth


@dataclass(frozen=True)
class paired:
    """An analysis: every arm against a reference over paired seeds, Holm-corrected for the number of comparisons.

    The verdict comes from the corrected interval; the plain one is kept beside it. Every arm counts in the correction,
    also one that diverged. A diverged run on either side leaves its comparison "not resolved". Holm's steps are taken
    against the margin, where the verdicts are: against no difference, arms far from zero but within the margin would
    make the steps of others shorter than their verdicts allow.

    **Arguments:**

    - `against`: the reference's name; or, for arms of a grid, the level of a factor: `{"taper": "uniform"}` holds every
      arm against the one that has this level and the same levels of the factors in `within`.
    - `within`: factors, one or several; by default all but those of `against`.
    - `margin`: nats a token below which a difference does not matter; decided before the run.
    - `confidence`: family-wise level of "better" and "worse" beyond the margin; each corrected interval stands at the
      level of its own step of Holm's procedure, and they do not cover jointly.
    - `pool`: groups of arms said before the run to have noise alike, whose comparisons may lend each other their
      variance (see `spread.moderated`; refused where their spreads differ). Arms in no group keep their own.
    - `anytime`: intervals that hold whenever one stops (see `anytime.py`), for studies that grow until they say
      something. They pool nothing.
    - `ends`: by "tokens" and "parameters", (number, final loss) of finished runs of the reference at other lengths or
      sizes, for saying differences as compute (see `worth.py`).

    Called with the arms' results by name, it **returns** the comparisons in the order of the arms; it raises
    `UserError` where arms have no reference, or seeds or token counts that do not pair.
    """

    against: str | Mapping[str, Any]
    within: str | Sequence[str] | None = None
    margin: float = 0.01
    confidence: float = 0.95
    pool: Sequence[Sequence[str]] = ()
    anytime: bool = False
    ends: Mapping[str, Points] = field(default_factory=dict)

    def __post_init__(self):
        check_margin(self.margin)
        check_confidence(self.confidence)
        check_ends(self.ends)

    def pairs(self, levels: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
        """(arm, its reference) for every arm that is none, from the levels of every arm by name."""
        named = [name for group in self.pool for name in group]
        if unknown := [name for name in named if name not in levels]:
            raise UserError(f"pool: there is no arm {unknown[0]!r}; the arms are {', '.join(levels)}")
        if twice := [name for name in named if named.count(name) > 1]:
            raise UserError(f"pool: {twice[0]!r} is named twice; an arm's noise is like that of one group")
        if isinstance(self.against, str):
            if self.against not in levels:
                raise UserError(f"there is no arm {self.against!r}; the arms are {', '.join(levels)}")
            return [(name, self.against) for name in levels if name != self.against]
        against, found = {factor: _level(factor, level, levels) for factor, level in self.against.items()}, []
        for name, own in levels.items():
            if all(own.get(factor) == level for factor, level in against.items()):
                continue
            within = [factor for factor in own if factor not in against] if self.within is None else self.within
            within = [within] if isinstance(within, str) else within
            for factor in within:
                _levels(factor, levels)
            wanted = {factor: own.get(factor) for factor in within} | dict(against)
            there = [other for other, its in levels.items() if all(its.get(f) == v for f, v in wanted.items())]
            if len(there) != 1:
                said = ", ".join(f"{factor} {level}" for factor, level in wanted.items())
                raise UserError(f"arm {name} needs one reference with {said}, there are {len(there)}")
            found.append((name, there[0]))
        return found

    def __call__(self, arms: Mapping[str, ArmResult]) -> list[Comparison]:
        """The comparisons."""
        pairs = self.pairs({name: arm.levels for name, arm in arms.items()})
        plain = [compare(arms[arm], arms[other], self.margin, self.confidence) for arm, other in pairs]
        rules = rules_for(plain, self.pool, anytime=self.anytime)
        judged = [dataclasses.replace(e, p_margin=r.p_of(e)) for e, r in zip(plain, rules, strict=True)]
        # A comparison without a p-value still is one of the family, as the one that is rejected last.
        p_values = [1.0 if each.p_margin is None else each.p_margin for each in judged]
        levels = holm_levels(p_values, confidence=self.confidence)
        steps = zip(judged, rules, levels, holm(p_values), strict=True)
        found = [rule.judged(each, level, p_holm) for each, rule, level, p_holm in steps]
        return [dataclasses.replace(each, worth=_worth(each, arms[each.reference], self.ends)) for each in found]


def _levels(factor: str, levels: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The levels of a factor, in the order of the arms; `UserError` for a factor that no arm has."""
    factors = dict.fromkeys(name for own in levels.values() for name in own)
    if factor not in factors:
        raise UserError(f"there is no factor {factor!r}; the factors are {', '.join(factors)}")
    return list(dict.fromkeys(own[factor] for own in levels.values() if factor in own))


def _level(factor: str, level: Any, levels: Mapping[str, Mapping[str, str]]) -> str:
    """A level by its label, or by its value where the label is "field=value"; `UserError` for what is none."""
    known = _levels(factor, levels)
    for label in (level, f"{factor.rpartition('.')[2]}={level}"):
        if label in known:
            return label
    raise UserError(f"{factor} has no level {level!r}; its levels are {', '.join(map(repr, known))}")


@dataclass(frozen=True)
class Control:
    """An analysis: two arms of which neither is the reference compared directly, and what the verdict would mean.

    The interval is not corrected: a control is read beside the comparisons, it is not one of their family.
    """

    arm: str
    control: str
    question: str
    meaning: Mapping[str, str]
    margin: float = 0.01
    confidence: float = 0.95
    anytime: bool = False

    def __call__(self, arms: Mapping[str, ArmResult]) -> list[Comparison]:
        """The comparison, where both arms are here and it is not made already."""
        if not {self.arm, self.control} <= arms.keys() or next(iter(arms)) in (self.arm, self.control):
            return []
        made = compare(arms[self.arm], arms[self.control], self.margin, self.confidence)
        (rule,) = rules_for([made], (), anytime=self.anytime)
        p = rule.p_of(made)
        made = dataclasses.replace(rule.judged(made, self.confidence, 1.0 if p is None else p), p_margin=p)
        return [dataclasses.replace(made, question=self.question, meaning=self.meaning.get(made.verdict, ""))]


def compare(arm: ArmResult, reference: ArmResult, margin: float, confidence: float) -> Comparison:
    """Two arms' runs side by side, seed by seed, judged by the plain interval (see `paired`).

    **Raises:** `UserError` where their seeds or token counts do not pair.
    """
    both = _paired_runs(arm, reference)
    part = arm.judged
    ends = [(run.final_on(part), other.final_on(part)) for run, other in both]
    finals = tuple(None if ours is None or theirs is None else ours - theirs for ours, theirs in ends)
    every = [value for value in finals if value is not None]
    # None where a run diverged: the seeds that survive are not a fair sample.
    values = every if len(every) == len(finals) else None
    losses = [(run.losses_on(part), other.losses_on(part)) for run, other in both]
    tokens = sorted(set.intersection(*(ours.keys() & theirs.keys() for ours, theirs in losses)))
    curves = [[ours[count] - theirs[count] for count in tokens] for ours, theirs in losses]
    columns = [list(column) for column in zip(*curves, strict=True)]
    largest = max(map(abs, [*every, *sum(curves, [])]), default=0.0)
    known = config_differences(reference.made_of, arm.made_of)
    interval = paired_interval(values, confidence=confidence) if values else None
    slope = slope_against_log_tokens(tokens, curves, confidence=confidence) if values and len(tokens) > 1 else None
    p, bounds, identical = p_value(values) if values else None, Bounds.of(interval), known == () and largest == 0.0
    return Comparison(
        arm=arm.name,
        reference=reference.name,
        seeds=tuple(run.seed for run, _ in both),
        differences=finals,
        mean=bounds.mean,
        low=bounds.low,
        high=bounds.high,
        corrected_low=bounds.low,
        corrected_high=bounds.high,
        corrected_confidence=confidence,
        confidence=confidence,
        margin=margin,
        p=p,
        p_holm=p,
        verdict=verdict(interval, margin=margin, identical=identical) if interval else "not resolved",
        note=_note(arm, reference, known == (), largest),
        curve=tuple(
            Bounds.of(paired_interval(c, confidence=confidence), n) for n, c in zip(tokens, columns, strict=True)
        ),
        crossings=tuple(crossings(tokens, [math.fsum(column) / len(column) for column in columns])),
        slope=Bounds.of(slope),
        parameter_ratio=_ratio(arm.facts.parameters, reference.facts.parameters),
        flops_ratio=_ratio(arm.facts.flops_per_token, reference.facts.flops_per_token),
        # A run that stopped early took little time for a reason that is no merit: no ratio then.
        time_ratio=_ratio(*({"total": a.mean("train_seconds")} for a in (arm, reference))) if values else None,
        config_difference=known,
        p_margin=p_value(values, margin=margin) if values else None,
        sd=mean_and_sd(values)[1] if values and len(values) > 1 else None,
        part=part,
        **_over_text(both, part == "judging", confidence),
    )


def _over_text(both: Sequence[tuple[Row, Row]], odd: bool, confidence: float) -> dict[str, Any]:
    """The difference of every validation sequence, a mean over the seeds, and the interval over the sequences."""
    rows = []
    for run, other in both:
        if not run.sequences or len(run.sequences) != len(other.sequences):
            return {}
        pairs = list(zip(run.sequences, other.sequences, strict=True))[int(odd) :: 1 + int(odd)]
        rows.append([None if a is None or b is None else a - b for a, b in pairs])
    columns = [list(column) for column in zip(*rows, strict=True)]
    if not columns or any(finite(value) is None for column in columns for value in column):
        return {}
    means = [math.fsum(column) / len(column) for column in columns]
    return {"text": Bounds.of(paired_interval(means, confidence=confidence)), "sequences": len(means)}


def _paired_runs(arm: ArmResult, reference: ArmResult) -> list[tuple[Row, Row]]:
    """The runs of each seed, checked to have seen the same tokens."""
    runs, others = ({run.seed: run for run in each.runs} for each in (arm, reference))
    if not runs or runs.keys() != others.keys() or len(runs) + len(others) < len(arm.runs) + len(reference.runs):
        raise UserError(
            f"arms {arm.name!r} and {reference.name!r} cannot be paired: seeds {[r.seed for r in arm.runs]} "
            f"against {[r.seed for r in reference.runs]}; run both once with the same seeds"
        )
    both = [(runs[seed], others[seed]) for seed in sorted(runs)]
    _check_tokens([run for pair in both for run in pair])
    return both


def _worth(c: Comparison, reference: ArmResult, ends: Mapping[str, Points]) -> tuple[Worth, ...]:
    """The difference as compute, from the reference's curve or from the ends of its runs."""
    losses = [run.losses_on(c.part) for run in reference.runs]
    tokens = sorted(set.intersection(*map(set, losses)))
    end = reference.mean("final_nll")
    if not tokens or end is None or c.mean is None or c.verdict == "identical arms":
        return ()
    curve = [(count, math.fsum(own[count] for own in losses) / len(losses)) for count in tokens]
    bounds, costs = (c.mean, c.corrected_low, c.corrected_high), {"tokens": 1.0, "FLOPs": c.flops_ratio}
    costs["time"] = c.time_ratio
    known = sorted({**dict(ends.get("tokens", ())), tokens[-1]: end}.items())
    found = worth(known if len(known) > 1 else curve, tokens[-1], bounds, costs, ends=len(known) > 1)
    if (size := reference.facts.parameters.get("total")) and "parameters" in ends:
        sizes = sorted({**dict(ends["parameters"]), size: end}.items())
        found += worth(sizes, size, bounds, {"parameters": c.parameter_ratio}, ends=True)
    return found


def check_ends(ends: Mapping[str, Points]) -> None:
    """Raises `UserError` for ends of runs that make no curve."""
    for what, points in ends.items():
        if what not in ("tokens", "parameters"):
            raise UserError(f"ends: {what!r} is no axis; allowed: tokens, parameters")
        for x, loss in points:
            check_number(f"ends of {what}", x, "positive and finite", lambda value: 0 < value < math.inf)
            check_number(f"ends of {what}, a loss", loss, "finite", math.isfinite)


def _note(arm: ArmResult, reference: ArmResult, equal: bool, largest: float) -> str:
    said = []
    for each in (arm, reference):
        seeds = sorted(run.seed for run in each.runs if run.diverged)
        if seeds:
            which = "every seed" if len(seeds) == len(each.runs) else f"seed{'s' * (len(seeds) > 1)}"
            said.append(f"{each.name} diverged on {which} ({', '.join(map(str, seeds))})")
    if said:
        return " and ".join(said) + ": no interval over the seeds that are left would be fair"
    if not equal or largest == 0.0:
        return ""
    return (
        f"equal configs gave different losses (by up to {largest:.2g} nat): expected where only the data order is "
        "paired or the device is not deterministic, a defect otherwise"
    )


def config_differences(reference: Any, other: Any) -> tuple[tuple[str, str, str], ...] | None:
    """The fields in which two arms differ; empty for the same function; None where nobody can know."""
    if dataclasses.is_dataclass(reference) and dataclasses.is_dataclass(other):
        return tuple(differences(reference, other))
    return () if reference is other and reference is not None else None


def crossings(tokens: Sequence[Number], means: Sequence[Number]) -> list[float]:
    """The token counts, ascending, at which a mean difference changes its sign, interpolated on log tokens.

    Exact zeros have no sign: the curve crosses between the last value before them and the first after.
    """
    signed = [(math.log(count), mean) for count, mean in zip(tokens, means, strict=True) if mean != 0.0]
    steps = [(*a, *b) for a, b in zip(signed, signed[1:], strict=False) if (a[1] < 0) != (b[1] < 0)]
    return [math.exp(x0 + (x1 - x0) * (y0 / (y0 - y1))) for x0, y0, x1, y1 in steps]


def _check_tokens(runs: Sequence[Row]) -> None:
    # A diverged run may have been stopped early; every other one has to have seen what the first of them saw.
    counts = {(run.arm, run.seed): [each.tokens for each in run.evals] for run in runs if not run.diverged}
    (first, wanted), *others = counts.items() or [(None, [])]
    for run, own in others:
        if own != wanted:
            raise UserError(
                f"token counts disagree: (arm, seed) {first} was evaluated at {wanted}, {run} at {own}; train and "
                "evaluate every arm at the same tokens"
            )


def _ratio(values: Mapping[str, Any] | None, reference: Mapping[str, Any] | None) -> float | None:
    """Of two totals; None where one side is a closed form and the other XLA's count, which has more than matmuls."""
    if not values or not reference or values.get("counted_by") != reference.get("counted_by"):
        return None
    return values["total"] / reference["total"] if values["total"] is not None and reference["total"] else None


CONTROLS = (
    # A tied table saves the same parameters and spends them on depth; its head is tied, the generator's is not.
    Control(
        arm="leviathan-deep",
        control="dense-tied-deep",
        question="is it the generated embedding, or only the depth?",
        meaning={
            "better": "the depth alone, which a tied table buys as well, does not account for leviathan-deep",
            "worse": "a tied table spends the same parameters on depth to better effect than the generator",
            "no difference beyond the margin": "the depth that a tied table buys as well accounts for leviathan-deep",
            "not resolved": "these runs cannot tell the generator from the depth",
        },
    ),
    # Untied heads on both sides and input embeddings of one size: what is left is the generator's form.
    Control(
        arm="leviathan-deep",
        control="low-rank-deep",
        question="is it the generator, or would any input embedding of its size do?",
        meaning={
            "better": "the generator gives more than plain factors of its size",
            "worse": "plain factors of its size do better than the generator",
            "no difference beyond the margin": "plain factors of its size do as well as the generator",
            "not resolved": "these runs cannot tell the generator from plain factors of its size",
        },
    ),
)
