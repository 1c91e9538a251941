"""Finished studies side by side: names, pairing where both read the same, and one line for what cannot be."""

import dataclasses
import json
import re

import pytest
from study_result import four_arms, make_arm, make_result
from test_report import NAMES, acts

from eqx_slm import ModelConfig
from eqx_slm.files import write_json_atomic
from eqx_slm.study.beside import beside, headline, labels, what_differs
from eqx_slm.study.blocks import markdown
from eqx_slm.study.compare import paired
from eqx_slm.study.finished import main
from eqx_slm.study.html import page

SAME = ModelConfig()


def study(arms=None, **changes):
    results = make_result(arms or four_arms())
    for name in ("settings", "stream"):
        results = dataclasses.replace(results, **{name: {**getattr(results, name), **changes.pop(name, {})}})
    return dataclasses.replace(results, **changes)


def folder(path, results):
    write_json_atomic(path / "config.json", results.config)
    write_json_atomic(path / "result.json", results.to_json())
    return path


def test_names_that_clash_get_their_studys():
    both = beside({"a": study(), "b": study({"dense": make_arm(0.0, 0.0), "new": make_arm(0.1, 0.0)})})
    assert list(both.joined.arms) == ["a/dense", "leviathan", "leviathan-deep", "dense-tied-deep", "b/dense", "new"]
    for name, arm in both.joined.arms.items():
        assert arm.name == name and {run.arm for run in arm.runs} == {name}
    # A name that looks like a label and an arm: every arm gets its study's.
    clash = beside({"a": study({"b/y": make_arm(0, 0), "y": make_arm(0, 0)}), "b": study({"y": make_arm(0, 0)})})
    assert list(clash.joined.arms) == ["a/b/y", "a/y", "b/y"]


def test_labels_are_the_folders_names_made_distinct(tmp_path):
    assert labels([tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]) == ["run", "run-2", "c"]


def test_studies_of_the_same_batches_are_compared_as_one_study_would_be():
    """Each half of a study in a folder of its own gives the comparisons of the whole."""
    arms = four_arms()
    names = list(arms)
    halves = [{name: arms[name] for name in part} for part in (names[:2], names[2:])]
    both = beside({"a": study(halves[0]), "b": study(halves[1])})
    assert both.why_not == "" and both.joined.reference == "dense"
    assert both.joined.comparisons == tuple(paired("dense", margin=0.01)(both.joined.arms))
    whole = study(arms)
    keep = ("arm", "reference", "differences", "low", "high", "corrected_low", "corrected_high", "verdict", "curve")
    for mine, other in zip(both.joined.comparisons, whole.comparisons, strict=True):
        assert [getattr(mine, name) for name in keep] == [getattr(other, name) for name in keep]


def test_only_seeds_that_all_have_are_compared():
    seeds = {"a": (0, 1, 2), "b": (2, 1, 7)}
    both = beside({label: study({label: make_arm(0.0, 0.0, seeds=own)}) for label, own in seeds.items()})
    (found,) = both.joined.comparisons
    assert found.seeds == (1, 2) and [run.seed for run in both.joined.arms["b"].runs] == [2, 1]
    none = beside({"a": study({"a": make_arm(0, 0, seeds=(0,))}), "b": study({"b": make_arm(0, 0, seeds=(1,))})})
    assert none.why_not == "the studies have no seed in common" and none.joined.comparisons == ()


@pytest.mark.parametrize(
    ("changes", "told", "comparable"),
    [
        ({"stream": {"stream_hash": dict.fromkeys("012", "other")}}, "a and b read other batches", True),
        ({"stream": {"stream_hash": {}}}, "a and b read other batches", True),
        ({"settings": {"tokens": 99}}, "the runs of a read 819k tokens, those of b 99", True),
        ({"stream": {"corpus_hash": "cd"}}, "evaluated on other data (they differ in corpus_hash)", False),
        ({"stream": {"tokenizer": "byte", "vocab_size": 256}}, "they differ in tokenizer, vocab_size", False),
        ({"settings": {"eval_tokens": 7}}, "they differ in number of validation tokens", False),
    ],
)
def test_where_streams_differ_it_is_said_and_nothing_is_paired(changes, told, comparable):
    both = beside({"a": study(), "b": study(**changes)})
    assert both.joined.comparisons == () and told in both.why_not
    text = markdown(headline(both))
    assert "**No paired differences**: " in text and ("cannot be compared" in text) == (not comparable)
    assert "| verdict |" not in text and "interval" not in text
    assert bool(both.other_text) == (not comparable)


