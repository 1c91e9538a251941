"""What judges: pooled variances in a study, the part of the validation text that did not choose the rate, and text."""

import dataclasses
import json
import math

import numpy as np
import pytest
from refusals import refuses
from scipy import stats
from study_result import four_arms, make_arm, make_result, named
from tiny import tiny_config, tiny_stream

from eqx_slm import pair
from eqx_slm.study.blocks import markdown
from eqx_slm.study.compare import CONTROLS, paired
from eqx_slm.study.figures import differences
from eqx_slm.study.report import scope
from eqx_slm.study.results import Row, best_rate
from eqx_slm.study.sentences import comparison_sentences
from eqx_slm.study.spread import moderated
from eqx_slm.study.statistics import holm, p_value, paired_interval

ALIKE = ("leviathan", "leviathan-deep", "dense-tied-deep")


def with_parts(arm, even, odd):
    """Every evaluation in two halves, the loss plus `even` or `odd`; eight sequences a run at the end."""
    runs = []
    for run in arm.runs:
        evals = tuple(dataclasses.replace(e, halves=(e.nll + even, e.nll + odd)) for e in run.evals)
        sequences = tuple(evals[-1].halves[i % 2] + 0.01 * math.sin(10 * i + run.seed + 30 * odd) for i in range(8))
        runs.append(dataclasses.replace(run, evals=evals, sequences=sequences))
    return dataclasses.replace(arm, runs=tuple(runs), judged="judging")


def test_arms_said_to_be_alike_lend_each_other_their_variance():
    arms = named(four_arms())
    plain, pooled = paired("dense")(arms), paired("dense", pool=(ALIKE,))(arms)
    spreads = moderated([each.differences for each in plain]).spreads
    p_values = [p_value(c.differences, margin=0.01, spread=s) for c, s in zip(plain, spreads, strict=True)]
    for old, new, spread, p, p_holm in zip(plain, pooled, spreads, p_values, holm(p_values), strict=True):
        assert new.method == "moderated t" and "pooled over 3 comparisons" in new.pooling and old.method == "t"
        assert (new.low, new.high, new.p, new.sd) == (old.low, old.high, old.p, old.sd)  # the plain one beside it
        assert (new.p_margin, new.p_holm) == (p, p_holm)
        interval = paired_interval(new.differences, confidence=new.corrected_confidence, spread=spread)
        assert (new.corrected_low, new.corrected_high) == (interval.low, interval.high)
    told = "".join(comparison_sentences(pooled[0], 1000))
    assert "with pooled variance, Holm-corrected" in told
    text = markdown(differences(make_result(four_arms(), comparisons=tuple(pooled))))
    assert "Variances of leviathan and leviathan-deep and dense-tied-deep: pooled over 3 comparisons" in text


def test_noise_that_differs_is_not_lent_and_the_report_says_so():
    arms = named(four_arms() | {"leviathan": make_arm(0.35, -0.3, noise=1.0)})
    wild, quiet, _ = paired("dense", pool=(ALIKE[:2],))(arms)
    for each in (wild, quiet):
        assert each.method == "t" and "not pooled, their spreads differ" in each.pooling
    assert quiet == dataclasses.replace(paired("dense")(arms)[1], pooling=quiet.pooling)
    text = markdown(differences(make_result(arms, comparisons=(wild, quiet))))
    assert "Variances of leviathan and leviathan-deep: not pooled, their spreads differ" in text


def test_a_diverged_arm_neither_lends_nor_borrows():
    arms = named(four_arms() | {"leviathan": make_arm(0.35, -0.3, diverge_at=3)})
    gone, *others = paired("dense", pool=(ALIKE,))(arms)
    assert gone.verdict == "not resolved" and gone.corrected_low is None
    assert all(each.pooling.startswith("pooled over 2") for each in others)


@pytest.mark.parametrize(
    ("pool", "told"),
    [((("nobody",),), "no arm 'nobody'; the arms are dense"), ((ALIKE, ALIKE[:1]), "'leviathan' is named twice")],
)
def test_groups_that_make_no_sense_are_refused(pool, told):
    with refuses(told):
        paired("dense", pool=pool)(named(four_arms()))


# ---------------------------------------------------------------------------------------------------------------------
# One part chooses, the other judges


def test_the_part_that_chose_does_not_judge():
    """The arm's advantage lies in the even sequences alone: it is none."""
    arms = {"dense": with_parts(make_arm(0.0, 0.0), 0.0, 0.0), "other": with_parts(make_arm(0.0, 0.0), -0.5, 0.2)}
    (comparison,) = paired("dense")(named(arms))
    assert comparison.part == "judging" and comparison.verdict == "worse"
    assert comparison.differences == pytest.approx([0.2] * 3, abs=1e-9)
    assert comparison.curve[-1].mean == pytest.approx(comparison.mean)
    whole = {name: dataclasses.replace(arm, judged="all") for name, arm in arms.items()}
    assert paired("dense")(named(whole))[0].mean == pytest.approx(0.0, abs=1e-9)


