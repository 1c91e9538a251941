"""Pooled and anytime intervals, and Holm against the margin: what simulated studies say of their coverage and errors.

With HYPOTHESIS_PROFILE=slow every simulation has 2,000 studies, as its figures in docs/studies.md have; else fewer, and
bounds that are wider by what chance does (three standard errors of a share of 5%). `-s` shows the figures.
"""

import math
import os

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from eqx_slm.study.anytime import MIXTURE, anytime_interval, anytime_p, anytime_quantile
from eqx_slm.study.spread import half_width, inverse_trigamma, moderated, prior, seeds_for
from eqx_slm.study.statistics import Spread, holm_levels, mean_and_sd, p_value, paired_interval, verdict

MANY = 2000
STUDIES = MANY if os.environ.get("HYPOTHESIS_PROFILE") == "slow" else 200
SLACK = 0.0 if STUDIES == MANY else 3 * math.sqrt(0.05 * 0.95 / STUDIES)
values = st.floats(-10, 10, allow_subnormal=False).map(lambda value: round(value, 4))
samples = st.lists(st.lists(values, min_size=3, max_size=6), min_size=2, max_size=5)


def studies(sds, seeds, *, mean=0.0, shared=False, seed=0, count=STUDIES):
    """Differences (studies, arms, seeds) of these standard deviations; with one reference they correlate."""
    rng, sds = np.random.default_rng(seed), np.asarray(sds, float)[:, None]
    own = rng.normal(size=(count, len(sds), seeds)) * sds
    if shared:
        own = (own - rng.normal(size=(count, 1, seeds)) * sds) / math.sqrt(2)
    return own + np.asarray(mean, float).reshape(-1, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Moderated t


@given(st.floats(1e-3, 1e3))
def test_the_inverse_of_trigamma(value):
    assert special.polygamma(1, inverse_trigamma(value)) == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize(("d0", "sd0"), [(4.0, 0.5), (12.0, 3.0)])
def test_the_prior_is_that_of_the_variances(d0, sd0):
    """Many variances drawn as Smyth's model says: s0^2 d0 / chi^2(d0), times chi^2(d) / d."""
    rng, d, count = np.random.default_rng(1), 4, 20_000
    variances = sd0**2 * d0 / rng.chisquare(d0, count) * rng.chisquare(d, count) / d
    found, variance = prior([Spread(math.sqrt(v), d) for v in variances.tolist()])
    assert found == pytest.approx(d0, rel=0.1) and variance == pytest.approx(sd0**2, rel=0.05)


@given(samples)
def test_moderated_spreads_lie_between_own_and_common(groups):
    own = [mean_and_sd(group)[1] for group in groups]
    assume(min(own) > 1e-3)
    found = moderated(groups)
    assert [spread.sd for spread in found.spreads] == own or found.pooled
    for spread, sd, group in zip(found.spreads, own, groups, strict=True):
        assert min(own) * (1 - 1e-9) <= spread.sd <= max(own) * (1 + 1e-9) or math.isfinite(spread.sd)
        assert len(group) - 1 <= spread.df <= sum(len(each) - 1 for each in groups) and (
            found.pooled or spread.sd == sd
        )


def test_what_cannot_be_pooled_keeps_its_own():
    alone = moderated([[1.0, 2.0, 4.0]])
    assert not alone.pooled and alone.spreads[0].sd == pytest.approx(np.std([1.0, 2.0, 4.0], ddof=1))
    assert "nothing to pool with" in alone.told
    assert "no spread" in moderated([[1.0, 1.0, 1.0], [1.0, 2.0, 4.0]]).told
    unlike = moderated([[1.0, 2.0, 4.0, 3.0], [100.0, 900.0, -500.0, 50.0]])
    assert not unlike.pooled and "their spreads differ" in unlike.told


def coverage(differences):
    """Of the plain and of the moderated interval, by arm; how often variances were pooled; mean half-widths."""
    covered, pooled, lengths = np.zeros((2, differences.shape[1])), 0, np.zeros(2)
    for study in differences.tolist():
        found = moderated(study)
        pooled += found.pooled
        for arm, (own, spread) in enumerate(zip(study, found.spreads, strict=True)):
            for kind, interval in enumerate((paired_interval(own), paired_interval(own, spread=spread))):
                covered[kind, arm] += interval.low <= 0 <= interval.high
                lengths[kind] += (interval.high - interval.low) / differences[0].size
    return *(covered / len(differences)), pooled / len(differences), lengths[1] / lengths[0]


@pytest.mark.parametrize("arms", [2, 4])
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("shared", [False, True])
def test_intervals_of_like_noise_cover(arms, seeds, shared):
    plain, pooled, share, length = coverage(studies([1.0] * arms, seeds, shared=shared))
    print(f"like noise, {arms=} {seeds=} {shared=}: plain {plain.round(3)}, pooled {pooled.round(3)}, {share=:.2f}")
    assert 0.93 - SLACK <= plain.min() and plain.max() <= 0.97 + SLACK
    assert 0.93 - SLACK <= pooled.min() and pooled.max() <= 0.97 + SLACK
    assert share > 0.7 and length < 0.97  # it is worth it


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("sds", [(1, 10), (1, 1, 10), (1, 10, 10)])
def test_noise_that_differs_tenfold_is_not_pooled(sds, seeds):
    plain, pooled, share, _ = coverage(studies(sds, seeds))
    print(f"noise {sds}, {seeds=}: plain {plain.round(3)}, pooled {pooled.round(3)}, share {share:.3f}")
    assert pooled.min() >= 0.93 - SLACK and share < (0.15 if seeds == 3 else 0.02)


# ---------------------------------------------------------------------------------------------------------------------
# Intervals that hold whenever one stops


@pytest.mark.parametrize(("n", "t"), [(3, 0.7), (5, 2.0), (12, 3.1)])
def test_the_mixture_is_the_integral_that_it_stands_for(n, t):
    """Noncentral t over central t, mixed over standardised effects from N(0, MIXTURE)."""
    mixed, _ = integrate.quad(
        lambda effect: (
            stats.nct.pdf(t, n - 1, effect * math.sqrt(n)) * stats.norm.pdf(effect, scale=math.sqrt(MIXTURE))
        ),
        -15,
        15,
        points=[0.0, t / math.sqrt(n)],
        limit=200,
    )
    evidence = mixed / stats.t.pdf(t, n - 1)
    sample = np.random.default_rng(n).normal(size=n)
    sample = (sample - sample.mean()) / sample.std(ddof=1) + t / math.sqrt(n)
    assert anytime_p(sample.tolist()) == pytest.approx(min(1.0, 1 / evidence), rel=1e-5)
    if evidence > 1:  # at the level of this p the interval ends at zero
        interval = anytime_interval(sample.tolist(), confidence=1 - 1 / evidence)
        assert interval.low == pytest.approx(0.0, abs=1e-6)


@given(st.lists(values, min_size=2, max_size=12), st.floats(0, 3), st.sampled_from([0.8, 0.95, 0.99]))
def test_anytime_p_is_the_dual_of_the_interval(differences, margin, level):
    interval, p = anytime_interval(differences, confidence=level), anytime_p(differences, margin=margin)
    assume(abs(p - (1 - level)) > 1e-9)
    assert (interval.low > margin or interval.high < -margin) == (p < 1 - level)
    plain = paired_interval(differences, confidence=level)
    assert interval.low <= plain.low and plain.high <= interval.high  # what it costs


def test_one_difference_bounds_nothing_whenever_one_stops():
    assert anytime_interval([0.3])[1:] == (-math.inf, math.inf, 1) and anytime_p([9.0]) == 1.0
    assert anytime_quantile(1, 0.95) == math.inf and math.isfinite(anytime_quantile(3, 0.95))


def looks(differences):
    """Means and standard deviations after every number of seeds, (studies, arms, seeds)."""
    n = np.arange(1, differences.shape[-1] + 1)
    means = differences.cumsum(-1) / n
    squares = (differences**2).cumsum(-1) - n * means**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return means, np.sqrt(np.maximum(squares, 0) / (n - 1)), n


def ever_better(differences, quantiles, margin, first=3):
    """Whether an arm is ever called better, at any number of seeds from `first` on."""
    means, sd, n = looks(differences)
    high = means + np.asarray(quantiles) * sd / np.sqrt(n)
    return (high[..., first - 1 :] < -margin).any(axis=(1, 2))


@pytest.mark.parametrize(("arms", "mean", "margin"), [(1, 0.0, 0.0), (4, 0.0, 0.0), (4, -0.01, 0.01)])
def test_null_studies_stopped_at_any_time_seldom_say_better(arms, mean, margin):
    """Looked at after every seed from 3 to 50; all arms at the level of Bonferroni, where Holm's procedure starts."""
    differences = studies(np.geomspace(0.003, 0.03, arms), 50, mean=mean, shared=True, count=MANY)
    level = 1 - 0.05 / arms
    quantiles = [anytime_quantile(n, level) for n in range(1, 51)]
    false = ever_better(differences, quantiles, margin).mean()
    naive = ever_better(differences, [np.nan, *stats.t.ppf(1 - (1 - level) / 2, np.arange(1, 50))], margin).mean()
    print(f"anytime, {arms=} {mean=} {margin=}: ever better {false:.4f}; a t interval looked at as often {naive:.3f}")
    assert false <= 0.05 < naive


def test_the_sequence_covers_at_all_times_at_once():
    means, sd, n = looks(studies([1.0], 200, count=MANY))
    half = np.array([anytime_quantile(int(k), 0.95) for k in n]) * sd / np.sqrt(n)
    missed = (np.abs(means) > half)[..., 1:].any(axis=(1, 2)).mean()
    assert missed <= 0.05


@pytest.mark.parametrize(("effect", "most"), [(3.0, 9), (2.0, 12), (1.0, 30)])
def test_how_many_seeds_an_effect_takes(effect, most):
    """The median number until "better", for an effect beyond the margin of so many standard deviations."""
    means, sd, n = looks(studies([1.0], 60, mean=-effect, count=MANY))
    quantiles = np.array([anytime_quantile(int(k), 0.95) for k in n])
    better = (means + quantiles * sd / np.sqrt(n) < 0)[:, 0, :]
    taken = np.where(better.any(1), better.argmax(1) + 1, 61)
    print(f"anytime, effect {effect} SD: median {np.median(taken):.0f} seeds, 90% by {np.quantile(taken, 0.9):.0f}")
    assert 3 <= np.median(taken) <= most


# ---------------------------------------------------------------------------------------------------------------------
# Holm against the margin


MARGIN = 0.01
WIDE, QUIET = np.geomspace(0.0005, 0.05, 8), np.geomspace(1e-9, 0.001, 8)
FAMILIES = {
    "quiet arms at the margin": (np.full(8, -MARGIN), QUIET),
    "all at the margin": (np.full(8, -MARGIN), WIDE),
    "all at zero": (np.zeros(8), WIDE),
    "half far beyond": (np.where(np.arange(8) % 2, -MARGIN, 0.2), WIDE),
}


def judged(study, margin):
    """The verdicts of a study, with Holm's steps taken against `margin`."""
    p_values = [p_value(own, margin=margin) for own in study]
    levels = holm_levels(p_values)
    return [verdict(paired_interval(own, confidence=at), margin=MARGIN) for own, at in zip(study, levels, strict=True)]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_false_verdicts_of_eight_arms_of_unlike_spread(name, shared):
    """At the level of the family: any false better or worse, and any false "no difference beyond the margin"."""
    truth, sds = FAMILIES[name]
    false, alike, against_zero = 0, 0, 0
    wrong = np.abs(truth) <= MARGIN
    for study in studies(sds, 4, mean=truth, shared=shared).tolist():
        words = np.array(judged(study, MARGIN))
        false += np.isin(words[wrong], ("better", "worse")).any()
        alike += (words[np.abs(truth) >= MARGIN] == "no difference beyond the margin").any()
        if name.startswith("quiet"):  # rejected against zero, every arm would pass its step to the next
            against_zero += np.isin(judged(study, 0.0), ("better", "worse")).any()
    others = f"; with steps against zero {against_zero / STUDIES:.4f}" * name.startswith("quiet")
    print(f"Holm against the margin, {name}, {shared=}: false better or worse {false / STUDIES:.4f}", end="")
    print(f", false no difference {alike / STUDIES:.4f}{others}")
    assert false / STUDIES <= 0.05 + SLACK and alike / STUDIES <= 0.05 + SLACK
    assert not name.startswith("quiet") or shared or against_zero > false


# ---------------------------------------------------------------------------------------------------------------------
# Seeds


@given(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0), st.sampled_from([None, anytime_quantile]))
def test_the_number_of_seeds_is_the_least_that_does(room, sd, quantile):
    found = seeds_for(room, sd, quantile=quantile)
    if found is None:
        assert half_width(sd, 10_000, quantile=quantile) > room
        return
    assert half_width(sd, found, quantile=quantile) <= room < half_width(sd, found - 1, quantile=quantile)


def test_half_widths_are_those_of_power():
    wanted = {3: 2.48, 4: 1.59, 5: 1.24, 8: 0.84, 18: 0.50}
    assert {n: round(half_width(1.0, n), 2) for n in wanted} == wanted
    assert half_width(1.0, 1) == math.inf and seeds_for(0.0, 1.0) is None
