"""The sections of a report that are pictures: curves, a forest of differences, ledger bars, loss against cost."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from .blocks import Block
from .pareto import front
from .plot import (
    BAND,
    BLACK,
    FONT,
    GREY,
    INK,
    WIDE,
    draw_curves,
    legend,
    log_axis,
    looks,
    panels,
    picture,
    shorten,
    signed_axis,
    title,
)
from .results import ArmResult, Comparison, Results
from .sentences import human, signed
from .statistics import Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Section = Callable[[Results], list[Block]]
Cost = Literal["flops", "parameters", "seconds"]

# Paul Tol's light palette, for areas with black letters in them: parts of a model must not look like arms.
PARTS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#44BB99", "#BBCC33", "#99DDFF", "#AAAA00")
COSTS: Mapping[str, tuple[str, str]] = {
    "flops": ("Loss against compute", "training FLOPs of a run (matmuls, log scale)"),
    "parameters": ("Loss against size", "parameters (log scale)"),
    "seconds": ("Loss against time", "training seconds of a run (log scale)"),
}


def curves(results: Results) -> list[Block]:
    """The picture: losses, and differences to the reference, against tokens."""
    return [picture("curves", "validation loss and paired differences against tokens", draw_curves, results)]


def forest(by: str = "") -> Section:
    """A section with a picture: every comparison's interval on one axis, grouped by a factor; then the controls."""

    def section(results: Results) -> list[Block]:
        if not results.comparisons:
            return []
        alt = "the final difference of every arm with its interval"
        return [picture("forest", alt, draw_forest, results, by)]

    section.__name__ = f"forest({by})"
    return section


def ledger_bars(results: Results) -> list[Block]:
    """A picture: where each arm's parameters and training FLOPs are, by component."""
    return [picture("ledger", "parameters and training FLOPs a token by component", draw_ledger, results)]


def loss_against(*costs: Cost) -> Section:
    """A section with a picture: final loss against what it cost, a panel a cost: "flops", "parameters", "seconds"."""
    costs = costs or ("flops", "parameters")

    def section(results: Results) -> list[Block]:
        known = [cost for cost in costs if any(_point(results, arm, cost) for arm in results.arms.values())]
        alt = "final validation loss against " + " and ".join(known)
        return [picture("pareto", alt, draw_pareto, results, tuple(known))] if known else []

    section.__name__ = f"loss_against({','.join(costs)})"
    return section


def draw_forest(results: Results, by: str = "", width: float = WIDE) -> Figure:
    """Every comparison's final difference with its corrected interval, a line each, grouped by a factor."""

    def level(each: Comparison) -> str:
        return results.arms[each.arm].levels.get(by, "")

    groups: dict[str, list[Comparison]] = {level(each): [] for each in results.comparisons}
    for each in results.comparisons:
        groups[level(each)].append(each)
    if results.controls:
        groups["controls (plain intervals)"] = list(results.controls)
    references = {each.reference for each in results.comparisons}
    rows: list[str | Comparison] = []
    for name, found in groups.items():
        rows += [*([shorten(name) if found[0] in results.comparisons else name] if name else []), *found]

    width = min(width, WIDE * 0.7)
    row = 0.47 if width > 7.0 else 0.62
    figure, (axes,) = panels(width, [1.35 + row * len(rows)])
    margin, look = results.settings["margin"] or 0.0, looks(results)
    low, high = _forest_limits([*results.comparisons, *results.controls], margin)
    axes.axvspan(-margin, margin, color=BAND, alpha=0.75, linewidth=0, zorder=0.5)
    axes.axvline(0.0, color=BLACK, linewidth=1.1, zorder=0.6)
    for at, each in enumerate(rows):
        if isinstance(each, str):
            _row_text(axes, at + 0.35, each, "", width, weight="bold")
            continue
        alone = len(references) == 1 and each in results.comparisons
        name = shorten(each.arm) + ("" if alone else f" \u2212 {shorten(each.reference)}")
        _row_text(axes, at, name, f"{signed(each.mean)}, {each.verdict}", width)
        _interval(axes, at + 0.22, each, look[each.arm], (low, high))
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.3, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    signed_axis(axes.xaxis)
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("difference in loss (nats per token)")
    to = shorten(next(iter(references))) if len(references) == 1 else "its reference"
    says = f"corrected intervals; left of zero: better than {to}" + (f"; grey: ±{margin:g} nat" if margin else "")
    title(axes, f"Final paired difference to {to}", [says], room=int(width * 12))
    return figure


