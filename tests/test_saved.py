"""Results read back from a folder, and reports written again: the same, with nothing trained."""

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_result import make_arm, make_result
from test_report import RESULTS, WORDS, four_arms, report

from eqx_slm import UserError
from eqx_slm.files import Lock, write_json_atomic
from eqx_slm.study import PAIR, forest
from eqx_slm.study.blocks import markdown
from eqx_slm.study.finished import main
from eqx_slm.study.html import page
from eqx_slm.study.results import FORMAT, Row
from eqx_slm.study.saved import load_results, results_of, sections_of
from eqx_slm.train.loop import Evaluation


def again(results):
    """By way of JSON."""
    return results_of(json.loads(json.dumps(results.to_json(), allow_nan=False)))


@pytest.mark.parametrize("name", RESULTS)
def test_results_come_back_and_say_the_same(name):
    results = RESULTS[name]()
    read = again(results)
    assert read.to_json() == results.to_json()
    assert (read.comparisons, read.controls, read.settings) == (results.comparisons, results.controls, results.settings)
    assert {n: arm.facts for n, arm in read.arms.items()} == {n: arm.facts for n, arm in results.arms.items()}
    assert report(read) == report(results)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
# Plain values: the classes are made in the test, since their type checks draw random numbers.
EVALUATIONS = st.tuples(st.integers(0), st.integers(0), NUMBERS | st.just(math.nan), st.none() | NUMBERS)
ROWS = st.fixed_dictionaries(
    {
        "key": st.text(max_size=4),
        "seed": st.integers(0, 2**32 - 1),
        "learning_rate": NUMBERS,
        "evals": st.lists(EVALUATIONS, min_size=1, max_size=3),
        "stream_hash": st.text(max_size=4),
        "train_seconds": NUMBERS,
        "temporary_bytes": st.none() | st.integers(0),
        "sample": st.text(max_size=8),
    }
)
ONE = make_result({"it": make_arm(0, 0)})


@given(st.lists(ROWS, min_size=1, max_size=3), st.text(max_size=5), st.none() | st.text(min_size=1, max_size=5))
def test_any_rows_come_back(rows, name, match):
    made = [Row(arm="it", **{**row, "evals": tuple(Evaluation(*each) for each in row["evals"])}) for row in rows]
    runs = {"runs": tuple(made), "all_runs": tuple(made[:1])}
    arm = dataclasses.replace(ONE.arms["it"], **runs, match=match, levels={"f": name})
    read = again(dataclasses.replace(ONE, arms={"it": arm})).arms["it"]
    assert repr(read.runs) == repr(arm.runs) and repr(read.all_runs) == repr(arm.all_runs)  # NaN equals nothing
    assert (read.match, read.levels, read.learning_rate) == (match, {"f": name}, arm.learning_rate)


@pytest.fixture
def study(tmp_path):
    """The folder of a study that was never run, as far as a report needs it."""
    results = RESULTS["identical"]()
    write_json_atomic(tmp_path / "study" / "config.json", results.config)
    write_json_atomic(tmp_path / "study" / "result.json", results.to_json())
    return tmp_path / "study"


def refused(told, arguments, capsys):
    assert main([str(each) for each in arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and told in line, line


def test_a_report_is_written_again_from_what_the_folder_holds(study, capsys):
    assert main(["report", str(study)]) == 0
    assert capsys.readouterr().out == f"{study}/report.html\n"
    sections = [block for section in PAIR for block in section(RESULTS["identical"]())]
    assert (study / "report.md").read_text("utf-8") == markdown(sections)
    assert (study / "report.html").read_text("utf-8") == page(sections)
    made = {path.name for path in study.iterdir()}
    pictures = {f"{name}.{end}" for name in ("curves", "forest", "ledger", "pareto") for end in ("png", "svg")}
    assert made == pictures | {"config.json", "result.json", "report.md", "report.html"}
    results = load_results(study)
    results.settings["sections"] = ["verdicts", "probe"]
    write_json_atomic(study / "result.json", results.to_json())
    assert main(["report", str(study)]) == 0
    assert capsys.readouterr().out.startswith("left out, known only to the study's own script: probe\n")


def test_a_report_has_the_sections_that_its_study_had():
    results = make_result(four_arms())
    assert sections_of(results) == (list(PAIR), [])
    told = ["verdicts", "forest(mixer)", "loss_against(seconds)", "<lambda>", "nothing", "scope"]
    results.settings["sections"] = told
    found, missing = sections_of(results)
    assert [section.__name__ for section in found] == ["verdicts", "forest(mixer)", "loss_against(seconds)", "scope"]
    assert missing == ["<lambda>", "nothing"]
    results.settings["sections"] = [section.__name__ for section in PAIR]
    assert [section.__name__ for section in sections_of(results)[0]] == [section.__name__ for section in PAIR]
    words = [s for s in sections_of(results)[0] if s.__module__ != "eqx_slm.study.pictures"]
    assert markdown([b for s in words for b in s(results)]) == report(results, WORDS)
    assert forest("a").__name__ == "forest(a)"


def test_what_is_no_finished_study_is_refused_in_one_line(study, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(f"there is no folder {tmp_path}/nowhere", ["report", tmp_path / "nowhere"], capsys)
    refused("holds no study", ["report", empty], capsys)
    refused("config.json is a file", ["report", study / "config.json"], capsys)
    lock = Lock(study)
    refused("is in use by process", ["report", study], capsys)
    lock.release()
    whole = json.loads((study / "result.json").read_text())
    write_json_atomic(study / "result.json", {**whole, "seconds": 0})
    refused("is damaged, or was changed by hand", ["report", study], capsys)
    del whole["sha256"]  # as earlier versions wrote it
    wrong = [({**whole, "format": 1}, f"has format 1, this version reads {FORMAT}"), ([], "has format None")]
    wrong += [({k: v for k, v in whole.items() if k != "arms"}, "is not whole (KeyError 'arms')")]
    wrong += [(whole | {"arms": {"a": 1}}, "is not whole"), (whole | {"arms": {"a": {"runs": [{}]}}}, "is not whole")]
    for data, told in wrong:
        write_json_atomic(study / "result.json", data)
        refused(told, ["report", study], capsys)
    (study / "result.json").write_text("{")
    refused("is not JSON", ["report", study], capsys)
    (study / "result.json").unlink()
    refused(f"is not finished: give its command again with --out {study}", ["report", study], capsys)
    with pytest.raises(UserError, match="is not finished"):
        load_results(study)
