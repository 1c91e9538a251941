"""Blocks as one HTML page: nothing is fetched and nothing runs; it fits a phone, and is dark where the reader is."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence

from ..visible import visible
from .blocks import Block, Code, Folded, Heading, Mono, Paragraph, Picture, Strong, Table, Text, shown

# The page may show its own pictures and style and do nothing else, whatever is written in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
BACK = "#16181b"  # the dark page's
VERDICTS = {
    "better": "better",
    "worse": "worse",
    "no difference beyond the margin": "same",
    "identical arms": "same",
    "not resolved": "open",
}
STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --ink: #1b1d1f; --soft: #5c6166; --line: #dcdfe2; --code: #f3f4f5;
  --better: #00694c; --worse: #a63c00; --same: #005a92; --open: #6b5a00; }
@media (prefers-color-scheme: dark) { :root { --back: #16181b; --ink: #e4e6e8; --soft: #a2a8ae; --line: #363b40;
  --code: #212428; --better: #3fc79a; --worse: #ff9457; --same: #68b8ea; --open: #d9c153; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem clamp(0.9rem, 3vw, 2rem) 4rem; }
h1 { font-size: clamp(1.3rem, 1rem + 1.7vw, 1.9rem); line-height: 1.25; margin: 0.6rem 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 0.7rem; padding-top: 0.9rem; border-top: 1px solid var(--line); }
h3, h4, h5, h6 { font-size: 1.05rem; margin: 1.5rem 0 0.5rem; }
p, ul { max-width: 48rem; margin: 0.7rem 0; }
p, li, td, th, summary, code { unicode-bidi: isolate; }
strong.better, td.better { color: var(--better); } strong.worse, td.worse { color: var(--worse); }
strong.same, td.same { color: var(--same); } strong.open, td.open { color: var(--open); }
p:has(> strong.better, > strong.worse, > strong.same, > strong.open) { border-left: 4px solid var(--mark);
  padding: 0.1rem 0 0.1rem 0.8rem; margin: 1rem 0; }
p:has(> .better) { --mark: var(--better); } p:has(> .worse) { --mark: var(--worse); }
p:has(> .same) { --mark: var(--same); } p:has(> .open) { --mark: var(--open); }
figure { margin: 1.6rem 0; } figure img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; } .wide img { min-width: 44rem; }
.box { overflow-x: auto; margin: 0.9rem 0; width: fit-content; max-width: 100%;
  border: 1px solid var(--line); border-radius: 6px; }
.box:focus-visible, summary:focus-visible { outline: 2px solid var(--same); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: 0.36rem 0.7rem; text-align: left; vertical-align: top; overflow-wrap: normal; }
th.figure, td.figure { text-align: right; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); }
tbody .words { font-weight: 500; min-width: 6rem; max-width: min(20rem, 44vw); overflow-wrap: anywhere; }
.short { white-space: nowrap; }
code, pre { font: 0.875em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { background: var(--code); border-radius: 4px; padding: 0.08em 0.3em; }
pre { margin: 0; padding: 0.7rem 0.9rem; background: var(--code); } pre code { background: none; padding: 0; }
details { margin: 0.6rem 0; } summary { cursor: pointer; padding: 0.25rem 0; color: var(--same); }
@media (max-width: 42rem) { body { font-size: 15px; } th, td { padding: 0.32rem 0.5rem; } }
@media print { .box { overflow: visible; } details:not([open]) { display: none; } }
"""


def page(blocks: Sequence[Block]) -> str:
    """Blocks as a whole HTML page, its title that of the first heading."""
    name = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_plain(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{_all(blocks)}</main>\n</body>\n</html>\n"
    )


def _all(blocks: Sequence[Block]) -> str:
    made = "".join(map(_block, blocks))
    return made.replace("</ul>\n<ul>\n", "")  # entries in a row are one list


