"""Integer widths of the channel MLPs, layer by layer, under an exact budget."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Literal, get_args

from .checks import finite, real, whole

CurveSchedule = Literal["cosine", "linear", "sigmoid"]
StepSchedule = Literal["step-early", "step-middle", "step-late"]
SymmetricSchedule = Literal["crown", "frame", "bowtie"]
Schedule = Literal["uniform", CurveSchedule, StepSchedule, SymmetricSchedule]

CURVES: tuple[str, ...] = get_args(CurveSchedule)
STEPS: tuple[str, ...] = get_args(StepSchedule)
SYMMETRIC: tuple[str, ...] = get_args(SymmetricSchedule)
SCHEDULES: tuple[str, ...] = ("uniform", *CURVES, *STEPS, *SYMMETRIC)

_TIE = 1e-9  # squared distances closer than this, in units of `multiple`, are equal


def taper_widths(
    depth: int,
    width: int,
    *,
    schedule: str = "cosine",
    start: float | int = 1.5,
    end: float | int | None = None,
    multiple: int = 16,
) -> tuple[int, ...]:
    """Widths of `depth` layers that follow `schedule`, whose mean is exactly `width`.

    With `m = multiple`, let `A = m max(1, round(start width / m))` (halves to even) and `B` the same of `end`.

    - `cosine`, `linear`, `sigmoid`: the first layer is `A`, the last is `B`, the widths are multiples of `m` in falling
      order and sum to `depth width`. Among all such tuples it is the one with the least squared distance to
      `taper_curve`; distances within 1e-9 of a unit `m` tie, and then the earlier layer is the wider. With
      `start < end` the widths rise: the exact mirror, `taper(a -> b) = reversed(taper(b -> a))`.
    - `step-early`, `step-middle`, `step-late`: a group of `ceil(depth / 3)` neighbouring layers is `A` wide: the first
      ones, the centred ones (half a layer early where the sizes do not allow the centre), or the last ones. The others
      share the rest as evenly as multiples allow, the wider ones earlier.
    - `crown`, `frame`, `bowtie`: symmetric. The widest layers are `A`: the middle one or two of a crown, the first and
      the last otherwise; from there the widths fall to the ends (crown) or to the middle on a line, of a bowtie on half
      a cosine. Of an odd depth's frame or bowtie the middle layer is the multiple nearest to the curve that leaves the
      others whole pairs; these, and all pairs of the other cases, are the nearest to the curve in falling order.
    - `uniform`, and every schedule at depth 1: every layer is `width`, which `m` must divide.

    **Arguments:**

    - `depth`: number of layers, at least 1.
    - `width`: the mean width, in hidden units.
    - `schedule`: one of `SCHEDULES`.
    - `start`: width of the first layer (of the group, for a step; of the widest, for a symmetric one: at least 1) as a
      multiple of `width`. Not used by `uniform`.
    - `end`: width of the last layer likewise; 0.5 if not given. `start + end` must be 2, or the curve's mean would not
      be `width`. A step and a symmetric schedule have no end, what is left is theirs: it is refused there.
    - `multiple`: every width is a multiple of this.

    **Returns:** `depth` Python integers.

    **Raises:** `ValueError` for arguments that are not allowed, and where no tuple sums to `depth width`: the message
    names the nearest sums that can be reached.

    Tapered Language Models, arXiv 2606.23670; crowns and frames, arXiv 2509.06518; bowties, arXiv 2606.18246, there of
    the whole stream. The integer rule is this library's own.
    """
    depth, width, multiple = whole("depth", depth), whole("width", width), whole("multiple", multiple)
    start, end = _checked(schedule, start, end)
    total = depth * width
    first = multiple * max(1, round(start * width / multiple))
    if depth == 1 or schedule == "uniform":
        # Here the width itself is the layer, so what can be reached is counted in equal layers of whole multiples.
        what = f"{depth} equal layer{'s' * (depth > 1)} of a multiple of {multiple}"
        _check_reachable(total, depth, depth * multiple, depth * multiple, None, what)
        return (width,) * depth
    if schedule in STEPS:
        group = math.ceil(depth / 3)
        others = depth - group
        what = f"{group} layer{'s' * (group > 1)} of {first} and {others} more, in multiples of {multiple}"
        _check_reachable(total, depth, multiple, group * first + others * multiple, None, what)
        quotient, wider = divmod((total - group * first) // multiple, others)
        rest = [multiple * (quotient + (layer < wider)) for layer in range(others)]
        before = _layers_before(schedule, others)
        return (*rest[:before], *[first] * group, *rest[before:])
    if schedule in SYMMETRIC:
        return _symmetric(depth, width, schedule, start, first, multiple)

    last = multiple * max(1, round(end * width / multiple))
    low, high = sorted((first, last))
    what = f"{depth} layers from {first} to {last}, in order and in multiples of {multiple}"
    _check_reachable(total, depth, multiple, (depth - 1) * low + high, (depth - 1) * high + low, what)
    curve = taper_curve(depth, width, schedule=schedule, start=max(start, end), end=min(start, end))
    units = [value / multiple for value in curve[1:-1]]
    inner = _nearest(units, (total - first - last) // multiple, low=low // multiple, high=high // multiple)
    falling = (high, *(multiple * unit for unit in inner), low)
    return falling if start >= end else falling[::-1]


def taper_curve(
    depth: int,
    width: int,
    *,
    schedule: str = "cosine",
    start: float | int = 1.5,
    end: float | int | None = None,
) -> tuple[float, ...]:
    """The real-valued widths that `taper_widths` rounds.

    Layer `l` of `L` has `end + (start - end) w(l / (L - 1))` times `width`, with `w(x) = (1 + cos(pi x)) / 2` for
    `cosine`, `1 - x` for `linear` and `1 / (1 + exp(10 (x - 1/2)))` for `sigmoid`; the mean is `width` exactly where
    `start + end = 2`. A step has `start` times `width` in its group and an equal share of the rest elsewhere. Of a
    symmetric schedule `j` counts layers from the widest, which has `start`, to the narrowest, `J`: `w(j / J)` of
    `linear`, or of `cosine` for a bowtie, falls from `start` to what makes the mean `width`.

    **Arguments:** those of `taper_widths`.

    **Returns:** `depth` floats, in hidden units.

    **Raises:** `ValueError` for arguments that are not allowed.

    Tapered Language Models, arXiv 2606.23670.
    """
    depth, width = whole("depth", depth), whole("width", width)
    start, end = _checked(schedule, start, end)
    if depth == 1 or schedule == "uniform":
        return (float(width),) * depth
    if schedule in STEPS:
        group = math.ceil(depth / 3)
        others = depth - group
        share = width * (depth - group * start) / others
        before = _layers_before(schedule, others)
        return (*[share] * before, *[float(start * width)] * group, *[share] * (others - before))
    if schedule in SYMMETRIC:
        half = [width * factor for factor in _half(depth, schedule, start)]
        return _mirrored(depth, half, middle_first=schedule == "crown")
    return tuple(width * (end + (start - end) * _weight(schedule, layer / (depth - 1))) for layer in range(depth))


def _weight(schedule: str, x: float) -> float:
    if schedule == "cosine":
        return (1 + math.cos(math.pi * x)) / 2
    if schedule == "linear":
        return 1 - x
    return 1 / (1 + math.exp(10 * (x - 0.5)))


def _layers_before(schedule: str, others: int) -> int:
    return {"step-early": 0, "step-middle": others // 2, "step-late": others}[schedule]


def _half(depth: int, schedule: str, start: float | int) -> list[float]:
    """A symmetric schedule's curve from its widest layer to its narrowest, as multiples of the mean width."""
    count = (depth + 1) // 2
    if count == 1:
        return [float(start)]
    kind = "cosine" if schedule == "bowtie" else "linear"
    weights = [_weight(kind, j / (count - 1)) for j in range(count)]
    mean = sum(weight * times for weight, times in zip(weights, _times(depth, schedule), strict=True)) / depth
    end = (1 - start * mean) / (1 - mean)
    return [end + (start - end) * weight for weight in weights]


