"""Intervals, p-values, Holm's correction, verdicts and slopes, each against an independent statement of it."""

import itertools
import math
import warnings

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refuses
from scipy import stats

from eqx_slm.study.statistics import (
    Interval,
    holm,
    holm_levels,
    p_value,
    paired_interval,
    slope_against_log_tokens,
    verdict,
)

values = st.floats(-10, 10, allow_subnormal=False).map(lambda value: round(value, 6))
several = st.lists(values, min_size=2, max_size=8)
levels = st.sampled_from([0.5, 0.9, 0.95, 0.99])
probabilities = st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.0125, 0.025, 0.05, 1.0])


def scipy_test(differences, level):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nearly equal differences: scipy warns of cancellation
        result = stats.ttest_1samp(differences, 0.0)
        return result.confidence_interval(level), result.pvalue


@given(several, levels)
def test_interval_and_p_agree_with_scipy(differences, level):
    assume(max(differences) - min(differences) > 1e-5)
    (low, high), p = scipy_test(differences, level)
    ours = paired_interval(differences, confidence=level)
    assert ours.n == len(differences)
    assert math.isclose(ours.mean, sum(differences) / ours.n, rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(ours.low, low, rel_tol=1e-7, abs_tol=1e-9)
    assert math.isclose(ours.high, high, rel_tol=1e-7, abs_tol=1e-9)
    assert math.isclose(p_value(differences), p, rel_tol=1e-6, abs_tol=1e-12)


@given(st.floats(-1e300, 1e300), st.integers(2, 9))
def test_equal_differences_have_an_interval_of_zero_width(value, n):
    assert paired_interval([value] * n) == Interval(value, value, value, n)
    assert p_value([value] * n) == (1.0 if value == 0 else 0.0)
    assert p_value([value] * n, margin=abs(value)) == 1.0


def test_a_known_interval():
    # With two degrees of freedom t has a closed quantile: (2 q - 1) / sqrt(2 q (1 - q)). 1, 2, 3 have mean
    # 2 and standard error 1 / sqrt(3).
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    interval = paired_interval([1.0, 2.0, 3.0])
    assert math.isclose(interval.high - 2.0, quantile / math.sqrt(3), rel_tol=1e-9)
    assert math.isclose(2.0 - interval.low, interval.high - 2.0, rel_tol=1e-12)


@given(values)
def test_one_difference_bounds_nothing(value):
    assert paired_interval([value]) == Interval(value, -math.inf, math.inf, 1)
    assert p_value([value]) == 1.0


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e170, 1e300])
def test_interval_scales_without_underflow_or_overflow(scale):
    plain, scaled = paired_interval([1.0, 2.0, 4.0]), paired_interval([scale, 2 * scale, 4 * scale])
    assert math.isclose(scaled.low / scale, plain.low, rel_tol=1e-12)
    assert math.isclose(p_value([scale, 2 * scale, 4 * scale]), p_value([1, 2, 4]), rel_tol=1e-12)


@given(several, st.floats(0, 5), levels)
def test_p_value_with_a_margin_is_the_dual_of_the_interval(differences, margin, level):
    interval, p = paired_interval(differences, confidence=level), p_value(differences, margin=margin)
    beyond = interval.low > margin or interval.high < -margin
    assume(abs(p - (1 - level)) > 1e-9)
    assert beyond == (p < 1 - level)


@given(st.lists(probabilities, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values):
    # Closed testing: a hypothesis is rejected when Bonferroni rejects every set of hypotheses that it is in.
    for index, adjusted in enumerate(holm(p_values)):
        others = [other for other in range(len(p_values)) if other != index]
        sets = [[index, *more] for size in range(len(others) + 1) for more in itertools.combinations(others, size)]
        brute = max(min(1.0, len(chosen) * min(p_values[each] for each in chosen)) for chosen in sets)
        assert math.isclose(adjusted, brute, rel_tol=1e-12, abs_tol=0.0)


def test_holm_on_a_textbook_case():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=5), levels)
def test_corrected_intervals_and_adjusted_p_values_say_the_same(arms, level):
    p_values = [p_value(differences) for differences in arms]
    for differences, adjusted, own in zip(arms, holm(p_values), holm_levels(p_values, confidence=level), strict=True):
        assert level <= own < 1.0
        assume(abs(adjusted - (1 - level)) > 1e-9)
        interval = paired_interval(differences, confidence=own)
        assert (interval.low > 0 or interval.high < 0) == (adjusted < 1 - level)


