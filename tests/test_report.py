"""The report, its pictures, its sentences and the terminal's summary, on synthetic results."""

import dataclasses
import io
import json
import re
import struct
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from study_result import four_arms, make_arm, make_result

from eqx_slm import ModelConfig
from eqx_slm.study.blocks import Code, Folded, Heading, Mono, Paragraph, Strong, Table, escaped, markdown
from eqx_slm.study.pictures import forest, ledger_bars, loss_against
from eqx_slm.study.plot import draw_curves, render
from eqx_slm.study.report import PAIR, summary
from eqx_slm.study.saved import write_report
from eqx_slm.study.sentences import comparison_sentences, human, signed
from eqx_slm.study.terminal import plain_text, print_blocks
from eqx_slm.visible import visible

SAME = ModelConfig()


def identical():
    return make_result({"dense": make_arm(0.0, 0.0, made_of=SAME), "dense-again": make_arm(0.0, 0.0, made_of=SAME)})


def bare():
    arms = {"dense": make_arm(0.0, 0.0, seeds=(3,)), "odd [red] | name": make_arm(0.1, -0.2, seeds=(3,))}
    for name, arm in arms.items():
        facts = dataclasses.replace(arm.facts, flops_per_token=None, memory_bytes={}, embedding_tax=None, ledger=())
        runs = tuple(dataclasses.replace(run, sample="") for run in arm.runs)
        arms[name] = dataclasses.replace(arm, facts=facts, runs=runs)
    return make_result(arms, machine={"platform": "gpu"}, controls=(), config=None)


RESULTS = {
    "four arms": lambda: make_result(four_arms()),
    "one seed, little known": bare,
    "identical": identical,
    "one arm": lambda: make_result({"dense": make_arm(0.0, 0.0)}),
    "diverged": lambda: make_result(four_arms() | {"gone": make_arm(0.2, 0.0, diverge_at=4)}),
    "diverged from the start": lambda: make_result({"dense": make_arm(0, 0), "gone": make_arm(0.2, 0.0, diverge_at=0)}),
}
WORDS = [section for section in PAIR if section.__module__ != "eqx_slm.study.pictures"]


@pytest.fixture(params=RESULTS)
def result(request):
    return RESULTS[request.param]()


def report(result, sections=WORDS):
    return markdown([block for section in sections for block in section(result)])


def sentence(result, arm):
    comparison = next(each for each in result.comparisons if each.arm == arm)
    return "".join(comparison_sentences(comparison, result.settings["tokens"]))


def test_report_says_everything_and_no_nan(result):
    text = report(result)
    assert not re.search(r"\b(nan|inf|None|null)\b", text)
    headings = re.findall(r"^## (.*)$", text, flags=re.M)
    for heading in ("What differs", "Parameters", "Budgets", "Losses", "Origin and replay"):
        assert heading in headings
    for comparison in result.comparisons:
        assert f"**{comparison.verdict}**" in text[: text.index("## What differs")]
    assert "not swept" in text and "stream hash" in text and "Matmul FLOPs only" in text
    assert text.endswith("\n") and "\n\n\n" not in text


def test_every_table_is_rectangular(result):
    for table in re.findall(r"(?:^\|.*\n)+", report(result), flags=re.M):
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()]
        assert len({len(row) for row in rows}) == 1


def test_results_are_strict_json(result):
    data = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert list(data["arms"]) == list(result.arms) and data["reference"] == next(iter(result.arms))
    for name, arm in data["arms"].items():
        assert [run["final_nll"] for run in arm["runs"]] == [run.final_nll for run in result.arms[name].runs]


@pytest.mark.parametrize("name", ["four arms", "diverged from the start"])
def test_write_report_writes_whole_files(name, tmp_path):
    result = RESULTS[name]()
    path = write_report([block for section in PAIR for block in section(result)], tmp_path / "a" / "b")
    files = sorted(file.name for file in path.parent.iterdir())
    assert path.parent == tmp_path / "a" / "b"
    pictures = [f"{name}.{end}" for name in ("curves", "forest", "ledger", "pareto") for end in ("png", "svg")]
    assert files == [*pictures, "report.html", "report.md"]
    png = (path.parent / "curves.png").read_bytes()
    assert png.startswith(b"\x89PNG") and struct.unpack(">II", png[16:24]) == (1650, 630)
    for svg in path.parent.glob("*.svg"):
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert "![validation loss and paired differences against tokens](curves.png)" in path.read_text(encoding="utf-8")


