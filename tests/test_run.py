"""A study on disk: what the folder holds, when it is refused, and that it replays and loads back."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny import GENERATOR, VOCAB, tiny_config, tiny_stream

from eqx_slm import LanguageModel, PairConfig, UserError, load_run, random_order, run_pair
from eqx_slm.study.arms import Tuned
from eqx_slm.study.config import StreamConfig
from eqx_slm.study.run import config_hash, read_config, run_folder
from eqx_slm.train.checkpoint import named_arrays

STREAM = tiny_stream()
CONFIG = PairConfig(
    name="tiny",
    arms=("dense", "leviathan"),
    settings=("leviathan.embedding.order=random",),
    model=tiny_config(),
    tuned=Tuned(generator=GENERATOR),
    stream=StreamConfig(data="none: given", sequence_length=STREAM.sequence_length, batch_size=STREAM.batch_size),
    seeds=2,
    steps=4,
    learning_rates=(1e-2,),
    evaluations=2,
    sample_tokens=3,
)


class Finished:
    """A finished run: its folder, its result, the trained models as events told them, by arm and seed."""

    def __init__(self, folder, **changes):
        self.models, self.folders = {}, []
        self.folder, self.result = run_pair(
            dataclasses.replace(CONFIG, **changes),
            out=folder,
            stream=STREAM,
            on_event=self.note,
            on_folder=self.folders.append,
        )

    def note(self, event):
        if event.kind == "run":
            self.models[event.arm, event.seed, event.learning_rate] = event.model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("run") / "study")


def refused(match, call, *arguments, **options):
    with pytest.raises(UserError, match=match) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)


def test_the_folder_holds_everything(run):
    files = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    models = {
        f"{arm}/seed-{seed}/{file}"
        for arm in ("dense", "leviathan")
        for seed in (0, 1)
        for file in ("model.json", "model.safetensors")
    }
    assert files == models | {
        "config.json",
        "metrics.jsonl",
        "result.json",
        "report.md",
        "curves.png",
        "curves.svg",
    }
    assert run.folders == [run.folder]


def test_result_and_metrics_are_strict_json(run):
    data = json.loads((run.folder / "result.json").read_text(), parse_constant=pytest.fail)
    assert data == run.result.data
    assert data["name"] == "tiny" and data["config"]["arms"] == ["dense", "leviathan"]
    assert str(run.folder / "config.json") in data["replay"]
    text = (run.folder / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    told = [(line["arm"], line["seed"], line["evaluation"]) for line in lines if line["evaluation"]]
    wanted = [
        (arm, seed, evaluation)
        for seed in (0, 1)
        for arm, entry in data["arms"].items()
        for evaluation in entry["runs"][seed]["evals"]
    ]
    assert told == wanted and len(told) == 8
    assert run.result.verdicts["leviathan"] in (run.folder / "report.md").read_text()


def test_the_config_that_was_written_replays_to_the_same_result(run, tmp_path):
    config = read_config(run.folder / "config.json")
    assert config == CONFIG
    again, result = run_pair(config, out=tmp_path / "again", stream=STREAM)
    changing = ("created", "seconds", "replay", "arms", "comparisons")
    same = [{k: v for k, v in data.items() if k not in changing} for data in (run.result.data, result.data)]
    assert same[0] == same[1]
    for name, arm in run.result.data["arms"].items():
        for mine, other in zip(arm["runs"], result.data["arms"][name]["runs"], strict=True):
            assert mine["evals"] == other["evals"] and mine["sample"] == other["sample"]
    differences = [data.comparisons[0]["differences"] for data in (run.result, result)]
    assert differences[0] == differences[1]
    for path in run.folder.rglob("model.*"):
        assert path.read_bytes() == (again / path.relative_to(run.folder)).read_bytes()


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
    folder = tmp_path / "copy"
    shutil.copytree(run.folder / "dense" / "seed-0", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    refused(str(weights), load_run, folder)
    (folder / "model.json").write_text('{"depth": ')
    refused("model.json is not JSON", load_run, folder)


# ---------------------------------------------------------------------------------------------------------------------
# Which folder


def test_the_first_free_number(tmp_path):
    stem = f"tiny-{config_hash(CONFIG)}"
    assert run_folder(CONFIG, None, tmp_path) == tmp_path / f"{stem}-0"
    (tmp_path / f"{stem}-0").mkdir()
    (tmp_path / f"{stem}-1").mkdir()
    (tmp_path / f"{stem}-3").mkdir()
    assert run_folder(CONFIG, None, tmp_path) == tmp_path / f"{stem}-2"
    other = dataclasses.replace(CONFIG, steps=5)
    assert config_hash(other) != config_hash(CONFIG) == config_hash(dataclasses.replace(CONFIG))
    assert run_folder(other, None, tmp_path).name.endswith("-0")


def test_a_finished_run_is_never_written_over(run):
    refused("holds a finished run of this config", run_folder, CONFIG, run.folder, run.folder)
    other = dataclasses.replace(CONFIG, steps=5, margin=0.5)
    refused(r"another config \(steps 4 -> 5; margin 0.01 -> 0.5\)", run_folder, other, run.folder, run.folder)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    refused("finished", run_pair, CONFIG, out=run.folder, stream=STREAM)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused("is a file", run_folder, CONFIG, tmp_path / "file", tmp_path)
    refused("holds files that are no run", run_folder, CONFIG, tmp_path, tmp_path)
    assert run_folder(CONFIG, tmp_path / "new", tmp_path) == tmp_path / "new"
    (tmp_path / "empty").mkdir()
    assert run_folder(CONFIG, tmp_path / "empty", tmp_path) == tmp_path / "empty"
    (tmp_path / "empty" / "config.json").write_text("{")
    refused("config.json is not JSON", run_folder, CONFIG, tmp_path / "empty", tmp_path)


def test_a_run_that_was_interrupted_starts_again(run, tmp_path):
    class Stop(Exception):
        pass

    def stop(event):
        if event.kind == "run":
            raise Stop

    folder = tmp_path / "study"
    with pytest.raises(Stop):
        run_pair(CONFIG, out=folder, stream=STREAM, on_event=stop)
    assert read_config(folder / "config.json") == CONFIG and not (folder / "result.json").exists()
    assert list(folder.glob("dense/*/model.safetensors"))
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("not the run's")
    (folder / "notes" / "seed-words.txt").write_text("not the run's either")
    refused("another config", run_folder, dataclasses.replace(CONFIG, seeds=3), folder, tmp_path)
    _, result = run_pair(CONFIG, out=folder, stream=STREAM)
    assert result.comparisons[0]["differences"] == run.result.comparisons[0]["differences"]
    assert len(list(folder.glob("*/*/model.safetensors"))) == 4 and (folder / "notes" / "mine.txt").exists()
    assert (folder / "metrics.jsonl").read_text().count('"step": 4') == 2 * 4  # nothing of the first attempt is left


def test_a_sweep_keeps_the_models_at_the_chosen_rates(tmp_path):
    run = Finished(tmp_path / "swept", arms=("dense",), settings=(), learning_rates=(1e-6, 3e-2), sample_tokens=0)
    entry = run.result.data["arms"]["dense"]
    assert entry["learning_rate"] == 3e-2
    assert sorted(p.name for p in (run.folder / "dense").iterdir()) == ["seed-0", "seed-1"]
    for seed in (0, 1):
        kept = load_run(run.folder, seed=seed).head.weight
        np.testing.assert_array_equal(kept, run.models["dense", seed, 3e-2].head.weight)


def test_nothing_is_written_where_an_arm_does_not_fit_the_stream(tmp_path):
    small = dataclasses.replace(CONFIG, settings=("all.vocab_size=63",))
    refused("63", run_pair, small, out=tmp_path / "study", stream=STREAM)
    assert not (tmp_path / "study").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    refused("cannot make the run folder", run_pair, CONFIG, out=tmp_path / "file" / "study", stream=STREAM)
