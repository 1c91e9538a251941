"""The integer taper rule: hand-worked cases, the definition by brute force, and properties at full size."""

import itertools
import math
import re
import time

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from eqx_slm.taper import CURVES, SCHEDULES, STEPS, SYMMETRIC, taper_curve, taper_widths

# Halves and eighths are exact in binary and sum to exactly 2; thirds and tenths are neither.
starts = st.one_of(
    st.integers(0, 16).map(lambda n: n / 8), st.integers(0, 20).map(lambda n: n / 10), st.floats(0, 2, allow_nan=False)
)


def ends(depth, width, start, end, multiple):
    first = multiple * max(1, round(start * width / multiple))
    last = multiple * max(1, round(end * width / multiple))
    return first, last


def reachable_sums(depth, first, last, multiple):
    low, high = min(first, last), max(first, last)
    return range((depth - 1) * low + high, (depth - 1) * high + low + 1, multiple)


def brute_force(depth, width, schedule, start, end, multiple):
    """Every valid falling tuple in turn: the earliest-widest of those within 1e-9 of the least distance, or None."""
    first, last = ends(depth, width, start, end, multiple)
    curve = [c / multiple for c in taper_curve(depth, width, schedule=schedule, start=start, end=end)]
    a, b, target = first // multiple, last // multiple, depth * width
    if target % multiple:
        return None
    values = range(a, b - 1, -1)  # falling, so that combinations come out falling
    tuples = [
        (a, *inner, b)
        for inner in itertools.combinations_with_replacement(values, depth - 2)
        if a + sum(inner) + b == target // multiple
    ]
    if not tuples:
        return None
    distance = {x: math.fsum((i - c) ** 2 for i, c in zip(x, curve, strict=True)) for x in tuples}
    least = min(distance.values())
    best = max(x for x in tuples if distance[x] <= least + 1e-9)
    return tuple(multiple * i for i in best)


def test_published_setting_by_hand():
    # depth 4, width 64, cosine 1.5 -> 0.5: the curve is 96, 80, 48, 32.
    assert taper_curve(4, 64) == pytest.approx((96, 80, 48, 32))
    assert taper_widths(4, 64) == (96, 80, 48, 32)
    assert taper_widths(3, 256) == (384, 256, 128)


def test_ties_go_to_the_earlier_layer():
    # linear over 5 layers of 8: 12, 10, 8, 6, 4. In multiples of 4 the halves are 10 -> 8 | 12 and 6 -> 4 | 8, and the
    # sum of 40 takes exactly one of them up.
    assert taper_widths(5, 8, schedule="linear", multiple=4) == (12, 12, 8, 4, 4)
    assert taper_widths(5, 8, schedule="linear", start=0.5, end=1.5, multiple=4) == (4, 4, 8, 12, 12)
    # A flat curve half-way between multiples has no earlier or later to prefer: it cannot be reached at all.
    with pytest.raises(ValueError, match="nearest reachable sum"):
        taper_widths(4, 6, start=1.0, end=1.0, multiple=4)


@pytest.mark.parametrize("schedule", CURVES)
def test_many_small_cases_against_brute_force(schedule):
    compared = 0
    for depth, width, eighths, multiple in itertools.product(range(2, 6), range(1, 13), range(8, 17), (1, 2, 3)):
        start = eighths / 8
        expected = brute_force(depth, width, schedule, start, 2 - start, multiple)
        options = dict(schedule=schedule, start=start, end=2 - start, multiple=multiple)
        if expected is None:
            with pytest.raises(ValueError, match="nearest reachable sum"):
                taper_widths(depth, width, **options)
        else:
            assert taper_widths(depth, width, **options) == expected
            compared += 1
    assert compared > 500


@settings(max_examples=300)
@given(
    depth=st.integers(2, 7),
    units=st.integers(1, 10),
    off=st.integers(0, 16),
    multiple=st.integers(1, 17),
    start=starts,
    schedule=st.sampled_from(CURVES),
)
def test_against_brute_force(depth, units, off, multiple, start, schedule):
    width = units * multiple + off % multiple
    wide, narrow = max(start, 2 - start), min(start, 2 - start)
    expected = brute_force(depth, width, schedule, wide, narrow, multiple)
    options = dict(schedule=schedule, multiple=multiple)
    if expected is None:
        with pytest.raises(ValueError):
            taper_widths(depth, width, start=wide, end=narrow, **options)
        return
    assert taper_widths(depth, width, start=wide, end=narrow, **options) == expected
    assert taper_widths(depth, width, start=narrow, end=wide, **options) == expected[::-1]


