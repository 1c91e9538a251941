"""Power laws of the loss in size and tokens, with intervals, and how much more of either a reference would need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import UserError
from .huber import Floor, Noise, Problem
from .statistics import Number, check_confidence

Axes = Literal["N", "D", "ND"]

CONSTANTS = {"N": ("A", "alpha"), "D": ("B", "beta")}


class Estimate(NamedTuple):
    """A value with its interval; infinite where the runs leave it open."""

    value: float
    low: float
    high: float


class Multiplier(NamedTuple):
    """How many times as much the reference needs for the same loss. `extrapolated`: outside of what was measured."""

    value: float
    low: float
    high: float
    extrapolated: bool


@dataclass(frozen=True)
class Ladder:
    """The runs of one arm.

    **Arguments:**

    - `at`: the n rungs, parameters (N) or training tokens (D), `(n,)`; pairs (N, D) for the joint law, `(n, 2)`.
    - `losses`: nats a token of every seed at every rung, `(seeds, n)`.
    """

    at: Any
    losses: Any


@dataclass(frozen=True, eq=False)
class PowerLaws:
    """Fits of one or several arms: `fit_laws` makes them.

    `values` has the arms' constants, `(arms, 2 terms + 1)`: for each term the logarithm of its part of the loss at the
    `centre` and its exponent, then the floor; `draws` the same of every bootstrap replicate.
    """

    axes: Axes
    ladders: dict[str, tuple[np.ndarray, np.ndarray]]
    centre: np.ndarray
    values: Float[np.ndarray, "arms c"]
    draws: Float[np.ndarray, "draws arms c"]
    floor: Floor
    noise: Noise
    confidence: Number

    def constants(self, arm: str) -> dict[str, Estimate]:
        """`A`, `alpha`, (`B`, `beta`,) `b` of an arm, with intervals; a fixed `b` has one of no width."""
        value, draws, found = self._of(arm)
        for term, axis in enumerate(self.axes):
            scale, exponent = CONSTANTS[axis]
            a, slope = 2 * term, 2 * term + 1
            with np.errstate(over="ignore"):
                sizes = [np.exp(own[..., a] + own[..., slope] * self.centre[term]) for own in (value, draws)]
            found[scale] = self._interval(*sizes)
            found[exponent] = self._interval(value[slope], draws[:, slope])
        found["b"] = self._interval(value[-1], draws[:, -1])
        return found

    def loss(self, arm: str, at: Any) -> Estimate:
        """The law's loss at one place (of a joint law a pair), nats a token."""
        value, draws, _ = self._of(arm)
        place = self._place(at)
        return self._interval(_law(value, place), _law(draws, place))

    def multiplier(self, arm: str, reference: str, at: Any, axis: str = "") -> Multiplier:
        """How many times as many parameters or tokens `reference` needs for the loss of `arm` at `at`.

        **Arguments:** `at`: where the arm stands. `axis`: of a joint law "N" or "D", whichever is scaled; the other one
        is held.

        **Returns:** the multiplier; infinite where the loss is at or below all that the reference's law can reach.
        """
        term, place = self.axes.index(axis or self.axes[0]), self._place(at)
        (own, draws, _), (theirs, others, _) = self._of(arm), self._of(reference)
        found = self._interval(*(_needed(a, r, place, term) for a, r in ((own, theirs), (draws, others))))
        rungs, mine = self.ladders[reference][0][:, term], self.ladders[arm][0][:, term]
        there = math.log(found.value) + place[term] if found.value > 0 else -math.inf
        inside = _within(there + self.centre[term], rungs) and _within(place[term] + self.centre[term], mine)
        return Multiplier(*found, extrapolated=not inside)

    def _of(self, arm: str) -> tuple[np.ndarray, np.ndarray, dict[str, Estimate]]:
        if arm not in self.ladders:
            raise UserError(f"no arm {arm!r} was fitted; there are {', '.join(self.ladders)}")
        index = list(self.ladders).index(arm)
        return self.values[index], self.draws[:, index], {}

    def _place(self, at: Any) -> np.ndarray:
        return np.log(np.asarray(at, float).reshape(len(self.axes))) - self.centre

    def _interval(self, value: Any, draws: np.ndarray) -> Estimate:
        if not len(draws):
            return Estimate(float(value), -math.inf, math.inf)
        tail = (1 - self.confidence) / 2
        # Of the order statistics alone: between a number and infinity nothing can be interpolated.
        low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
        return Estimate(float(value), float(low), float(high))


def fit_laws(
    ladders: Mapping[str, Ladder],
    *,
    axes: Axes = "N",
    floor: Floor = "shared",
    noise: Noise | None = None,
    confidence: Number = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> PowerLaws:
    r"""Fits $L(N) = A N^{-\alpha} + b$, $L(D) = B D^{-\beta} + b$ or $L(N, D) = A N^{-\alpha} + B D^{-\beta} + b$.

    The fit is the least sum of Huber's function of $\log \hat L - \log L$ over all runs, as in Hoffmann et al. (arXiv
    2203.15556), from a grid of starts. Its threshold is 1.345 robust standard deviations of the arms' own residuals:
    their fixed 0.001 makes a fit of absolute values of most. The sum is taken to its minimum (a mean and a loose
    tolerance ended theirs early), and intervals are of the fit itself: Besiroglu et al., arXiv 2404.10102.

    Intervals are percentiles of refits, each with new noise. `noise="seeds"` shifts the rungs by a random combination
    of the seeds' own deviations from their mean: it covers whatever a seed does to several rungs, or to paired arms, at
    once. `noise="runs"` draws normal noise of the residuals' own size for every run, each arm's by itself: it needs no
    seeds, and takes runs as independent. Every replicate draws its standard deviation too, with the chi-squared
    distribution of its degrees of freedom, so that the percentiles of a linear fit are exactly Student's t interval.

    **Arguments:**

    - `ladders`: the runs of every arm by name.
    - `axes`: which law; the rungs of "ND" are pairs.
    - `floor`: the loss b that no size reaches: "shared" by all arms, "free" for each, or a number (1.69 in arXiv
      2203.15556 and 2601.22040).
    - `noise`: None is "seeds" where every arm has at least three, and the same number, else "runs".
    - `confidence`: of every interval. `draws`: replicates; `seed`: of their noise.

    **Raises:** `UserError`, in one line, for fewer rungs than constants, losses that are not finite and positive, a
    fixed floor that a loss is at or below.
    """
    check_confidence(confidence)
    read = {name: _read(name, ladder, len(axes)) for name, ladder in ladders.items()}
    _check(read, axes, floor)
    counts = {len(losses) for _, losses in read.values()}
    if noise is None:
        noise = "seeds" if len(counts) == 1 and min(counts) >= 3 else "runs"
    elif noise == "seeds" and (len(counts) > 1 or min(counts) < 2):
        raise UserError(
            f"noise='seeds': arms have {sorted(counts)} seeds; give all the same, at least 2, or noise='runs'"
        )
    centre = np.mean(np.concatenate([at for at, _ in read.values()]), axis=0)
    problem = Problem([at - centre for at, _ in read.values()], [y for _, y in read.values()], floor)
    theta, delta = problem.fit()
    rng, fitted = np.random.default_rng(seed), problem.log_losses(theta[None])[0]
    target = problem.logs + problem.noise(noise, problem.logs - fitted, rng, draws)
    if noise == "runs":
        target += fitted - problem.logs
    finite = np.isfinite(target).all()  # without a degree of freedom nothing is known of the noise
    again = problem.solve(np.repeat(theta[None], draws, 0), target, delta) if finite else np.empty((0, len(theta)))
    values, replicas = problem.constants(theta[None])[0], problem.constants(again)
    return PowerLaws(axes, read, centre, values, replicas, floor, noise, confidence)


def _law(constants: np.ndarray, place: np.ndarray) -> Any:
    return np.exp(constants[..., :-1:2] - constants[..., 1:-1:2] * place).sum(-1) + constants[..., -1]


def _needed(arm: np.ndarray, reference: np.ndarray, place: np.ndarray, term: int) -> Any:
    """The factor along one axis at which the reference has the arm's loss."""
    parts = np.exp(reference[..., :-1:2] - reference[..., 1:-1:2] * place)
    left = _law(arm, place) - reference[..., -1] - (parts.sum(-1) - parts[..., term])
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        factor = np.exp((np.log(parts[..., term]) - np.log(left)) / reference[..., 2 * term + 1])
    return np.where(left > 0, factor, np.inf)


def _within(x: float, rungs: np.ndarray) -> bool:
    return bool(rungs.min() - 1e-9 <= x <= rungs.max() + 1e-9)


def _read(name: str, ladder: Ladder, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """An arm's rungs as logarithms, `(n, terms)`, and its losses, `(seeds, n)`."""
    at, losses = np.asarray(ladder.at, float), np.atleast_2d(np.asarray(ladder.losses, float))
    at = at[:, None] if at.ndim == 1 else at
    if at.ndim != 2 or at.shape[1] != terms or losses.ndim != 2 or losses.shape[1] != len(at):
        raise UserError(
            f"arm {name}: rungs of shape {at.shape}, losses {losses.shape}; give (n, {terms}) and (seeds, n)"
        )
    for what, values in (("size or token count", at), ("loss", losses)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            bad = values[~(np.isfinite(values) & (values > 0))][0]
            raise UserError(f"arm {name}: a {what} of {bad:g}; each must be positive and finite: leave its rung out")
    return np.log(at), losses


def _check(read: Mapping[str, tuple[np.ndarray, np.ndarray]], axes: Axes, floor: Floor) -> None:
    """Raises `UserError` where the constants are more than the rungs, or a fixed floor is above a loss."""
    if not read:
        raise UserError("no arms to fit: give at least one")
    fixed = not isinstance(floor, str)
    law = [name for axis in axes for name in CONSTANTS[axis]] + ["b"] * (floor == "free")
    for name, (at, losses) in read.items():
        rungs = len(np.unique(at, axis=0))
        if rungs < len(law):
            raise UserError(
                f"arm {name}: {rungs} rungs for the {len(law)} constants {', '.join(law)}; give it at least {len(law)}"
                + ", or fix the floor" * (floor == "free")
            )
        if fixed and not 0 <= floor < losses.min():
            raise UserError(f"floor={floor}: arm {name} has a loss of {losses.min():.4g}; give less, or floor='shared'")
    total, wanted = sum(len(np.unique(at, axis=0)) for at, _ in read.values()), len(law) * len(read) + 1
    if floor == "shared" and total < wanted:
        raise UserError(
            f"{total} rungs in all for {wanted} constants, the shared floor b among them; give more, or fix the floor"
        )