def _times(depth: int, schedule: str) -> list[int]:
    """How often each layer of a half comes, from the widest on: an odd depth's middle layer has no twin."""
    times = [2] * ((depth + 1) // 2)
    if depth % 2:
        times[0 if schedule == "crown" else -1] = 1
    return times


def _mirrored(depth: int, half: Sequence[Any], *, middle_first: bool) -> tuple[Any, ...]:
    """All layers of a half that starts in the middle or at the ends."""
    outside_in = [*half][::-1] if middle_first else [*half]
    return (*outside_in[: depth // 2], *outside_in[::-1][: depth - depth // 2])


def _symmetric(depth: int, width: int, schedule: str, start: float | int, first: int, multiple: int) -> tuple[int, ...]:
    times, total, widest = _times(depth, schedule), depth * width, first // multiple
    curve = [factor * width / multiple for factor in _half(depth, schedule, start)]
    count, free = len(times), times[-1] == 1 and len(times) > 1  # an odd frame's middle layer
    pairs = count - 1 - free
    what = f"{times[0]} layer{'s' * (times[0] > 1)} of {first} and none wider, symmetric and in multiples of {multiple}"
    others = (2 * pairs + free) * multiple
    step = multiple if free else 2 * multiple
    _check_reachable(total, depth, step, times[0] * first + others, times[0] * first + others * widest, what)
    left, middle = total // multiple - times[0] * widest, []
    if free:
        fits = [x for x in range(1, widest + 1) if (left - x) % 2 == 0 and 2 * pairs <= left - x <= 2 * pairs * widest]
        middle = [min(fits, key=lambda x: (abs(x - curve[-1]), x))]
        left -= middle[0]
    inner = _nearest(curve[1 : 1 + pairs], left // 2, low=1, high=widest)
    half = [multiple * unit for unit in (widest, *inner, *middle)]
    return _mirrored(depth, half, middle_first=schedule == "crown")


def _nearest(curve: Sequence[float], total: int, *, low: int, high: int) -> list[int]:
    """The non-increasing integers in [low, high] with sum `total` that are nearest to the non-increasing `curve`."""

    # Leave the order aside at first. Raising layer l from x to x + 1 costs
    #     (x + 1 - c)^2 - (x - c)^2 = 2 (x - c) + 1,
    # which grows with x. So the cost is separable and convex, and a tuple of the given sum is optimal in the box iff it
    # takes the cheapest units, those below some price: exchanging a dearer unit for a cheaper one would gain.
    # A price of 2 t gives `level(t)`, and each further step of t adds at most one unit to a layer, because a layer's
    # units are 2 apart. So: the highest whole t that does not overshoot, then the cheapest of the next units, no layer
    # twice. Units within _TIE of the last one taken cost the same, and go to the earlier layers. (In `level`, a unit
    # within the tolerance of the price is not taken yet, so that noise cannot divide ties between two levels.)
    #
    # The order then comes for free: the curve does not increase, so `level(t)` does not. If layer l gets a further unit
    # while l - 1 had the same width, then the unit of l - 1 is a candidate too, costs no more, and is earlier: it was
    # taken before. Hence no constraint of order ever binds, and this is the optimum among the ordered tuples too.
    def level(t: int) -> list[int]:
        return [min(max(math.ceil(c + t - 0.5 - _TIE / 2), low), high) for c in curve]

    if not curve:
        return []
    # At t = bottom all layers are `low`, at t = top all are `high`; the sum is monotone in t.
    bottom, top = low - math.ceil(curve[0]) - 1, high - math.floor(curve[-1]) + 1
    steps = range(bottom, top + 1)
    t = steps[bisect_right(steps, total, key=lambda t: sum(level(t))) - 1]
    widths, above = level(t), level(t + 1)
    missing = total - sum(widths)
    cost = {layer: 2 * (x - curve[layer]) + 1 for layer, x in enumerate(widths) if x < above[layer]}
    if missing:
        dearest = sorted(cost.values())[missing - 1]
        cheaper = [layer for layer in cost if cost[layer] < dearest - _TIE]
        equal = [layer for layer in cost if abs(cost[layer] - dearest) <= _TIE]
        for layer in (cheaper + equal)[:missing]:
            widths[layer] += 1
    return widths


def _checked(schedule: str, start: float | int, end: float | int | None) -> tuple[float | int, float | int]:
    """`start` and `end` with the default filled in, where they fit the schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r}: must be one of {', '.join(SCHEDULES)}")
    real("start", start)
    if schedule in STEPS + SYMMETRIC:
        if end is not None:
            what = "a step" if schedule in STEPS else "a symmetric schedule"
            raise ValueError(f"end={end} with schedule={schedule!r}: {what} has no end, leave it out")
        if schedule in SYMMETRIC and start < 1:
            raise ValueError(f"start={start} with schedule={schedule!r}: it is the widest layers', give at least 1")
        return start, 2 - start
    end = 0.5 if end is None else end
    finite("end", end)
    if schedule in CURVES and not (end >= 0 and abs(start + end - 2) <= 1e-9):
        advice = f"give end={2 - start:g}" if start <= 2 else "give a start of at most 2"
        raise ValueError(
            f"start={start}, end={end} with schedule={schedule!r}: both must be at least 0 and sum to 2, "
            f"or the mean would not be the width; {advice}"
        )
    return start, end


def _check_reachable(total: int, depth: int, step: int, least: int, most: int | None, what: str) -> None:
    """Raises unless `total` is among `least`, `least + step`, ..., `most`."""
    over = (total - least) % step
    if over == 0 and least <= total and (most is None or total <= most):
        return
    below, above = total - over, total + -over % step
    if most is not None:
        below = min(below, most)
    above = max(above, least)
    sums = []
    if below >= least:
        sums.append(f"{below} below (mean width {below / depth:.10g})")
    if most is None or above <= most:
        sums.append(f"{above} above (mean width {above / depth:.10g})")
    raise ValueError(
        f"{depth} x {total // depth} = {total} cannot be reached with {what}; "
        f"the nearest reachable sum{'s' * (len(sums) > 1)}: {' and '.join(sums)}"
    )
