"""The report, its picture, its sentences and the terminal's summary, on synthetic results."""

import io
import json
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_result import four_arms, make_arm, make_result

from eqx_slm.files import json_ready
from eqx_slm.study.plot import render_curves, spread, token_ticks
from eqx_slm.study.report import print_summary, report_markdown, summary_text, write_report
from eqx_slm.study.sentences import comparison_sentences, human, signed


def identical_arms():
    return {"dense": make_arm(0.0, 0.0), "dense-again": make_arm(0.0, 0.0)}


def bare_result():
    arms = {"dense": make_arm(0.0, 0.0, seeds=(3,)), "odd [red] | name": make_arm(0.1, -0.2, seeds=(3,))}
    for arm in arms.values():
        arm.update(flops_per_token=None, memory_bytes=None, embedding_tax=None, note=None, ledger=[])
        for run in arm["runs"]:
            run.update(sample=None, final_bits_per_byte=None, tokens_per_second=None)
    result = make_result(arms, differences={"odd [red] | name": None})
    result["machine"]["platform"] = "gpu"
    del result["controls"]
    return result


RESULTS = {
    "four arms": lambda: make_result(four_arms()),
    "one seed, little known": bare_result,
    "identical": lambda: make_result(identical_arms(), differences={"dense-again": []}),
    "one arm": lambda: make_result({"dense": make_arm(0.0, 0.0)}),
    "diverged": lambda: make_result(four_arms() | {"gone": make_arm(0.2, 0.0, diverge_at=4)}),
    "diverged from the start": lambda: make_result({"dense": make_arm(0, 0), "gone": make_arm(0.2, 0.0, diverge_at=0)}),
}


@pytest.fixture(params=RESULTS)
def result(request):
    return RESULTS[request.param]()


def sentence(result, arm):
    comparison = next(each for each in result["comparisons"] if each["arm"] == arm)
    return comparison_sentences(comparison, result["settings"])


def test_report_says_everything_and_no_nan(result):
    text = report_markdown(result)
    assert not re.search(r"\b(nan|inf|None|null)\b", text)
    headings = re.findall(r"^## (.*)$", text, flags=re.M)
    for heading in ("What differs", "Parameters", "Budgets", "Losses", "Origin and replay"):
        assert heading in headings
    assert text.index("![") < text.index("## What differs")
    for comparison in result["comparisons"]:
        assert f"**{comparison['verdict']}**" in text[: text.index("![")]
    assert "not swept" in text and "stream hash" in text and "Matmul FLOPs only" in text
    assert text.endswith("\n") and "\n\n\n" not in text


def test_a_result_of_pair_itself_has_a_report_too(tmp_path):
    """Without what only a run folder adds."""
    result = make_result(four_arms())
    for name in ("version", "config", "replay"):
        result.pop(name, None)
    text = write_report(result, tmp_path).read_text()
    assert "## Origin" in text and "To run it again" not in text and "Config" not in text


def test_every_table_is_rectangular(result):
    for table in re.findall(r"(?:^\|.*\n)+", report_markdown(result), flags=re.M):
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()]
        assert len({len(row) for row in rows}) == 1


def test_report_from_the_written_json_is_the_same(result):
    stored = json.loads(json.dumps(json_ready(result), allow_nan=False))
    assert report_markdown(stored) == report_markdown(result)
    assert summary_text(stored) == summary_text(result)


def test_write_report_writes_three_whole_files(result, tmp_path):
    path = write_report(result, tmp_path / "deep" / "folder")
    assert path == tmp_path / "deep" / "folder" / "report.md"
    assert sorted(file.name for file in path.parent.iterdir()) == ["curves.png", "curves.svg", "report.md"]
    png = (path.parent / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG") and struct.unpack(">II", png[16:24]) == (1650, 630)
    assert ElementTree.parse(path.parent / "curves.svg").getroot().tag.endswith("svg")
    assert path.read_text(encoding="utf-8") == report_markdown(result)


@pytest.mark.parametrize("file_format", ["png", "svg"])
def test_the_picture_is_the_same_each_time(file_format):
    arms = make_result(identical_arms(), differences={"dense-again": []})
    assert render_curves(arms, file_format=file_format) == render_curves(arms, file_format=file_format)


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="png or svg"):
        render_curves(make_result(four_arms()), file_format="pdf")


def test_sentences_tell_the_way_as_well_as_the_end():
    result = make_result(four_arms())
    behind, crossed = sentence(result, "leviathan"), sentence(result, "leviathan-deep")
    assert re.match(r"leviathan against dense after 819k tokens: \+0\.\d{4} nat a token \(95% interval \+0", behind)
    assert "3 seeds; Holm-corrected +" in behind and "): worse, beyond the margin of 0.01 nat." in behind
    assert "It started behind (+0.3" in behind and "had not crossed zero by the end" in behind
    assert "The gap shrinks by 0.0" in behind and "per doubling of tokens (95% interval 0.0" in behind
    assert "0.70x the parameters, 0.70x the FLOPs a token and 1.00x the training time of dense" in behind
    assert "better" in crossed and "crossed zero once, at about" in crossed and "in favour of leviathan-deep" in crossed