def test_holm_levels_step_down_and_stop_at_the_first_that_is_not_rejected():
    assert holm_levels([0.2]) == [0.95]
    assert holm_levels([0.03, 0.001, 0.02]) == pytest.approx([1 - 0.05 / 1, 1 - 0.05 / 3, 1 - 0.05 / 2])
    # 0.03 > 0.05 / 2: it stays at that level, and so does everything after it, although 0.04 < 0.05.
    assert holm_levels([0.04, 0.001, 0.03]) == pytest.approx([1 - 0.05 / 2, 1 - 0.05 / 3, 1 - 0.05 / 2])


def above(value):
    return math.nextafter(value, math.inf)


def below(value):
    return math.nextafter(value, -math.inf)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.5, below(-0.01), "better"),
        (-0.5, -0.01, "not resolved"),  # touches the margin: not wholly beyond it
        (above(0.01), 0.5, "worse"),
        (0.01, 0.5, "not resolved"),
        (-0.01, 0.01, "no difference beyond the margin"),  # the margin itself is inside
        (below(-0.01), 0.01, "not resolved"),
        (-0.01, above(0.01), "not resolved"),
        (-0.5, 0.5, "not resolved"),
        (0.002, 0.009, "no difference beyond the margin"),  # told from zero, and yet too small to matter
        (-math.inf, math.inf, "not resolved"),
        (math.nan, math.nan, "not resolved"),
        (0.0, 0.0, "no difference beyond the margin"),
    ],
)
def test_verdicts_at_their_boundaries(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high, 3), margin=0.01) == expected


def test_identical_arms_need_equal_configs_and_an_exact_zero():
    assert verdict(Interval(0.0, 0.0, 0.0, 3), margin=0.01, identical=True) == "identical arms"
    assert verdict(Interval(0.0, -math.inf, math.inf, 1), margin=0.01, identical=True) == "identical arms"
    assert verdict(Interval(0.0, -math.inf, math.inf, 1), margin=0.01) == "not resolved"
    assert verdict(Interval(0.0, -1e-9, 1e-9, 3), margin=0.01, identical=True) == "no difference beyond the margin"
    assert verdict(Interval(1e-9, 1e-9, 1e-9, 3), margin=0.0, identical=True) == "worse"


@given(several, st.floats(0, 5))
def test_swapping_the_arms_swaps_the_verdict(differences, margin):
    swapped = {"better": "worse", "worse": "better"}
    there = verdict(paired_interval(differences), margin=margin)
    back = verdict(paired_interval([-value for value in differences]), margin=margin)
    assert back == swapped.get(there, there)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=5))
def test_slope_finds_exact_lines(lines):
    tokens = [1_000, 3_000, 10_000, 250_000]
    rows = [[start + slope * math.log(count) for count in tokens] for start, slope in lines]
    found, expected = slope_against_log_tokens(tokens, rows), paired_interval([slope for _, slope in lines])
    assert found.n == expected.n
    assert math.isclose(found.mean, expected.mean, abs_tol=1e-9)
    assert math.isclose(found.high, expected.high, rel_tol=1e-6, abs_tol=1e-7)


@given(st.lists(st.lists(values, min_size=5, max_size=5), min_size=2, max_size=4))
def test_slope_agrees_with_scipy(rows):
    tokens = [100, 200, 500, 1000, 9000]
    logs = [math.log(count) for count in tokens]
    expected = [stats.linregress(logs, row).slope for row in rows]
    found = slope_against_log_tokens(tokens, rows)
    assert math.isclose(found.mean, sum(expected) / len(expected), rel_tol=1e-7, abs_tol=1e-9)


def test_a_constant_difference_has_exactly_no_slope():
    interval = slope_against_log_tokens([10, 100, 1000], [[0.1] * 3, [0.3] * 3])
    assert interval == Interval(0.0, 0.0, 0.0, 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_interval([]),
        lambda: paired_interval([0.0, math.nan]),
        lambda: p_value([math.inf, 0.0]),
        lambda: paired_interval([1.0, 2.0], confidence=1.0),
        lambda: holm([0.5, 1.5]),
        lambda: holm_levels([math.nan]),
        lambda: verdict(Interval(0, 0, 0, 3), margin=-0.1),
        lambda: verdict(Interval(0, 0, 0, 3), margin=math.nan),
        lambda: slope_against_log_tokens([100], [[1.0]]),
        lambda: slope_against_log_tokens([100, 100], [[1.0, 2.0]]),
        lambda: slope_against_log_tokens([0, 100], [[1.0, 2.0]]),
        lambda: slope_against_log_tokens([10, 100], [[1.0]]),
        lambda: slope_against_log_tokens([10, 100], []),
    ],
)
def test_what_has_no_answer_is_refused_in_one_line(call):
    with refuses(error=ValueError):
        call()