def test_the_picture_is_the_same_each_time():
    assert render(draw_curves, identical()) == render(draw_curves, identical())


def test_sentences_tell_the_way_as_well_as_the_end():
    result = make_result(four_arms())
    behind, crossed = sentence(result, "leviathan"), sentence(result, "leviathan-deep")
    assert re.match(r"leviathan against dense after 819k tokens: \+0\.\d{4} nat a token \(95% interval \+0", behind)
    assert "3 seeds; Holm-corrected +" in behind and "): worse, beyond the margin of 0.01 nat." in behind
    assert "It started behind (+0.3" in behind and "had not crossed zero by the end" in behind
    assert "The gap shrinks by 0.0" in behind and "per doubling of tokens (95% interval 0.0" in behind
    assert "0.70x the parameters, 0.70x the FLOPs a token and 1.00x the training time of dense" in behind
    assert "better" in crossed and "crossed zero once, at about" in crossed and "in favour of leviathan-deep" in crossed


def test_sentences_stay_apart_in_every_target():
    result = make_result(four_arms())
    for text in (
        report(result),
        *(sentence(result, each.arm) for each in result.comparisons),
        plain_text(PAIR[0](result)),
    ):
        assert " of 0.01 nat. It started " in text and not re.search(r"[a-z]\.[A-Z]", text.split("## ")[0])
    spaced = markdown([Paragraph(["    a", Strong(" b"), Mono(" c"), " d."])])
    assert spaced == "a **b**` c` d.\n"


def test_sentences_on_an_advantage_that_grows():
    told = sentence(make_result({"dense": make_arm(0.0, 0.0), "other": make_arm(-0.1, -0.3)}), "other")
    assert "It started ahead (-0.1" in told and "never crossed zero" in told and "The advantage grows by 0.0" in told
    assert "Holm" not in told  # one comparison has nothing to correct


def test_sentences_without_an_interval_claim_nothing():
    told = sentence(bare(), "odd [red] | name")
    assert "1 seed, so there is no interval): not resolved." in told and "one seed, no interval" in told


def test_sentences_of_identical_and_diverged_arms():
    told = sentence(identical(), "dense-again")
    assert "identical arms. The configs are equal and every difference is exactly zero" in told
    told = sentence(RESULTS["diverged"](), "gone")
    assert "not resolved, because a run diverged." in told and "Note: gone diverged on every seed (0, 1, 2)" in told


def test_the_control_is_told_apart_from_the_comparisons():
    text = report(make_result(four_arms()))
    assert "Control (is it the generated embedding, or only the depth?): leviathan-deep against dense-tied-deep" in text
    assert "So the depth alone, which a tied table buys as well, does not account for leviathan-deep." in text


def test_a_sweep_is_shown():
    result = make_result(four_arms())
    result.settings.update(swept=True, learning_rates=[0.001, 0.003])
    gone = make_arm(0.0, 0.0, diverge_at=0).runs
    arms = {
        name: dataclasses.replace(
            arm, all_runs=(*arm.runs, *(dataclasses.replace(run, learning_rate=0.001) for run in gone))
        )
        for name, arm in result.arms.items()
    }
    text = report(dataclasses.replace(result, arms=arms))
    assert "swept over the same grid for every arm (0.001, 0.003)" in text and "not swept" not in text
    assert "| arm | 0.001 | 0.003 |" in text and "| dense | diverged | 4." in text


def shown(blocks, width=120, **options):
    out = io.StringIO()
    print_blocks(blocks, Console(file=out, width=width, color_system=None, **options))
    return out.getvalue()


def test_the_terminal_shows_what_the_text_says(result):
    printed = " ".join(shown(summary(result)).split())
    text = plain_text(summary(result))
    assert all(word in printed for word in text.split() if not word.startswith("─"))
    for comparison in result.comparisons:
        assert f": {comparison.verdict}" in printed


def test_the_summary_fits_a_terminal_of_80_columns():
    lines = shown(summary(make_result(four_arms())), width=80, force_terminal=True).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.search(r"dense-tied-deep +1M +3.01M .* not resolved", line) for line in lines)


@settings(max_examples=60)
@given(st.integers(40, 130), st.lists(st.integers(0, 10**9), min_size=1, max_size=14), st.sampled_from([0, 1]))
def test_a_terminal_of_any_width_cuts_no_figure(width, figures, left):
    cells = [*["dense-tied-deep"][:left], *(f"{figure:,}" for figure in figures)]
    header = [*["arm"][:left], *(f"words/figure {i}" for i in range(len(figures)))]
    told = shown([Table(header, [cells], left=left)], width=width)
    assert max(map(len, told.splitlines())) <= width
    assert Counter(told.split()) >= Counter(cells)


