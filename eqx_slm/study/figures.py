"""The section of a report that has every comparison in figures: at the end, its spread, along the run, its trend."""

from __future__ import annotations

import math

from .blocks import Block, Heading, Paragraph, Table
from .results import Bounds, Comparison, Results
from .sentences import UNKNOWN, counted, human, number, percent, ratio, signed, span

INTERVALS = (
    "The corrected ones are Holm's, with its steps against the margin: the arm with the i-th smallest p of m (i from "
    "0) has its interval at level 1 - alpha / (m - i), and from the first arm that is not told from the margin the "
    "level stays. Verdicts are taken from the corrected interval: better or worse where it lies wholly beyond the "
    "margin, no difference beyond the margin where it lies wholly inside. Controls are not part of this family."
)
SPREADS = (
    "SD is the standard deviation of one paired difference, the half-width that of the corrected interval. Seeds to "
    "resolve: how many would put the interval around this mean wholly beyond the margin or wholly inside it, at this "
    "spread. The interval over text takes these models as they are, averages over the seeds and varies the validation "
    "sequences: what other text of the same kind would say of them."
)
SLOPES = (
    "Least-squares slope of each seed's difference on the logarithm of tokens, interval over the seeds; the curve "
    "need not be straight, so this is a mean trend over the whole run and no forecast:"
)


def differences(results: Results) -> list[Block]:
    """Every comparison in figures: at the end, along the run, and its trend."""
    compared = [*results.comparisons, *results.controls]
    if not compared:
        return []
    ends = [
        [c.arm, c.reference, c.verdict, signed(c.mean), span(c.low, c.high), span(c.corrected_low, c.corrected_high)]
        + [_p(c.p), _p(c.p_margin), _p(c.p_holm), ratio(c.parameter_ratio), ratio(c.flops_ratio), ratio(c.time_ratio)]
        for c in results.comparisons
    ]
    header = ["arm", "against", "verdict", "difference", "interval", "corrected", "p", "p (margin)", "p (Holm)"]
    curves = [{point.tokens: point for point in c.curve} for c in compared]
    counts = sorted({count for curve in curves for count in curve if count is not None})
    along = [[f"{count:,}", *(_point(curve.get(count)) for curve in curves)] for count in counts]
    names = [f"{c.arm} minus {c.reference}" for c in compared]
    spreads = [[name, *_spread(c)] for name, c in zip(names, compared, strict=True)]
    level = percent(results.settings["confidence"])
    trends = [[name, *_slope(c)] for name, c in zip(names, compared, strict=True)]
    return [
        Heading("Differences"),
        Table([*header, "parameters", "FLOPs", "time"], ends, left=3),
        Paragraph(f"Intervals are Student's t over the seeds at {level}. {_methods(results)}{INTERVALS}"),
        Paragraph(SPREADS),
        Table(["difference", "SD", "half-width", "seeds to resolve", "over text", "sequences"], spreads),
        Paragraph("Along the run, with the plain interval at each token count:"),
        Table(["tokens", *names], along, left=0),
        Paragraph(SLOPES),
        Table(["difference", "nat per doubling", "interval", "mean crossed zero at"], trends),
    ]


def _point(point: Bounds | None) -> str:
    if point is None or point.mean is None:
        return UNKNOWN
    return signed(point.mean) + ("" if point.low is None else f" ({span(point.low, point.high)})")


def _slope(c: Comparison) -> list[str]:
    crossed = ", ".join(human(count) for count in c.crossings) or "never"
    mean, low, high = (None if v is None else v * math.log(2) for v in (c.slope.mean, c.slope.low, c.slope.high))
    return [signed(mean), UNKNOWN if mean is None else span(low, high), UNKNOWN if c.mean is None else crossed]


def _spread(c: Comparison) -> list[str]:
    half = None if c.corrected_low is None or c.corrected_high is None else (c.corrected_high - c.corrected_low) / 2
    text = span(c.text.low, c.text.high) if c.sequences else UNKNOWN
    return [number(c.sd), number(half), counted(c.seeds_to_resolve), text, counted(c.sequences or None)]


def _methods(results: Results) -> str:
    """How the verdicts' intervals were made, where that is not Student's t alone."""
    said = []
    if any(c.method == "anytime" for c in results.comparisons):
        said.append(
            "The corrected ones are a confidence sequence's: they hold whenever one stops, so that seeds could be "
            "added until they said something. "
        )
    told = {c.pooling: [d.arm for d in results.comparisons if d.pooling == c.pooling] for c in results.comparisons}
    said += [f"Variances of {' and '.join(arms)}: {words}. " for words, arms in told.items() if words]
    return "".join(said)


def _p(value: float | None) -> str:
    return number(value) if value is None or value >= 0.0001 else "<0.0001"
