"""By what a comparison is judged: Student's t, a t of pooled variance, or an interval that holds whenever one stops."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .anytime import anytime_interval, anytime_p, anytime_quantile
from .results import Bounds, Comparison, Method
from .spread import moderated, seeds_for
from .statistics import Interval, Spread, p_value, paired_interval, verdict


@dataclass(frozen=True)
class Rule:
    """How a comparison is judged: the interval of its differences at a level, the p-value against a margin.

    `told`: what pooling gave, in words; `quantile`: in place of t's, where the interval is another.
    """

    method: Method
    interval: Callable[..., Interval]
    p_value: Callable[..., float]
    quantile: Callable[..., float] | None = None
    told: str = ""

    def p_of(self, c: Comparison) -> float | None:
        """Against the comparison's margin; None where a run diverged."""
        values = differences_of(c)
        return None if values is None else self.p_value(values, margin=c.margin)

    def judged(self, plain: Comparison, level: float, p_holm: float) -> Comparison:
        """A plain comparison with the interval of this rule at its own level of Holm's procedure, and its verdict."""
        values = differences_of(plain)
        if values is None:
            return dataclasses.replace(plain, method=self.method, pooling=self.told, corrected_confidence=level)
        interval = self.interval(values, confidence=level)
        bounds, room = Bounds.of(interval), abs(abs(interval.mean) - plain.margin)
        more = seeds_for(room, plain.sd, confidence=level, quantile=self.quantile) if plain.sd else None
        return dataclasses.replace(
            plain,
            method=self.method,
            pooling=self.told,
            corrected_low=bounds.low,
            corrected_high=bounds.high,
            corrected_confidence=level,
            p_holm=p_holm,
            verdict=verdict(interval, margin=plain.margin, identical=plain.verdict == "identical arms"),
            seeds_to_resolve=more,
        )


PLAIN = Rule("t", paired_interval, p_value)
ANYTIME = Rule("anytime", anytime_interval, anytime_p, anytime_quantile)


def rules_for(plain: Sequence[Comparison], pool: Sequence[Sequence[str]], *, anytime: bool) -> list[Rule]:
    """The rule of every comparison: those of arms in one group of `pool` lend each other their variance."""
    if anytime:
        return [ANYTIME] * len(plain)
    rules = [PLAIN] * len(plain)
    for group in pool:
        here = {at: values for at, each in enumerate(plain) if each.arm in group and (values := differences_of(each))}
        found = moderated(list(here.values()))
        for at, spread in zip(here, found.spreads, strict=True):
            rules[at] = _moderated(spread, found.told) if found.pooled else dataclasses.replace(PLAIN, told=found.told)
    return rules


def _moderated(spread: Spread, told: str) -> Rule:
    interval, p = functools.partial(paired_interval, spread=spread), functools.partial(p_value, spread=spread)
    return Rule("moderated t", interval, p, told=told)


def differences_of(c: Comparison) -> list[float] | None:
    """The differences; None where a run diverged, because the seeds that survive are not a fair sample."""
    values = [value for value in c.differences if value is not None]
    return values if len(values) == len(c.differences) else None