# ---------------------------------------------------------------------------------------------------------------------
# Text that would act: samples and names from anywhere

NASTY = [
    "\x00\x07\x1b[31mred\x1b[0m\x9b2J",  # bytes that a terminal acts on
    "\u202eevil\u2066x\u200f",  # directions
    "```\n# heading\n```````\n<script>alert(1)</script>",
    "x" * 5000,
    "a\rb\x0bc\x0cd\x85e\u2028f",  # other ends of lines
    "\ud800 half",
    "| a | b |\n|---|---|",
    "\ufeff\u00ad\ue000\U000e0041",
]
NAMES = [
    *NASTY[:3],
    "a|b",
    "*bold* _it_ `c`",
    "<b>x</b> &amp; &lt;",
    "[link](http://x) ![p](y)",
    "$x^2$ \\(y\\)",
    "[red]",
]
NAMES += ["line\nbreak", "# heading", "- item", "1. one", "~~gone~~", "日本 🙂", "https://evil.example"]


def acts(text, keep="\n"):
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in keep]


@pytest.mark.parametrize("sample", NASTY)
def test_a_sample_stays_in_its_block_and_does_nothing(sample):
    text = markdown([Paragraph("before"), Code(sample), Heading("after")])
    fence, *body, end = text[text.index("`") : text.index("## after")].rstrip("\n").split("\n")
    assert fence == end + "text" and set(end) == {"`"}
    assert not any(line.strip().startswith(end) for line in body)
    assert not acts(text) and max(map(len, body)) <= 160
    text.encode("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_an_arms_name_is_only_a_name(name):
    result = make_result({name: make_arm(0.0, 0.0), "other " + name: make_arm(0.1, 0.0)})
    text = report(result)
    assert not acts(text) and "<b>" not in re.sub(r"\\.", "", text)
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.split(r"(?<!\\)\|", line.strip())) for line in table.splitlines()}) == 1
    headings = re.findall("^#+ .*$", text, flags=re.M)
    assert len([line for line in headings if line.startswith("# ")]) == 1
    for output in (shown(summary(result), force_terminal=True), plain_text(summary(result))):
        assert not acts(output)
        assert visible(name)[:8] in output.replace("\n", "")


def test_a_name_in_a_picture_is_no_mathematics_and_no_markup():
    names = ["$\\frac{$", "\x00<b>\x1b&amp;", "--><script>"]
    arms = {name: make_arm(0.1, 0.0, levels={"f": name}) for name in names}
    result = make_result({"dense": make_arm(0.0, 0.0, levels={"f": "$"})} | arms)
    for section in (PAIR[1], forest("f"), ledger_bars, loss_against("flops")):
        (picture,) = section(result)
        for svg in (picture.files["svg"], picture.narrow):
            root = ElementTree.fromstring(svg)
            assert not [each for each in root.iter() if each.tag.rpartition("}")[2] in ("script", "b")]


@given(st.text(max_size=30))
def test_escaped_text_reads_as_it_was(text):
    """What CommonMark makes of it: backslash before punctuation goes, entities are none."""
    out = escaped(text)
    assert not acts(out, keep="") and not re.search(r"&#?\w+;", re.sub(r"\\.", "", out))
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", out) == visible(text).lstrip(" ")
    assert not re.search(r"(?<!\\)(?:\\\\)*[*`<>|\[\]~$]", out)


def test_blocks_become_markdown():
    blocks = [
        Heading("T*", 1),
        Paragraph(["a ", Strong("b"), Mono("c`d")], bullet=True),
        Table(["n", "v"], [[Mono("a|b"), "1"]]),
        Folded("more", [Code("x", "json")]),
    ]
    assert markdown(blocks).split("\n\n") == [
        "# T\\*",
        "- a **b**``c`d``",
        "| n | v |\n|---|---:|\n| `a\\|b` | 1 |",
        "<details><summary>more</summary>",
        "```json\nx\n```",
        "</details>\n",
    ]


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


def test_importing_the_report_loads_no_heavy_library():
    # jax itself loads scipy's linear algebra; only what the study adds is ours to keep out.
    heavy = "('matplotlib', 'rich', 'scipy.stats')"
    code = f"import sys, eqx_slm.study.report as _; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
