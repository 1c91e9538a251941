"""The picture of a study: losses on the left, paired differences with their intervals on the right.

Figures are drawn without pyplot, so that nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .runs import finite, has_diverged
from .sentences import human, percent, plural
from .statistics import Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision. Black is the reference's; yellow is too faint
# for a line on white and left out. After the sixth arm the colours come again with other dashes.
REFERENCE_COLOUR = "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
GREY = "#5f5f5f"

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
    "axes.unicode_minus": True,
    # Fixed, so that the same result gives the same file.
    "svg.hashsalt": "eqx_slm",
    "svg.fonttype": "path",
}


class Look(NamedTuple):
    """How one arm is drawn, the same in both panels."""

    colour: str
    dash: Any


class Label(NamedTuple):
    """A direct label at the right end of a line."""

    text: str
    colour: str
    x: float
    y: float


def render_curves(result: Mapping[str, Any], *, file_format: str) -> bytes:
    """Draw a result's curves.

    **Arguments:** `result`: a study's result. `file_format`: "png" or "svg".

    **Returns:** the file's bytes, the same each time for the same result and matplotlib.
    """
    import matplotlib

    metadata = {"png": {"Software": None}, "svg": {"Date": None}}
    if file_format not in metadata:
        raise ValueError(f"curves are drawn as png or svg, not as {file_format!r}")
    with matplotlib.rc_context(cast("dict[Any, Any]", STYLE)):
        buffer = io.BytesIO()
        draw_curves(result).savefig(buffer, format=file_format, dpi=DPI, metadata=metadata[file_format])
    return buffer.getvalue()


def draw_curves(result: Mapping[str, Any]) -> Figure:
    """Draw validation losses (left) and paired differences to the reference (right) against tokens.

    **Arguments:** `result`: a study's result; only "arms", "comparisons", "reference" and "settings" are read.

    **Returns:** a matplotlib figure of 11 x 4.2 inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
    # Direct labels stand right of each panel: the longest name decides how much room the panels leave.
    room = 0.32 + 0.081 * max((len(_label(name, arm)) for name, arm in result["arms"].items()), default=0)
    left, between = 0.72, 0.95
    panel = (WIDTH - left - between - 2 * room) / 2
    bottom, height = 0.62 / HEIGHT, (HEIGHT - 0.62 - 0.88) / HEIGHT
    first = figure.add_axes((left / WIDTH, bottom, panel / WIDTH, height))
    second = figure.add_axes(((left + panel + room + between) / WIDTH, bottom, panel / WIDTH, height))
    looks = _looks(result)
    _draw_losses(first, result, looks)
    _draw_differences(second, result, looks)
    return figure


def _draw_losses(axes: Axes, result: Mapping[str, Any], looks: Mapping[str, Look]) -> None:
    labels, everything, starts = [], [], []
    for name, arm in result["arms"].items():
        curves = [_loss_curve(run) for run in arm["runs"]]
        for run, curve in zip(arm["runs"], curves, strict=True):
            axes.plot(list(curve), list(curve.values()), color=looks[name].colour, linewidth=0.7, alpha=0.4)
            if has_diverged(run) and curve:
                end = list(curve.items())[-1]
                axes.plot(*[[value] for value in end], marker="x", color=looks[name].colour, markersize=6)
            everything += curve.values()
            starts += list(curve.values())[:1]
        shared = [count for count in curves[0] if all(count in curve for curve in curves)] if curves else []
        means = [math.fsum(curve[count] for curve in curves) / len(curves) for count in shared]
        if shared:
            axes.plot(shared, means, color=looks[name].colour, linestyle=looks[name].dash, linewidth=1.9)
            labels.append(Label(_label(name, arm), looks[name].colour, shared[-1], means[-1]))
    if everything:
        # A run that blew up must not flatten all the others.
        low, high = min(everything), min(max(everything), 1.1 * max(starts))
        pad = 0.05 * (high - low) or 0.5
        axes.set_ylim(low - pad, high + pad)
    seeds = plural(len(result["settings"].get("seeds", [])), "seed")
    _title(axes, "Validation loss", [f"mean over {seeds}; thin lines: single seeds"])
    axes.set_ylabel("validation loss (nats per token)")
    _token_axis(axes)
    _label_ends(axes, labels)


