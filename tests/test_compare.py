"""Comparisons from runs: pairing by seed, Holm over the arms, curves, ratios, and what is refused."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_result import TOKENS, four_arms, make_arm, make_result

from eqx_slm.study.compare import compare, control_comparison, control_comparisons, crossings
from eqx_slm.study.statistics import holm, holm_levels, p_value, paired_interval


def finals(arm):
    return [run["final_nll"] for run in arm["runs"]]


def one(arms, **given_differences):
    (comparison,) = compare(
        arms, "dense", margin=0.01, config_differences=given_differences or {"other": [["a", 1, 2]]}
    )
    json.dumps(comparison, allow_nan=False)
    return comparison


def test_comparisons_hold_what_the_statistics_say():
    arms = four_arms()
    comparisons = compare(arms, "dense", margin=0.01, config_differences={"leviathan": [["embedding", "table", "lev"]]})
    assert [comparison["arm"] for comparison in comparisons] == ["leviathan", "leviathan-deep", "dense-tied-deep"]
    rows = [[a - b for a, b in zip(finals(arms[c["arm"]]), finals(arms["dense"]), strict=True)] for c in comparisons]
    p_values = [p_value(row) for row in rows]
    for comparison, row, p, p_holm, level in zip(
        comparisons, rows, p_values, holm(p_values), holm_levels(p_values), strict=True
    ):
        plain, corrected = paired_interval(row), paired_interval(row, confidence=level)
        assert comparison["differences"] == row and comparison["seeds"] == [0, 1, 2]
        assert (comparison["mean"], comparison["low"], comparison["high"]) == plain[:3]
        assert (comparison["corrected_low"], comparison["corrected_high"]) == (corrected.low, corrected.high)
        assert (comparison["p"], comparison["p_holm"]) == (p, p_holm)
        assert comparison["corrected_low"] <= comparison["low"] <= comparison["high"] <= comparison["corrected_high"]
        assert [point["tokens"] for point in comparison["curve"]] == list(TOKENS)
        assert math.isclose(comparison["curve"][-1]["mean"], comparison["mean"])
        assert comparison["slope"]["low"] <= comparison["slope"]["mean"] <= comparison["slope"]["high"]
    assert comparisons[0]["config_difference"] == [["embedding", "table", "lev"]]
    assert comparisons[1]["config_difference"] is None  # nobody said
    assert comparisons[0]["parameter_ratio"] == 0.7 and comparisons[0]["flops_ratio"] == 0.7
    assert comparisons[0]["time_ratio"] == 1.0


@given(st.permutations(["leviathan", "leviathan-deep", "dense-tied-deep"]), st.permutations([0, 1, 2]))
def test_neither_the_order_of_arms_nor_of_runs_matters(names, places):
    arms = four_arms()
    expected = {each["arm"]: each for each in compare(arms, "dense", margin=0.01)}
    shuffled = {name: dict(arms[name], runs=[arms[name]["runs"][i] for i in places]) for name in [*names, "dense"]}
    assert {each["arm"]: each for each in compare(shuffled, "dense", margin=0.01)} == expected


def test_swapping_arm_and_reference_negates():
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.2, -0.3)}
    there, back = one(arms), compare(arms, "other", margin=0.01)[0]
    assert back["differences"] == [-value for value in there["differences"]]
    assert math.isclose(back["low"], -there["high"]) and math.isclose(back["slope"]["mean"], -there["slope"]["mean"])
    assert (there["verdict"], back["verdict"]) == ("better", "worse")
    assert there["crossings"] == pytest.approx(back["crossings"])


def test_an_arm_against_itself_is_identical():
    arm = make_arm(0.0, 0.0)
    comparison = one({"dense": arm, "other": copy.deepcopy(arm)}, other=[])
    assert comparison["verdict"] == "identical arms" and comparison["note"] == ""
    assert (comparison["mean"], comparison["low"], comparison["high"]) == (0.0, 0.0, 0.0)
    assert all(point["low"] == point["high"] == 0.0 for point in comparison["curve"])
    assert comparison["p"] == 1.0 and comparison["crossings"] == []


def test_zero_differences_of_other_or_unknown_configs_are_no_identity():
    arm = make_arm(0.0, 0.0)
    arms = {"dense": arm, "other": copy.deepcopy(arm)}
    assert one(arms, other=[["name", "a", "b"]])["verdict"] == "no difference beyond the margin"
    assert one(arms, other=None)["verdict"] == "no difference beyond the margin"


def test_equal_configs_with_other_losses_are_judged_and_noted():
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.0, 1e-9)}
    comparison = one(arms, other=[])
    assert comparison["verdict"] in ("no difference beyond the margin", "not resolved")
    assert comparison["note"].startswith("equal configs gave different losses")


def test_equal_ends_after_different_ways_are_not_identical():
    arms = {"dense": make_arm(0.0, 0.0), "other": copy.deepcopy(make_arm(0.0, 0.0))}
    arms["other"]["runs"][1]["evals"][3]["nll"] += 0.25
    comparison = one(arms, other=[])
    assert comparison["verdict"] == "no difference beyond the margin" and "0.25" in comparison["note"]


def test_one_seed_resolves_nothing():
    comparison = one({"dense": make_arm(0.0, 0.0, seeds=(7,)), "other": make_arm(-3.0, 0.0, seeds=(7,))})
    assert comparison["verdict"] == "not resolved" and comparison["mean"] < -2.9
    assert comparison["low"] is None and comparison["corrected_high"] is None and comparison["p"] == 1.0
    assert comparison["slope"]["mean"] is not None and comparison["slope"]["low"] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, None])
def test_a_diverged_run_leaves_its_comparison_open(loss):
    arms = four_arms()
    broken = arms["leviathan"]["runs"][1]
    broken["final_nll"] = broken["evals"][-1]["nll"] = loss
    comparisons = compare(arms, "dense", margin=0.01)
    json.dumps(comparisons, allow_nan=False)
    open_one, *others = comparisons
    assert open_one["verdict"] == "not resolved" and "leviathan diverged on seed (1)" in open_one["note"]
    assert open_one["differences"][1] is None and open_one["differences"][0] is not None
    assert open_one["mean"] is open_one["corrected_low"] is open_one["p"] is open_one["slope"]["mean"] is None
    assert open_one["time_ratio"] is None
    assert [point["tokens"] for point in open_one["curve"]] == list(TOKENS[:-1])
    # It still counts as one of three.
    p_values = [each["p"] for each in others]
    assert [each["p_holm"] for each in others] == holm([*p_values, 1.0])[:2]


def test_divergence_on_every_seed_or_of_the_reference_is_open_too():
    gone = make_arm(0.0, 0.0, diverge_at=0)
    comparison = one({"dense": make_arm(0.0, 0.0), "other": gone})
    assert comparison["verdict"] == "not resolved" and "other diverged on every seed (0, 1, 2)" in comparison["note"]
    assert comparison["curve"] == []
    back = one({"dense": gone, "other": make_arm(0.0, 0.0)})
    assert back["verdict"] == "not resolved" and "dense diverged on every seed" in back["note"]


def test_a_run_that_stopped_early_because_it_diverged_still_pairs():
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.0, 0.1)}
    run = arms["other"]["runs"][2]
    run["evals"], run["final_nll"], run["diverged"] = run["evals"][:4], None, True
    assert [point["tokens"] for point in one(arms)["curve"]] == list(TOKENS[:4])


def test_an_evaluation_before_training_is_kept_out_of_logarithms():
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.2, -0.3)}
    expected = one(arms)
    for arm in arms.values():
        for run in arm["runs"]:
            run["evals"].insert(0, {"step": 0, "tokens": 0, "nll": 9.0, "bits_per_byte": None})
    comparison = one(arms)
    assert comparison["curve"][0] == {"tokens": 0, "mean": 0.0, "low": 0.0, "high": 0.0}
    assert comparison["slope"] == expected["slope"] and comparison["crossings"] == expected["crossings"]


def broken_arms(change):
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.1, 0.0)}
    change(arms["other"]["runs"])
    return arms


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda runs: runs.pop(), "seeds"),
        (lambda runs: runs[0].update(seed=5), "seeds"),
        (lambda runs: runs[0].update(seed=1), "one run a seed"),
        (lambda runs: runs.clear(), "one run a seed"),
        (lambda runs: runs[1]["evals"].pop(), "token counts disagree"),
        (lambda runs: runs[2]["evals"][-1].update(tokens=999), "999"),
        (lambda runs: runs[2]["evals"].clear(), "has no evaluation"),
    ],
)
def test_runs_that_do_not_pair_are_refused(change, words):
    with pytest.raises(ValueError, match=words) as error:
        compare(broken_arms(change), "dense", margin=0.01)
    assert "\n" not in str(error.value)


def test_unknown_reference_is_refused_by_name():
    with pytest.raises(ValueError, match="'nothing'.*'dense'"):
        compare({"dense": make_arm(0.0, 0.0)}, "nothing", margin=0.01)


def test_missing_accounts_give_no_ratio():
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.1, 0.0)}
    arms["other"]["flops_per_token"] = None
    arms["dense"]["runs"][0]["train_seconds"] = None
    comparison = one(arms)
    assert comparison["flops_ratio"] is None and comparison["time_ratio"] is None
    assert comparison["parameter_ratio"] == 1.0


def test_counts_of_two_kinds_give_no_ratio():
    """A closed form counts matmuls, half of attention; XLA counts all that it runs."""
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.1, 0.0)}
    assert one(arms)["flops_ratio"] == 1.0
    arms["other"]["flops_per_token"] = {**arms["other"]["flops_per_token"], "counted_by": "XLA"}
    assert one(arms)["flops_ratio"] is None
    arms["dense"]["flops_per_token"] = {**arms["dense"]["flops_per_token"], "counted_by": "XLA"}
    assert one(arms)["flops_ratio"] == 1.0


def test_crossings_interpolate_on_log_tokens():
    assert crossings([100, 10_000], [1.0, -1.0]) == pytest.approx([1000.0])
    assert crossings([10, 100, 1000], [1.0, 0.0, -1.0]) == pytest.approx([100.0])
    assert crossings([10, 100, 1000], [1.0, 0.0, 1.0]) == []
    assert len(crossings([1, 2, 3, 4], [1.0, -1.0, 2.0, -0.5])) == 3
    assert crossings([], []) == [] and crossings([10], [0.0]) == []


def test_the_depth_control_is_found_when_its_arms_are_there():
    arms = four_arms()
    (control,) = control_comparisons(arms, "dense", margin=0.01)
    rows = [a - b for a, b in zip(finals(arms["leviathan-deep"]), finals(arms["dense-tied-deep"]), strict=True)]
    assert (control["arm"], control["reference"]) == ("leviathan-deep", "dense-tied-deep")
    assert control["differences"] == rows
    assert (control["corrected_low"], control["corrected_high"]) == (control["low"], control["high"])
    assert control["verdict"] == "better" and "does not account" in control["meaning"] and control["question"]
    assert control_comparisons(arms, "dense-tied-deep", margin=0.01) == []  # compared already
    found = control_comparisons(arms | {"low-rank-deep": make_arm(0.1, 0.0)}, "dense", margin=0.01)
    assert [each["reference"] for each in found] == ["dense-tied-deep", "low-rank-deep"]
    del arms["dense-tied-deep"]
    assert control_comparisons(arms, "dense", margin=0.01) == []


def test_a_control_has_the_shape_of_a_comparison():
    arms = {"dense": make_arm(0.0, 0.0), "other": make_arm(0.1, 0.0)}
    control = control_comparison(arms, "other", "dense", margin=0.01, question="why?")
    assert set(control) == set(one(arms)) | {"question"}


def test_one_arm_alone_has_no_comparison():
    assert make_result({"dense": make_arm(0.0, 0.0)})["comparisons"] == []
