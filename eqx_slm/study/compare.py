"""From the runs of several arms to the comparisons of a result: differences, intervals, verdicts, curves, ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .runs import PairedRuns, finite, pair_runs
from .statistics import Interval, Number, holm, holm_levels, p_value, paired_interval, slope_against_log_tokens, verdict


class Control(NamedTuple):
    """A direct comparison of two arms of which neither is the reference, and what its verdict would mean."""

    arm: str
    control: str
    question: str
    meaning: Mapping[str, str]


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


def compare(
    result_arms: Mapping[str, Any],
    reference: str,
    *,
    margin: Number,
    confidence: float = 0.95,
    config_differences: Mapping[str, list | None] | None = None,
) -> list[dict[str, Any]]:
    """Compare every arm with the reference, over paired seeds, Holm-corrected for the number of arms.

    The verdict comes from the corrected interval; the plain one is kept beside it. Every arm counts in the
    correction, also one that diverged. A diverged run on either side leaves its comparison "not resolved".

    **Arguments:** `result_arms`: the "arms" part of a result. `reference`: the arm that the others are held against.
    `margin`: nats a token. `confidence`: family-wise level of the tests against no difference; each arm's corrected
    interval stands at the level of its own step of Holm's procedure, and they do not cover jointly.
    `config_differences`: for each arm the list of `[field, reference's, arm's]`; an empty list says that the configs
    are equal, a missing one or `None` that nobody knows.

    **Returns:** the "comparisons" part of a result, one dict an arm, in the order of the arms, with `None` for what
    is not finite. Raises `ValueError` where seeds or token counts do not pair.
    """
    pairs = [pair_runs(result_arms, name, reference) for name in result_arms if name != reference]
    p_values = [_p(pair) for pair in pairs]
    levels = holm_levels(p_values, confidence=confidence)
    adjusted = holm(p_values)
    comparisons = []
    for pair, p_holm, level in zip(pairs, adjusted, levels, strict=True):
        config_difference = (config_differences or {}).get(pair.arm)
        record = _record(result_arms, pair, margin, confidence, level, config_difference)
        comparisons.append(record | {"p_holm": p_holm if pair.complete else None})
    return comparisons


def control_comparison(
    result_arms: Mapping[str, Any],
    arm: str,
    control: str,
    *,
    margin: Number,
    confidence: float = 0.95,
    config_difference: list | None = None,
    question: str = "",
) -> dict[str, Any]:
    """Compare two arms directly, whichever the reference is: they share seeds, so that their differences pair as well.

    The interval is the plain one: a control is read beside the comparisons, it is not one of their family.

    **Arguments:** `result_arms`: the "arms" part of a result. `arm`, `control`: two of its names; the difference is
    arm minus control. `margin`, `confidence`, `config_difference`: as for [`compare`][]. `question`: what the control
    answers.

    **Returns:** a dict of the shape that [`compare`][] gives, `control` in the place of "reference", with "question".
    Raises `ValueError` where the runs do not pair.
    """
    pair = pair_runs(result_arms, arm, control)
    record = _record(result_arms, pair, margin, confidence, confidence, config_difference)
    return record | {"p_holm": record["p"], "question": question}


def control_comparisons(
    result_arms: Mapping[str, Any],
    reference: str,
    *,
    margin: Number,
    confidence: float = 0.95,
    controls: Sequence[Control] = CONTROLS,
) -> list[dict[str, Any]]:
    """The "controls" part of a result: every known control whose two arms are here and not compared already.

    **Arguments:** as for [`compare`][]; `controls`: which pairs to look for.

    **Returns:** one dict a control, as [`control_comparison`][] gives it, with "meaning": what the verdict says.
    """
    found = []
    for known in controls:
        if {known.arm, known.control} <= set(result_arms) and reference not in (known.arm, known.control):
            record = control_comparison(
                result_arms, known.arm, known.control, margin=margin, confidence=confidence, question=known.question
            )
            found.append(record | {"meaning": known.meaning.get(record["verdict"], "")})
    return found


def crossings(tokens: Sequence[Number], means: Sequence[Number]) -> list[float]:
    """The token counts at which a mean difference changes its sign, interpolated on log tokens.

    **Arguments:** `tokens`: ascending positive counts. `means`: the mean difference at each. Exact zeros have no
    sign: the curve crosses between the last value before them and the first after.

    **Returns:** the counts, ascending; empty where the sign never changes.
    """
    signed = [(math.log(count), mean) for count, mean in zip(tokens, means, strict=True) if mean != 0.0]
    found = []
    for (x0, y0), (x1, y1) in zip(signed, signed[1:], strict=False):
        if (y0 < 0) != (y1 < 0):
            found.append(math.exp(x0 + (x1 - x0) * (y0 / (y0 - y1))))
    return found


def _record(
    result_arms: Mapping[str, Any],
    pair: PairedRuns,
    margin: Number,
    confidence: float,
    level: float,
    config_difference: list | None,
) -> dict[str, Any]:
    complete = pair.complete
    plain = paired_interval(complete, confidence=confidence) if complete else None
    corrected = paired_interval(complete, confidence=level) if complete else None
    equal_configs = config_difference is not None and len(config_difference) == 0
    largest = max((abs(value) for value in _every_difference(pair)), default=0.0)
    identical = equal_configs and largest == 0.0
    word = verdict(corrected, margin=margin, identical=identical) if corrected else "not resolved"
    first, second = result_arms[pair.arm], result_arms[pair.reference]
    return {
        "arm": pair.arm,
        "reference": pair.reference,
        "config_difference": None if config_difference is None else [list(entry) for entry in config_difference],
        "seeds": pair.seeds,
        "differences": pair.differences,
        **_bounds(plain),
        "corrected_low": finite(corrected.low) if corrected else None,
        "corrected_high": finite(corrected.high) if corrected else None,
        "corrected_confidence": level,
        "p": p_value(complete) if complete else None,
        "verdict": word,
        "note": _note(pair, equal_configs, largest),
        "curve": _curve(pair, confidence),
        "crossings": _crossings(pair),
        "slope": _bounds(_slope(pair, confidence)),
        "parameter_ratio": _ratio(_at(first, "parameters", "total"), _at(second, "parameters", "total")),
        "flops_ratio": _flops_ratio(first, second),
        "time_ratio": _ratio(_seconds(first, pair), _seconds(second, pair)),
    }


def _flops_ratio(first: Mapping[str, Any], second: Mapping[str, Any]) -> float | None:
    """None where one side is a closed form and the other XLA's count, which includes what is not a matmul."""
    one, other = ((arm.get("flops_per_token") or {}).get("counted_by") for arm in (first, second))
    if one != other:
        return None
    return _ratio(_at(first, "flops_per_token", "total"), _at(second, "flops_per_token", "total"))