def _block(block: Block) -> str:
    match block:
        case Heading():
            level = min(max(block.level, 1), 6)
            return f"<h{level}>{_plain(block.text)}</h{level}>\n"
        case Paragraph():
            text = _inline(block.text)
            return f"<ul>\n<li>{text}</li>\n</ul>\n" if block.bullet else f"<p>{text}</p>\n"
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)
        case Code():
            return _box("Text", f"<pre><code>{html.escape(shown(block.text))}</code></pre>")
        case Folded():
            return f"<details>\n<summary>{_plain(block.summary)}</summary>\n{_all(block.blocks)}</details>\n"


def _table(block: Table) -> str:
    def kind(index: int, cell: str = "") -> str:
        short = " short" * (len(cell) <= 24)  # a short name or word is not broken, a long one may be
        return ("figure" if index >= block.left else f"words{short}") + f" {VERDICTS.get(cell, '')}".rstrip()

    head = "".join(
        f'<th scope="col" class="{kind(index)}">{_inline(name)}</th>' for index, name in enumerate(block.header)
    )
    lines = []
    for row in block.rows:
        cells = [f'<td class="{kind(index, cell)}">{_inline(cell)}</td>' for index, cell in enumerate(row)]
        if block.left and cells:
            cells[0] = f'<th scope="row" class="{kind(0, row[0])}">{_inline(row[0])}</th>'
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n</table>"
    return _box("Table", table)


def _box(what: str, inside: str) -> str:
    # What is wider than the page scrolls in its own box, by the keyboard too.
    return f'<div class="box" role="region" aria-label="{what}" tabindex="0">{inside}</div>\n'


def _picture(block: Picture) -> str:
    """A picture is an image of its own, in which no script runs and no name meets the page's."""
    alt, source = _plain(block.alt), ""
    if block.files.get("svg"):
        source = _data("svg+xml", _follows_the_page(block.files["svg"]))
    elif block.files.get("png"):
        source = _data("png", block.files["png"])
    if not source:
        return f"<figure><figcaption>{alt}</figcaption></figure>\n"
    # No larger than it was drawn, so that letters are as large in every picture.
    size = re.search(rb'<svg[^>]* width="([\d.]+)pt"', block.files.get("svg", b""))
    most = f' style="max-width: {float(size[1]) * 4 / 3:.0f}px"' if size else ""
    image = f'<img src="{source}" alt="{alt}"{most}>'
    if not block.narrow:
        return f'<figure class="wide">{image}</figure>\n'
    narrow = _data("svg+xml", _follows_the_page(block.narrow))
    return f'<figure><picture><source media="(max-width: 42rem)" srcset="{narrow}">{image}</picture></figure>\n'


def _data(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _follows_the_page(svg: bytes) -> bytes:
    """A drawing whose greys, white and black turn over where the reader prefers the dark; its colours stay."""
    text = re.sub(r"<!--.*?-->\s*", "", svg.decode("utf-8"), flags=re.DOTALL)
    greys = sorted(set(re.findall(r"#([0-9a-f]{2})\1\1(?![0-9a-f])", text)))
    text = re.sub(r"#([0-9a-f]{2})\1\1(?![0-9a-f])", r"var(--g\1)", text)
    light = " ".join(f"--g{grey}: #{grey * 3};" for grey in greys)
    # Not quite black and not quite white: the page's own.
    turned = {grey: f"#{f'{round(22 + (255 - int(grey, 16)) * 0.82):02x}' * 3}" for grey in greys} | {"ff": BACK}
    dark = " ".join(f"--g{grey}: {turned[grey]};" for grey in greys)
    style = f"<style>:root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, text, count=1).encode("utf-8")


def _inline(text: Text) -> str:
    if isinstance(text, Strong):
        return f'<strong class="{VERDICTS.get(text, "")}">{_plain(text)}</strong>'.replace(' class=""', "")
    if isinstance(text, Mono):
        return f"<code>{_plain(text)}</code>"
    return _plain(text) if isinstance(text, str) else "".join(map(_inline, text))


def _plain(text: str) -> str:
    return html.escape(visible(text), quote=True)
