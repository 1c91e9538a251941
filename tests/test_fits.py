"""Power laws: constants that are known, scipy's own fit, and intervals that cover as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from scipy.optimize import least_squares

from eqx_slm import UserError
from eqx_slm.study.fits import Ladder, fit_laws

SIZES = np.geomspace(1e5, 3e7, 6)
TRUE = {"dense": (406.4, 0.34, 1.69), "other": (300.0, 0.36, 1.69)}


def law(at, scale, exponent, floor):
    return scale * at**-exponent + floor


def ladders(rng=None, *, seeds=3, sd=0.01, shared_sd=0.0):
    """Both arms' runs; with `rng` normal noise of the logarithm, of which a part is a seed's at every rung and arm."""
    found, own = {}, 0.0 if rng is None else rng.normal(0, shared_sd, (seeds, 1))
    for name, constants in TRUE.items():
        noise = np.zeros((seeds, len(SIZES))) if rng is None else rng.normal(0, sd, (seeds, len(SIZES))) + own
        found[name] = Ladder(SIZES, law(SIZES, *constants) * np.exp(noise))
    return found


@settings(max_examples=20)
@given(
    scale=st.floats(10, 1000),
    exponent=st.floats(0.15, 0.9),
    floor=st.floats(0.5, 3),
    kind=st.sampled_from(["free", "shared", "fixed"]),
)
def test_exact_losses_give_their_constants(scale, exponent, floor, kind):
    how = floor if kind == "fixed" else kind
    fitted = fit_laws({"arm": Ladder(SIZES, law(SIZES, scale, exponent, floor))}, floor=how, draws=2)
    found = fitted.constants("arm")
    assert [found[name].value for name in ("A", "alpha", "b")] == pytest.approx([scale, exponent, floor], rel=1e-3)
    assert fitted.loss("arm", 1e6).value == pytest.approx(law(1e6, scale, exponent, floor), rel=1e-6)


def test_scipy_finds_nothing_better():
    """The same Huber function, from the constants that made the runs: an outlier among them."""
    runs = ladders(np.random.default_rng(3))["dense"]
    runs.losses[1, 2] += 0.5
    fitted = fit_laws({"dense": runs}, floor="free", draws=2).constants("dense")
    logs, at = np.log(runs.losses).ravel(), np.tile(SIZES, 3)

    def residuals(x):
        return np.log(np.exp(x[0]) * at ** -x[1] + x[2]) - logs

    ours = np.array([math.log(fitted["A"].value), fitted["alpha"].value, fitted["b"].value])
    plain = least_squares(residuals, [math.log(406.4), 0.34, 1.69], xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    size = 1.4826 * np.median(np.abs(residuals(plain))) * math.sqrt(18 / 15)
    huber = dict(loss="huber", f_scale=1.345 * size, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    theirs = least_squares(residuals, ours, **huber)
    assert least_squares(residuals, [math.log(406.4), 0.34, 1.69], **huber).cost >= theirs.cost * (1 - 1e-9)
    assert ours == pytest.approx(theirs.x, rel=1e-4)
    assert abs(ours[1] - 0.34) < abs(plain[1] - 0.34)  # least squares goes further after the outlier


def test_the_units_of_size_do_not_matter():
    runs = ladders(np.random.default_rng(1))
    counts = {name: Ladder(np.asarray(each.at) / 1e6, each.losses) for name, each in runs.items()}
    (a, b), (c, d) = (
        (fitted.constants("other"), fitted.multiplier("other", "dense", at))
        for fitted, at in ((fit_laws(runs), 1e6), (fit_laws(counts), 1.0))
    )
    assert a["alpha"] == pytest.approx(c["alpha"], rel=1e-6) and a["b"] == pytest.approx(c["b"], rel=1e-6)
    assert a["A"].value == pytest.approx(c["A"].value * 1e6 ** a["alpha"].value, rel=1e-6)
    assert b[:3] == pytest.approx(d[:3], rel=1e-6)


def test_multipliers_are_the_ratio_of_sizes_of_equal_loss():
    fitted = fit_laws(ladders(), draws=2)
    (a, alpha, b), own = TRUE["dense"], law(1e6, *TRUE["other"])
    wanted = ((own - b) / a) ** (-1 / alpha) / 1e6
    found = fitted.multiplier("other", "dense", 1e6)
    assert found.value == pytest.approx(wanted, rel=1e-3) and found.value > 1 and not found.extrapolated
    assert fitted.multiplier("other", "other", 1e6).value == pytest.approx(1)
    back = fitted.multiplier("dense", "other", 1e6 * wanted)
    assert back.value == pytest.approx(1 / wanted, rel=1e-3)
    assert fitted.multiplier("other", "dense", SIZES[-1]).extrapolated  # dense would need more than its largest
    assert fitted.multiplier("dense", "other", 10 * SIZES[-1]).extrapolated


def test_a_loss_that_the_reference_never_reaches_takes_infinitely_much():
    runs = {"low": Ladder(SIZES, law(SIZES, 50, 0.3, 1.0)), "high": Ladder(SIZES, law(SIZES, 400, 0.4, 3.0))}
    found = fit_laws(runs, floor="free", draws=20).multiplier("low", "high", SIZES[-1])
    assert found.value == math.inf and found.extrapolated


def test_both_axes_at_once():
    at = np.array([(n, d) for n in np.geomspace(1e5, 1e7, 4) for d in np.geomspace(1e6, 1e8, 4)])
    losses = 400 * at[:, 0] ** -0.34 + 410 * at[:, 1] ** -0.28 + 1.7
    fitted = fit_laws({"arm": Ladder(at, losses)}, axes="ND", floor="free", draws=2)
    found = {name: estimate.value for name, estimate in fitted.constants("arm").items()}
    assert found == pytest.approx({"A": 400, "alpha": 0.34, "B": 410, "beta": 0.28, "b": 1.7}, rel=1e-2)
    assert fitted.multiplier("arm", "arm", (1e6, 1e7), axis="D")[:3] == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("noise", ["runs", "seeds"])
@pytest.mark.parametrize("floor", [1.69, "shared"])
def test_intervals_cover(noise, floor):
    """48 ladders (benchmarks/fit_coverage.py takes 200); a binomial of 0.95 has fewer than 41 one time in 400."""
    rng, hits = np.random.default_rng(7), []
    wanted = ((law(1e6, *TRUE["other"]) - 1.69) / TRUE["dense"][0]) ** (-1 / TRUE["dense"][1]) / 1e6
    for trial in range(48):
        # What a seed does to all of its runs is nothing to runs that are taken as independent: only seeds see it.
        runs = ladders(rng, shared_sd=0.02 if noise == "seeds" else 0.0)
        fitted = fit_laws(runs, floor=floor, noise=noise, draws=200, seed=trial)
        intervals = [(*fitted.multiplier("other", "dense", 1e6)[1:3], wanted)]
        for name, true in TRUE.items():
            intervals += [(e.low, e.high, t) for e, t in zip(fitted.constants(name).values(), true, strict=True)]
        hits.append([low <= true <= high for low, high, true in intervals])
    assert (np.sum(hits, 0) >= 41).all()


def test_seeds_or_runs_is_chosen_by_what_there_is():
    assert fit_laws(ladders(), draws=2).noise == "seeds"
    assert fit_laws(ladders(seeds=2), draws=2).noise == "runs"
    single = fit_laws({"arm": Ladder(SIZES[:3], law(SIZES[:3], *TRUE["dense"]))}, floor="free")
    assert single.constants("arm")["b"].low == -math.inf  # three rungs, three constants: no noise is known
    assert single.multiplier("arm", "arm", 1e6).high == math.inf


BASE = Ladder(SIZES, law(SIZES, *TRUE["dense"]))


@pytest.mark.parametrize(
    ("runs", "options", "told"),
    [
        ({}, {}, "no arms"),
        (
            {"a": Ladder(SIZES[:2], BASE.losses[:2])},
            {"floor": "free"},
            "a: 2 rungs for the 3 constants A, alpha, b",
        ),
        ({"a": Ladder(SIZES[:1], BASE.losses[:1])}, {"floor": 1.69}, "1 rungs for the 2 constants A, alpha"),
        ({"a": Ladder([1e6] * 6, BASE.losses)}, {"floor": 1.0}, "1 rungs for the 2 constants"),
        ({"a": Ladder(SIZES[:2], BASE.losses[:2])}, {}, "2 rungs in all for 3 constants"),
        ({"a": Ladder(SIZES[:3], BASE.losses[:3])}, {"axes": "ND"}, "rungs of shape"),
        ({"a": BASE}, {"floor": 9.0}, "floor=9.0: arm a has a loss of"),
        ({"a": Ladder(SIZES, BASE.losses * math.nan)}, {}, "arm a: a loss of nan"),
        ({"a": Ladder(-SIZES, BASE.losses)}, {}, "arm a: a size or token count of -"),
        ({"a": BASE}, {"noise": "seeds"}, r"noise='seeds': arms have \[1\] seeds"),
        ({"a": BASE}, {"confidence": 95}, "confidence"),
    ],
)
def test_refused_in_one_line(runs, options, told):
    with refuses(told):
        fit_laws(runs, **options)


def test_an_unknown_arm():
    with pytest.raises(UserError, match="no arm 'b' was fitted; there are a"):
        fit_laws({"a": BASE}, draws=2).constants("b")