@settings(max_examples=200)
@given(
    depth=st.integers(2, 64),
    width=st.integers(1, 100_000),
    multiple=st.one_of(st.just(1), st.integers(1, 257), st.sampled_from([16, 64, 128])),
    start=starts,
    schedule=st.sampled_from(CURVES),
)
def test_valid_and_locally_optimal_at_full_size(depth, width, multiple, start, schedule):
    end = 2 - start
    first, last = ends(depth, width, start, end, multiple)
    sums = reachable_sums(depth, first, last, multiple)
    options = dict(schedule=schedule, start=start, end=end, multiple=multiple)
    if depth * width not in sums:
        with pytest.raises(ValueError, match="nearest reachable sum"):
            taper_widths(depth, width, **options)
        return
    widths = taper_widths(depth, width, **options)
    assert all(type(w) is int and w > 0 and w % multiple == 0 for w in widths)
    assert len(widths) == depth and sum(widths) == depth * width
    assert (widths[0], widths[-1]) == (first, last)
    assert list(widths) == sorted(widths, reverse=first >= last)
    # Optimal: no unit moved between two inner layers comes nearer, even if the order is given up (the cost is convex
    # and separable, so this is the optimum); and none that ties moves to an earlier layer of a falling taper.
    curve = taper_curve(depth, width, schedule=schedule, start=start, end=end)
    x = [w / multiple for w in widths]
    c = [v / multiple for v in curve]
    if start < end:
        x.reverse()
        c.reverse()
    low, high = min(first, last) // multiple, max(first, last) // multiple
    inner = range(1, depth - 1)
    tie, round_off = 1e-9, 1e-14 * width / multiple
    for i, j in itertools.permutations(inner, 2):
        if x[i] < high and x[j] > low:
            change = 2 * (x[i] - c[i]) + 1 - (2 * (x[j] - c[j]) - 1)
            assert change > (tie if i < j else -tie) - round_off


def test_fast_at_full_size():
    begin = time.perf_counter()
    widths = taper_widths(64, 65_536, multiple=1)
    assert time.perf_counter() - begin < 0.25  # it takes a few milliseconds
    assert sum(widths) == 64 * 65_536
    # With no rounding to speak of, every layer is the curve's own value.
    assert max(abs(w - c) for w, c in zip(widths, taper_curve(64, 65_536), strict=True)) <= 1


def test_ends_are_rounded_halves_to_even_and_at_least_one_multiple():
    assert taper_widths(3, 4, schedule="linear", start=1.25, end=0.75, multiple=2)[::2] == (4, 4)  # 5 and 3: 2.5, 1.5
    assert taper_widths(4, 32, start=2.0, end=0.0, multiple=16)[::3] == (64, 16)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_depth_one_is_the_width(schedule):
    assert taper_widths(1, 48, schedule=schedule) == (48,)
    with pytest.raises(ValueError, match="32 below .* and 48 above"):
        taper_widths(1, 40, schedule=schedule)


def test_uniform():
    assert taper_widths(3, 48, schedule="uniform") == (48, 48, 48)
    assert taper_curve(3, 48, schedule="uniform") == (48.0, 48.0, 48.0)
    with pytest.raises(ValueError, match=r"3 x 50 = 150 .*144 below \(mean width 48\) and 192 above \(mean width 64\)"):
        taper_widths(3, 50, schedule="uniform")
    with pytest.raises(ValueError, match=r"nearest reachable sum: 48 above"):
        taper_widths(3, 5, schedule="uniform")


@pytest.mark.parametrize(
    ("schedule", "depth", "expected"),
    [
        ("step-early", 6, (96, 96, 48, 48, 48, 48)),
        ("step-middle", 6, (48, 48, 96, 96, 48, 48)),
        ("step-late", 6, (48, 48, 48, 48, 96, 96)),
        ("step-early", 4, (96, 96, 32, 32)),
        ("step-middle", 4, (32, 96, 96, 32)),
        ("step-middle", 5, (48, 96, 96, 48, 32)),  # 128 for three layers; half a layer early
        ("step-late", 5, (48, 48, 32, 96, 96)),
        ("step-middle", 2, (96, 32)),
        ("step-late", 2, (32, 96)),
    ],
)
def test_steps_by_hand(schedule, depth, expected):
    assert taper_widths(depth, 64, schedule=schedule) == expected


