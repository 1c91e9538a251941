"""How often do the intervals of fitted power laws hold the constants that made the losses?

    python -m benchmarks fit_coverage

200 synthetic ladders of two arms, six sizes and three seeds, for every kind of floor and of noise: the least and the
most of the shares, over all constants and the multiplier, of 95% intervals that hold the truth.
"""

import numpy as np

from eqx_slm.study.fits import Ladder, fit_laws
from eqx_slm.study.huber import Floor, Noise

from .harness import Row, parser, show

SIZES = np.geomspace(1e6, 1e8, 6)
ARMS = {"dense": (406.4, 0.34, 1.69), "other": (480.0, 0.36, 1.69)}
AT, SD = 1e7, 0.01  # where the multiplier is asked; the noise of one run, as a share of its loss
CASES: tuple[tuple[Floor, Noise, int, float], ...] = (
    *((floor, "runs", 3, 0.0) for floor in ("shared", "free", 1.69)),
    *((floor, "seeds", 3, SD) for floor in ("shared", "free", 1.69)),
    ("shared", "runs", 1, 0.0),
    ("shared", "seeds", 5, SD),
)


def coverage(floor: Floor, noise: Noise, seeds: int, seed_sd: float, ladders: int, draws: int) -> dict[str, float]:
    """The share of intervals that hold the truth, by constant; `seed_sd` is noise that a seed has at every rung."""
    rng, hits = np.random.default_rng(0), []
    (scale, exponent, floor_loss), own = ARMS["dense"], ARMS["other"]
    multiplier = ((own[0] * AT ** -own[1] + own[2] - floor_loss) / scale) ** (-1 / exponent) / AT
    for trial in range(ladders):
        shared, runs = rng.normal(0, seed_sd, (seeds, 1)), {}
        for name, (a, alpha, b) in ARMS.items():
            noisy = np.exp(shared + rng.normal(0, SD, (seeds, len(SIZES))))
            runs[name] = Ladder(SIZES, (a * SIZES**-alpha + b) * noisy)
        fitted = fit_laws(runs, floor=floor, noise=noise, draws=draws, seed=trial)
        its = {"multiplier": (*fitted.multiplier("other", "dense", AT)[1:3], multiplier)}
        for name, true in ARMS.items():
            for (constant, e), t in zip(fitted.constants(name).items(), true, strict=True):
                if constant != "b" or isinstance(floor, str):
                    its[f"{name} {constant}"] = (e.low, e.high, t)
        hits.append({name: low <= true <= high for name, (low, high, true) in its.items()})
    return {name: float(np.mean([each[name] for each in hits])) for name in hits[0]}


def main() -> None:
    """Prints a line a case, and the row."""
    small = parser(__doc__).parse_args().small
    ladders, draws = (10, 50) if small else (200, 1000)
    every, sides = [], []
    for floor, noise, seeds, seed_sd in CASES:
        shares = coverage(floor, noise, seeds, seed_sd, ladders, draws)
        told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(f"floor {floor}, noise of {noise}, {seeds} seeds: {told}", flush=True)
        every += shares.values()
        sides.append(f"{floor} floor, {noise}, {seeds} seeds: {min(shares.values()):.3f} to {max(shares.values()):.3f}")
    said = f"{ladders} ladders; " + "; ".join(sides)
    least = Row("fit-coverage-least", min(every), ">= 0.90", "of 95% intervals hold the truth, least constant", said)
    most = Row("fit-coverage-most", max(every), "<= 0.98", "of 95% intervals hold the truth, most", said)
    show(least, most, small=small)


if __name__ == "__main__":
    main()
