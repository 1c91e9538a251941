"""A study on disk: what the folder holds, that rows are not run again, when it is refused, and that it loads back."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tiny import VOCAB
from tiny_study import CONFIG, STREAM, Finished, finished

from eqx_slm import LanguageModel, load_run, pair, random_order, run_pair
from eqx_slm.files import LOCK, Lock, folder_name
from eqx_slm.study.config import read_config
from eqx_slm.study.finished import main as finished_main
from eqx_slm.study.folder import Folder, check_folder, config_hash, read_rows
from eqx_slm.study.saved import load_results
from eqx_slm.train import resume
from eqx_slm.train.checkpoint import named_arrays


@pytest.fixture(scope="module")
def run():
    return finished()


@pytest.fixture(scope="module", autouse=True)
def one_picture(run):
    """Pictures take longer than these runs: those of the first study are drawn, the others are empty files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eqx_slm.study.plot.render", lambda *arguments: {"png": b"", "svg": b""})
        yield


@pytest.fixture
def copy(run, tmp_path):
    """A finished folder to change."""
    return shutil.copytree(run.folder, tmp_path / "study")


def refused(match, call, *arguments, **options):
    with refuses(match):
        call(*arguments, **options)


def test_the_folder_holds_everything(run):
    files = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    models = {
        f"{arm}/seed-{seed}/lr-0.01/{file}"
        for arm in ("dense", "leviathan")
        for seed in (0, 1)
        for file in ("model.json", "model.safetensors")
    }
    own = {"config.json", "runs.jsonl", "metrics.jsonl", "result.json", "report.md", "report.html"}
    own |= {f"{name}.{end}" for name in ("curves", "forest", "ledger", "pareto") for end in ("png", "svg")}
    assert files == models | own
    assert run.folders == [run.folder]


def test_result_rows_and_metrics_are_strict_json(run):
    data = json.loads((run.folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert data == run.result.data
    assert data["name"] == "tiny" and data["config"]["arms"] == ["dense", "leviathan"] and data["format"] == 3
    assert str(run.folder / "config.json") in data["replay"]
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "metrics.jsonl").read_text().splitlines()
    ]
    told = [(line["arm"], line["seed"], line["evaluation"]) for line in lines if line["evaluation"]]
    rows = [
        json.loads(line, parse_constant=pytest.fail) for line in (run.folder / "runs.jsonl").read_text().splitlines()
    ]
    assert told == [(row["arm"], row["seed"], each) for row in rows for each in row["evals"]] and len(told) == 8
    assert [row["seed"] for row in rows] == [0, 0, 1, 1]  # an interrupted study holds whole pairs
    assert run.result.verdicts["leviathan"] in (run.folder / "report.md").read_text()


def test_results_read_back_are_those_that_were_returned_and_give_the_same_report(run, copy):
    read = load_results(run.folder)
    assert read.arms == run.result.results.arms and read.comparisons == run.result.results.comparisons
    assert read.to_json() == run.result.data
    (copy / "report.md").unlink()
    assert finished_main(["report", str(copy)]) == 0
    assert (copy / "report.md").read_bytes() == (run.folder / "report.md").read_bytes()


def test_the_config_that_was_written_replays_to_the_same_result(run, tmp_path):
    config = read_config(run.folder / "config.json")
    assert config == CONFIG
    again, result = run_pair(config, out=tmp_path / "again", stream=STREAM)
    for name, arm in run.result.data["arms"].items():
        for mine, other in zip(arm["runs"], result.data["arms"][name]["runs"], strict=True):
            assert mine["evals"] == other["evals"] and mine["sample"] == other["sample"]
    assert [row.key for row in read_rows(run.folder / "runs.jsonl")] == [
        row.key for row in read_rows(again / "runs.jsonl")
    ]
    for path in run.folder.rglob("model.*"):
        assert path.read_bytes() == (again / path.relative_to(run.folder)).read_bytes()


# ---------------------------------------------------------------------------------------------------------------------
# Rows that are there