def _draw_differences(axes: Axes, result: Mapping[str, Any], looks: Mapping[str, Look]) -> None:
    settings, reference = result["settings"], result["reference"]
    margin, level = settings.get("margin") or 0.0, percent(settings.get("confidence", 0.95))
    labels, limits = [], [-2.0 * margin, 2.0 * margin]
    axes.axhspan(-margin, margin, color="#dddddd", alpha=0.75, linewidth=0, zorder=0.5)
    axes.axhline(0.0, color=REFERENCE_COLOUR, linewidth=1.1, zorder=2)
    for comparison in result["comparisons"]:
        name, look = comparison["arm"], looks[comparison["arm"]]
        points = [point for point in comparison["curve"] if point["tokens"] > 0 and finite(point["mean"]) is not None]
        if not points:
            continue
        tokens, means = [point["tokens"] for point in points], [point["mean"] for point in points]
        bounded = [point for point in points if finite(point["low"]) is not None and finite(point["high"]) is not None]
        if bounded:
            lows, highs = [point["low"] for point in bounded], [point["high"] for point in bounded]
            counts = [point["tokens"] for point in bounded]
            axes.fill_between(counts, lows, highs, color=look.colour, alpha=0.16, linewidth=0, zorder=1)
            # The last interval carries the verdict: it is always shown whole, the early and wide ones may be cut.
            limits += [lows[-1], highs[-1]]
        axes.plot(tokens, means, color=look.colour, linestyle=look.dash, linewidth=1.9, zorder=3)
        limits += means
        labels.append(Label(_label(name, result["arms"][name]), look.colour, tokens[-1], means[-1]))
    low, high = min(limits), max(limits)
    pad = 0.07 * (high - low) or 0.01
    axes.set_ylim(low - pad, high + pad)
    says = [f"below zero: better than {_shorten(reference)}" + (f"; grey: margin of ±{margin:g} nat" if margin else "")]
    if len(settings.get("seeds", [])) > 1:
        several = ", before Holm's correction" if len(result["comparisons"]) > 1 else ""
        says.append(f"bands: {level} intervals over {plural(len(settings['seeds']), 'seed')}{several}")
    else:
        says.append("one seed: there are no intervals")
    _title(axes, f"Paired difference to {_shorten(reference)}", says)
    axes.set_ylabel("difference in loss (nats per token)")
    if not labels:
        axes.set_xticks([])
        axes.text(0.5, 0.75, "nothing to compare", transform=axes.transAxes, ha="center", color=GREY)
        return
    labels.append(Label(_shorten(reference), REFERENCE_COLOUR, max(label.x for label in labels), 0.0))
    _token_axis(axes)
    digits = _decimals([tick for tick in axes.get_yticks() if low - pad <= tick <= high + pad])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.{digits}f}".replace("-", "\u2212") if value else "0")
    _label_ends(axes, labels)


def _looks(result: Mapping[str, Any]) -> dict[str, Look]:
    others = [name for name in result["arms"] if name != result["reference"]]
    looks = {result["reference"]: Look(REFERENCE_COLOUR, "-")}
    for index, name in enumerate(others):
        looks[name] = Look(COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)])
    return looks


def _loss_curve(run: Mapping[str, Any]) -> dict[int, float]:
    points = {int(point["tokens"]): finite(point["nll"]) for point in run["evals"] if point["tokens"] > 0}
    return {count: nll for count, nll in points.items() if nll is not None}


def _title(axes: Axes, title: str, lines: Sequence[str]) -> None:
    for index, line in enumerate(lines):
        offset = (0, 6 + 14 * (1 - index))
        axes.annotate(line, (0, 1), offset, "axes fraction", "offset points", color=GREY, fontsize=FONT - 1)
    axes.annotate(title, (0, 1), (0, 37), "axes fraction", "offset points", fontsize=FONT + 2, fontweight="bold")


def _token_axis(axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlabel("training tokens (log scale)")
    axes.margins(x=0.02)
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(FixedLocator(token_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: human(value))


def token_ticks(low: Number, high: Number) -> list[float]:
    """Round token counts within `[low, high]` for a log axis: the coarsest grid that has three, at most eight."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), tuple(range(1, 10))):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside if len(inside) <= 8 else inside[:: math.ceil(len(inside) / 8)]
    return sorted({low, high})


def _label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    # Names stand right of the panel, level with their lines' ends where there is room and spread where there is not.
    height = axes.get_figure().get_figheight() * axes.get_position().height  # type: ignore[union-attr]
    gap = 1.25 * FONT / 72 / height
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label.y)
    wanted = [min(1.0, max(0.0, (label.y - low) / (high - low))) for label in ordered]
    for label, place in zip(ordered, spread(wanted, gap), strict=True):
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(1.05, place),
            textcoords="axes fraction",
            color=label.colour,
            fontsize=FONT,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0.0, 0.5),  # the leader ends at the name's left edge
                "linestyle": (0, (1, 1.5)),
                "linewidth": 0.8,
                "color": label.colour,
                "shrinkA": 1,
                "shrinkB": 1,
            },
        )


def spread(places: Sequence[Number], gap: Number) -> list[float]:
    """Move ascending places in [0, 1] apart, so that neighbours are at least `gap` from each other, by least squares.

    Subtracting `i gap` from the i-th place turns it into fitting a rising sequence: pool adjacent violators, then
    clip. If they cannot all fit, the gap shrinks until they do.
    """
    if not places:
        return []
    gap = min(gap, 1.0 / max(1, len(places) - 1))
    blocks: list[tuple[float, int]] = []
    for index, place in enumerate(places):
        blocks.append((place - index * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (value, count), (before, number) = blocks.pop(), blocks.pop()
            blocks.append(((value * count + before * number) / (count + number), count + number))
    flat = [value for value, count in blocks for _ in range(count)]
    top = 1.0 - (len(places) - 1) * gap
    return [min(max(value, 0.0), top) + index * gap for index, value in enumerate(flat)]


def _decimals(ticks: Sequence[Number]) -> int:
    # As many decimals as every tick needs and no more.
    return max((len(f"{tick:.8f}".rstrip("0").partition(".")[2]) for tick in ticks), default=2)


def _label(name: str, arm: Mapping[str, Any]) -> str:
    return _shorten(name) + (" (diverged)" if any(has_diverged(run) for run in arm["runs"]) else "")


def _shorten(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:12]}…{name[-9:]}"
