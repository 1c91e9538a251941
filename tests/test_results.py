"""RESULTS.md says what the committed rows say, and the rows stay small."""

import subprocess
import sys
from pathlib import Path

import pytest

from eqx_slm.study import load_results

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "experiments" / "rows"


def test_the_tables_are_those_of_the_rows():
    command = [sys.executable, "experiments/results.py", "--print"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    page = (ROOT / "RESULTS.md").read_text("utf-8")
    code = "import noise_table; print(noise_table.text(), end='')"
    noise = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "experiments", capture_output=True, check=True)
    assert noise.stdout == (ROOT / "experiments" / "noise.csv").read_bytes()
    assert page.split("<!-- tables -->")[1].split("<!-- /tables -->")[0].strip() == shown


@pytest.mark.parametrize("study", sorted(path.name for path in ROWS.iterdir()))
def test_a_study_is_of_paired_seeds_with_its_verdicts(study):
    results = load_results(ROWS / study)
    seeds = results.settings["seeds"]
    assert all([run.seed for run in arm.runs] == seeds for arm in results.arms.values())
    hashes = {
        seed: {run.stream_hash for arm in results.arms.values() for run in arm.runs if run.seed == seed}
        for seed in seeds
    }
    assert all(len(each) == 1 for each in hashes.values())
    assert len(seeds) >= (3 if study.startswith("scaling") else 5) and results.comparisons


def test_the_page_quotes_what_was_registered():
    said = " ".join((ROOT / "RESULTS.md").read_text("utf-8").replace("\n> ", " ").split())
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        from claims import REGISTERED
    finally:
        sys.path.pop(0)
    for text in REGISTERED.values():
        assert text in said


def test_what_the_page_says_in_words():
    default, other = (load_results(ROWS / f"embedding-{name}") for name in ("stdlib", "wikitext-2"))
    for results, mean, low, high in ((default, -0.049, -0.064, -0.033), (other, -0.061, -0.068, -0.054)):
        found = next(each for each in results.comparisons if each.arm == "dense-bigrams")
        assert (round(found.mean, 3), round(found.low, 3), round(found.high, 3)) == (mean, low, high)
        assert found.verdict == "better" and found.flops_ratio < 0.89 and abs(found.parameter_ratio - 1) < 0.001


def test_rows_are_small():
    assert sum(path.stat().st_size for path in ROWS.rglob("*.json*")) < 5_000_000
