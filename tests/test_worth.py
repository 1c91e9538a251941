"""Differences said as compute: against curves whose inverse is known, and in the words of a report."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_result import TOKENS, four_arms, make_arm, named

from eqx_slm import UserError
from eqx_slm.study.compare import paired
from eqx_slm.study.sentences import comparison_sentences
from eqx_slm.study.worth import factor, worth

END = TOKENS[-1]


def log_line(slope=-0.5, start=5.0):
    """A loss that is straight in log tokens: every factor has a closed form."""
    return [(count, start + slope * math.log(count / TOKENS[0])) for count in TOKENS]


@given(st.floats(-2, -0.05), st.floats(-0.9, 0.9))
def test_a_straight_curve_is_inverted_exactly(slope, share):
    """Also beyond its end, as far as a factor of a hundred."""
    difference = slope * share * math.log(100)
    found, beyond = factor(log_line(slope), END, difference)
    expected = math.exp(difference / slope)
    if difference > 0 and expected < TOKENS[0] / END:
        expected = TOKENS[0] / END
    assert found == pytest.approx(expected, rel=1e-6)
    if abs(difference) > 1e-9:
        assert beyond == (difference < 0 or expected <= TOKENS[0] / END)


def test_no_difference_is_worth_nothing():
    found, beyond = factor(log_line(), END, 0.0)
    assert found == pytest.approx(1.0) and not beyond


def test_within_a_power_law_the_interpolation_is_close():
    """Chords of a convex curve: the error is that of the spacing."""
    points = [(count, 3.2 + 4.9 * (count / TOKENS[0]) ** -0.45) for count in TOKENS]
    for share in (0.1, 0.4, 0.8):
        tokens = END * share
        loss = 3.2 + 4.9 * (tokens / TOKENS[0]) ** -0.45
        assert factor(points, END, loss - points[-1][1])[0] == pytest.approx(share, rel=0.02)


def test_a_curve_that_rises_somewhere_counts_from_where_a_loss_is_first_reached():
    points = [(100, 5.0), (1000, 4.0), (2000, 4.5), (4000, 3.9)]
    assert factor(points, 4000, 0.1)[0] == pytest.approx(0.25)
    assert factor(points, 4000, 0.6)[0] < 0.25


def test_what_has_no_bound_says_so():
    assert factor([(10, 4.0), (100, 4.0), (1000, 4.0)], 1000, -0.1) == (None, True)  # it does not fall
    assert factor(log_line(), END, -0.5 * math.log(101)) == (None, True)
    assert factor(log_line(), END, -0.5 * math.log(99))[0] == pytest.approx(99)
    (one,) = worth(log_line(), END, (-0.1, -9.0, 0.1), {"tokens": 1.0})
    assert one.high is None and one.low < 1 < one.factor and one.bounds_extrapolated
    assert worth(log_line(), END, (None, None, None), {"tokens": 1.0}) == ()
    assert worth(log_line()[:1], END, (0.1, 0.0, 0.2), {"tokens": 1.0}) == ()


def test_costs_are_those_of_the_arm():
    tokens, flops = worth(log_line(), END, (-0.1, -0.2, 0.05), {"tokens": 1.0, "FLOPs": 0.5, "time": None})
    assert (tokens.what, flops.what) == ("tokens", "FLOPs")
    assert flops.factor == pytest.approx(2 * tokens.factor) and flops.low == pytest.approx(2 * tokens.low)
    assert tokens.low < tokens.factor < tokens.high


def compared(**options):
    return paired("dense", **options)(named(four_arms()))


def test_comparisons_carry_what_their_verdicts_interval_is_worth():
    for c in compared():
        assert [each.what for each in c.worth] == ["tokens", "FLOPs", "time"]
        tokens, flops, time = c.worth
        assert not tokens.ends and flops.factor == pytest.approx(tokens.factor / c.flops_ratio)
        assert (tokens.factor > 1) == (c.mean < 0) and (tokens.low > 1) == (c.corrected_high < 0)
        assert (tokens.high < 1) == (c.corrected_low > 0)
        assert time.factor == pytest.approx(tokens.factor / c.time_ratio)


def test_ends_of_finished_runs_are_preferred_and_sizes_are_an_axis():
    ends = {"tokens": [(END / 4, 4.9), (END / 2, 4.4)], "parameters": [(500_000, 4.6), (250_000, 5.1)]}
    before, after = compared(), compared(ends=ends)
    for old, new in zip(before, after, strict=True):
        assert [each.what for each in new.worth] == ["tokens", "FLOPs", "time", "parameters"]
        assert all(each.ends for each in new.worth) and new.worth[0].factor != old.worth[0].factor
    only = compared(ends={"parameters": ends["parameters"]})[0]
    assert [each.ends for each in only.worth] == [False, False, False, True]


@pytest.mark.parametrize(
    ("ends", "told"),
    [
        ({"steps": []}, "'steps' is no axis; allowed: tokens, parameters"),
        ({"tokens": [(0, 4.0)]}, "ends of tokens"),
        ({"tokens": [(10, math.nan)]}, "ends of tokens, a loss"),
    ],
)
def test_ends_that_make_no_curve_are_refused(ends, told):
    with pytest.raises(UserError, match=told):
        paired("dense", ends=ends)


def test_the_sentence():
    better = next(each for each in compared() if each.arm == "leviathan-deep")
    told = "".join(comparison_sentences(better, END))
    tokens = better.worth[0]
    assert f"It is worth {tokens.factor:.2f}x the tokens ({tokens.low:.2f}x to {tokens.high:.2f}x), " in told
    assert "what dense would need for its loss, by its losses while it trained, the factor extrapolated." in told
    ends = {"tokens": [(END / 4, 4.9), (END / 2, 4.4), (2 * END, 3.0)]}
    inside = "".join(comparison_sentences(compared(ends=ends)[1], END))
    assert "by the ends of its runs." in inside
    alone = {"dense": make_arm(0.0, 0.0, seeds=(1,)), "other": make_arm(-0.1, 0.0, seeds=(1,))}
    (one_seed,) = paired("dense")(named(alone))
    assert re.search(r"It is worth \d\.\d\dx the tokens, ", "".join(comparison_sentences(one_seed, END)))
    far = {"dense": make_arm(0.0, 0.0), "other": make_arm(9.0, 0.0)}
    (hopeless,) = paired("dense")(named(far))
    told = "".join(comparison_sentences(hopeless, END))
    assert re.search(r"It is worth less than 0\.0[23]x the tokens, less than 0\.0[23]x the FLOPs and less than", told)