def test_other_token_counts_are_not_paired():
    other = four_arms()
    for name, arm in other.items():
        runs = tuple(dataclasses.replace(run, evals=run.evals[1:]) for run in arm.runs)
        other[name] = dataclasses.replace(arm, runs=runs)
    both = beside({"a": study(), "b": study(other)})
    assert "token counts disagree" in both.why_not and both.joined.comparisons == ()


def test_equal_configs_that_were_trained_otherwise_are_told_so():
    arm = make_arm(0.0, 0.0, made_of=SAME)
    slower = dataclasses.replace(make_arm(0.1, 0.0, made_of=SAME), learning_rate=0.001)
    betas = [{"settings": {"optimizer": {"beta2": beta}}} for beta in (0.9, 0.5)]
    both = beside({"a": study({"dense": arm}, **betas[0]), "b": study({"dense": slower}, **betas[1])})
    (found,) = both.joined.comparisons
    assert found.note == "trained otherwise: optimizer.beta2 0.9 -> 0.5, learning_rate 0.003 -> 0.001"
    (equal,) = beside({"a": study({"dense": arm}), "b": study({"dense": arm})}).joined.comparisons
    assert equal.note == "" and equal.verdict == "identical arms"


def test_what_differs_between_configs_is_listed():
    first, second = study(config={"steps": 4, "model": {"depth": 2}}), study(config={"steps": 5, "model": {"depth": 2}})
    text = markdown(what_differs(beside({"a": first, "b": second, "c": first})))
    assert "| `steps` | 4 | 5 |" in text and "depth" not in text
    assert "Between a and c: nothing but the runs." in text
    long = study(config={"text": "x" * 500})
    assert max(map(len, markdown(what_differs(beside({"a": first, "b": long}))).split(" "))) <= 120


@pytest.mark.parametrize("name", NAMES[:6])
def test_hostile_names_are_only_names(name):
    both = beside({name: study({name: make_arm(0, 0)}), "b": study({name: make_arm(0.1, 0.0)})})
    text = page([*headline(both), *what_differs(both)])
    assert not acts(text) and "<b>" not in text and "<script" not in text


def test_the_command_prints_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("eqx_slm.study.plot.render", lambda *arguments: {"png": b"", "svg": b""})
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "one", study())
    folder(tmp_path / "two", study({"dense": make_arm(0.0, 0.0), "new": make_arm(0.3, 0.0)}))
    assert main(["compare", "one", "two"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and "one beside two" in said.out and re.search(r"new +two +\+0\.[23]\d+ +worse", said.out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
    for _ in range(2):  # a comparison is written over a comparison
        assert main(["compare", "one", "two", "--out", "both"]) == 0
        assert capsys.readouterr().out.endswith("both/report.html\n")
    text = (tmp_path / "both" / "report.md").read_text("utf-8")
    for part in ("# one beside two", "](curves.png)", "](forest.png)", "](ledger.png)", "](pareto.png)"):
        assert part in text
    assert "## In one alone" in text and "## In two alone" in text and "## What differs between the studies" in text
    assert "<h2>In two alone</h2>" in (tmp_path / "both" / "report.html").read_text("utf-8")


def refused(told, arguments, capsys):
    assert main([str(each) for each in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and re.fullmatch(f"error: .*{told}.*\n", said.err), said.err


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = folder(tmp_path / "one", study()), folder(tmp_path / "two", study())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refused("two or more run folders, 1 given", ["compare", one], capsys)
    refused("given twice", ["compare", one, two, "one/../one"], capsys)
    refused("there is no folder nowhere", ["compare", one, "nowhere"], capsys)
    refused(r"holds files that are no comparison \(config.json\)", ["compare", one, two, "--out", one], capsys)
    refused("config.json is a file", ["compare", one, two, "--out", one / "config.json"], capsys)
    refused("cannot write into /proc/x", ["compare", one, two, "--out", "/proc/x"], capsys)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (two / "result.json").unlink()
    refused("is not finished", ["compare", one, two, "--out", "both"], capsys)
    write_json_atomic(two / "result.json", json.loads((one / "result.json").read_text()) | {"format": 99})
    refused("has format 99, this version reads", ["compare", one, two, "--out", "both"], capsys)
    assert not (tmp_path / "both").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--nosuch"])
    said = capsys.readouterr().err
    assert main(["mend"]) == 2
    for line in (said, capsys.readouterr().err):
        assert line.startswith("error: ") and line.count("\n") == 1
    assert main([]) == 0 and "compare" in capsys.readouterr().out