@settings(max_examples=100)
@given(
    depth=st.integers(2, 64),
    units=st.integers(1, 2000),
    multiple=st.integers(1, 130),
    start=st.floats(0, 3),
    schedule=st.sampled_from(STEPS),
)
def test_steps(depth, units, multiple, start, schedule):
    width = units * multiple
    group = -(-depth // 3)
    first = multiple * max(1, round(start * width / multiple))
    rest = depth * width - group * first
    if rest < (depth - group) * multiple:
        with pytest.raises(ValueError, match="above"):
            taper_widths(depth, width, schedule=schedule, start=start, multiple=multiple)
        return
    widths = taper_widths(depth, width, schedule=schedule, start=start, multiple=multiple)
    before = {"step-early": 0, "step-middle": (depth - group) // 2, "step-late": depth - group}[schedule]
    others = widths[:before] + widths[before + group :]
    assert widths[before : before + group] == (first,) * group
    assert sum(widths) == depth * width and all(type(w) is int and w % multiple == 0 for w in widths)
    assert list(others) == sorted(others, reverse=True) and others[0] - others[-1] in (0, multiple)
    curve = taper_curve(depth, width, schedule=schedule, start=start)
    assert sum(curve) == pytest.approx(depth * width)
    assert max(abs(w - c) for w, c in zip(widths, curve, strict=True)) <= 3 * multiple


def mirrored_halves(depth, schedule, widest, total):
    """Every symmetric tuple of units, as a half from the widest layer to the narrowest, in falling pairs."""
    times = [2] * ((depth + 1) // 2)
    if depth % 2:
        times[0 if schedule == "crown" else -1] = 1
    found = []
    for half in itertools.product(range(1, widest + 1), repeat=len(times) - 1):
        half = (widest, *half)
        pairs = half[:-1] if schedule != "crown" and depth % 2 else half
        whole = sum(x * n for x, n in zip(half, times, strict=True))
        if whole == total and list(pairs) == sorted(pairs, reverse=True):
            found.append(half)
    return found


@pytest.mark.parametrize("schedule", SYMMETRIC)
def test_symmetric_schedules_against_every_tuple(schedule):
    """Reached where any symmetric tuple is, and none is nearer to the curve (with the middle that an odd frame has)."""
    compared = 0
    for depth, width, quarters, multiple in itertools.product(range(2, 8), range(1, 7), range(4, 11), (1, 2)):
        start, options = quarters / 4, dict(schedule=schedule, start=quarters / 4, multiple=multiple)
        widest = max(1, round(start * width / multiple))
        total, over = divmod(depth * width, multiple)
        every = [] if over else mirrored_halves(depth, schedule, widest, total)
        if not every:
            with pytest.raises(ValueError, match="nearest reachable sum"):
                taper_widths(depth, width, **options)
            continue
        widths, curve = (
            [value / multiple for value in made(depth, width, **how)]
            for made, how in ((taper_widths, options), (taper_curve, {"schedule": schedule, "start": start}))
        )
        order = [depth // 2, *range(depth // 2)[::-1]] if schedule == "crown" and depth % 2 else None
        order = order or (range(depth // 2)[::-1] if schedule == "crown" else range((depth + 1) // 2))
        half, aim = [widths[i] for i in order], [curve[i] for i in order]
        assert tuple(half) in every
        if schedule != "crown" and depth % 2:
            distances = {abs(other[-1] - aim[-1]) for other in every}
            assert abs(half[-1] - aim[-1]) <= min(distances) + 1e-9
            every = [other for other in every if other[-1] == half[-1]]
        distance = {other: sum((x - c) ** 2 for x, c in zip(other, aim, strict=True)) for other in every}
        assert distance[tuple(half)] <= min(distance.values()) + 1e-9
        compared += 1
    assert compared > 100


@settings(max_examples=200)
@given(data=st.data(), schedule=st.sampled_from(SYMMETRIC), depth=st.integers(1, 64), multiple=st.integers(1, 130))
def test_symmetric_schedules(data, schedule, depth, multiple):
    units = data.draw(st.integers(1, 2000))
    start = data.draw(st.integers(units, 2 * units)) / units
    width, options = units * multiple, dict(schedule=schedule, start=start, multiple=multiple)
    try:
        widths = taper_widths(depth, width, **options)
    except ValueError as error:
        assert "nearest reachable sum" in str(error) and "\n" not in str(error)
        # An odd crown may be of the wrong parity, three layers leave no choice, and else the widest are too wide.
        assert depth % 2 or 2 * round(start * units) + depth - 2 > depth * units
        return
    assert sum(widths) == depth * width and all(type(w) is int and w > 0 and w % multiple == 0 for w in widths)
    assert widths == widths[::-1]
    curve = taper_curve(depth, width, schedule=schedule, start=start)
    assert sum(curve) == pytest.approx(depth * width) and curve == pytest.approx(curve[::-1])
    if depth > 1:
        outside_in = widths[: depth // 2]
        assert list(outside_in) == sorted(outside_in, reverse=schedule != "crown")
        assert max(widths) == multiple * round(start * units)
        assert (widths[depth // 2] if schedule == "crown" else widths[0]) == max(widths)


def test_symmetric_schedules_by_hand():
    assert taper_widths(6, 256, schedule="crown") == (128, 256, 384, 384, 256, 128)
    assert taper_widths(6, 256, schedule="frame") == (384, 256, 128, 128, 256, 384)
    assert taper_widths(5, 256, schedule="frame") == (384, 224, 64, 224, 384)
    assert taper_widths(8, 64, schedule="bowtie", multiple=1) == (96, 80, 48, 32, 32, 48, 80, 96)
    half = taper_widths(4, 64, multiple=1)
    assert taper_widths(8, 64, schedule="bowtie", multiple=1) == (*half, *half[::-1])  # an even one is two tapers


@settings(max_examples=200)
@given(
    depth=st.integers(2, 40),
    width=st.integers(1, 3000),
    multiple=st.integers(1, 64),
    start=starts,
    schedule=st.sampled_from(CURVES),
)
def test_the_error_names_the_nearest_reachable_sums(depth, width, multiple, start, schedule):
    sums = reachable_sums(depth, *ends(depth, width, start, 2 - start, multiple), multiple)
    total = depth * width
    assume(total not in sums)
    with pytest.raises(ValueError) as error:
        taper_widths(depth, width, schedule=schedule, start=start, end=2 - start, multiple=multiple)
    message = str(error.value)
    below, above = max((s for s in sums if s < total), default=None), min((s for s in sums if s > total), default=None)
    assert "\n" not in message
    for side, value in (("below", below), ("above", above)):
        found = re.search(rf"(\d+) {side} \(mean width ([\d.]+)\)", message)
        assert (int(found[1]) if found else None) == value
        if found and value is not None:
            assert float(found[2]) == pytest.approx(value / depth)


def test_curve_has_the_published_values():
    assert taper_curve(5, 100, schedule="linear") == pytest.approx((150, 125, 100, 75, 50))
    assert taper_curve(3, 100, schedule="sigmoid", start=1.5, end=0.5) == pytest.approx(
        (50 + 100 / (1 + math.exp(-5)), 100, 50 + 100 / (1 + math.exp(5)))
    )
    squared = [50 + 100 * math.cos(math.pi * layer / 8) ** 2 for layer in range(5)]  # the other form of the cosine
    assert taper_curve(5, 100) == pytest.approx(squared)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(start=1.5, end=0.75), "give end=0.5"),
        (dict(start=1.25), "give end=0.75"),
        (dict(start=2.5, end=-0.5), "start of at most 2"),
        (dict(start=math.nan), "finite"),
        (dict(start=-1.0, end=3.0), "at least 0"),
        (dict(schedule="step-early", end=0.5), "a step has no end"),
        (dict(schedule="stairs"), "uniform, cosine"),
        (dict(schedule="frame", end=0.5), "a symmetric schedule has no end"),
        (dict(schedule="crown", start=0.5), "it is the widest layers', give at least 1"),
        (dict(schedule="bowtie", start=8.0), "nearest reachable sum: 8288 above"),
        (dict(multiple=0), "multiple=0"),
        (dict(depth=0), "at least 1"),
        (dict(width=0), "at least 1"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        taper_widths(**({"depth": 8, "width": 512} | arguments))