def test_rates_are_chosen_on_the_other_part():
    even, odd = with_parts(make_arm(0.0, 0.0), -0.1, 0.0).runs, with_parts(make_arm(0.0, 0.0), 0.0, -0.5).runs
    rows = [dataclasses.replace(row, learning_rate=0.1) for row in even] + list(odd)
    assert best_rate(rows, (0.003, 0.1)) == 0.1
    bare = [dataclasses.replace(row, evals=tuple(dataclasses.replace(e, halves=()) for e in row.evals)) for row in rows]
    assert best_rate(bare, (0.003, 0.1)) == 0.003  # rows of an earlier version: the same losses, the first


def test_the_scope_says_which_text_judged():
    results = make_result({name: with_parts(arm, 0.0, 0.0) for name, arm in four_arms().items()})
    results.settings.update(swept=True, learning_rates=[0.003, 0.01])
    assert "chosen on the validation sequences with even number" in markdown(scope(results))
    arms = {name: dataclasses.replace(arm, judged="all") for name, arm in results.arms.items()}
    assert "on the same validation text that judged" in markdown(scope(dataclasses.replace(results, arms=arms)))


def test_a_row_keeps_its_parts():
    (row, *_) = with_parts(make_arm(0.0, 0.0), -0.1, 0.1).runs
    assert Row.of(row.line) == row
    gone = dataclasses.replace(row.evals[-1], nll=math.nan, halves=(math.nan, 1.0))
    row = dataclasses.replace(row, evals=(*row.evals[:-1], gone), sequences=(math.nan, 1.0))
    again = Row.of(row.line)
    assert again.final_on("choosing") is None and again.final_on("judging") == 1.0 and again.sequences == (None, 1.0)
    old = {k: v for k, v in json.loads(row.line).items() if k not in ("sequences", "sha256")}
    old["evals"] = [{k: v for k, v in e.items() if k != "halves"} for e in old["evals"]]
    assert Row.of(json.dumps(old)).sequences == () and Row.of(json.dumps(old)).evals[0].halves == ()


# ---------------------------------------------------------------------------------------------------------------------
# Over text


@pytest.mark.parametrize("judged", ["all", "judging"])
def test_the_interval_over_text_is_over_sequences(judged):
    arms = {"dense": with_parts(make_arm(0.0, 0.0), 0.0, 0.0), "other": with_parts(make_arm(0.1, 0.0), -0.05, 0.05)}
    arms = named({name: dataclasses.replace(arm, judged=judged) for name, arm in arms.items()})
    (comparison,) = paired("dense")(arms)
    ours, theirs = (np.array([run.sequences for run in arms[name].runs]) for name in ("other", "dense"))
    means = (ours - theirs).mean(0)[slice(1, None, 2) if judged == "judging" else slice(None)]
    low, high = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    assert comparison.sequences == len(means) == (4 if judged == "judging" else 8)
    assert (comparison.text.mean, comparison.text.low) == pytest.approx((means.mean(), low))
    assert comparison.text.high == pytest.approx(high)
    assert f"| {comparison.sequences} |" in markdown(differences(make_result(arms, comparisons=(comparison,))))


def test_runs_without_sequences_have_no_interval_over_text():
    arms = named(four_arms())
    assert paired("dense")(arms)[0].text.mean is None and paired("dense")(arms)[0].sequences == 0
    control = next(made for known in CONTROLS for made in known(arms))
    assert control.sequences == 0 and control.p_margin == control.p_holm


def test_a_trained_pair_keeps_its_sequences():
    stream, config = tiny_stream(), tiny_config()
    arms = {"dense": config, "layer": dataclasses.replace(config, norm="layer")}
    result = pair(arms, stream, seeds=2, steps=3, learning_rates=(1e-2,), evaluations=2).results
    rows = sum(len(batch) for batch in stream.eval_batches())
    for arm in result.arms.values():
        for run in arm.runs:
            assert len(run.sequences) == rows and np.mean(run.sequences) == pytest.approx(run.final_nll, rel=1e-7)
            halves = [np.mean(run.sequences[start::2]) for start in (0, 1)]
            assert run.evals[-1].halves == pytest.approx(halves, rel=1e-7) and len(run.evals[0].halves) == 2
    (comparison,) = result.comparisons
    assert comparison.sequences == rows and comparison.text.mean == pytest.approx(comparison.mean, abs=1e-7)