def test_a_finished_study_is_not_run_again(run, copy):
    again = Finished(copy)
    assert set(again.kinds) == {"kept"} and len(again.kinds) == 4
    assert again.result.comparisons == run.result.comparisons
    assert (copy / "runs.jsonl").read_bytes() == (run.folder / "runs.jsonl").read_bytes()


def test_a_study_goes_on_where_it_stopped(run, tmp_path):
    class Stop(Exception):
        pass

    done = []

    def stop(event):
        done.append(event.kind)
        if done.count("run") == 3:
            raise Stop

    folder = tmp_path / "study"
    with pytest.raises(Stop):
        run_pair(CONFIG, out=folder, stream=STREAM, on_event=stop)
    assert not (folder / "result.json").exists() and len(read_rows(folder / "runs.jsonl")) == 3
    with open(folder / "runs.jsonl", "ab") as file:
        file.write(b'{"key": "cut')  # it died while it wrote the fourth
    again = Finished(folder)
    assert again.kinds.count("kept") == 3 and again.kinds.count("run") == 1
    assert again.result.comparisons[0]["differences"] == run.result.comparisons[0]["differences"]
    assert again.result.comparisons[0]["curve"] == run.result.comparisons[0]["curve"]


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"seeds": 3}, 2),
        ({"arms": ("dense", "leviathan", "dense")}, 2),
        ({"arms": ("dense", "leviathan", "low-rank"), "settings": (*CONFIG.settings, "low-rank.embedding.rank=2")}, 2),
        ({"learning_rates": (1e-2, 1e-30)}, 4),
        ({"seeds": 1}, 0),
    ],
)
def test_a_study_is_extended(run, copy, changes, new):
    more = Finished(copy, **changes)
    assert more.kinds.count("run") == new
    for name in ("dense", "leviathan"):
        arms = (r.data["arms"][name] for r in (more.result, run.result))
        mine, old = ([r for r in arm["all_runs"] or arm["runs"] if r["learning_rate"] == 1e-2][0] for arm in arms)
        assert mine == old  # to the digit, its seconds too: it was not run again
    assert len(more.result.data["arms"]["dense"]["runs"]) == changes.get("seeds", 2)


def test_runs_on_another_number_of_cores_do_not_join_in_silence(run, copy, monkeypatch):
    """Losses of a CPU depend on it: more runs are refused unless that is allowed, a report of those there is not."""
    begun = resume.usable_cores()
    monkeypatch.setattr(resume, "usable_cores", lambda: begun + 2)
    assert Finished(copy).kinds.count("kept") == 4
    more = dataclasses.replace(CONFIG, seeds=3)
    told = f"were made on {begun} usable cores, and this process has {begun + 2}: .*--other-cores"
    refused(told, run_pair, more, out=copy, stream=STREAM)
    assert len(read_rows(copy / "runs.jsonl")) == 4
    run_pair(more, out=copy, stream=STREAM, other_cores=True)
    cores = [load_results(folder).machine["cores"] for folder in (copy, run.folder)]
    assert cores == [[begun, begun + 2], begun]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 5, "margin": 0.5}, r"another config \(steps 4 -> 5; margin 0.01 -> 0.5\)"),
        ({"optimizer": dataclasses.replace(CONFIG.optimizer, beta2=0.9)}, r"optimizer.beta2 0.98 -> 0.9"),
        ({"settings": ("leviathan.embedding.order=tokenizer",)}, "'leviathan', seed 0, rate 0.01, with another config"),
        ({"settings": (*CONFIG.settings, "all.depth=2")}, "holds a run of 'dense'"),
        ({"seeds_at_once": 2}, "seeds_at_once 1 -> 2"),
    ],
)
def test_a_row_that_would_mean_something_else_is_refused(run, copy, changes, told):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    refused(told, run_pair, dataclasses.replace(CONFIG, **changes), out=copy, stream=STREAM)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_other_data_are_other_rows(copy):
    from tiny import tiny_stream

    refused("with another text or another tokenizer", run_pair, CONFIG, out=copy, stream=tiny_stream(seed=5))
    rows = read_rows(copy / "runs.jsonl")
    assert len({row.data for row in rows}) == 1 and rows[0].data
    # As earlier versions wrote it.
    (copy / "runs.jsonl").write_text("".join(dataclasses.replace(row, data="").line for row in rows))
    refused("another config, other data or", run_pair, CONFIG, out=copy, stream=tiny_stream(seed=5))


