"""Blocks on a terminal, by rich, and as plain text."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..visible import visible
from .blocks import Block, Code, Folded, Heading, Paragraph, Picture, Strong, Table, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES = {
    "better": "bold green",
    "worse": "bold red",
    "no difference beyond the margin": "bold cyan",
    "not resolved": "bold yellow",
    "identical arms": "bold cyan",
}


def console(*, quiet: bool = False) -> Console:
    """Standard output, 120 columns wide where it is no terminal; `quiet`: one that prints nothing."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, quiet=quiet)


def print_blocks(blocks: Sequence[Block], console: Console) -> None:
    """Prints blocks; nothing of their text acts on the terminal or is read as markup."""
    for block in blocks:
        match block:
            case Heading():
                console.print(_text(block.text, "bold"))
            case Paragraph():
                console.print(_text(block.text), soft_wrap=not console.is_terminal)
            case Table():
                _print_table(block, console)
            case Code():
                console.print(_text(shown(block.text), keep="\n"))
            case Folded():
                print_blocks(block.blocks, console)
            case Picture():
                pass


def plain_text(blocks: Sequence[Block]) -> str:
    """The same as text without colours."""
    from rich.console import Console

    out = io.StringIO()
    print_blocks(blocks, Console(file=out, width=200, color_system=None, force_terminal=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _print_table(block: Table, console: Console) -> None:
    """A table; one that is wider than the terminal with its header's words below each other, and in several parts, each
    with the first columns, where that is not enough: a figure that is cut is another figure."""
    rows = [list(map(_text, block.header)), *([_text(c, STYLES.get(c, "")) for c in row] for row in block.rows)]
    widths = [max(len(row[i].plain) for row in rows) + 2 for i in range(len(block.header))]
    if sum(widths) <= console.width:
        _print_columns(block, rows, range(len(widths)), console)
        return
    rows[0] = [_text(head.replace(" ", "\n").replace("/", "/\n"), keep="\n") for head in block.header]
    words = [[len(word) for row in rows for word in (row[i].plain.split() or [""])] for i in range(len(widths))]
    cells = [[len(row[i].plain) for row in rows[1:]] for i in range(len(widths))]
    needs = [2 + max(words[i] if _is_text(block, i) else words[i] + cells[i]) for i in range(len(widths))]
    first = list(range(block.left))
    parts, part = [], list(first)
    for i in range(block.left, len(needs)):
        if len(part) > len(first) and sum(needs[j] for j in (*part, i)) > console.width:
            parts, part = [*parts, part], list(first)
        part.append(i)
    for columns in [*parts, part]:
        _print_columns(block, rows, columns, console)


def _print_columns(block: Table, rows: Sequence[Sequence[Text]], columns: Sequence[int], console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    table = RichTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i in columns:
        # Words give way first: figures are useless cut, and an arm's name may be long.
        text = _is_text(block, i)
        table.add_column(rows[0][i], justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows[1:]:
        table.add_row(*(row[i] for i in columns))
    console.print(table)


def _is_text(block: Table, column: int) -> bool:
    """Whether a column holds words: those on the left, and the last one where there are such."""
    return column < block.left or (column == len(block.header) - 1 and block.left > 0)


def _text(text: str | Sequence[str], style: str = "", *, keep: str = "") -> Text:
    from rich.text import Text

    if not isinstance(text, str):
        return Text.assemble(*(_text(part, keep=keep) for part in text))
    if isinstance(text, Strong):
        style = STYLES.get(text, "bold")
    return Text(visible(text, keep=keep), style=style)
