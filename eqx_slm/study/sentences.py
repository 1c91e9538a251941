"""The words of a study: numbers as people read them, and one honest paragraph a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .runs import finite
from .statistics import Number

UNKNOWN = "n/a"


def signed(value: Number | None, *, digits: int = 4) -> str:
    """A difference with its sign: `+0.0420`; `-1.2e-06` where the digits would show only zeros; `0` where it is 0."""
    if finite(value) is None or value is None:
        return UNKNOWN
    if value == 0.0:
        return "0"
    return f"{value:+.{digits}f}" if abs(value) >= 0.5 * 10**-digits else f"{value:+.1e}"


def span(low: Number | None, high: Number | None, *, digits: int = 4) -> str:
    """An interval, `+0.0310 to +0.0530`; without bounds (one seed) it says so."""
    if finite(low) is None or finite(high) is None:
        return "unbounded"
    return f"{signed(low, digits=digits)} to {signed(high, digits=digits)}"


def number(value: Number | None, *, digits: int = 4) -> str:
    """A plain number with fixed digits."""
    return UNKNOWN if finite(value) is None else f"{value:.{digits}f}"


def human(value: Number | None) -> str:
    """A count in three significant digits: `512`, `20.5k`, `1M`, `4.1B`."""
    if finite(value) is None or value is None:
        return UNKNOWN
    size, suffix = float(value), ""
    for suffix in ("", "k", "M", "G", "T", "P", "E"):
        # 999.5 would print as 1e+03: it belongs to the next unit.
        if abs(size) < 999.5 or suffix == "E":
            break
        size /= 1000.0
    suffix = {"G": "B"}.get(suffix, suffix)  # a billion, as tokens and parameters are counted
    return f"{size:.3g}{suffix}"


def ratio(value: Number | None) -> str:
    """A ratio, `1.02x`."""
    return UNKNOWN if finite(value) is None else f"{value:.2f}x"


def plural(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(confidence: float) -> str:
    """A confidence level, `95%`, `97.5%`."""
    return f"{100 * confidence:.4g}%"


def comparison_sentences(
    comparison: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    strong: Callable[[str], str] = str,
    short: bool = False,
) -> str:
    """One paragraph on one comparison: the difference, its interval and verdict, the way there, the costs.

    **Arguments:** `comparison`: a dict as `compare` gives it (or `control_comparison`). `settings`: the "settings"
    part of a result. `strong`: how to stress a verdict, for example in Markdown. `short`: only the difference and the
    verdict.

    **Returns:** plain sentences, without a line break.
    """
    said = [_headline(comparison, settings, strong)]
    if not short and comparison["verdict"] != "identical arms":
        said += [_journey(comparison), _trend(comparison, settings), _costs(comparison)]
    if comparison.get("meaning"):
        said.append(_sentence(f"So {comparison['meaning']}"))
    if comparison.get("note"):
        said.append(_sentence(f"Note: {comparison['note']}"))
    return " ".join(sentence for sentence in said if sentence)


def _headline(comparison: Mapping[str, Any], settings: Mapping[str, Any], strong: Callable[[str], str]) -> str:
    names = f"{comparison['arm']} against {comparison['reference']}"
    after = f"{names} after {human(settings.get('tokens'))} tokens"
    word, seeds = comparison["verdict"], plural(len(comparison["differences"]), "seed")
    if word == "identical arms":
        return f"{after}: {strong(word)}. The configs are equal and every difference is exactly zero ({seeds})."
    if comparison["mean"] is None:
        return f"{after}: {strong(word)}, because a run diverged."
    figures = f"{after}: {signed(comparison['mean'])} nat a token"
    if comparison["low"] is None:
        return f"{figures} ({seeds}, so there is no interval): {strong(word)}."
    level = percent(settings.get("confidence", 0.95))
    bounds = f"{level} interval {span(comparison['low'], comparison['high'])}, {seeds}"
    if _is_corrected(comparison):
        bounds += f"; Holm-corrected {span(comparison['corrected_low'], comparison['corrected_high'])}"
    return f"{figures} ({bounds}): {strong(word)}{_because(comparison, settings)}."


def _because(comparison: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    margin = settings.get("margin")
    if margin is None:
        return ""
    if comparison["verdict"] == "no difference beyond the margin":
        return f" of {margin:g} nat"
    if comparison["verdict"] != "not resolved":
        return f", beyond the margin of {margin:g} nat"
    interval = "corrected interval" if _is_corrected(comparison) else "interval"
    low, high = comparison["corrected_low"], comparison["corrected_high"]
    if low < -margin and high > margin:
        return f", the {interval} reaches beyond the margin of {margin:g} nat on both sides"
    return f", the {interval} lies neither wholly inside nor wholly beyond the margin of {margin:g} nat"


def _journey(comparison: Mapping[str, Any]) -> str:
    # Where the arm started and whether its mean difference changed sides on the way.
    points = [point for point in comparison["curve"] if point["tokens"] > 0 and point["mean"] is not None]
    if len(points) < 2 or comparison["mean"] is None:
        return ""
    first, last = points[0], points[-1]
    where = f"{signed(first['mean'])} at {human(first['tokens'])} tokens"
    crossed: Sequence[float] = comparison.get("crossings") or ()
    if crossed:
        times = "once, at" if len(crossed) == 1 else f"{len(crossed)} times, last at"
        way = f"; its mean difference crossed zero {times} about {human(crossed[-1])} tokens"
    elif last["mean"] > 0:
        way = " and had not crossed zero by the end"
    else:
        way = " and its mean difference never crossed zero"
    start = "behind" if first["mean"] > 0 else "ahead" if first["mean"] < 0 else "level"
    bounded = first["low"] is not None and first["high"] is not None
    if bounded and first["low"] <= 0.0 <= first["high"] and first["mean"] != 0.0:
        start += ", by no more than the spread of the seeds"
        where = f"({where})"
        return f"It started {start} {where}{way}."
    return f"It started {start} ({where}){way}."


def _trend(comparison: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    slope = comparison.get("slope") or {}
    mean, low, high = slope.get("mean"), slope.get("low"), slope.get("high")
    if mean is None:
        return ""
    doubling = math.log(2.0)
    level = percent(settings.get("confidence", 0.95))
    change = f"{signed(mean * doubling)} nat per doubling of tokens"
    if low is None or high is None:
        return f"Its slope is {change} (one seed, no interval)."
    change += f" ({level} interval {span(low * doubling, high * doubling)})"
    if low <= 0.0 <= high:
        return f"The difference shows no trend that the seeds resolve: {change}."
    near, far = sorted((abs(low) * doubling, abs(high) * doubling))
    size = f"{abs(mean) * doubling:.4f} nat per doubling of tokens ({level} interval {near:.4f} to {far:.4f})"
    final = comparison["mean"]
    if comparison.get("crossings") or not final:
        favour = comparison["arm"] if mean < 0 else comparison["reference"]
        return f"On average the difference moved by {change}, in favour of {favour}."
    if final > 0:
        return f"The gap {'shrinks' if mean < 0 else 'grows'} by {size}."
    return f"The advantage {'grows' if mean < 0 else 'shrinks'} by {size}."


def _costs(comparison: Mapping[str, Any]) -> str:
    parts = [
        f"{ratio(comparison.get(key))} the {what}"
        for key, what in (
            ("parameter_ratio", "parameters"),
            ("flops_ratio", "FLOPs a token"),
            ("time_ratio", "training time"),
        )
        if comparison.get(key) is not None
    ]
    if not parts:
        return ""
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"It takes {listed} of {comparison['reference']}."


def _is_corrected(comparison: Mapping[str, Any]) -> bool:
    bounds = (comparison["corrected_low"], comparison["corrected_high"])
    return bounds != (comparison["low"], comparison["high"]) and None not in bounds


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
