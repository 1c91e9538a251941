"""What a report is made of, as plain data, and one way to write it: Markdown. Others are html.py and terminal.py.

Text reaches a block as it is; a renderer makes it fit for its target, so that no name and no sample can act on one.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..visible import visible


class Strong(str):
    """A stressed part of a paragraph."""


class Mono(str):
    """A part that is code: a path, a field, a command."""


Text = str | Sequence[str]


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain text, or its parts in a row, of which some are `Strong` or `Mono`. `bullet`: an entry of a list."""

    text: Text
    bullet: bool = False


@dataclass(frozen=True)
class Table:
    """A table; the first `left` columns hold words and stand left, the others hold figures and stand right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


@dataclass(frozen=True)
class Picture:
    """A picture: its file's name without an ending, what it shows, and the file's bytes by ending.

    `narrow`: the same as SVG for a narrow screen, where it was drawn for one.
    """

    name: str
    alt: str
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    narrow: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Code:
    """Lines to be shown as they are."""

    text: str
    language: str = "text"


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence[Block]


Block = Heading | Paragraph | Table | Picture | Code | Folded


def markdown(blocks: Sequence[Block]) -> str:
    """Blocks as Markdown (GitHub's), ending in a newline."""
    return "\n".join(_markdown(block) for block in blocks)


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escaped(block.text)}\n"
        case Paragraph():
            return f"{'- ' if block.bullet else ''}{_inline(block.text)}\n"
        case Table():
            rule = ["---" if index < block.left else "---:" for index in range(len(block.header))]
            lines = [_row(block.header), "|" + "|".join(rule) + "|", *map(_row, block.rows)]
            return "\n".join(lines) + "\n"
        case Picture():
            return f"![{escaped(block.alt)}]({block.name}.png)\n"
        case Code():
            text = shown(block.text)
            fence = "`" * max(3, _more_ticks(text))
            return f"{fence}{block.language}\n{text}\n{fence}\n"
        case Folded():
            line = html.escape(visible(block.summary))
            return f"<details><summary>{line}</summary>\n\n{markdown(block.blocks)}\n</details>\n"


def shown(text: str, width: int = 160) -> str:
    """Lines of code or of a sample with nothing that acts, and none longer than `width`."""
    lines = visible(text.rstrip(), keep="\n").split("\n")
    return "\n".join(line[i : i + width] for line in lines for i in range(0, max(len(line), 1), width))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: markup, HTML and control characters lose their meaning."""
    text = re.sub(r"([\\`*\[\]<>|~$])", r"\\\1", visible(text))
    text = re.sub(r"&(?=#?\w+;)", r"\\&", text).replace("://", ":\\//").replace("www.", "www\\.")
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is only itself
    return re.sub(r"^([#+-]|\d+[.)])(?= )", lambda m: m[1][:-1] + "\\" + m[1][-1], text.lstrip(" "))


def _inline(text: Text) -> str:
    if isinstance(text, Strong):
        return f"**{escaped(text)}**" if text.strip() else escaped(text)
    if isinstance(text, Mono):
        code = visible(text)
        ticks = "`" * _more_ticks(code)
        pad = " " if code.startswith("`") or code.endswith("`") else ""
        return f"{ticks}{pad}{code}{pad}{ticks}"
    if isinstance(text, str):
        return escaped(text)
    # A block's first spaces would mean something; those between its parts are only spaces.
    parts = (" " * (not isinstance(part, Mono) and part.startswith(" ")) + _inline(part) for part in text)
    return "".join(parts).lstrip(" ")


def _more_ticks(text: str) -> int:
    # A code's own backticks end it only where as many come in a row.
    return 1 + max(map(len, re.findall("`+", text)), default=0)


def _row(cells: Sequence[str]) -> str:
    # A code span's pipe would end its cell as well.
    texts = (_inline(cell).replace("|", "\\|") if isinstance(cell, Mono) else _inline(cell) for cell in cells)
    return "| " + " | ".join(texts) + " |"
