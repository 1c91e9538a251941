"""The site, by Zensical: pages of docs/ and of the folders beside it, notebooks run into pages, warnings as errors.

python docs/build.py [--out site] [--keep-notebooks-unrun]        (pip install -e '.[docs]')
"""

import argparse
import base64
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Pages that stand outside of docs/, and their names on the site.
BESIDE = {
    "README.md": "commands.md",
    "RESULTS.md": "claims.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "experiments/LOG.md": "log.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
LIST = re.compile(r"(?:[-*] |\d+\. )")


def pages() -> dict[Path, Path]:
    """Source -> place on the site, of every page and picture."""
    docs = ROOT / "docs"
    found = {path: path.relative_to(docs) for end in ("md", "png", "ipynb") for path in sorted(docs.rglob(f"*.{end}"))}
    found |= {ROOT / source: Path(place) for source, place in BESIDE.items()}
    return {source: place.with_suffix(".md") if place.suffix == ".ipynb" else place for source, place in found.items()}


def relinked(text: str, source: Path, places: dict[Path, Path]) -> str:
    """Links between pages as the site has them; of a link to anything else (a source file) its text alone."""

    def replace(match: re.Match[str]) -> str:
        target, _, anchor = match[3].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        place = places.get((source.parent / target).resolve())
        if place is None:
            return match[0] if match[1] else match[2]  # a notebook's picture; a file that the site does not have
        here = os.path.relpath(place, places[source].parent)
        return f"{match[1]}[{match[2]}]({here}{'#' + anchor if anchor else ''})"

    lines, fenced = [], False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        # A list after a line of text is a list here too, as on other renderers.
        if (
            not fenced
            and LIST.match(line)
            and lines
            and re.match(r"[^\s|#>-]", lines[-1])
            and not LIST.match(lines[-1])
        ):
            lines.append("")
        lines.append(line if fenced else LINK.sub(replace, line))
    return "\n".join(lines) + "\n"


def notebook_page(path: Path, folder: Path, *, run: bool) -> str:
    """A notebook as Markdown, with what its cells print and draw where it is run; pictures go to `folder`."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    if run:
        from nbclient import NotebookClient

        with tempfile.TemporaryDirectory() as elsewhere:
            NotebookClient(book, timeout=300, resources={"metadata": {"path": elsewhere}}).execute()
    parts = []
    for number, cell in enumerate(book.cells):
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{number}.png"
                (folder / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![What the cell above draws]({name})")
            elif output.get("name") != "stderr" and (shown := output.get("text") or data.get("text/plain")):
                parts.append(f"```text\n{shown.rstrip()}\n```")
    return "\n\n".join(parts)


def mathematics(page: str) -> str:
    r"""A page of the site with its \(...\) and \[...\] as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def one(match: re.Match[str]) -> str:
        formula = html.unescape(match[2])[2:-2].strip()
        if match[1] == "span":
            return convert(formula, display="inline")
        # A formula wider than a phone scrolls by itself, not the page.
        return f'<div style="overflow-x: auto">{convert(formula, display="block")}</div>'

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', one, page, flags=re.DOTALL)


def build(out: Path, *, run: bool = True) -> None:
    """Writes the site to `out`. **Raises:** `SystemExit` where Zensical warns, or its nav is not all pages."""
    with tempfile.TemporaryDirectory() as folder:
        stage, places = Path(folder), pages()
        config = (ROOT / "zensical.toml").read_text("utf-8")
        listed = set(map(Path, re.findall(r'"([\w/]+\.md)"', config)))
        if unlisted := listed ^ {place for place in places.values() if place.suffix == ".md"}:
            raise SystemExit(f"nav of zensical.toml: a page without an entry, or the reverse: {sorted(unlisted)}")
        (stage / "zensical.toml").write_text(config, "utf-8")
        for source, place in places.items():
            target = stage / "docs" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".png":
                shutil.copy(source, target)
                continue
            book = source.suffix == ".ipynb"
            text = notebook_page(source, target.parent, run=run) if book else source.read_text("utf-8")
            target.write_text(relinked(text, source, places), "utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        ran = subprocess.run(command, cwd=stage, capture_output=True, text=True)
        told = re.sub(r"\x1b\[[0-9;]*m", "", ran.stdout + ran.stderr)
        if ran.returncode or re.search(r"warning|error|traceback", told, re.IGNORECASE):
            raise SystemExit(f"the site was not built:\n{told}")
        for page in (stage / "site").rglob("*.html"):
            page.write_text(mathematics(page.read_text("utf-8")), "utf-8")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(stage / "site", out)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=ROOT / "site")
    options.add_argument("--keep-notebooks-unrun", action="store_true", help="show their code alone")
    given = options.parse_args()
    build(given.out, run=not given.keep_notebooks_unrun)
    print(f"{given.out / 'index.html'}")
