"""Comparisons from runs: pairing by seed, Holm over the arms, curves, ratios, and what is refused."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from study_result import TOKENS, four_arms, make_arm, named

from eqx_slm import ModelConfig, UserError
from eqx_slm.study.compare import CONTROLS, crossings, paired
from eqx_slm.study.statistics import holm, holm_levels, p_value, paired_interval

SAME = ModelConfig()


def compared(arms, reference="dense", **options):
    return paired(reference, **options)(named(arms))


def one(arms, reference="dense", **options):
    (comparison,) = compared(arms, reference, **options)
    return comparison


def two(*other, made_of=(None, None), **options):
    return {"dense": make_arm(0.0, 0.0, made_of=made_of[0]), "other": make_arm(*other, made_of=made_of[1], **options)}


def with_run(arm, index, **changes):
    runs = list(arm.runs)
    runs[index] = dataclasses.replace(runs[index], **changes)
    return dataclasses.replace(arm, runs=tuple(runs))


def with_end(run, nll):
    return (*run.evals[:-1], dataclasses.replace(run.evals[-1], nll=nll))


def finals(arm):
    return [run.final_nll for run in arm.runs]


def test_comparisons_hold_what_the_statistics_say():
    arms = four_arms()
    comparisons = compared(arms)
    assert [comparison.arm for comparison in comparisons] == ["leviathan", "leviathan-deep", "dense-tied-deep"]
    rows = [[a - b for a, b in zip(finals(arms[c.arm]), finals(arms["dense"]), strict=True)] for c in comparisons]
    p_values = [p_value(row, margin=0.01) for row in rows]
    levels = holm_levels(p_values)
    for c, row, p, p_holm, level in zip(comparisons, rows, p_values, holm(p_values), levels, strict=True):
        plain, corrected = paired_interval(row), paired_interval(row, confidence=level)
        assert list(c.differences) == row and c.seeds == (0, 1, 2)
        assert (c.mean, c.low, c.high) == plain[:3]
        assert (c.corrected_low, c.corrected_high, c.corrected_confidence) == (corrected.low, corrected.high, level)
        assert (c.p, c.p_margin, c.p_holm) == (p_value(row), p, p_holm)
        assert (c.verdict in ("better", "worse")) == (p_holm < 0.05)
        assert c.corrected_low <= c.low <= c.high <= c.corrected_high
        assert [point.tokens for point in c.curve] == list(TOKENS)
        assert math.isclose(c.curve[-1].mean, c.mean)
        assert c.slope.low <= c.slope.mean <= c.slope.high
    assert comparisons[0].parameter_ratio == 0.7 and comparisons[0].flops_ratio == 0.7
    assert comparisons[0].time_ratio == 1.0


@given(st.permutations(["leviathan", "leviathan-deep", "dense-tied-deep"]), st.permutations([0, 1, 2]))
def test_neither_the_order_of_arms_nor_of_runs_matters(names, places):
    arms = four_arms()
    expected = {each.arm: each for each in compared(arms)}
    shuffled = {
        name: dataclasses.replace(arms[name], runs=tuple(arms[name].runs[i] for i in places))
        for name in [*names, "dense"]
    }
    assert {each.arm: each for each in compared(shuffled)} == expected


def test_swapping_arm_and_reference_negates():
    arms = two(0.2, -0.3)
    there, back = one(arms), one(arms, "other")
    assert back.differences == tuple(-value for value in there.differences)
    assert math.isclose(back.low, -there.high) and math.isclose(back.slope.mean, -there.slope.mean)
    assert (there.verdict, back.verdict) == ("better", "worse")
    assert there.crossings == pytest.approx(back.crossings)


def test_an_arm_against_itself_is_identical():
    comparison = one(two(0.0, 0.0, made_of=(SAME, ModelConfig())))
    assert comparison.verdict == "identical arms" and comparison.note == "" and comparison.config_difference == ()
    assert (comparison.mean, comparison.low, comparison.high) == (0.0, 0.0, 0.0)
    assert all(point.low == point.high == 0.0 for point in comparison.curve)
    assert comparison.p == 1.0 and comparison.crossings == ()


def test_zero_differences_of_other_or_unknown_configs_are_no_identity():
    for other, known in ((ModelConfig(depth=3), (("depth", "2", "3"),)), (len, None)):
        comparison = one(two(0.0, 0.0, made_of=(SAME, other)))
        assert comparison.verdict == "no difference beyond the margin" and comparison.config_difference == known


def test_equal_configs_with_other_losses_are_judged_and_noted():
    comparison = one(two(0.0, 1e-9, made_of=(SAME, SAME)))
    assert comparison.verdict in ("no difference beyond the margin", "not resolved")
    assert comparison.note.startswith("equal configs gave different losses")


def test_equal_ends_after_different_ways_are_not_identical():
    arms = two(0.0, 0.0, made_of=(SAME, SAME))
    evals = list(arms["other"].runs[1].evals)
    evals[3] = dataclasses.replace(evals[3], nll=evals[3].nll + 0.25)
    arms["other"] = with_run(arms["other"], 1, evals=tuple(evals))
    comparison = one(arms)
    assert comparison.verdict == "no difference beyond the margin" and "0.25" in comparison.note


def test_one_seed_resolves_nothing():
    comparison = one({"dense": make_arm(0.0, 0.0, seeds=(7,)), "other": make_arm(-3.0, 0.0, seeds=(7,))})
    assert comparison.verdict == "not resolved" and comparison.mean < -2.9
    assert comparison.low is None and comparison.corrected_high is None and comparison.p == 1.0
    assert comparison.slope.mean is not None and comparison.slope.low is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_diverged_run_leaves_its_comparison_open(loss):
    arms = four_arms()
    arms["leviathan"] = with_run(arms["leviathan"], 1, evals=with_end(arms["leviathan"].runs[1], loss))
    open_one, *others = compared(arms)
    assert open_one.verdict == "not resolved" and "leviathan diverged on seed (1)" in open_one.note
    assert open_one.differences[1] is None and open_one.differences[0] is not None
    assert open_one.mean is open_one.corrected_low is open_one.p is open_one.slope.mean is open_one.time_ratio is None
    assert [point.tokens for point in open_one.curve] == list(TOKENS[:-1])
    # It still counts as one of three.
    assert [each.p_holm for each in others] == holm([*(each.p_margin for each in others), 1.0])[:2]


def test_divergence_on_every_seed_or_of_the_reference_is_open_too():
    comparison = one(two(0.0, 0.0, diverge_at=0))
    assert comparison.verdict == "not resolved" and "other diverged on every seed (0, 1, 2)" in comparison.note
    assert comparison.curve == ()
    back = one(two(0.0, 0.0, diverge_at=0), "other")
    assert back.verdict == "not resolved" and "other diverged on every seed" in back.note


def test_a_run_that_stopped_early_because_it_diverged_still_pairs():
    arms = two(0.0, 0.1)
    run = arms["other"].runs[2]
    stopped = (*run.evals[:4], dataclasses.replace(run.evals[4], nll=math.nan))
    arms["other"] = with_run(arms["other"], 2, evals=stopped)
    assert [point.tokens for point in one(arms).curve] == list(TOKENS[:4])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arm: dataclasses.replace(arm, runs=arm.runs[:2]), "seeds"),
        (lambda arm: with_run(arm, 0, seed=5), "seeds"),
        (lambda arm: with_run(arm, 0, seed=1), "once with the same seeds"),
        (lambda arm: dataclasses.replace(arm, runs=()), "seeds"),
        (lambda arm: with_run(arm, 1, evals=arm.runs[1].evals[:-1]), "token counts disagree"),
        (lambda arm: with_run(arm, 2, evals=(dataclasses.replace(arm.runs[2].evals[0], tokens=999),)), "999"),
    ],
)
def test_runs_that_do_not_pair_are_refused(change, words):
    arms = two(0.1, 0.0)
    with refuses(words):
        compared(arms | {"other": change(arms["other"])})


def test_unknown_reference_is_refused_by_name():
    with pytest.raises(UserError, match="'nothing'.*dense"):
        compared({"dense": make_arm(0.0, 0.0)}, "nothing")


def test_missing_accounts_and_counts_of_two_kinds_give_no_ratio():
    """A closed form counts matmuls, half of attention; XLA counts all that it runs."""
    arms = two(0.1, 0.0)
    facts = arms["other"].facts
    for flops in (None, {**facts.flops_per_token, "counted_by": "XLA"}):
        other = dataclasses.replace(arms["other"], facts=dataclasses.replace(facts, flops_per_token=flops))
        comparison = one(arms | {"other": other})
        assert comparison.flops_ratio is None and comparison.parameter_ratio == comparison.time_ratio == 1.0
    both = {name: dataclasses.replace(other, name=name) for name in arms}
    assert one(both).flops_ratio == 1.0


def test_crossings_interpolate_on_log_tokens():
    assert crossings([100, 10_000], [1.0, -1.0]) == pytest.approx([1000.0])
    assert crossings([10, 100, 1000], [1.0, 0.0, -1.0]) == pytest.approx([100.0])
    assert crossings([10, 100, 1000], [1.0, 0.0, 1.0]) == []
    assert len(crossings([1, 2, 3, 4], [1.0, -1.0, 2.0, -0.5])) == 3
    assert crossings([], []) == [] and crossings([10], [0.0]) == []


def test_the_depth_control_is_found_when_its_arms_are_there():
    arms = four_arms()
    depth, _ = CONTROLS
    (control,) = [each for known in CONTROLS for each in known(arms)]
    rows = [a - b for a, b in zip(finals(arms["leviathan-deep"]), finals(arms["dense-tied-deep"]), strict=True)]
    assert (control.arm, control.reference) == ("leviathan-deep", "dense-tied-deep")
    assert list(control.differences) == rows and control.p_holm == control.p_margin
    assert (control.corrected_low, control.corrected_high) == (control.low, control.high)
    assert control.verdict == "better" and "does not account" in control.meaning and control.question
    assert depth({name: arms[name] for name in ("dense-tied-deep", "leviathan-deep")}) == []  # compared already
    assert depth({name: arms[name] for name in ("dense", "leviathan-deep")}) == []
    more = named(arms | {"low-rank-deep": make_arm(0.1, 0.0)})
    assert [each.reference for known in CONTROLS for each in known(more)] == ["dense-tied-deep", "low-rank-deep"]


GRID = {
    f"{mixer}-{taper}": {"mixer": mixer, "taper": taper}
    for mixer in ("attention", "gated")
    for taper in ("uniform", "cosine", "rising")
}


def test_arms_of_a_grid_are_held_against_a_level_within_the_other_factors():
    for within in (None, "mixer", ("mixer",)):
        pairs = paired({"taper": "uniform"}, within=within).pairs(GRID)
        assert pairs == [(name, f"{its['mixer']}-uniform") for name, its in GRID.items() if its["taper"] != "uniform"]
    assert paired({"mixer": "attention", "taper": "uniform"}).pairs(GRID) == [
        (name, "attention-uniform") for name in GRID if name != "attention-uniform"
    ]
    arms = {name: make_arm(0.01 * i, 0.0, levels=GRID[name]) for i, name in enumerate(GRID)}
    found = compared(arms, {"taper": "uniform"})
    assert [(each.arm, each.reference) for each in found] == pairs
    assert [each.p_holm for each in found] == holm([each.p_margin for each in found])  # one family


@pytest.mark.parametrize(
    ("against", "within", "told"),
    [
        ({"taper": "step"}, None, "taper has no level .step.; its levels are .uniform."),
        ({"taper": "uniform"}, (), "there are 2"),
        ({"tapir": "uniform"}, None, "there is no factor .tapir.; the factors are mixer, taper"),
        ({"taper": "uniform"}, "depth", "there is no factor .depth."),
        ({"taper": 1.5}, None, "taper has no level 1.5"),
    ],
)
def test_a_grid_without_its_reference_is_refused(against, within, told):
    with pytest.raises(UserError, match=told):
        paired(against, within=within).pairs(GRID)
