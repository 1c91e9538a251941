"""Scaling laws over a series of studies: tables of fits and multipliers, their picture, and passes over the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .blocks import Block, Heading, Paragraph, Table
from .fits import Axes, Ladder, PowerLaws, fit_laws
from .huber import Floor
from .plot import BLACK, COLOURS, legend, log_axis, panels, picture, shorten, title
from .results import ArmResult, Results
from .sentences import human, number, percent, signed, span
from .series import SeriesSection

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

LAWS: dict[str, str] = {
    "N": "L(N) = A N^-alpha + b",
    "D": "L(D) = B D^-beta + b",
    "ND": "L(N, D) = A N^-alpha + B D^-beta + b",
}
WHAT = {"N": "parameters", "D": "tokens"}


@dataclass(frozen=True)
class Rung:
    """An arm at one size and one length: `size` in parameters of all kinds, `tokens` trained on, final `losses`, nats a
    token, one a seed. `passes`: how many over the training text, the last one in part; `cut`: of a part of it."""

    arm: str
    shape: str
    size: int
    tokens: int
    passes: int
    cut: bool
    losses: tuple[float | None, ...]


def rungs(series: Mapping[str, Results], factor: str = "arm") -> list[Rung]:
    """Every arm of every study: its level of `factor` is the arm, those of the other factors are its shape."""
    return [_rung(arm, results, factor) for results in series.values() for arm in results.arms.values()]


def _rung(arm: ArmResult, results: Results, factor: str) -> Rung:
    tokens, part = results.settings["tokens"], results.stream.get("train_tokens")
    text = part or (results.stream.get("tokens") or {}).get("train") or tokens  # a streamed source does not say
    shape = "-".join(level for name, level in arm.levels.items() if name != factor)
    losses = tuple(run.final_nll for run in arm.runs)
    size, name = arm.facts.parameters["total"], arm.levels.get(factor, arm.name)
    return Rung(name, shape, size, tokens, -(-tokens // text), part is not None, losses)


def ladders(found: Sequence[Rung], axes: Axes) -> dict[str, Ladder]:
    """The rungs of fresh text for one law by arm: of L(N) all sizes at the longest length, of L(D) all lengths of the
    largest shape, of L(N, D) all. A rung with a diverged run is left out."""
    fresh = [rung for rung in found if rung.passes == 1 and not rung.cut and None not in rung.losses]
    longest = max((rung.tokens for rung in fresh), default=0)
    made: dict[str, Ladder] = {}
    for arm in dict.fromkeys(rung.arm for rung in fresh):
        own = [rung for rung in fresh if rung.arm == arm]
        largest = max(own, key=lambda rung: rung.size).size
        if axes != "ND":
            own = [rung for rung in own if (rung.tokens == longest if axes == "N" else rung.size == largest)]
        chosen = sorted(own, key=lambda rung: (rung.size, rung.tokens))
        at = [[{"N": rung.size, "D": rung.tokens}[axis] for axis in axes] for rung in chosen]
        made[arm] = Ladder(at, np.array([rung.losses for rung in chosen], float).T)
    return made


def laws(floors: Sequence[Floor] = ("shared", "free", 1.69), axes: Sequence[Axes] = ("N", "D", "ND")) -> SeriesSection:
    """Sections: the fits of every law at every kind of floor, their picture, and multipliers of the first arm.

    1.69 nats is the floor of another corpus and another tokenizer (arXiv 2203.15556): it is there to be compared with.
    """

    def section(series: Mapping[str, Results]) -> list[Block]:
        found, fits, refused = rungs(series), [], []
        for law in axes:
            for floor in floors:
                try:
                    fits.append(fit_laws(ladders(found, law), axes=law, floor=floor))
                except UserError as error:
                    refused.append(Paragraph(f"{LAWS[law]}, floor {floor}: {error}.", bullet=True))
        blocks: list[Block] = [Heading("Scaling laws", 1), *_told(found, fits), *_constants(fits), *refused]
        shown = [next(fit for fit in fits if fit.axes == law) for law in dict.fromkeys(f.axes for f in fits)]
        drawn = [fit for fit in shown if len(fit.axes) == 1]
        if drawn:
            alt = "loss against size and tokens with the fitted laws"
            blocks.append(picture("laws", alt, draw_laws, drawn))
        return [*blocks, *_multipliers(fits)]

    return section


def _told(found: Sequence[Rung], fits: Sequence[PowerLaws]) -> Iterator[Block]:
    lengths, seeds = sorted({rung.tokens for rung in found}), max(len(rung.losses) for rung in found)
    longest = human(lengths[-1])
    yield Paragraph(
        f"Losses are final validation losses in nats a token, N counts all parameters, D training tokens; L(N) at "
        f"{longest} tokens, L(D) at each arm's largest shape. {seeds} seeds a rung; no rung of a fit diverged or saw a "
        "token twice."
    )
    if fits:
        kinds = {"seeds": "over seeds", "runs": "over runs, taken as independent"}
        said = " and ".join(dict.fromkeys(kinds[fit.noise] for fit in fits))
        yield Paragraph(
            f"Fits: least Huber losses of log residuals. Intervals: {percent(fits[0].confidence)}, bootstrap {said}; "
            "they are of the fit and do not say that the law holds."
        )


def _constants(fits: Sequence[PowerLaws]) -> Iterator[Block]:
    for law in dict.fromkeys(fit.axes for fit in fits):
        rows, names = [], []
        for fit in (fit for fit in fits if fit.axes == law):
            for arm in fit.ladders:
                found = fit.constants(arm)
                names = list(found)
                cells = [f"{e.value:.4g} ({e.low:.4g} to {e.high:.4g})" for e in found.values()]
                if not isinstance(fit.floor, str):
                    cells[-1] = f"{fit.floor:g} (fixed)"
                rows.append([str(fit.floor), arm, *cells])
        yield Heading(LAWS[law])
        yield Table(["floor b", "arm", *names], rows, left=2)


def _multipliers(fits: Sequence[PowerLaws]) -> Iterator[Block]:
    rows = []
    for fit in fits:
        reference, *others = fit.ladders
        # Every rung under the first floor, else the last alone: the largest size, the most tokens.
        every = len(fit.axes) == 1 and fit.floor == fits[0].floor
        for arm in others:
            places = np.exp(fit.ladders[arm][0])
            for at, axis in itertools.product(places if every else places[-1:], fit.axes):
                m = fit.multiplier(arm, reference, at, axis)
                place = ", ".join(f"{human(float(x))} {WHAT[name]}" for x, name in zip(at, fit.axes, strict=True))
                cells = [LAWS[fit.axes].partition(" =")[0], str(fit.floor), arm, place, f"{m.value:.3g}x {WHAT[axis]}"]
                rows.append([*cells, f"{m.low:.3g} to {m.high:.3g}", "extrapolated" if m.extrapolated else "measured"])
    if rows:
        first = next(iter(fits[0].ladders))
        yield Heading("Multipliers")
        yield Paragraph(
            f"How many times as many parameters or tokens {first} would need for the loss that the arm's law has "
            f"there; extrapolated where that is outside of what {first} was measured at."
        )
        yield Table(["law", "floor b", "arm", "at", "multiplier", "interval", "range"], rows, left=4)


def passes(series: Mapping[str, Results]) -> list[Block]:
    """A section: what each arm loses against the first as the same tokens are more passes over less text."""
    repeated = {name: results for name, results in series.items() if "train_tokens" in results.stream}
    rows = []
    for results in repeated.values():
        for rung, arm in zip(rungs({"": results}), results.arms.values(), strict=True):
            its = next((each for each in results.comparisons if each.arm == arm.name), None)
            told = [signed(its.mean), span(its.low, its.high), its.verdict] if its else ["", "", "reference"]
            unique = human(results.stream["train_tokens"])
            rows.append([arm.name, str(rung.passes), unique, number(arm.mean("final_nll")), *told])
    if not rows:
        return []
    tokens = human(next(iter(repeated.values())).settings["tokens"])
    return [
        Heading("Passes over the data"),
        Paragraph(f"Every run reads {tokens} tokens; more passes are over a smaller part of the same text."),
        Table(["arm", "passes", "distinct tokens", "loss", "difference", "interval", "verdict"], rows),
    ]


def draw_laws(fits: Sequence[PowerLaws], width: float) -> Figure:
    """Losses against size or tokens, a panel a law: every run a point, the law a line, its interval a band."""
    figure, axes = panels(width, [4.2] * len(fits))
    lines: dict[str, Any] = {}
    for panel, fit in zip(axes, fits, strict=True):
        lines |= _draw(panel, fit)
    legend(figure, width, list(lines.values()), [*map(shorten, lines)])
    return figure


def _draw(panel: Panel, fit: PowerLaws) -> dict[str, Any]:
    """The lines by arm."""
    lines = {}
    for index, (arm, (at, losses)) in enumerate(fit.ladders.items()):
        colour = BLACK if index == 0 else COLOURS[(index - 1) % len(COLOURS)]
        measured = np.exp(at[:, 0])
        panel.plot(np.tile(measured, len(losses)), losses.ravel(), ".", color=colour, alpha=0.5)
        inside = np.geomspace(measured.min(), measured.max(), 40)
        beyond = np.geomspace(measured.max(), measured.max() ** 1.5 / measured.min() ** 0.5, 20)
        for where, dash in ((beyond, ":"), (inside, "-")):
            law = np.array([fit.loss(arm, x) for x in where])
            (lines[arm],) = panel.plot(where, law[:, 0], dash, color=colour)
            if np.isfinite(law).all():
                panel.fill_between(where, law[:, 1], law[:, 2], color=colour, alpha=0.15, linewidth=0)
    log_axis(panel)
    panel.set_xlabel({"N": "parameters", "D": "training tokens"}[fit.axes] + " (log scale)")
    panel.set_ylabel("validation loss (nats per token)")
    title(panel, LAWS[fit.axes], [f"floor b {fit.floor}; dotted: extrapolated; bands: {percent(fit.confidence)}"])
    return lines
