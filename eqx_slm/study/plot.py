"""The pictures of a study: losses and paired differences against tokens, and a forest of final differences.

Figures are drawn without pyplot, so that nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..visible import visible
from .results import ArmResult, Results
from .sentences import human, percent, plural, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision. Black is the reference's; yellow is too faint
# for a line on white and left out. After the sixth arm the colours come again with other dashes.
BLACK, GREY = "#000000", "#5f5f5f"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))

WIDTH, HEIGHT, DPI = 11.0, 4.2, 150
FONT = 10.5
STYLE = {
    "font.size": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "axes.labelcolor": "#222222",
    "text.parse_math": False,  # a "$" in an arm's name is a dollar
    # Fixed, so that the same result gives the same file.
    "svg.hashsalt": "eqx_slm",
    "svg.fonttype": "path",
}


def render(draw: Callable[..., Figure], *arguments: Any) -> dict[str, bytes]:
    """A figure's files by ending, PNG and SVG: the same bytes for the same results and matplotlib."""
    import matplotlib

    files = {}
    with matplotlib.rc_context(cast("dict[Any, Any]", STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks: boxes
        figure = draw(*arguments)
        for ending, metadata in {"png": {"Software": None}, "svg": {"Date": None}}.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=DPI, metadata=metadata)
            files[ending] = buffer.getvalue()
    return files


def draw_curves(results: Results) -> Figure:
    """Validation losses (left) and paired differences (right) against tokens, on 11 x 4.2 inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    first, second = figure.subplots(1, 2)
    looks: dict[str, tuple[str, Any]] = {results.reference: (BLACK, "-")}
    for index, name in enumerate(name for name in results.arms if name != results.reference):
        looks[name] = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
    _draw_losses(first, results, looks)
    _draw_differences(second, results, looks)
    return figure


def _draw_losses(axes: Axes, results: Results, looks: dict[str, tuple[str, Any]]) -> None:
    labels, starts, everything = [], [], []
    for name, arm in results.arms.items():
        colour, dash = looks[name]
        curves = [run.losses for run in arm.runs]
        for run, curve in zip(arm.runs, curves, strict=True):
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.7, alpha=0.4)
            if run.diverged and curve:
                axes.plot(*list(curve.items())[-1], marker="x", color=colour, markersize=6)
            starts += list(curve.values())[:1]
            everything += curve.values()
        shared = sorted(set.intersection(*map(set, curves)))
        means = [math.fsum(curve[count] for curve in curves) / len(curves) for count in shared]
        if shared:
            (line,) = axes.plot(shared, means, color=colour, linestyle=dash, linewidth=1.9)
            labels.append((means[-1], line, _label(arm)))
    if everything:  # a run that blew up must not flatten all the others
        _fit(axes, [min(everything), min(max(everything), 1.1 * max(starts))], 0.05)
    seeds = plural(len(results.settings["seeds"]), "seed")
    _title(axes, "Validation loss", [f"mean over {seeds}; thin lines: single seeds"])
    axes.set_ylabel("validation loss (nats per token)")
    _token_axis(axes)
    _label_ends(axes, labels)


def _draw_differences(axes: Axes, results: Results, looks: dict[str, tuple[str, Any]]) -> None:
    s, margin, labels = results.settings, results.settings["margin"] or 0.0, []
    limits = [-2.0 * margin, 2.0 * margin]
    axes.axhspan(-margin, margin, color="#dddddd", alpha=0.75, linewidth=0, zorder=0.5)
    zero = axes.axhline(0.0, color=BLACK, linewidth=1.1, zorder=2)
    for each in results.comparisons:
        if not each.curve:
            continue
        colour, dash = looks[each.arm]
        tokens, means, lows, highs = (
            [math.nan if (value := getattr(point, part)) is None else value for point in each.curve]
            for part in ("tokens", "mean", "low", "high")
        )
        axes.fill_between(tokens, lows, highs, color=colour, alpha=0.16, linewidth=0, zorder=1)
        (line,) = axes.plot(tokens, means, color=colour, linestyle=dash, linewidth=1.9, zorder=3)
        # The last interval carries the verdict: it is always shown whole, the early and wide ones may be cut.
        limits += [*means, lows[-1], highs[-1]]
        labels.append((means[-1], line, _label(results.arms[each.arm])))
    _fit(axes, limits, 0.07)
    references = list(dict.fromkeys(each.reference for each in results.comparisons)) or [results.reference]
    name = _shorten(references[0]) if len(references) == 1 else "its reference"
    says = [f"below zero: better than {name}" + (f"; grey: margin of ±{margin:g} nat" if margin else "")]
    if len(s["seeds"]) > 1:
        several = ", before Holm's correction" if len(results.comparisons) > 1 else ""
        says.append(f"bands: {percent(s['confidence'])} intervals over {plural(len(s['seeds']), 'seed')}{several}")
    else:
        says.append("one seed: there are no intervals")
    _title(axes, f"Paired difference to {name}", says)
    axes.set_ylabel("difference in loss (nats per token)")
    if not labels:
        axes.set_xticks([])
        axes.text(0.5, 0.75, "nothing to compare", transform=axes.transAxes, ha="center", color=GREY)
        return
    _token_axis(axes)
    _signed_axis(axes.yaxis)
    _label_ends(axes, [*labels, (0.0, zero, name)])


def draw_forest(results: Results, by: str) -> Figure:
    """Every comparison's final difference with its corrected interval, a line each, grouped by a factor."""
    from matplotlib.figure import Figure

    def level(name: str) -> str:
        return results.arms[name].levels.get(by, "")

    compared = sorted(results.comparisons, key=lambda each: list(map(level, results.arms)).index(level(each.arm)))
    figure = Figure(figsize=(WIDTH * 0.7, 1.5 + 0.33 * len(compared)), dpi=DPI, layout="constrained")
    axes, groups = figure.add_subplot(), list(dict.fromkeys(level(each.arm) for each in compared))
    margin = results.settings["margin"] or 0.0
    axes.axvspan(-margin, margin, color="#dddddd", alpha=0.75, linewidth=0, zorder=0.5)
    axes.axvline(0.0, color=BLACK, linewidth=1.1)
    for at, each in enumerate(compared):
        colour = COLOURS[groups.index(level(each.arm)) % len(COLOURS)]
        if each.mean is not None:
            axes.plot([each.mean], [at], marker="o", color=colour)
        if each.corrected_low is not None and each.corrected_high is not None:
            axes.plot([each.corrected_low, each.corrected_high], [at, at], color=colour, linewidth=1.9)
        axes.annotate(
            f"{signed(each.mean)}  {each.verdict}", (1.01, at), xycoords=("axes fraction", "data"), va="center"
        )
    axes.set_yticks(range(len(compared)), [f"{_shorten(c.arm)} - {_shorten(c.reference)}" for c in compared])
    axes.invert_yaxis()
    _signed_axis(axes.xaxis)
    axes.set_xlabel("difference in loss (nats per token), corrected intervals; below zero: better")
    return figure


def _fit(axes: Axes, values: Sequence[float], share: float) -> None:
    known = [value for value in values if math.isfinite(value)]
    pad = share * (max(known) - min(known)) or 0.01
    axes.set_ylim(min(known) - pad, max(known) + pad)


def _title(axes: Axes, title: str, lines: Sequence[str]) -> None:
    axes.set_title("\n".join(lines), loc="left", color=GREY, fontsize=FONT - 1)
    axes.annotate(title, (0, 1), (0, 12 + 13 * len(lines)), "axes fraction", "offset points", fontsize=FONT + 2)


def _token_axis(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlabel("training tokens (log scale)")
    axes.margins(x=0.02)
    low, high = axes.get_xlim()
    subs = (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0) if high / low > 5 else range(1, 10)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.xaxis.set_major_formatter(lambda value, _: human(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _signed_axis(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{value:+.4g}".replace("-", "\u2212") if abs(value) > 1e-12 else "0")


def _label_ends(axes: Axes, labels: Sequence[tuple[float, Any, str]]) -> None:
    # Right of the panel, in the order in which the lines end.
    ordered = sorted(labels, key=lambda label: -label[0])
    lines, names = [line for _, line, _ in ordered], [name for _, _, name in ordered]
    axes.legend(lines, names, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelcolor="linecolor")


def _label(arm: ArmResult) -> str:
    return _shorten(arm.name) + (" (diverged)" if arm.diverged else "")


def _shorten(name: str) -> str:
    name = visible(name)
    return name if len(name) <= 22 else f"{name[:12]}…{name[-9:]}"
