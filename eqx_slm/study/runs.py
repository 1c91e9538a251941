"""Two arms' runs put side by side, seed by seed, with the checks that make their differences paired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class PairedRuns(NamedTuple):
    """What two arms' runs say about each other; every difference is arm minus reference, nats a token."""

    arm: str
    reference: str
    seeds: list[int]
    differences: list[float | None]
    """The final difference of each seed; `None` where one of the two runs diverged."""
    tokens: list[int]
    """The token counts at which both runs of every seed have a finite loss."""
    curves: list[list[float]]
    """For each seed its difference at each of `tokens`."""
    diverged: dict[str, list[int]]
    """For each of the two arms the seeds that diverged."""

    @property
    def complete(self) -> list[float] | None:
        """The final differences where no run diverged, else `None`: the seeds that survive are not a fair sample."""
        values = [value for value in self.differences if value is not None]
        return values if len(values) == len(self.differences) else None


def finite(value: Any) -> float | None:
    """A number as a float; `None` for `None`, NaN and infinities, which is how a result stores them."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def has_diverged(run: Mapping[str, Any]) -> bool:
    """Whether a run says so itself or ended at a loss that is not finite."""
    return bool(run.get("diverged")) or finite(run["final_nll"]) is None


def pair_runs(result_arms: Mapping[str, Any], arm: str, reference: str) -> PairedRuns:
    """Pair the runs of two arms by seed.

    **Arguments:** `result_arms`: the "arms" part of a result. `arm`, `reference`: two of its names.

    **Returns:** the differences. Raises `ValueError` where the arms were not run with the same seeds, a seed occurs
    twice, or runs that did not diverge were evaluated at different token counts: such differences would not be
    paired.
    """
    runs, others = _by_seed(result_arms, arm), _by_seed(result_arms, reference)
    if set(runs) != set(others):
        raise ValueError(
            f"arms {arm!r} and {reference!r} cannot be paired: seeds {sorted(runs)} against {sorted(others)}; "
            "run both with the same seeds"
        )
    seeds = sorted(runs)
    _check_tokens({(name, seed): by[seed] for name, by in ((arm, runs), (reference, others)) for seed in seeds})
    differences: list[float | None] = []
    losses: list[tuple[dict[int, float], dict[int, float]]] = []
    for seed in seeds:
        broken = has_diverged(runs[seed]) or has_diverged(others[seed])
        differences.append(None if broken else float(runs[seed]["final_nll"]) - float(others[seed]["final_nll"]))
        losses.append((_losses(runs[seed]), _losses(others[seed])))
    tokens = sorted(set.intersection(*(set(ours) & set(theirs) for ours, theirs in losses)))
    return PairedRuns(
        arm=arm,
        reference=reference,
        seeds=seeds,
        differences=differences,
        tokens=tokens,
        curves=[[ours[count] - theirs[count] for count in tokens] for ours, theirs in losses],
        diverged={
            name: [seed for seed in seeds if has_diverged(by[seed])] for name, by in ((arm, runs), (reference, others))
        },
    )


def _by_seed(result_arms: Mapping[str, Any], name: str) -> dict[int, Mapping[str, Any]]:
    if name not in result_arms:
        raise ValueError(f"there is no arm {name!r}; the arms are {', '.join(map(repr, result_arms))}")
    runs = result_arms[name]["runs"]
    by_seed = {int(run["seed"]): run for run in runs}
    if not runs or len(by_seed) != len(runs):
        raise ValueError(f"arm {name!r} needs one run a seed, got seeds {[run['seed'] for run in runs]}")
    return by_seed


def _check_tokens(runs: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    # A diverged run may have been stopped early; every other one has to have seen what the first of them saw.
    expected: tuple[tuple[str, int], list[int]] | None = None
    for key, run in runs.items():
        counts = [int(point["tokens"]) for point in run["evals"]]
        if has_diverged(run):
            continue
        if not counts:
            raise ValueError(f"arm {key[0]!r}, seed {key[1]} has no evaluation; evaluate each run at least at its end")
        if expected is None:
            expected = key, counts
        elif counts != expected[1]:
            first, other = expected[1], counts
            at = next((pair for pair in zip(first, other, strict=False) if pair[0] != pair[1]), (first[-1], other[-1]))
            raise ValueError(
                f"token counts disagree: arm {expected[0][0]!r}, seed {expected[0][1]} has {len(first)} evaluations, "
                f"arm {key[0]!r}, seed {key[1]} has {len(other)}, first apart at {at[0]} against {at[1]} tokens; "
                "train and evaluate every arm at the same tokens"
            )


def _losses(run: Mapping[str, Any]) -> dict[int, float]:
    found = {int(point["tokens"]): finite(point["nll"]) for point in run["evals"]}
    return {count: nll for count, nll in found.items() if nll is not None}
