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
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable

    table = RichTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(block.header):
        last = index == len(block.header) - 1
        # Words give way first: figures are useless cut, and an arm's name may be long.
        left = index < block.left or (last and block.left > 0)
        table.add_column(_text(name), justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in block.rows:
        table.add_row(*(_text(cell, STYLES.get(cell, "")) for cell in row))
    console.print(table)


def _text(text: str | Sequence[str], style: str = "", *, keep: str = "") -> Text:
    from rich.text import Text

    if not isinstance(text, str):
        return Text.assemble(*(_text(part, keep=keep) for part in text))
    if isinstance(text, Strong):
        style = STYLES.get(text, "bold")
    return Text(visible(text, keep=keep), style=style)
