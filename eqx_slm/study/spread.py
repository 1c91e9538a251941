"""Spreads of paired differences: pooled over comparisons of like noise, and how many seeds a margin takes.

With few seeds most of an interval's length is the doubt about the variance: t(4) is 2.78, the normal's quantile 1.96.
Comparisons whose noise is alike can lend each other theirs. Whether it is alike is said before the run, and tested.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .statistics import Number, Spread, mean_and_sd, t_quantile

# Comparisons whose spreads differ at this level keep their own. High, because with few seeds a test sees little: what
# is not refused must not differ much.
UNLIKE = 0.2


@dataclass(frozen=True)
class Pooled:
    """What pooling gave: a `Spread` a comparison, and a sentence on it. `pooled`: whether they borrow at all."""

    spreads: tuple[Spread, ...]
    told: str
    pooled: bool


def moderated(samples: Sequence[Sequence[Number]]) -> Pooled:
    """Spreads of several comparisons, each drawn towards their common value: limma's empirical Bayes.

    The variances s_i^2, with d_i degrees of freedom each, are taken to scatter around s_0^2 with d_0 degrees of freedom
    of their own; d_0 and s_0^2 are fitted to the mean and the variance of log s_i^2 (Smyth, Statistical Applications
    in Genetics and Molecular Biology 3, 2004, section 6.2). Each comparison then has `(d_0 s_0^2 + d_i s_i^2) / (d_0 +
    d_i)` at d_0 + d_i degrees of freedom, at most `sum d_i / (1 + (k - 1) / 4)`: the k comparisons share a reference,
    so that their differences correlate by about 1/2, their variances by 1/4, and together they know less than apart.

    Where Bartlett's test tells the spreads apart (p below 0.2), or one of them is 0, every comparison keeps its own.

    **Arguments:** `samples`: of each comparison at least two differences.

    **Returns:** the spreads in the order given.
    """
    own = [Spread(mean_and_sd(sample)[1], len(sample) - 1) for sample in samples]
    if len(own) < 2:
        return Pooled(tuple(own), "there is nothing to pool with", False)
    if any(spread.sd == 0.0 or spread.df < 1 for spread in own):
        return Pooled(tuple(own), "not pooled, a comparison has no spread of its own", False)
    from scipy.stats import bartlett

    p = float(bartlett(*samples).pvalue)
    if p < UNLIKE:
        return Pooled(tuple(own), f"not pooled, their spreads differ (Bartlett's p = {p:.2g})", False)
    d0, variance = prior(own)
    together, spreads = sum(spread.df for spread in own) / (1 + (len(own) - 1) / 4), []
    for sd, df in own:
        mixed = variance if math.isinf(d0) else (d0 * variance + df * sd**2) / (d0 + df)
        spreads.append(Spread(math.sqrt(mixed), min(d0 + df, together)))
    return Pooled(tuple(spreads), f"pooled over {len(own)} comparisons (Bartlett's p = {p:.2g})", True)


def prior(spreads: Sequence[Spread]) -> tuple[Number, Number]:
    """d_0 and s_0^2 of `moderated`; where the variances scatter no more than chance makes them, infinity and their
    mean by degrees of freedom."""
    from scipy.special import digamma, polygamma

    halves, k = [spread.df / 2 for spread in spreads], len(spreads)
    logs = [2 * math.log(s.sd) - float(digamma(h)) + math.log(h) for s, h in zip(spreads, halves, strict=True)]
    centre = math.fsum(logs) / k
    excess = math.fsum((log - centre) ** 2 for log in logs) / (k - 1)
    excess -= math.fsum(float(polygamma(1, half)) for half in halves) / k
    if excess <= 0.0:
        return math.inf, sum(s.df * s.sd**2 for s in spreads) / sum(s.df for s in spreads)
    half = inverse_trigamma(excess)
    return 2 * half, math.exp(centre + float(digamma(half)) - math.log(half))


def inverse_trigamma(value: Number) -> float:
    """The x at which trigamma is `value`, by Newton's method on its reciprocal, which is nearly straight."""
    from scipy.optimize import newton
    from scipy.special import polygamma

    def slope(x: float) -> float:
        return -polygamma(2, x) / polygamma(1, x) ** 2

    return float(newton(lambda x: 1 / polygamma(1, x) - 1 / value, 0.5 + 1 / value, slope, tol=1e-12, rtol=1e-10))


def half_width(
    sd: float, seeds: int, *, confidence: float = 0.95, quantile: Callable[..., float] | None = None
) -> float:
    """Half the length of the interval over `seeds` of differences with this standard deviation; infinite for one seed.

    **Arguments:** `quantile`: of another interval, from seeds and confidence (`anytime.anytime_quantile`).
    """
    if seeds < 2:
        return math.inf
    t = t_quantile(seeds - 1, confidence) if quantile is None else quantile(seeds, confidence)
    return t * sd / math.sqrt(seeds)


def seeds_for(
    room: Number,
    sd: Number,
    *,
    confidence: float = 0.95,
    quantile: Callable[..., float] | None = None,
    most: int = 10_000,
) -> int | None:
    """The least number of seeds with a half-width of at most `room`; None where `most` are too few.

    With `room` the margin an interval around no difference would lie wholly inside; with `room = | |mean| - margin |`
    one around this mean would be resolved.
    """
    least = 2 + bisect_left(
        range(2, most + 1),
        True,
        key=lambda seeds: not half_width(sd, seeds, confidence=confidence, quantile=quantile) > room,
    )
    return least if least <= most else None
