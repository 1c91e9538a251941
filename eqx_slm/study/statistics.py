"""Student's t on paired differences, Holm's correction, and the words a verdict may use.

`spread.py` pools variances over comparisons of like noise, `anytime.py` has intervals that hold whenever one stops.

A difference is always arm minus reference, in nats a token: negative means that the arm is better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ..checks import check_number

# Runtime type checkers take `float` at its word; counts and a margin of 0 are whole numbers.
Number = float | int
Verdict = Literal["better", "worse", "no difference beyond the margin", "not resolved", "identical arms"]


class Interval(NamedTuple):
    """A mean of `n` values with its two-sided interval."""

    mean: float
    low: float
    high: float
    n: int


class Spread(NamedTuple):
    """What is known of the standard deviation of a paired difference: `sd` in nats, from `df` degrees of freedom."""

    sd: Number
    df: Number


def check_confidence(confidence: Any) -> None:
    """Raises `UserError` for what is no confidence level."""
    check_number("confidence", confidence, "between 0 and 1", lambda level: 0 < level < 1)


def check_margin(margin: Any) -> None:
    """Raises `UserError` for what is no margin."""
    check_number("margin", margin, "a number of nats, at least 0", lambda nats: nats >= 0)


def paired_interval(
    differences: Sequence[Number], *, confidence: float = 0.95, spread: Spread | None = None
) -> Interval:
    """Student's t interval of the mean difference, `mean ± t(n - 1) s / sqrt(n)`.

    **Arguments:** `differences`: one finite number a seed, nats. `confidence`: between 0 and 1. `spread`: replaces
    their own standard deviation and its n - 1 degrees of freedom (see `spread.moderated`).

    **Returns:** the interval: infinite for one difference, which says nothing about its spread, and of zero width for
    differences that are exactly equal. Raises `ValueError` for no or non-finite differences.
    """
    values = _finite(differences)
    check_confidence(confidence)
    (mean, error, df), n = _summary(values, spread), len(values)
    if df == 0:
        return Interval(mean, -math.inf, math.inf, n)
    if error == 0.0:
        return Interval(mean, mean, mean, n)
    half = t_quantile(df, confidence) * error
    return Interval(mean, mean - half, mean + half, n)


def t_quantile(df: Number, confidence: float) -> float:
    """The t that holds `confidence` of the distribution between -t and t."""
    from scipy.special import stdtrit  # a quarter of the import time of scipy.stats, the same quantile

    return -float(stdtrit(df, (1.0 - confidence) / 2))


def p_value(differences: Sequence[Number], *, margin: Number = 0.0, spread: Spread | None = None) -> float:
    """Two-sided t p-value of "the mean difference is 0", or with a margin of "it is within ± margin".

    `p = min(1, 2 P(T > (|mean| - margin) sqrt(n) / s))`: the smallest `1 - confidence` at which
    [`paired_interval`][] still touches `[-margin, margin]`.

    **Returns:** p: 1 for one difference; for differences exactly equal 0 where they are beyond the margin, else 1.
    """
    values = _finite(differences)
    check_margin(margin)
    mean, error, df = _summary(values, spread)
    excess = abs(mean) - margin
    if df == 0 or excess <= 0.0:
        return 1.0
    if error == 0.0:
        return 0.0
    from scipy.special import stdtr

    return min(1.0, 2.0 * float(stdtr(df, -excess / error)))


def holm(p_values: Sequence[Number]) -> list[float]:
    """Holm's step-down adjusted p-values: `max over j <= i of min(1, (m - j) p_(j))`, with ranks from 0.

    **Returns:** the adjusted values, in the order given; a hypothesis is rejected at a family-wise level where its
    adjusted value is at most that level. Raises `ValueError` for a p-value outside [0, 1].
    (Holm, Scandinavian Journal of Statistics 6, 1979.)
    """
    order, running = _ascending(p_values), 0.0
    adjusted = [1.0] * len(order)
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def holm_levels(p_values: Sequence[Number], *, confidence: float = 0.95) -> list[float]:
    """The confidence level of each arm's interval, so that intervals and [`holm`][] say the same.

    The arm with the i-th smallest p of m (ranks from 0) gets `1 - (1 - confidence) / (m - i)`. The procedure steps
    down: at the first arm that is not rejected it stops, and the arms after it keep that arm's level. So an arm's
    interval lies wholly beyond the margin that the p-values were taken against exactly where its adjusted p is below
    `1 - confidence`.
    """
    check_confidence(confidence)
    order, alpha, steps = _ascending(p_values), 1.0 - confidence, len(p_values)
    levels = [confidence] * steps
    for index in order:
        levels[index] = confidence if steps == 1 else 1.0 - alpha / steps
        if p_values[index] <= alpha / steps and steps > 1:
            steps -= 1
    return levels


def verdict(interval: Interval, *, margin: Number, identical: bool = False) -> Verdict:
    """Put an interval of differences (arm minus reference) into words.

    - "better": the whole interval is beyond the margin, `high < -margin`;
    - "worse": `low > margin`;
    - "no difference beyond the margin": the whole interval is inside, `-margin <= low` and `high <= margin`. The margin
      itself counts as inside, so an interval that only touches it is not beyond it;
    - "identical arms": `identical` and the interval is [0, 0] (or one seed's difference is exactly 0);
    - "not resolved": everything else, and whatever is not a number.

    `identical` says whether the configs are equal. Raises `ValueError` for a negative or non-finite margin.
    """
    check_margin(margin)
    exact = interval.mean == 0.0 and (interval.n == 1 or interval.low == interval.high == 0.0)
    if identical and exact:
        return "identical arms"
    if interval.high < -margin:
        return "better"
    if interval.low > margin:
        return "worse"
    if interval.low >= -margin and interval.high <= margin:
        return "no difference beyond the margin"
    return "not resolved"


def slope_against_log_tokens(
    tokens: Sequence[Number], per_seed_differences: Sequence[Sequence[Number]], *, confidence: float = 0.95
) -> Interval:
    """Least-squares slope of each seed's difference on `log(tokens)`, with a t interval over the seeds.

    Points of one seed are correlated, so that a residual-based error would be too small; seeds are independent, and the
    interval is over them.

    **Arguments:** `tokens`: at least two distinct positive counts. `per_seed_differences`: for each seed one at each.

    **Returns:** the slope in nats a natural-log unit of tokens (times `log(2)`: a doubling). Raises `ValueError` where
    lengths disagree or no slope is defined.
    """
    logs, slopes = [math.log(count) for count in tokens], []
    for differences in per_seed_differences:
        # The slope is the same from any level; from that of the first value a constant's is exactly 0.
        slopes.append(statistics.linear_regression(logs, [value - differences[0] for value in differences]).slope)
    return paired_interval(slopes, confidence=confidence)


def mean_and_sd(differences: Sequence[Number]) -> tuple[float, float]:
    """The mean and the standard deviation (n - 1 in the denominator); of one difference, and of equal ones, 0."""
    values = _finite(differences)
    # In exact fractions: no spread is lost to rounding, underflow or overflow.
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _summary(values: list[float], spread: Spread | None) -> tuple[float, float, Number]:
    """Mean, its standard error and the degrees of freedom of that."""
    mean, sd = mean_and_sd(values)
    known = Spread(sd, len(values) - 1) if spread is None else spread
    return mean, known.sd / math.sqrt(len(values)), known.df


def _ascending(p_values: Sequence[Number]) -> list[int]:
    for p in p_values:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"a p-value is between 0 and 1, got {p}")
    return sorted(range(len(p_values)), key=lambda index: p_values[index])


def _finite(differences: Sequence[Number]) -> list[float]:
    values = [float(value) for value in differences]
    if not values or not all(math.isfinite(value) for value in values):
        raise ValueError(f"an interval needs at least one difference and only finite ones, got {values}")
    return values
