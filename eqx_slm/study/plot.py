"""How the pictures of a study are drawn, and the first of them: losses and paired differences against tokens.

Figures are drawn without pyplot, so that nothing global is touched and no display is needed. Every picture is drawn
twice: for a wide page, and for a narrow one with the same size of letters.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..visible import visible
from .blocks import Picture
from .results import ArmResult, Results
from .sentences import human, percent, plural
from .statistics import Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision. Black is the reference's; yellow is too faint
# for a line on white and left out. After the sixth arm the colours come again with other dashes and markers.
# (Pure black is left out of an SVG as the default, and could not turn over on a dark page.)
BLACK, INK, GREY, BAND = "#010101", "#222222", "#5f5f5f", "#dddddd"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D")

WIDE, NARROW, DPI = 11.0, 4.7, 150  # widths in inches
FONT, LINE = 10.5, 0.21  # points; inches of a line in a legend
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
    "axes.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a "$" in an arm's name is a dollar
    # Fixed, so that the same result gives the same file.
    "svg.hashsalt": "eqx_slm",
    "svg.fonttype": "path",
}


class Look(NamedTuple):
    """What an arm looks like in every picture."""

    colour: str
    dash: Any
    marker: str


def looks(results: Results) -> dict[str, Look]:
    """The look of every arm, by name: the reference black, the others in the order of the arms."""
    found = {results.reference: Look(BLACK, "-", MARKERS[0])}
    for index, name in enumerate(name for name in results.arms if name != results.reference):
        again = index // len(COLOURS) % len(DASHES)
        found[name] = Look(COLOURS[index % len(COLOURS)], DASHES[again], MARKERS[again])
    return found


def picture(name: str, alt: str, draw: Callable[..., Figure], *arguments: Any) -> Picture:
    """A picture as PNG and SVG, and as SVG for a narrow page. `draw(*arguments, width)` is given inches."""
    files = render(draw, *arguments, WIDE)
    narrow = _drawn(draw, (*arguments, NARROW), ("svg",))["svg"] if files.get("svg") else b""
    return Picture(name, alt, files, narrow)


def render(draw: Callable[..., Figure], *arguments: Any) -> dict[str, bytes]:
    """A figure's files by ending, PNG and SVG: the same bytes for the same results and matplotlib."""
    return _drawn(draw, arguments, ("png", "svg"))


def _drawn(draw: Callable[..., Figure], arguments: Sequence[Any], endings: Sequence[str]) -> dict[str, bytes]:
    import matplotlib

    files, metadata = {}, {"png": {"Software": None}, "svg": {"Date": None}}
    with matplotlib.rc_context(cast("dict[Any, Any]", STYLE)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks: boxes
        figure = draw(*arguments)
        for ending in endings:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=DPI, metadata=metadata[ending])
            files[ending] = buffer.getvalue()
            figure.set_layout_engine("none")  # where everything stands is known now
    return files


def panels(width: float, heights: Sequence[Number], names: Sequence[str] = ()) -> tuple[Figure, list[Axes]]:
    """A figure with a panel a height (inches): in a row where it is wide, one below the other where it is narrow; with
    room for a legend of `names`."""
    from matplotlib.figure import Figure

    wide, rows = width > 7.0, math.ceil(len(names) / _columns(width, names))
    high = max([*heights, 0.6 + LINE * rows]) if wide else sum(heights) + LINE * rows
    figure = Figure(figsize=(width, high), dpi=DPI, layout="constrained")
    if not wide:
        figure.get_layout_engine().set(h_pad=0.1)  # type: ignore[union-attr, call-arg]
    shape = (1, len(heights)) if wide else (len(heights), 1)
    ratios = None if wide else heights
    return figure, list(figure.subplots(*shape, squeeze=False, height_ratios=ratios).flat)


def _columns(width: float, names: Sequence[str]) -> int:
    # Beside a wide picture a column; below a narrow one as many as the longest name leaves room for.
    longest = max(map(len, names), default=0)
    return max(1, min(3, int(width * 10 / (longest + 6)))) if width <= 7.0 else 1


def title(axes: Axes, text: str, lines: Sequence[str] = (), room: int = 56) -> None:
    """A panel's title, and lines below it in small letters, at most `room` in each."""
    small = [part for line in lines for part in textwrap.wrap(line, room)]
    axes.set_title("\n".join(small), loc="left", color=GREY, fontsize=FONT - 1)
    axes.annotate(text, (0, 1), (0, 8 + 13.5 * len(small)), "axes fraction", "offset points", fontsize=FONT + 2)


def legend(figure: Figure, width: float, lines: Sequence[Any], names: Sequence[str]) -> None:
    """Names of lines beside the panels, or below them where the figure is narrow."""
    where = "outside right center" if width > 7.0 else "outside lower left"
    figure.legend(lines, names, loc=where, ncols=_columns(width, names))


def draw_curves(results: Results, width: float = WIDE) -> Figure:
    """Validation losses and paired differences against tokens; the losses alone where nothing is compared."""
    look, names = looks(results), [_label(arm) for arm in results.arms.values()]
    width = width if results.comparisons else min(width, WIDE * 0.7)
    figure, drawn = panels(width, (4.2, 4.0) if results.comparisons else (4.2,), names)
    lines = _draw_losses(drawn[0], results, look)
    if results.comparisons:
        _draw_differences(drawn[1], results, look)
    ordered = sorted(lines, key=lambda each: -each[0])  # as the lines end
    legend(figure, width, [line for _, line, _ in ordered], [name for *_, name in ordered])
    return figure


def _draw_losses(axes: Axes, results: Results, look: dict[str, Look]) -> list[tuple[Number, Any, str]]:
    drawn, everything = [], []
    for name, arm in results.arms.items():
        colour, dash, _ = look[name]
        curves = [run.losses for run in arm.runs]
        for run, curve in zip(arm.runs, curves, strict=True):
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.7, alpha=0.4)
            if run.diverged and curve:
                axes.plot(*list(curve.items())[-1], marker="x", color=colour, markersize=6)
            everything += curve.items()
        shared = sorted(set.intersection(*map(set, curves)))
        means = [math.fsum(curve[count] for curve in curves) / len(curves) for count in shared]
        # An arm of which no evaluation is finite has no line, and still a place in the legend.
        (line,) = axes.plot(shared, means, color=colour, linestyle=dash, linewidth=1.9)
        drawn.append((means[-1] if means else math.inf, line, _label(arm)))
    cut = _fit(axes, everything, 0.05)
    counts = sorted({len(arm.runs) for arm in results.arms.values()})
    seeds = plural(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    title(axes, "Validation loss", [f"mean over {seeds}; thin lines: single seeds{cut}"])
    axes.set_ylabel("validation loss (nats per token)")
    _token_axis(axes)
    return drawn


def _draw_differences(axes: Axes, results: Results, look: dict[str, Look]) -> None:
    s, margin, points = results.settings, results.settings["margin"] or 0.0, []
    ends = [-2.0 * margin, 2.0 * margin]
    axes.axhspan(-margin, margin, color=BAND, alpha=0.75, linewidth=0, zorder=0.5)
    axes.axhline(0.0, color=BLACK, linewidth=1.1, zorder=2)
    for each in results.comparisons:
        if not each.curve:
            continue
        colour, dash, _ = look[each.arm]
        tokens, means, lows, highs = (
            [math.nan if (value := getattr(point, part)) is None else value for point in each.curve]
            for part in ("tokens", "mean", "low", "high")
        )
        axes.fill_between(tokens, lows, highs, color=colour, alpha=0.16, linewidth=0, zorder=1)
        axes.plot(tokens, means, color=colour, linestyle=dash, linewidth=1.9, zorder=3)
        points += zip(tokens, means, strict=True)
        # The last interval carries the verdict: it is always shown whole, the early and wide ones may be cut.
        ends += [lows[-1], highs[-1]]
    cut = _fit(axes, points, 0.07, ends)
    references = list(dict.fromkeys(each.reference for each in results.comparisons))
    name = shorten(references[0]) if len(references) == 1 else "its reference"
    says = [f"below zero: better than {name}" + (f"; grey: margin of ±{margin:g} nat" if margin else "")]
    if len(s["seeds"]) > 1:
        several = ", before Holm's correction" if len(results.comparisons) > 1 else ""
        says.append(f"bands: {percent(s['confidence'])} intervals over {plural(len(s['seeds']), 'seed')}{several}{cut}")
    else:
        says.append(f"one seed: there are no intervals{cut}")
    title(axes, f"Paired difference to {name}", says)
    axes.set_ylabel("difference in loss (nats per token)")
    if not points:
        axes.set_xticks([])
        axes.text(0.5, 0.75, "no difference is finite", transform=axes.transAxes, ha="center", color=GREY)
        return
    _token_axis(axes)
    signed_axis(axes.yaxis)


def _fit(axes: Axes, points: Sequence[tuple[Number, Number]], share: float, ends: Sequence[Number] = ()) -> str:
    """The range of an axis: that of the last eighth of the tokens on, and of `ends`, where early points would take most
    of the panel. **Returns** what to say of it."""
    known = [(count, value) for count, value in points if math.isfinite(value)]
    last = max((count for count, _ in known), default=0)
    late = [value for count, value in known if 8 * count >= last] + [value for value in ends if math.isfinite(value)]
    every = [value for _, value in known] + late
    if not every:
        return ""
    shown = late if _width(every) > 2.5 * _width(late) > 0.0 else every
    pad = share * _width(shown) or 0.01
    axes.set_ylim(min(shown) - pad, max(shown) + pad)
    return "" if shown is every else "; early values lie outside"


def _width(values: Sequence[Number]) -> Number:
    return max(values) - min(values)


def _token_axis(axes: Axes) -> None:
    axes.set_xlabel("training tokens (log scale)")
    log_axis(axes)


def log_axis(axes: Axes) -> None:
    """A logarithmic x axis with few and readable counts."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.margins(x=0.02)
    low, high = axes.get_xlim()
    subs = (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0) if high / low > 5 else range(1, 10)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.xaxis.set_major_formatter(lambda value, _: human(value))
    axes.xaxis.set_minor_formatter(NullFormatter())


def signed_axis(axis: Any) -> None:
    """Ticks with their signs."""
    axis.set_major_formatter(lambda value, _: f"{value:+.4g}".replace("-", "\u2212") if abs(value) > 1e-12 else "0")


def shorten(name: str) -> str:
    """A name that fits into a picture."""
    name = visible(name)
    return name if len(name) <= 22 else f"{name[:12]}…{name[-9:]}"


def _label(arm: ArmResult) -> str:
    return shorten(arm.name) + (" (diverged)" if arm.diverged else "")