def test_a_line_that_is_no_row_is_named(copy):
    lines = (copy / "runs.jsonl").read_bytes().splitlines(keepends=True)
    for wrong in (b"{}\n", b"[1]\n", b'"x"\n', b"\xff\n", lines[0].replace(b'"seed"', b'"sede"')):
        (copy / "runs.jsonl").write_bytes(lines[0] + wrong + lines[2])
        refused("runs.jsonl, line 2: this is no run", run_pair, CONFIG, out=copy, stream=STREAM)


def test_pair_with_a_folder_writes_what_the_command_writes(tmp_path):
    from tiny import tiny_config

    arms = {"dense": tiny_config(), "../odd/name": lambda key: __import__("eqx_slm").build(tiny_config(), key=key)}
    options = {"seeds": 1, "steps": 2, "evaluations": 1, "learning_rates": (1e-2,), "out": tmp_path / "study"}
    result = pair(arms, STREAM, **options)
    files = {path.name for path in (tmp_path / "study").iterdir()}
    assert {"config.json", "runs.jsonl", "metrics.jsonl", "result.json", "report.md", "curves.svg", "dense"} <= files
    assert os.listdir(tmp_path) == ["study"] and folder_name("../odd/name") in files
    assert json.loads((tmp_path / "study" / "result.json").read_text()) == result.data
    events = []
    again = pair(arms, STREAM, **options, on_event=events.append)
    assert {event.kind for event in events} == {"kept"} and again.verdicts == result.verdicts
    changed = {**arms, "../odd/name": lambda key: __import__("eqx_slm").build(tiny_config(depth=2), key=key)}
    refused("holds a run of '../odd/name'", pair, changed, STREAM, **options)
    refused("was a function", load_run, tmp_path / "study", arm="../odd/name")
    assert isinstance(load_run(tmp_path / "study"), LanguageModel)


# ---------------------------------------------------------------------------------------------------------------------
# Models


def test_models_load_back_bit_for_bit(run):
    assert {(arm, seed) for arm, seed, _ in run.models} == {(a, s) for a in ("dense", "leviathan") for s in (0, 1)}
    for (arm, seed, _), model in run.models.items():
        for loaded in (load_run(run.folder, arm=arm, seed=seed), load_run(run.folder / arm / f"seed-{seed}")):
            assert isinstance(loaded, LanguageModel)
            assert jax.tree.structure(loaded) == jax.tree.structure(model)
            for path, leaf in named_arrays(model).items():
                np.testing.assert_array_equal(leaf, named_arrays(loaded)[path], strict=True)
    ordered = load_run(str(run.folder), arm="leviathan")
    np.testing.assert_array_equal(ordered.embedding.order, random_order(VOCAB))
    np.testing.assert_array_equal(load_run(run.folder).head.weight, run.models["dense", 0, 1e-2].head.weight)


def test_a_model_that_is_not_there_is_refused_with_those_that_are(run, tmp_path):
    there = "there are: dense/seed-0, dense/seed-1, leviathan/seed-0, leviathan/seed-1"
    refused(f"no model tapered/seed-0; {there}", load_run, run.folder, arm="tapered")
    refused(f"no model dense/seed-7; {there}", load_run, run.folder, seed=7)
    refused("holds no run", load_run, tmp_path)
    refused("holds no run", load_run, tmp_path / "nowhere")