def _interval(axes: Axes, at: Number, each: Comparison, look: tuple, limits: tuple[Number, Number]) -> None:
    colour, _, marker = look
    if each.corrected_low is not None and each.corrected_high is not None:
        ends = [max(each.corrected_low, limits[0]), min(each.corrected_high, limits[1])]
        axes.plot(ends, [at, at], color=colour, linewidth=2.2, solid_capstyle="butt")
        for end, whole, arrow in zip(ends, (each.corrected_low, each.corrected_high), "<>", strict=True):
            cut = end != whole  # beyond the picture: an arrow says so
            axes.plot([end], [at], marker=arrow if cut else "|", color=colour, markersize=9, clip_on=False)
    if each.mean is not None:
        axes.plot([each.mean], [at], marker=marker, color=colour, markersize=6.5)


def _forest_limits(compared: Sequence[Comparison], margin: float) -> tuple[float, float]:
    """All means, and intervals as far as they do not dwarf the others."""
    means = [each.mean for each in compared if each.mean is not None] + [-2.0 * margin, 2.0 * margin, 0.0]
    bounds = [(c.corrected_low, c.corrected_high) for c in compared]
    known = [(low, high) for low, high in bounds if low is not None and high is not None]
    halves = [(high - low) / 2 for low, high in known]
    reach = 3.0 * max(max(means) - min(means), statistics.median(halves) if halves else 0.0)
    low = max(min([*means, *(low for low, _ in known)]), min(means) - reach)
    high = min(max([*means, *(high for _, high in known)]), max(means) + reach)
    pad = 0.04 * (high - low) or 0.01
    return low - pad, high + pad


def draw_ledger(results: Results, width: float = WIDE) -> Figure:
    """Bars of parameters and of training FLOPs a token, an arm each, in parts."""
    from matplotlib.patches import Patch

    whole = {"total", "total_distinct", "counted_by", "conventions"}
    kinds: dict[str, Mapping[str, Number]] = {
        name: {k.replace("_", " "): v for k, v in arm.facts.parameters.items() if k not in whole and v}
        for name, arm in results.arms.items()
    }
    flops = {
        name: {k: v for k, v in (arm.facts.flops_per_token or {}).items() if k not in whole and v}
        for name, arm in results.arms.items()
    }
    charts = [("Parameters", kinds)]
    if any(flops.values()):
        charts.append(("Training FLOPs a token", {n: _as_parameters(parts) for n, parts in flops.items()}))
    names = list(dict.fromkeys(part for _, chart in charts for parts in chart.values() for part in parts))
    colours = {name: PARTS[index % len(PARTS)] for index, name in enumerate(names)}
    figure, drawn = panels(width, [(1.3 if width > 7.0 else 1.0) + 0.5 * len(kinds)] * len(charts))
    for axes, (text, chart) in zip(drawn, charts, strict=True):
        longest = max(sum(parts.values()) for parts in chart.values()) or 1
        for at, (name, parts) in enumerate(chart.items()):
            total, left = sum(parts.values()), 0.0
            _row_text(axes, at, shorten(name), human(total) if parts else "not known", width)
            for part, count in parts.items():
                bar = axes.barh(at + 0.24, count, 0.42, left, color=colours[part], edgecolor="#ffffff", linewidth=0.8)
                if count > 0.13 * longest:
                    axes.bar_label(bar, [human(count)], label_type="center", fontsize=FONT - 2, color="#000000")
                left += count
        axes.set_xlim(0, longest * 1.02)
        axes.set_ylim(len(chart) - 0.4, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: human(value))
        title(axes, text)
    patches = [Patch(color=colours[name]) for name in names]
    columns = max(1, int(width * 9 / (max(map(len, names), default=1) + 6)))
    figure.legend(patches, names, loc="outside lower left", ncols=min(columns, len(names) or 1))
    return figure


