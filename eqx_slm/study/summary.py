"""A study on the terminal: one table, one line a verdict; the same as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .runs import finite, has_diverged
from .sentences import UNKNOWN, comparison_sentences, human, number, percent, plural, signed

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "no difference beyond the margin": "bold cyan",
    "not resolved": "bold yellow",
    "identical arms": "bold cyan",
}
HEADER = ("arm", "params", "FLOPs/token", "loss", "bits/byte", "diff", "verdict")


def print_summary(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the arms as a table and a line for each verdict.

    **Arguments:** `result`: a study's result. `console`: a rich console; a new one on standard output without it.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console() if console is None else console
    table = Table(
        title=Text(_title(result)),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for index, name in enumerate(HEADER):
        last = index == len(HEADER) - 1
        table.add_column(name, justify="left" if last or index == 0 else "right", no_wrap=not last)
    for row in _rows(result):
        # Text, not markup: an arm's name may hold square brackets.
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    out.print(table)
    for line in _lines(result):
        text = Text(line)
        for word, style in STYLES.items():
            text.highlight_words([f": {word}"], style)
        out.print(text, soft_wrap=not out.is_terminal)


def summary_text(result: Mapping[str, Any]) -> str:
    """The same table and lines as plain text, ending in a newline."""
    rows = [HEADER, *_rows(result)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(HEADER))]
    told = [_title(result)]
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, len(HEADER) - 1) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        told.append("  ".join(cells).rstrip())
    return "\n".join(told + _lines(result)) + "\n"


def _title(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    size = f"{plural(len(result['arms']), 'arm')}, {plural(len(settings['seeds']), 'seed')}"
    rule = f"margin {settings['margin']:g} nat, {percent(settings['confidence'])} intervals"
    return f"{result['name']}: {size}, {human(settings['tokens'])} tokens each; {rule}"


def _rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    compared = {comparison["arm"]: comparison for comparison in result["comparisons"]}
    rows = []
    for name, arm in result["arms"].items():
        comparison = compared.get(name)
        figures = ("", "reference") if comparison is None else (signed(comparison["mean"]), comparison["verdict"])
        rows.append(
            (
                name,
                human((arm.get("parameters") or {}).get("total")),
                human((arm.get("flops_per_token") or {}).get("total")),
                _mean(arm["runs"], "final_nll"),
                _mean(arm["runs"], "final_bits_per_byte"),
                *figures,
            )
        )
    return rows


def _lines(result: Mapping[str, Any]) -> list[str]:
    settings = result["settings"]
    lines = [comparison_sentences(comparison, settings, short=True) for comparison in result["comparisons"]]
    lines += ["Control: " + comparison_sentences(each, settings, short=True) for each in result.get("controls") or []]
    if result["comparisons"]:
        lines.append(f"Differences are in nats a token; below zero the arm is better than {result['reference']}.")
    return lines


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    if any(has_diverged(run) for run in runs):
        return "diverged"
    values = [finite(run.get(key)) for run in runs]
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known)) if known and len(known) == len(values) else UNKNOWN
