"""The section of a probed study: the cosine between each layer's channel and its residual stream, first and last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .blocks import Block, Heading, Paragraph, Table
from .pictures import Section
from .plot import BLACK, COLOURS, DASHES, legend, panels, picture, shorten, title
from .results import ArmResult, Results
from .sentences import UNKNOWN, human

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def alignment(by: str = "") -> Section:
    """A section with a picture, a panel a level of the factor `by`: nothing where no run was probed
    (`RunConfig(probe="cosines")`)."""

    def section(results: Results) -> list[Block]:
        probed = {name: arm for name, arm in results.arms.items() if len(_cosines(arm, -1))}
        if not probed:
            return []
        rows, deepest = [], max(len(_cosines(arm, -1)) for arm in probed.values())
        for name, arm in probed.items():
            for at in (0, -1):
                cells = [f"{value:.3f}" for value in _cosines(arm, at)]
                rows.append([name, human(arm.runs[0].evals[at].tokens), *cells, *[UNKNOWN] * (deepest - len(cells))])
        told = (
            "Mean over tokens and seeds of the cosine between what a layer's channel adds and the residual stream that "
            "it is added to, on the first validation batch, at the first and at the last evaluation; layer 0 is next "
            "to the embedding. Near 0 a layer writes what the stream does not hold, near 1 it repeats the stream."
        )
        alt = "cosine between channels and residual stream by layer"
        return [
            Heading("Channels against the stream"),
            Paragraph(told),
            picture("alignment", alt, draw_alignment, probed, by),
            Table(["arm", "tokens", *(f"layer {layer}" for layer in range(deepest))], rows, left=1),
        ]

    return section


def _cosines(arm: ArmResult, at: int) -> np.ndarray:
    """The layers' mean at an evaluation over the seeds that had not diverged by then."""
    found = [run.evals[at].cosines for run in arm.runs if run.evals[at].cosines]
    return np.mean(found, axis=0) if found else np.zeros(0)


def draw_alignment(arms: dict[str, ArmResult], by: str, width: float) -> Figure:
    """Cosines against layers: dotted at the first evaluation, solid at the last."""
    from matplotlib.ticker import MaxNLocator

    groups: dict[str, list[ArmResult]] = {}
    for arm in arms.values():
        groups.setdefault(arm.levels.get(by, ""), []).append(arm)
    figure, axes = panels(width, [3.6] * len(groups))
    labels, lines = list(dict.fromkeys(_label(arm, by) for arm in arms.values())), {}
    for panel, (level, own) in zip(axes, groups.items(), strict=True):
        for arm in own:
            index = labels.index(_label(arm, by))
            colour = BLACK if index == 0 else COLOURS[(index - 1) % len(COLOURS)]
            dashes = DASHES[(index - 1) // len(COLOURS) % len(DASHES)] if index else "-"
            panel.plot(_cosines(arm, 0), ":", color=colour, linewidth=1)
            (line,) = panel.plot(_cosines(arm, -1), linestyle=dashes, color=colour, marker=".")
            lines[_label(arm, by)] = line
        title(panel, shorten(level or "cosine by layer"), ["dotted: first evaluation"])
        panel.set_xlabel("layer")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("cosine of channel and stream")
    legend(figure, width, list(lines.values()), [*map(shorten, lines)])
    return figure


def _label(arm: ArmResult, by: str) -> str:
    return "-".join(level for factor, level in arm.levels.items() if factor != by) or arm.name