def _p(pair: PairedRuns) -> float:
    # A comparison without a p-value still is one of the family, as the one that is rejected last.
    return p_value(pair.complete) if pair.complete else 1.0


def _every_difference(pair: PairedRuns) -> list[float]:
    final = [value for value in pair.differences if value is not None]
    return final + [value for curve in pair.curves for value in curve]


def _curve(pair: PairedRuns, confidence: float) -> list[dict[str, Any]]:
    columns = zip(*pair.curves, strict=True)
    intervals = [paired_interval(column, confidence=confidence) for column in columns]
    return [{"tokens": count, **_bounds(interval)} for count, interval in zip(pair.tokens, intervals, strict=True)]


def _crossings(pair: PairedRuns) -> list[float]:
    columns = zip(pair.tokens, zip(*pair.curves, strict=True), strict=True)
    means = {count: math.fsum(column) / len(column) for count, column in columns if count > 0}
    return crossings(list(means), list(means.values()))


def _slope(pair: PairedRuns, confidence: float) -> Interval | None:
    keep = [index for index, count in enumerate(pair.tokens) if count > 0]
    if pair.complete is None or len(keep) < 2:
        return None
    tokens = [pair.tokens[index] for index in keep]
    curves = [[curve[index] for index in keep] for curve in pair.curves]
    return slope_against_log_tokens(tokens, curves, confidence=confidence)


def _bounds(interval: Interval | None) -> dict[str, float | None]:
    if interval is None:
        return {"mean": None, "low": None, "high": None}
    return {"mean": finite(interval.mean), "low": finite(interval.low), "high": finite(interval.high)}


def _note(pair: PairedRuns, equal_configs: bool, largest: float) -> str:
    said = []
    for name, seeds in pair.diverged.items():
        if seeds:
            which = "every seed" if len(seeds) == len(pair.seeds) else f"seed{'s' * (len(seeds) > 1)}"
            said.append(f"{name} diverged on {which} ({', '.join(map(str, seeds))})")
    if said:
        return " and ".join(said) + ": no interval over the seeds that are left would be fair"
    if equal_configs and largest > 0.0:
        return (
            f"equal configs gave different losses (by up to {largest:.2g} nat): expected where only the data order is "
            "paired or the device is not deterministic, a defect otherwise"
        )
    return ""


def _at(arm: Mapping[str, Any], group: str, name: str) -> float | None:
    values = arm.get(group)
    return None if values is None else finite(values.get(name))


def _seconds(arm: Mapping[str, Any], pair: PairedRuns) -> float | None:
    # A run that stopped early took little time for a reason that is no merit: no ratio then.
    if pair.complete is None:
        return None
    seconds = [finite(run.get("train_seconds")) for run in arm["runs"]]
    known = [value for value in seconds if value is not None]
    return math.fsum(known) if len(known) == len(seconds) else None


def _ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference
