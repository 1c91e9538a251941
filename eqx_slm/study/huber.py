"""Huber fits of power laws, many replicates at once: Levenberg and Marquardt's method in numpy.

A fit is small and a bootstrap takes thousands of them: one after another they would take minutes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

Floor = Literal["shared", "free"] | float | int
Noise = Literal["seeds", "runs"]

HUBER = 1.345  # standard deviations: 95% of the efficiency of least squares where noise is normal
EXPONENTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.8, 1.2)  # where fits start, at these shares of the lowest loss as floors
SHARES = (0.02, 0.3, 0.6, 0.8, 0.95)
SLOWEST, STEEPEST = math.log(1e-3), math.log(10.0)  # an exponent's bounds
NO_FLOOR = math.log(1e-6)  # a floor below it is none


class Problem:
    """All runs of all arms as one fit, of many replicates at a time.

    Replicates are rows: `theta`, `(b, p)`, holds for every arm and term the log of its part of the loss at the centre
    and the log of its exponent, and then the logs of the floors, as many as are free.
    """

    def __init__(self, places: list[np.ndarray], losses: list[np.ndarray], floor: Floor):
        self.arms, self.terms, self.floor = len(places), places[0].shape[1], floor
        self.seeds = [len(y) for y in losses]
        self.logs = np.concatenate([np.log(y).ravel() for y in losses])
        self.at = np.concatenate([np.tile(x, (len(y), 1)) for x, y in zip(places, losses, strict=True)])
        self.arm = np.repeat(np.arange(self.arms), [y.size for y in losses])
        self.rows = np.arange(len(self.logs))
        self.floors = 1 if floor == "shared" else self.arms if floor == "free" else 0
        self.laws = 2 * self.terms * self.arms
        self.own = 2 * self.terms + self.floors / self.arms  # constants an arm
        self.lowest = np.exp(self.logs.min())

    def fit(self) -> tuple[np.ndarray, np.ndarray]:
        """The best of all starts: least squares, then Huber's with each run's own threshold, `(m,)`."""
        starts = self.starts()
        theta = self.best(self.solve(starts, self.logs, np.full(len(self.logs), np.inf)), np.inf)
        delta = self.thresholds(theta)
        again = self.solve(np.concatenate([theta[None], starts]), self.logs, delta)
        theta = self.best(again, delta)
        return theta, delta

    def best(self, thetas: np.ndarray, delta: Any) -> np.ndarray:
        return thetas[np.argmin(_huber(self.log_losses(thetas) - self.logs, delta).sum(1))]

    def starts(self) -> np.ndarray:
        shares = SHARES if self.floors else (None,)
        made = []
        for exponent in EXPONENTS:
            for share in shares:
                floor = self.lowest * share if share is not None else float(self.floor)
                left = np.log(np.maximum(np.exp(self.logs) - floor, 1e-3)) - math.log(self.terms)
                heights = [np.mean((left + exponent * x)[self.arm == g]) for g in range(self.arms) for x in self.at.T]
                law = np.stack([heights, np.full(len(heights), math.log(exponent))], 1).ravel()
                made.append(np.concatenate([law, np.full(self.floors, math.log(floor) if self.floors else 0.0)]))
        return np.array(made)

    def thresholds(self, theta: np.ndarray) -> np.ndarray:
        residuals, sizes = self.log_losses(theta[None])[0] - self.logs, np.empty(self.arms)
        for g in range(self.arms):
            own = np.abs(residuals[self.arm == g])
            sizes[g] = 1.4826 * np.median(own) * math.sqrt(len(own) / max(len(own) - self.own, 1.0))
        return HUBER * np.maximum(sizes, 1e-9)[self.arm]

    def _parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of every run the exponents and the parts of its loss, `(b, m, terms)` each, and its floor, `(b, m)`."""
        law = theta[:, : self.laws].reshape(len(theta), self.arms, self.terms, 2)[:, self.arm]
        slope = np.exp(law[..., 1])
        return slope, np.exp(law[..., 0] - slope * self.at), self._floors(theta)[:, self.arm]

    def log_losses(self, theta: np.ndarray) -> np.ndarray:
        """Log losses `(b, m)`."""
        _, parts, floors = self._parts(theta)
        return np.log(parts.sum(2) + floors)

    def predict(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Log losses `(b, m)` and their derivatives `(b, m, p)`."""
        slope, parts, floors = self._parts(theta)
        total = parts.sum(2) + floors
        jacobian = np.zeros((len(theta), len(self.rows), theta.shape[1]))
        for term in range(self.terms):
            column, share = 2 * (self.terms * self.arm + term), parts[..., term] / total
            jacobian[:, self.rows, column] = share
            jacobian[:, self.rows, column + 1] = -share * slope[..., term] * self.at[:, term]
        if self.floors:
            jacobian[:, self.rows, self.laws + self.arm % self.floors] = floors / total
        return np.log(total), jacobian

    def _floors(self, theta: np.ndarray) -> np.ndarray:
        if not self.floors:
            return np.full((len(theta), self.arms), float(self.floor))
        return np.exp(theta[:, self.laws + np.arange(self.arms) % self.floors])

    def solve(self, theta: np.ndarray, target: np.ndarray, delta: np.ndarray, steps: int = 200) -> np.ndarray:
        """Levenberg and Marquardt's method on reweighted residuals, all replicates at once; what converged rests."""
        theta, damping, live = theta.copy(), np.full(len(theta), 1e-3), np.arange(len(theta))
        target = np.broadcast_to(target, (len(theta), len(self.logs)))
        eye = np.eye(theta.shape[1])
        for _ in range(steps):
            guess, jacobian = self.predict(theta[live])
            residuals = guess - target[live]
            weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
            weighted = jacobian * weights[..., None]
            normal = weighted.transpose(0, 2, 1) @ jacobian
            gradient = np.einsum("bmp,bm->bp", weighted, residuals)
            scale = np.maximum(np.diagonal(normal, axis1=1, axis2=2), 1e-12)
            damped = normal + (damping[live, None] * scale)[..., None] * eye
            step = -np.linalg.solve(damped, gradient[..., None])[..., 0]
            tried = self._bounded(theta[live] + np.clip(step, -2.0, 2.0))
            before = _huber(residuals, delta).sum(1)
            after = _huber(self.log_losses(tried) - target[live], delta).sum(1)
            better = after <= before
            moved = np.abs(tried - theta[live]).max(1)
            theta[live[better]] = tried[better]
            damping[live] = np.clip(damping[live] * np.where(better, 0.2, 8.0), 1e-12, 1e12)
            live = live[~((moved < 1e-9) | (better & (before - after <= 1e-13 * before) & (moved < 1e-4)))]
            if not len(live):
                break
        return theta

    def _bounded(self, theta: np.ndarray) -> np.ndarray:
        theta = theta.copy()
        theta[:, 1 : self.laws : 2] = np.clip(theta[:, 1 : self.laws : 2], SLOWEST, STEEPEST)
        theta[:, self.laws :] = np.clip(theta[:, self.laws :], NO_FLOOR, math.log(self.lowest) + 1)
        return theta

    def constants(self, theta: np.ndarray) -> np.ndarray:
        """`PowerLaws.values` of every replicate, `(b, arms, 2 terms + 1)`."""
        law = theta[:, : self.laws].reshape(len(theta), self.arms, self.terms, 2).copy()
        law[..., 1] = np.exp(law[..., 1])
        return np.concatenate([law.reshape(len(theta), self.arms, 2 * self.terms), self._floors(theta)[..., None]], 2)

    def noise(self, kind: Noise, residuals: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
        """New noise of every run, `(draws, m)`; not finite where there are no degrees of freedom for it."""
        parts, seeds = [], self.seeds[0]
        signs = rng.standard_normal((draws, seeds)) * _spread(max(seeds - 1.0, 0.1), rng, draws)
        for g, count in enumerate(self.seeds):
            own = residuals[self.arm == g].reshape(count, -1)
            if kind == "seeds":
                # Of covariance (sample covariance over seeds) / seeds, as the mean of the seeds has; the same for all.
                shift = signs @ (own - own.mean(0)) / math.sqrt(seeds * (seeds - 1))
                parts.append(np.tile(shift, (1, count)))
            else:
                freedom = own.size - self.own
                size = math.sqrt(np.sum(own**2) / freedom) if freedom > 0 else math.nan
                parts.append(size * rng.standard_normal((draws, own.size)) * _spread(max(freedom, 0.1), rng, draws))
        return np.concatenate(parts, 1)


def _spread(freedom: float, rng: np.random.Generator, draws: int) -> np.ndarray:
    """A standard deviation over its estimate, as chi-squared noise leaves it open, `(draws, 1)`."""
    return np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))


def _huber(residuals: np.ndarray, delta: Any) -> np.ndarray:
    """Huber's function: half the square up to `delta`, and straight on from there."""
    size = np.abs(residuals)
    inside = np.minimum(size, delta)
    return inside * (size - 0.5 * inside)
