"""Loss against training compute: which arms no other beats at once in both."""

from __future__ import annotations

from collections.abc import Sequence

from .blocks import Block, Heading, Paragraph, Table
from .results import ArmResult, Results
from .sentences import human, number


def on_the_front(results: Results) -> list[Block]:
    """A table of final loss and training FLOPs (its picture is `pareto`); arms without finite figures are left out."""
    points = [(name, flops, loss) for name, arm in results.arms.items() for flops, loss in _point(results, arm)]
    if not points:
        return []
    best = front([(flops, loss) for _, flops, loss in points])
    rows = [[n, human(f), number(loss), "yes" if (f, loss) in best else "no"] for n, f, loss in points]
    told = (
        "Training FLOPs of one run: a token's (see Budgets, forward and backward) times its tokens. An arm is on the "
        "front where no other has a lower loss at no more FLOPs. The loss is the mean over the seeds."
    )
    table = Table(["arm", "training FLOPs", "loss", "on the front"], rows)
    return [Heading("Loss against compute"), table, Paragraph(told)]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, loss) that none beats: no other is as low in both and lower in one; by cost ascending."""
    kept: list[tuple[float, float]] = []
    for cost, loss in sorted(set(points)):
        if not kept or loss < kept[-1][1]:
            kept.append((cost, loss))
    return kept


def _point(results: Results, arm: ArmResult) -> list[tuple[float, float]]:
    a_token, loss = (arm.facts.flops_per_token or {}).get("total"), arm.mean("final_nll")
    return [] if a_token is None or loss is None else [(a_token * results.settings["tokens"], loss)]
