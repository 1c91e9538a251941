"""The words of a study: numbers as people read them, and one honest paragraph a comparison."""

from __future__ import annotations

import math

from .blocks import Strong
from .results import Comparison, finite
from .statistics import Number

UNKNOWN = "n/a"


def signed(value: Number | None) -> str:
    """A difference with its sign: `+0.0420`; `-1.2e-06` where the digits would show only zeros; `0` where it is 0."""
    if finite(value) is None or value is None:
        return UNKNOWN
    if value == 0.0:
        return "0"
    return f"{value:+.4f}" if abs(value) >= 0.00005 else f"{value:+.1e}"


def span(low: Number | None, high: Number | None) -> str:
    """An interval, `+0.0310 to +0.0530`; without bounds (one seed) it says so."""
    return "unbounded" if finite(low) is None or finite(high) is None else f"{signed(low)} to {signed(high)}"


def number(value: Number | None, *, form: str = ".4f") -> str:
    """A plain number in a format."""
    return UNKNOWN if finite(value) is None else f"{value:{form}}"


def counted(value: Number | None) -> str:
    """A whole number, `393,536`."""
    return number(value, form=",.0f")


def size(value: Number | None) -> str:
    """Bytes, `18.2 KiB`."""
    if value is None:
        return UNKNOWN
    return f"{value / 2**20:,.1f} MiB" if value >= 2**20 else f"{value / 2**10:,.1f} KiB" if value else "0"


def human(value: Number | None) -> str:
    """A count in three significant digits: `512`, `20.5k`, `1M`, `4.1B`."""
    if finite(value) is None or value is None:
        return UNKNOWN
    size, suffix = float(value), ""
    for suffix in ("", "k", "M", "B", "T", "P", "E"):  # a billion, as tokens and parameters are counted
        # 999.5 would print as 1e+03: it belongs to the next unit.
        if abs(size) < 999.5 or suffix == "E":
            break
        size /= 1000.0
    return f"{size:.3g}{suffix}"


def ratio(value: Number | None) -> str:
    """A ratio, `1.02x`."""
    return number(value, form=".2f") + "x" * (value is not None)


