"""The site: pages run and link to what there is, notebooks run, and Zensical builds it all without a warning."""

import doctest
import importlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import jax
import pytest

import eqx_slm

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))
LINKED = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted(DOCS.rglob("*.md")), *NOTEBOOKS]
# Pages with examples, and how many there are at least; those of the other guides are run by test_readme.py.
PAGES = {"docs/index.md": 30, "docs/faq.md": 10, "docs/maths.md": 10, "docs/elsewhere.md": 20}


@pytest.mark.parametrize("page", PAGES)
def test_examples(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as a reader has them
        results = doctest.testfile(str(ROOT / page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= PAGES[page]
    assert results.failed == 0


def cells(notebook: Path, kind: str) -> list[str]:
    told = json.loads(notebook.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in told if cell["cell_type"] == kind]


@pytest.mark.slow
def test_notebooks(tmp_path: Path) -> None:
    """All cells of all notebooks, each notebook in a namespace of its own, in one process with eight devices."""
    assert len(NOTEBOOKS) >= 4
    script = "\n".join(
        f"exec(compile({code!r}, {f'{notebook.stem}, cell {i}'!r}, 'exec'), names)" if i else "names = {}\n"
        for notebook in NOTEBOOKS
        for i, code in enumerate(["", *cells(notebook, "code")])
    )
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"MPLBACKEND": "Agg", "XLA_FLAGS": flags}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(notebook: Path) -> None:
    told = json.loads(notebook.read_text("utf-8"))
    code = [cell for cell in told["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert cells(notebook, "markdown")[0].startswith("# ")


def prose(page: Path) -> str:
    """A page without its blocks of code and its code in lines."""
    text = "\n\n".join(cells(page, "markdown")) if page.suffix == ".ipynb" else page.read_text("utf-8")
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def anchors(page: Path) -> set[str]:
    """Of every heading the anchor that a renderer gives it: small letters, words joined by hyphens."""
    headings = re.findall(r"^#+ +(.+?)\s*$", prose_with_code(page), flags=re.MULTILINE)
    plain = (re.sub(r"[*`]|\]\([^)]*\)|\[", "", unescape(heading)) for heading in headings)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in plain}


def prose_with_code(page: Path) -> str:
    text = "\n\n".join(cells(page, "markdown")) if page.suffix == ".ipynb" else page.read_text("utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    bad = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or not there.is_relative_to(ROOT) or (anchor and anchor not in anchors(there)):
            bad.append(target)
    return bad


def test_links_lead_somewhere() -> None:
    assert {str(page.relative_to(ROOT)): bad for page in LINKED if (bad := broken(page))} == {}


def test_the_reader_of_links_finds_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# One `two`, [three](x)\n```\n# none\n```\n")
    good = "[a](b.md) [b](b.md#one-two-three) [c](#here) [d](https://x.y) `[e](none.md)`\n\n## Here\n"
    (tmp_path / "a.md").write_text(good + "[f](c.md) [g](b.md#none) [h](#there)\n")
    assert broken(tmp_path / "a.md") == ["c.md", "b.md#none", "#there"]


def test_every_public_name_has_its_place_in_the_api() -> None:
    """The file that defines a public name stands on one of the API's pages, once."""
    told = [name for page in (DOCS / "api").glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]
    assert len(told) == len(set(told))
    assert [name for name in told if importlib.util.find_spec(name) is None] == []
    public = [getattr(eqx_slm, name) for name in dir(eqx_slm) if not name.startswith("__")]
    homes = {thing.__module__ for thing in public if not inspect.ismodule(thing)}
    assert homes - set(told) == set()


@pytest.mark.slow
def test_the_adapter_for_flax_trains() -> None:
    pytest.importorskip("flax", reason="flax is not installed")
    ran = subprocess.run([sys.executable, "docs/examples/nnx_adapter.py"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("6 parameters"), ran.stderr


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    for need in ("zensical", "mkdocstrings_handlers.python", "nbformat", "latex2mathml"):
        try:
            importlib.import_module(need)
        except ImportError:
            pytest.skip(f"{need} is not installed: pip install -e '.[docs]'")
    out = tmp_path / "site"
    command = [sys.executable, str(DOCS / "build.py"), "--out", str(out), "--keep-notebooks-unrun"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    sources = [path for path in DOCS.rglob("*.*") if path.suffix in (".md", ".ipynb")]
    assert len(list(out.rglob("index.html"))) >= len(sources)
    pages = {page: page.read_text("utf-8") for page in out.rglob("index.html")}
    pictures = [(page, name) for page, text in pages.items() for name in re.findall(r'<img [^>]*src="([^":]+)"', text)]
    assert pictures and [name for page, name in pictures if not (page.parent / name).exists()] == []
    page = (out / "api" / "mixers" / "index.html").read_text("utf-8")
    assert "heads of keys and values, each of which serves a group" in page  # an argument of AttentionConfig
    assert "<math" in page and "arithmatex" not in page