def test_damaged_models_are_named(run, tmp_path):
    folder = shutil.copytree(run.folder / "dense" / "seed-0" / "lr-0.01", tmp_path / "copy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(str(weights), load_run, folder)
    (folder / "model.json").write_text('{"depth": ')
    refused("model.json is not JSON", load_run, folder)


def test_a_sweep_loads_the_model_at_the_chosen_rate(tmp_path):
    run = Finished(tmp_path / "swept", arms=("dense",), settings=(), learning_rates=(1e-6, 3e-2), sample_tokens=0)
    assert run.result.data["arms"]["dense"]["learning_rate"] == 3e-2
    for seed in (0, 1):
        for rate in (None, 1e-6, 3e-2):
            kept = load_run(run.folder, seed=seed, rate=rate).head.weight
            np.testing.assert_array_equal(kept, run.models["dense", seed, rate or 3e-2].head.weight)
    refused("2 models fit; say which of", load_run, run.folder / "dense" / "seed-0")


# ---------------------------------------------------------------------------------------------------------------------
# Which folder, and who is in it


def test_the_first_free_number(tmp_path):
    stem = f"tiny-{config_hash(CONFIG)}"
    for n in (0, 1, 3):
        (tmp_path / f"{stem}-{n}").mkdir()
    with Folder(None, CONFIG, name="tiny", runs=tmp_path) as folder:
        assert folder.path == tmp_path / f"{stem}-2"
    other = dataclasses.replace(CONFIG, steps=5)
    assert config_hash(other) != config_hash(CONFIG) == config_hash(dataclasses.replace(CONFIG))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused("is a file", check_folder, tmp_path / "file", CONFIG)
    refused("is a file", check_folder, tmp_path / "file" / "study", CONFIG)
    refused("holds files that are no run", check_folder, tmp_path, CONFIG)
    refused("/dev/null is a file", run_pair, CONFIG, out="/dev/null", stream=STREAM)
    refused("cannot make the run folder /proc", run_pair, CONFIG, out="/proc/study", stream=STREAM)
    check_folder(tmp_path / "new", CONFIG)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", CONFIG)
    for text, told in (("{", "is not JSON"), ("[]", "is no config of a study")):
        (tmp_path / "empty" / "config.json").write_text(text)
        refused(f"config.json {told}", check_folder, tmp_path / "empty", CONFIG)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file"] and os.listdir(tmp_path / "empty") == ["config.json"]


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root every folder is open
    for name in ("locked", "locked/study"):
        refused("no permission to write there", run_pair, CONFIG, out=tmp_path / name, stream=STREAM)


def test_nothing_is_written_where_an_arm_does_not_fit_the_stream(tmp_path):
    small = dataclasses.replace(CONFIG, settings=("all.vocab_size=63",))
    refused("63", run_pair, small, out=tmp_path / "study", stream=STREAM)
    assert not (tmp_path / "study").exists()


def test_a_second_run_in_a_folder_is_told_who_is_there(copy):
    with Folder(copy, CONFIG):
        refused(f"is in use by process {os.getpid()} on ", run_pair, CONFIG, out=copy, stream=STREAM)
        refused("is in use by process", check_folder, copy, CONFIG)
        # From another process too, and before it has read any data.
        code = "import sys; from eqx_slm.study.command import main; sys.exit(main(sys.argv[1:]))"
        told = ["--config", str(copy / "config.json"), "--out", str(copy)]  # its data are nowhere
        done = subprocess.run([sys.executable, "-c", code, *told], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"is in use by process {os.getpid()}" in done.stderr
    assert not (copy / LOCK).exists()
    assert set(Finished(copy).kinds) == {"kept"}  # it is free again


def test_a_lock_ends_with_its_process(tmp_path):
    """Killed, it leaves a file and no lock."""
    code = "import os, sys, pathlib; from eqx_slm.files import Lock; l = Lock(pathlib.Path(sys.argv[1])); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 9
    assert (tmp_path / LOCK).exists()
    Lock(tmp_path).release()
    assert not (tmp_path / LOCK).exists()


def test_folders_without_a_name_are_never_shared(tmp_path):
    """Twelve that start at once get twelve folders."""
    from concurrent.futures import ThreadPoolExecutor

    def make(_):
        with Folder(None, CONFIG, runs=tmp_path) as folder:
            return folder.path

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(make, range(12)))) == 12


@given(st.text(min_size=1) | st.from_regex(r"[./\\\x00-]+|[\w .]+", fullmatch=True))
def test_any_name_names_one_folder_here(name):
    made = folder_name(name)
    assert made not in (".", "..") and not set(made) & set("/\\\x00\n") and 0 < len(made.encode()) <= 150
    assert folder_name(made) == made  # what is a folder's name stays
    assert folder_name(name + "/") != made