def _as_parameters(parts: Mapping[str, Number]) -> dict[str, Number]:
    # The embedding's and the head's FLOPs have the colours of their parameters; blocks are mixers and channels.
    return {{"embedding": "token embedding"}.get(name, name): value for name, value in parts.items()}


def draw_pareto(results: Results, costs: Sequence[Cost], width: float = WIDE) -> Figure:
    """Final losses against costs: an arm's mean with its seeds, and the line of those that no other arm beats."""
    figure, drawn = panels(width, [4.0] * len(costs), [shorten(name) for name in results.arms])
    look, lines = looks(results), {}
    for axes, cost in zip(drawn, costs, strict=True):
        points = {name: found for name, arm in results.arms.items() if (found := _point(results, arm, cost))}
        for name, (at, losses) in points.items():
            colour, _, marker = look[name]
            axes.plot([at] * len(losses), losses, linestyle="", marker="_", color=colour, alpha=0.6, markersize=9)
            mean = math.fsum(losses) / len(losses)
            lines[name] = axes.plot([at], [mean], linestyle="", marker=marker, color=colour, markersize=7.5)[0]
        means = [(at, math.fsum(losses) / len(losses)) for at, losses in points.values()]
        best = front(means)
        if len(best) > 1:
            axes.plot(*zip(*best, strict=True), drawstyle="steps-post", color=GREY, linewidth=0.9, zorder=0.8)
        text, label = COSTS[cost]
        title(axes, text, ["down and left is better; dashes: single seeds; grey: what no arm beats on both"])
        axes.set_xlabel(label)
        axes.set_ylabel("final validation loss (nats per token)")
        # A log axis of points that are all alike would have a range of nothing.
        spread = max(at for at, _ in means) / min(at for at, _ in means)
        room = max(spread**0.08, 1.02)
        axes.set_xlim(min(at for at, _ in means) / room, max(at for at, _ in means) * room)
        log_axis(axes) if spread > 4.0 else _plain_axis(axes, label)
    order = sorted(lines, key=lambda name: -(results.arms[name].mean("final_nll") or math.inf))
    legend(figure, width, [lines[name] for name in order], [shorten(name) for name in order])
    return figure


def _plain_axis(axes: Axes, label: str) -> None:
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: human(value))
    axes.set_xlabel(label.replace(", log scale", "").replace(" (log scale)", ""))


def _point(results: Results, arm: ArmResult, cost: Cost) -> tuple[float, list[float]] | None:
    """What an arm cost, and its seeds' final losses; None where either is not known or a run diverged."""
    losses = [run.final_nll for run in arm.runs if run.final_nll is not None]
    tokens = max((each.tokens for run in arm.runs for each in run.evals), default=0)
    flops, parameters = (arm.facts.flops_per_token or {}).get("total"), arm.facts.parameters.get("total")
    at = {"flops": flops and flops * tokens, "parameters": parameters, "seconds": arm.mean("train_seconds")}[cost]
    return (float(at), losses) if at and losses and len(losses) == len(arm.runs) else None


def _row_text(axes: Axes, at: Number, left: str, right: str, width: float, weight: str = "normal") -> None:
    """A line of text above a row: an arm's name on the left, figures on the right (below it where that is too long)."""
    room = int(width * 12.5)
    if len(left) + len(right) + 2 > room:
        left, right = "\n".join([left, *textwrap.wrap(right, room)]), ""
    back = {"facecolor": "#ffffff", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}  # lines must not cross letters
    for x, text, side in ((0.0, left, "left"), (1.0, right, "right")):
        where = {"transform": axes.get_yaxis_transform(), "ha": side, "va": "bottom", "weight": weight}
        if text:
            axes.text(x, at, text, color=INK, fontsize=FONT - 0.5, bbox=back, **where)  # type: ignore[arg-type]
