"""The examples of README and docs are doctests, run from the repository's root."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


# Pages, and how many examples they have at least.
PAGES = {"README.md": 20, "docs/mixers.md": 15, "docs/data.md": 5, "docs/sharding.md": 12}


@pytest.mark.parametrize("page", PAGES)
def test_examples(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = doctest.testfile(str(ROOT / page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert results.attempted >= PAGES[page]
    assert results.failed == 0


def test_pictures_and_links_exist() -> None:
    targets = []
    for page in PAGES:
        folder = (ROOT / page).parent
        found = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
        targets += [folder / target for target in found if not target.startswith("http")]
    assert targets
    assert [target for target in targets if not target.exists()] == []
