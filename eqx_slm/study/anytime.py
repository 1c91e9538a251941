"""Intervals that hold whenever one stops: a confidence sequence for the mean of paired differences.

A t interval that is looked at after every seed, until it says something, is wrong far more often than its level. This
one covers the mean at all numbers of seeds at once with the probability that it states, so any rule may stop it.

The t statistic's likelihood ratio, mixed over standardised effects from a normal distribution of variance g, is a
martingale where the mean is zero, whatever the standard deviation (Lai, Annals of Statistics 4, 1976; Wang and Ramdas,
"Anytime-valid t-tests and confidence sequences for Gaussian means with unknown variance", arXiv 2310.03722):

    E_n = (1 + n g)^(-1/2) ((1 + t^2 / nu) / (1 + t^2 / (nu (1 + n g))))^(n / 2),  nu = n - 1

By Ville's inequality it ever reaches 1 / alpha with probability at most alpha; the means at which it is below are the
interval. It asks for normal differences, as Student's t does. The mixture's variance was chosen for 4 to 20 seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .statistics import Interval, Number, check_confidence, check_margin, mean_and_sd

MIXTURE = 10.0


def anytime_quantile(n: int, confidence: float) -> float:
    """What takes the place of t's quantile after `n` seeds; infinite where so few bound nothing at this level."""
    check_confidence(confidence)
    if n < 2:
        return math.inf
    spread = 1.0 + n * MIXTURE
    reach = (math.sqrt(spread) / (1.0 - confidence)) ** (2.0 / n)
    return math.sqrt((n - 1) * (reach - 1.0) / (1.0 - reach / spread)) if reach < spread else math.inf


def anytime_interval(differences: Sequence[Number], *, confidence: float = 0.95) -> Interval:
    """The confidence sequence's interval after these differences, nats; of zero width where all of several are equal.

    **Returns:** an interval that is infinite for one difference. With probability `confidence` the intervals after 1,
    2, 3, ... differences all cover the mean.
    """
    (mean, sd), n = mean_and_sd(differences), len(differences)
    if sd == 0.0 and n > 1:
        return Interval(mean, mean, mean, n)
    half = anytime_quantile(n, confidence) * sd / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, mean - half, mean + half, n)


def anytime_p(differences: Sequence[Number], *, margin: Number = 0.0) -> float:
    """The smallest `1 - confidence` at which [`anytime_interval`][] still touches `[-margin, margin]`; at most 1.

    It is valid at any time: the probability that it is ever below alpha is at most alpha where the mean is within.
    """
    check_margin(margin)
    (mean, sd), n = mean_and_sd(differences), len(differences)
    excess = abs(mean) - margin
    if n == 1 or excess <= 0.0:
        return 1.0
    if sd == 0.0:
        return 0.0
    squared, spread = n * (excess / sd) ** 2 / (n - 1), 1.0 + n * MIXTURE
    # In logarithms: the ratio of many seeds overflows.
    log_e = -0.5 * math.log(spread) + 0.5 * n * (math.log1p(squared) - math.log1p(squared / spread))
    return min(1.0, math.exp(-log_e))
