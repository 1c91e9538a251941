"""Loss against training compute: which arms no other beats at once in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .blocks import Block, Heading, Paragraph, Picture, Table
from .results import ArmResult, Results
from .sentences import human, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pareto(results: Results) -> list[Block]:
    """A table and a picture of final loss against training FLOPs; arms without finite figures are left out."""
    from .plot import render

    points = [(name, flops, loss) for name, arm in results.arms.items() for flops, loss in _point(results, arm)]
    if not points:
        return []
    best = front([(flops, loss) for _, flops, loss in points])
    rows = [[n, human(f), number(loss), "yes" if (f, loss) in best else "no"] for n, f, loss in points]
    told = (
        "Training FLOPs of one run: a token's (see Budgets, forward and backward) times its tokens. An arm is on the "
        "front where no other has a lower loss at no more FLOPs. The loss is the mean over the seeds."
    )
    files = render(draw_pareto, results, points)
    picture = Picture("pareto", "final loss against training FLOPs, with the front", files)
    return [
        Heading("Loss against compute"),
        Table(["arm", "training FLOPs", "loss", "on the front"], rows),
        picture,
        Paragraph(told),
    ]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, loss) that none beats: no other is as low in both and lower in one; by cost ascending."""
    kept: list[tuple[float, float]] = []
    for cost, loss in sorted(set(points)):
        if not kept or loss < kept[-1][1]:
            kept.append((cost, loss))
    return kept


def draw_pareto(results: Results, points: Sequence[tuple[str, float, float]]) -> Figure:
    """The arms' means with every seed's run as a small point, and the front as a line."""
    from matplotlib.figure import Figure

    from ..visible import visible
    from .plot import BLACK, COLOURS, DPI, GREY, HEIGHT, WIDTH

    figure = Figure(figsize=(WIDTH * 0.7, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    line = front([(flops, loss) for _, flops, loss in points])
    axes.plot(*zip(*line, strict=True), color=GREY, linewidth=1.1, drawstyle="steps-post", zorder=1)
    for index, (name, flops, loss) in enumerate(points):
        colour = COLOURS[index % len(COLOURS)]
        finals = [run.final_nll or math.nan for run in results.arms[name].runs]
        axes.plot([flops] * len(finals), finals, linestyle="", marker="o", markersize=3, color=colour, alpha=0.5)
        axes.plot([flops], [loss], marker="o", markersize=7, color=colour, markeredgecolor=BLACK, zorder=3)
        axes.annotate(visible(name)[:24], (flops, loss), (7, 5), textcoords="offset points", color=colour)
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("training FLOPs (log scale)")
    axes.set_ylabel("loss (nats per token)")
    return figure


def _point(results: Results, arm: ArmResult) -> list[tuple[float, float]]:
    a_token, loss = (arm.facts.flops_per_token or {}).get("total"), arm.mean("final_nll")
    return [] if a_token is None or loss is None else [(a_token * results.settings["tokens"], loss)]
