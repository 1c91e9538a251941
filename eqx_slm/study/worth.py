"""A difference in loss said as compute: what the reference would have to spend for the arm's loss.

The reference's loss falls along a curve of tokens (or parameters); a difference moves its end along that curve. Within
the curve losses are interpolated on log tokens, made monotone by their running minimum; beyond its end the local slope
goes on, and the result says that it is extrapolated.

A point of the curve in the midst of a run is no end of a shorter run: its rate has not decayed, so its loss is higher.
Such a curve is steeper towards its end than that of runs' ends, and gives factors that are nearer to one. Where losses
of finished runs of other lengths are known (`paired(ends=...)`), the curve is made of those.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import Number

# The local slope is taken over the points within this factor of the end.
TAIL = 3.0
# Nobody should read a larger factor off a slope.
FURTHEST = 100.0
Points = Sequence[tuple[Number, Number]]


@dataclass(frozen=True)
class Worth:
    """What the reference needs for the arm's loss, as a factor of what the arm took; `low` and `high` belong to the
    bounds of the difference, with the curve held fixed. None: no bound, or none within a hundredfold.

    `least`: the factor of the curve's first point; what is not above it is not known to be as much. `extrapolated`:
    whether `factor` lies beyond the curve; `bounds_extrapolated`: whether one of its bounds does.
    """

    what: str
    factor: float | None
    low: float | None
    high: float | None
    least: float
    extrapolated: bool
    bounds_extrapolated: bool
    ends: bool


def factor(points: Points, at: Number, difference: Number) -> tuple[Number | None, bool]:
    """By what `at` has to be multiplied so that the loss there changes by `difference`.

    **Arguments:** `points`: (tokens, loss), at least two of them, ascending; `at`: a place on the curve.

    **Returns:** the factor, None where the curve does not fall or it is above 100, and whether it is extrapolated.
    Losses above the curve's first give that point's factor, as extrapolated: the true one is below.
    """
    xs, losses = [math.log(x) for x, _ in points], []
    for _, loss in points:
        losses.append(min(loss, losses[-1]) if losses else loss)
    target = float(np.interp(math.log(at), xs, losses)) + difference
    if target > losses[0]:
        return points[0][0] / at, True
    if target >= losses[-1]:
        place = next(i for i, loss in enumerate(losses) if loss <= target)
        if place == 0:
            return points[0][0] / at, False
        share = (losses[place - 1] - target) / (losses[place - 1] - losses[place])
        return math.exp(xs[place - 1] + share * (xs[place] - xs[place - 1])) / at, False
    near = max(2, sum(x >= xs[-1] - math.log(TAIL) for x in xs))
    slope = statistics.linear_regression(xs[-near:], losses[-near:]).slope
    if slope >= 0.0:
        return None, True
    log = xs[-1] + (target - losses[-1]) / slope - math.log(at)
    return (math.exp(log) if log <= math.log(FURTHEST) else None), True


def worth(
    points: Points,
    at: Number,
    bounds: tuple[Number | None, Number | None, Number | None],
    ratios: Mapping[str, Number | None],
    *,
    ends: bool = False,
) -> tuple[Worth, ...]:
    """The `Worth` of a difference by what is spent.

    **Arguments:**

    - `points`, `at`: the reference's curve and its end (see `factor`).
    - `bounds`: of the difference: mean, low, high, nats a token.
    - `ratios`: by name, the arm's cost over the reference's at equal `at`; None leaves the name out.
    - `ends`: whether the points are ends of finished runs.
    """
    mean, low, high = bounds
    if len(points) < 2 or mean is None:
        return ()
    (centre, beyond), far, fewest, most = factor(points, at, mean), False, None, None
    if low is not None and high is not None:
        (fewest, a), (most, b) = factor(points, at, high), factor(points, at, low)
        far = a or b
    first = points[0][0] / at

    def over(value: Number | None, ratio: Number) -> float | None:
        return None if value is None else value / ratio

    return tuple(
        Worth(what, over(centre, ratio), over(fewest, ratio), over(most, ratio), first / ratio, beyond, far, ends)
        for what, ratio in ratios.items()
        if ratio
    )