def plural(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(confidence: float) -> str:
    """A confidence level, `95%`, `97.5%`."""
    return f"{100 * confidence:.4g}%"


def comparison_sentences(comparison: Comparison, tokens: int, *, short: bool = False) -> list[str]:
    """One paragraph on one comparison, in parts: the difference, its interval and verdict, the way there, the costs.

    **Arguments:** `tokens`: how many every run was trained on. `short`: only the difference and the verdict.

    **Returns:** plain parts, the verdict `Strong`.
    """
    said = _headline(comparison, tokens)
    if not short and comparison.verdict != "identical arms":
        told = (_journey(comparison), _trend(comparison), _costs(comparison), _worth(comparison), _more(comparison))
        said += [" " + text for text in told if text]
    if comparison.meaning:
        said.append(f" So {comparison.meaning}.")
    if comparison.note:
        said.append(f" Note: {comparison.note}.")
    return said


def _headline(c: Comparison, tokens: int) -> list[str]:
    after, seeds = f"{c.arm} against {c.reference} after {human(tokens)} tokens: ", plural(len(c.seeds), "seed")
    word = Strong(c.verdict)
    if word == "identical arms":
        return [after, word, f". The configs are equal and every difference is exactly zero ({seeds})."]
    if c.mean is None:
        return [after, word, ", because a run diverged."]
    figures = f"{after}{signed(c.mean)} nat a token"
    if c.low is None:
        return [f"{figures} ({seeds}, so there is no interval): ", word, "."]
    bounds = f"{percent(c.confidence)} interval {span(c.low, c.high)}, {seeds}"
    if c.method == "anytime":
        bounds = f"{percent(c.corrected_confidence)} interval {span(c.corrected_low, c.corrected_high)}, {seeds}, valid"
        bounds += " whenever one stops"
    elif c.is_corrected:
        kind = {"t": "Holm-corrected", "moderated t": "with pooled variance, Holm-corrected"}
        bounds += f"; {kind[c.method]} {span(c.corrected_low, c.corrected_high)}"
    return [f"{figures} ({bounds}): ", word, f"{_because(c)}."]


def _because(c: Comparison) -> str:
    if c.verdict == "no difference beyond the margin":
        return f" of {c.margin:g} nat"
    if c.verdict != "not resolved":
        return f", beyond the margin of {c.margin:g} nat"
    interval = "corrected interval" if c.is_corrected else "interval"
    if (c.corrected_low or 0) < -c.margin and (c.corrected_high or 0) > c.margin:
        return f", the {interval} reaches beyond the margin of {c.margin:g} nat on both sides"
    return f", the {interval} lies neither wholly inside nor wholly beyond the margin of {c.margin:g} nat"


def _journey(c: Comparison) -> str:
    # Where the arm started and whether its mean difference changed sides on the way.
    if len(c.curve) < 2 or c.mean is None:
        return ""
    first, last = c.curve[0], c.curve[-1].mean or 0.0
    where = f"{signed(first.mean)} at {human(first.tokens)} tokens"
    if c.crossings:
        times = "once, at" if len(c.crossings) == 1 else f"{len(c.crossings)} times, last at"
        way = f"; its mean difference crossed zero {times} about {human(c.crossings[-1])} tokens"
    else:
        way = " and had not crossed zero by the end" if last > 0 else " and its mean difference never crossed zero"
    start = first.mean or 0.0
    side = "behind" if start > 0 else "ahead" if start < 0 else "level"
    if start and first.low is not None and first.high is not None and first.low <= 0.0 <= first.high:
        side += ", by no more than the spread of the seeds"
    return f"It started {side} ({where}){way}."


def _trend(c: Comparison) -> str:
    if c.slope.mean is None:
        return ""
    doubling = math.log(2.0)
    mean, level = c.slope.mean * doubling, percent(c.confidence)
    change = f"{signed(mean)} nat per doubling of tokens"
    if c.slope.low is None or c.slope.high is None:
        return f"Its slope is {change} (one seed, no interval)."
    low, high = c.slope.low * doubling, c.slope.high * doubling
    change += f" ({level} interval {span(low, high)})"
    if low <= 0.0 <= high:
        return f"The difference shows no trend that the seeds resolve: {change}."
    if c.crossings or not c.mean:
        return f"On average the difference moved by {change}, in favour of {c.arm if mean < 0 else c.reference}."
    near, far = sorted((abs(low), abs(high)))
    what = "The gap" if c.mean > 0 else "The advantage"
    how = "grows" if (mean > 0) == (c.mean > 0) else "shrinks"
    return f"{what} {how} by {abs(mean):.4f} nat per doubling of tokens ({level} interval {near:.4f} to {far:.4f})."


def _costs(c: Comparison) -> str:
    told = ((c.parameter_ratio, "parameters"), (c.flops_ratio, "FLOPs a token"), (c.time_ratio, "training time"))
    parts = [f"{ratio(value)} the {what}" for value, what in told if value is not None]
    listed = " and ".join(", ".join(parts).rsplit(", ", 1))
    return f"It takes {listed} of {c.reference}." if parts else ""


def _more(c: Comparison) -> str:
    """What it would take, where the verdict is open."""
    if c.verdict != "not resolved" or c.sd is None:
        return ""
    if c.seeds_to_resolve is None:
        return f"No number of seeds below 10,000 would resolve it at this spread (SD {c.sd:.4f})."
    return f"{plural(c.seeds_to_resolve, 'seed')} would resolve it at this spread (SD {c.sd:.4f})."


def _worth(c: Comparison) -> str:
    """The difference as compute."""
    parts = []
    for each in c.worth:
        bounds = ""
        if c.corrected_low is not None and (each.low is None or each.low > each.least or each.high != each.low):
            bounds = f" ({times(each.low, each.least)} to {times(each.high, each.least)})"
        parts.append(f"{times(each.factor, each.least)} the {each.what}{bounds}")
    if not parts:
        return ""
    listed = " and ".join(", ".join(parts).rsplit(", ", 1)) if len(parts) > 1 else parts[0]
    how = "the ends of its runs" if c.worth[0].ends else "its losses while it trained"
    beyond = "the factor" if c.worth[0].extrapolated else "a bound" if c.worth[0].bounds_extrapolated else ""
    beyond = f", {beyond} extrapolated" if beyond else ""
    return f"It is worth {listed}: what {c.reference} would need for its loss, by {how}{beyond}."


def times(value: Number | None, least: Number) -> str:
    """A factor, `1.23x`; without one it is above a hundred, or none is enough; at `least` it may be any below."""
    return "more than 100x" if value is None else f"{'less than ' * (value <= least)}{value:.2f}x"
