"""Matched budgets: the published pair to the digit, and no valid neighbour that would be nearer."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqx_slm import (
    AttentionConfig,
    LeviathanConfig,
    MLPConfig,
    ModelConfig,
    TaperConfig,
    count_parameters,
    flops,
    match_flops,
    match_parameters,
)
from eqx_slm.account.match import with_value
from eqx_slm.testing import model_configs

DENSE = ModelConfig(vocab_size=200_376, d_model=256, depth=6, mixer=AttentionConfig(n_heads=8), channel=MLPConfig())
LEVIATHAN = dataclasses.replace(DENSE, depth=52, embedding=LeviathanConfig())
SMALL = ModelConfig(vocab_size=100, d_model=16, depth=4, mixer=AttentionConfig(n_heads=2), channel=MLPConfig(d_ff=32))


def size_or_none(config, vary, value, measure=count_parameters):
    try:
        return measure(with_value(config, vary, value))
    except ValueError:
        return None


def assert_no_neighbour_is_nearer(match, config, vary, step, measure=count_parameters):
    """Among the valid values within 20 steps to either side none is nearer, and none as near is smaller."""
    miss = abs(match.achieved - match.target)
    assert match.value % step == 0
    for value in range(max(step, match.value - 20 * step), match.value + 20 * step + 1, step):
        size = size_or_none(config, vary, value, measure)
        if size is not None:
            assert (abs(size - match.target), value) >= (miss, match.value), (value, size)


def test_published_pair_by_depth():
    match = match_parameters(LEVIATHAN, DENSE, "depth")
    assert (match.value, match.config.depth) == (54, 54)
    assert match.achieved == count_parameters(match.config) == 109_282_688
    assert match.target == 108_887_296
    assert match.residual == pytest.approx(395_392 / 108_887_296)
    assert str(match) == "depth 54, 109,282,688 for 108,887,296 (+0.363%)"
    assert dataclasses.replace(match.config, depth=52) == LEVIATHAN


def test_published_pair_by_width():
    match = match_parameters(LEVIATHAN, 108_887_296, "d_ff")
    assert match.value == match.config.channel.d_ff == 1067
    assert match.residual == pytest.approx(0.00013, abs=1e-5)
    in_sixteens = match_parameters(LEVIATHAN, 108_887_296, "d_ff", multiple=16)
    assert in_sixteens.value == 1072  # 1056 is further: 11 units of 3 x 256 x 52 below, against 5 above
    assert in_sixteens.config.depth == 52


small_bases = model_configs(max_vocab_size=500, max_d_model=24, max_depth=6, max_width=48)
goals = st.floats(2, 7).map(lambda exponent: round(10**exponent))


@settings(max_examples=20)
@given(small_bases, goals, st.sampled_from(["depth", "d_ff", "d_model"]), st.sampled_from([None, 1, 3, 8]))
def test_no_valid_neighbour_is_nearer(config, goal, vary, multiple):
    goal = min(goal, 30_000) if vary == "depth" else goal  # as many layers as are counted quickly
    try:
        match = match_parameters(config, goal, vary, multiple=multiple)
    except ValueError:
        # Only where nothing along the dimension is valid.
        values = range(multiple or 1, 200 * (multiple or 1), multiple or 1)
        assert all(size_or_none(config, vary, value) is None for value in values)
        return
    assert match.achieved == count_parameters(match.config)
    assert match.config == with_value(config, vary, match.value)
    assert_no_neighbour_is_nearer(match, config, vary, multiple or 1)


@settings(max_examples=15)
@given(
    st.sampled_from(["cosine", "linear", "sigmoid", "step-early"]),
    st.integers(2, 20),
    st.sampled_from([1, 3, 8, 16]),
    goals,
    st.sampled_from(["depth", "d_ff"]),
)
def test_tapered_models_too(schedule, depth, multiple, goal, vary):
    """Where only some widths and depths can be reached, the best of those is found."""
    goal = min(goal, 100_000) if vary == "depth" else goal
    taper = TaperConfig(schedule, 1.5, None if schedule == "step-early" else 0.5, multiple)
    config = dataclasses.replace(SMALL, depth=depth, taper=taper)
    match = match_parameters(config, goal, vary)
    assert sum(match.config.widths) == match.config.depth * match.config.channel.d_ff
    assert_no_neighbour_is_nearer(match, config, vary, 1)


@settings(max_examples=12)
@given(small_bases, st.floats(3, 8), st.sampled_from(["depth", "d_ff", "d_model"]), st.sampled_from([None, 0.3]))
def test_flops_likewise(config, exponent, vary, share):
    config, goal = dataclasses.replace(config, taper=TaperConfig()), 10 ** min(exponent, 5 if vary == "depth" else 8)

    def measure(c):
        counted = flops(c, context=40, distinct_share=share)
        return counted.total if share is None else counted.total_distinct

    match = match_flops(config, goal, vary, context=40, distinct_share=share)
    assert match.achieved == measure(match.config)
    assert_no_neighbour_is_nearer(match, config, vary, 1, measure)


def test_flops_of_another_config_as_the_target():
    generator = dataclasses.replace(LEVIATHAN, embedding=LeviathanConfig(n_heads=16))
    match = match_flops(generator, DENSE, "depth")
    assert match.target == flops(DENSE).total
    assert match.value == 5  # the generator costs 0.85 of a layer
    shared = match_flops(generator, DENSE, "depth", distinct_share=0.01)
    assert shared.target == flops(DENSE, distinct_share=0.01).total_distinct
    assert shared.value == 6


@given(st.integers(1, 40), st.sampled_from(["depth", "d_ff"]))
def test_a_config_matches_itself(value, vary):
    config = with_value(SMALL, vary, value)
    match = match_parameters(SMALL, config, vary)
    assert match.config == config and match.residual == 0


def test_of_two_as_near_the_smaller():
    low, high = (count_parameters(dataclasses.replace(SMALL, depth=d)) for d in (3, 4))
    assert (low + high) % 2 == 0
    assert match_parameters(SMALL, (low + high) // 2, "depth").value == 3


def test_a_target_out_of_reach_gives_the_nearest_end():
    match = match_parameters(SMALL, 1, "depth")
    assert match.value == 1 and match.residual > 0


@pytest.mark.parametrize("goal", [0, -5, math.nan, math.inf, "10", True, None, [3]])
def test_targets_that_are_no_budget_are_refused(goal, unchecked):
    with pytest.raises(ValueError, match="must be positive and finite"):
        match_flops(SMALL, goal, "depth")


@pytest.mark.parametrize("multiple", [0, -1, 1.5, 16.0, True])
def test_multiples_that_are_refused(multiple, unchecked):
    with pytest.raises(ValueError, match=f"multiple={multiple}.*at least 1"):
        match_parameters(SMALL, 10_000, "d_ff", multiple=multiple)


def test_arguments_that_are_refused():
    # Two heads over widths of 3, 6, 9, ...: only full pairs of channels fit.
    assert match_parameters(SMALL, 10_000, "d_model", multiple=3).value % 12 == 0
    odd = dataclasses.replace(SMALL, taper=TaperConfig("cosine", 1.5, 0.5, 16), depth=1, channel=MLPConfig(d_ff=32))
    assert match_parameters(odd, 10_000, "d_ff").value % 16 == 0
    stuck = dataclasses.replace(SMALL, taper=TaperConfig("step-early", 3.5), depth=6)
    with pytest.raises(ValueError, match="no valid value of d_ff"):
        match_parameters(stuck, 10_000, "d_ff")