def test_sentences_on_an_advantage_that_grows():
    result = make_result({"dense": make_arm(0.0, 0.0), "other": make_arm(-0.1, -0.3)})
    told = sentence(result, "other")
    assert "It started ahead (-0.1" in told and "never crossed zero" in told and "The advantage grows by 0.0" in told
    assert "Holm" not in told  # one comparison has nothing to correct


def test_sentences_without_an_interval_claim_nothing():
    told = comparison_sentences(bare_result()["comparisons"][0], bare_result()["settings"])
    assert "1 seed, so there is no interval): not resolved." in told and "one seed, no interval" in told


def test_sentences_of_identical_and_diverged_arms():
    same = RESULTS["identical"]()
    assert "identical arms. The configs are equal and every difference is exactly zero" in sentence(same, "dense-again")
    told = sentence(RESULTS["diverged"](), "gone")
    assert "not resolved, because a run diverged." in told and "Note: gone diverged on every seed (0, 1, 2)" in told


def test_the_control_is_told_apart_from_the_comparisons():
    text = report_markdown(make_result(four_arms()))
    assert "Control (is it the generated embedding, or only the depth?): leviathan-deep against dense-tied-deep" in text
    assert "So the depth alone, which a tied table buys as well, does not account for leviathan-deep." in text


def test_a_sample_cannot_break_out_of_its_block():
    text = report_markdown(make_result(four_arms()))
    assert "\n````text\ndef f(x):\n    ```return``` | x\n````\n" in text


def test_a_sweep_is_shown():
    result = make_result(four_arms())
    result["settings"].update(swept=True, learning_rates=[0.001, 0.003])
    for arm in result["arms"].values():
        arm["all_runs"] = arm["runs"] + [dict(run, learning_rate=0.001, final_nll=None) for run in arm["runs"]]
    text = report_markdown(result)
    assert "swept over the same grid for every arm (0.001, 0.003)" in text and "not swept" not in text
    assert "| arm | 0.001 | 0.003 |" in text and "| dense | diverged | 4." in text


def test_summary_prints_what_its_text_says(result):
    from rich.console import Console

    out = io.StringIO()
    print_summary(result, Console(file=out, width=120))
    printed = " ".join(out.getvalue().split())
    for line in summary_text(result).splitlines():
        for word in line.split():
            assert word in printed
    for comparison in result["comparisons"]:
        assert f": {comparison['verdict']}" in printed


def test_summary_fits_a_terminal_of_80_columns():
    from rich.console import Console

    out = io.StringIO()
    print_summary(make_result(four_arms()), Console(file=out, width=80, force_terminal=True, color_system=None))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"dense-tied-deep +1M +3.01M .* not resolved", line) for line in lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (512, "512"), (999.6, "1k"), (20480, "20.5k"), (100_000, "100k"), (999_600, "1M"), (819_200, "819k"),
        (1_000_000, "1M"), (4.1e9, "4.1B"), (2e12, "2T"), (None, "n/a"), (float("nan"), "n/a"),
    ],
)  # fmt: skip
def test_human_counts(value, text):
    assert human(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.042, "+0.0420"), (-1.5, "-1.5000"), (0.0, "0"), (-0.0, "0"), (-1.2e-6, "-1.2e-06"), (None, "n/a")],
)
def test_signed_differences(value, text):
    assert signed(value) == text


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted), st.floats(0.01, 0.3))
def test_labels_are_spread_within_the_panel(places, gap):
    moved = spread(places, gap)
    gap = min(gap, 1 / max(1, len(places) - 1))
    assert len(moved) == len(places) and all(-1e-9 <= place <= 1 + 1e-9 for place in moved)
    assert all(b - a >= gap - 1e-9 for a, b in zip(moved, moved[1:], strict=False))
    if all(b - a > gap + 1e-9 for a, b in zip(places, places[1:], strict=False)):
        assert moved == pytest.approx(places)


@given(st.floats(1, 1e9), st.floats(1.5, 1e6))
def test_token_ticks_are_few_and_inside(low, factor):
    ticks = token_ticks(low, low * factor)
    assert 2 <= len(ticks) <= 9 and ticks == sorted(ticks)
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)


def test_importing_the_report_loads_no_heavy_library():
    code = (
        "import sys, eqx_slm.study.report as _; print([m for m in ('matplotlib', 'rich', 'scipy') if m in sys.modules])"
    )
    # jax itself loads scipy's linear algebra; only what the study adds is ours to keep out.
    code = code.replace(", 'scipy'", ", 'scipy.stats'")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
