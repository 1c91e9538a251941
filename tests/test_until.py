"""Studies that add seeds until they say something: what is run, what is kept, when they stop, what is refused."""

import dataclasses
import json

import pytest
from refusals import refuses
from tiny import tiny_config, tiny_stream

from eqx_slm.study import Heading, Study, differences, paired, run_study, scope, verdicts
from eqx_slm.study.anytime import anytime_interval
from eqx_slm.study.command import Options, main, resolve
from eqx_slm.study.statistics import paired_interval
from eqx_slm.train import RunConfig

STREAM = tiny_stream()
DENSE = tiny_config()


def study(margin=1e-7, **changes):
    """Two arms that differ only in their norm; at a margin of next to nothing they are seldom resolved."""
    given = {
        "arms": {"dense": DENSE, "layer": dataclasses.replace(DENSE, norm="layer")},
        "seeds": 2,
        "rates": (1e-2,),
        "analyses": (paired("dense", margin=margin),),
        "report": (verdicts, differences, scope, lambda results: [Heading("end")]),
        "run": RunConfig(steps=2, evaluations=2),
    }
    return Study("grows", **{**given, **changes})


def run(made, out=None, **options):
    events = []
    _, results = run_study(made, STREAM, out=out, runs=None, on_event=events.append, **options)
    return results, [event.kind for event in events]


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A study that was resolved by none of its five seeds."""
    folder = tmp_path_factory.mktemp("until") / "study"
    results, kinds = run(study(until=5), folder)
    return folder, results, kinds


def test_seeds_are_added_to_the_cap_where_nothing_is_resolved(grown):
    folder, results, kinds = grown
    (comparison,) = results.comparisons
    assert comparison.seeds == (0, 1, 2, 3, 4) and comparison.verdict == "not resolved"
    assert kinds.count("run") == 10 and kinds.count("growing") == 3 and kinds.count("kept") == 0
    assert comparison.method == "anytime" and results.settings["until"] == 5
    interval, plain = anytime_interval(comparison.differences), paired_interval(comparison.differences)
    assert (comparison.corrected_low, comparison.corrected_high) == (interval.low, interval.high)
    assert (comparison.low, comparison.high) == (plain.low, plain.high)
    text = (folder / "report.md").read_text()
    assert "valid whenever one stops" in text and "confidence sequence" in text
    assert json.loads((folder / "config.json").read_text())["until"] == 5


def test_rows_that_are_there_are_used(grown, tmp_path):
    folder, results, _ = grown
    again, kinds = run(study(until=5), folder)
    assert set(kinds) == {"kept"} and again.comparisons == results.comparisons
    more, kinds = run(study(until=6), folder)
    assert kinds.count("run") == 2 and len(more.comparisons[0].seeds) == 6
    fixed, _ = run(study(seeds=3), tmp_path / "fixed")
    assert fixed.comparisons[0].method == "t"  # of the same runs as those that were added one by one
    assert fixed.comparisons[0].differences == results.comparisons[0].differences[:3]
    goes_on, kinds = run(study(until=4), tmp_path / "fixed")
    assert kinds.count("kept") == 6 and kinds.count("run") == 2 and goes_on.comparisons[0].method == "anytime"


def test_it_stops_as_soon_as_everything_is_resolved():
    """Far from each other, beyond a margin of nothing, and all within a huge one; a diverged arm is not waited for."""
    inside, kinds = run(study(margin=100.0, until=8))
    (comparison,) = inside.comparisons
    assert comparison.verdict == "no difference beyond the margin" and kinds.count("growing") < 6
    assert len(comparison.seeds) == 2 + kinds.count("growing")
    diverged, kinds = run(study(until=8, rates=(1e30,)))
    assert diverged.comparisons[0].mean is None and "growing" not in kinds


def test_a_cap_that_does_not_fit_is_refused_in_one_line(grown, tmp_path):
    folder = grown[0]
    before = (folder / "config.json").read_text()
    for made, told in (
        (lambda: run(study(until=3), folder), "--max-seeds 3: [56] seeds are done in the folder; give at least"),
        (lambda: run(study(), folder), "begun with --until-resolved"),
        (lambda: study(until=1), r"\(--max-seeds\)=1: it must be at least 2"),
        (lambda: study(seeds=4, until=3), r"\(--max-seeds\)=3: it must be at least the 4 seeds"),
        (lambda: study(seeds=(3, 5), until=9), "numbered on"),
    ):
        with refuses(told):
            made()
    assert (folder / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--max-seeds", "9"], "--max-seeds 9 without --until-resolved"),
        (
            ["--until-resolved", "--seeds", "4", "--max-seeds", "3"],
            r"\(--max-seeds\)=3: it must be at least the 4 seeds",
        ),
        (["--until-resolved", "--max-seeds", "0"], r"\(--max-seeds\)=0"),
    ],
)
def test_the_command_refuses_what_does_not_fit(arguments, told, capsys):
    import re

    assert main(["--data", "no/such/folder", *arguments]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and re.search(told, line)


def test_the_options_of_the_command():
    assert resolve(Options()).until is None
    assert resolve(Options(until_resolved=True)).until == 20
    assert resolve(Options(until_resolved=True, seeds=30)).until == 30
    assert resolve(Options(until_resolved=True, max_seeds=7)).until == 7
