"""A study that begins with a finished one's weights: those, and nothing else of it; refused in a line elsewhere."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from refusals import refuses
from tiny import tiny_config, tiny_stream

from eqx_slm import OptimizerConfig, UserError, load_run
from eqx_slm.data.tokenizer import ListTokenizer
from eqx_slm.data.vocabulary import save_tokenizer
from eqx_slm.study import Study, paired, run_study
from eqx_slm.study.beginnings import FirstWeights
from eqx_slm.study.folder import read_rows
from eqx_slm.train import RunConfig, make_program, train_runs
from eqx_slm.train.checkpoint import named_arrays

STREAM = tiny_stream()
ARMS = {"one": tiny_config(), "two": tiny_config()}  # one program for both
COSINE = OptimizerConfig(schedule="cosine")


def study(steps, seeds=1, arms=ARMS):
    config = RunConfig(steps=steps, evaluations=2, optimizer=COSINE)
    return Study("tiny", arms, seeds, (1e-2,), (paired("one"),), report=(), run=config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "short"
    run_study(study(6), STREAM, out=folder)
    return folder


def test_a_run_begins_with_the_weights_and_nothing_else(finished, tmp_path):
    """As the weights of the folder trained by hand: a new optimizer, the schedule and the data from their start."""
    folder = tmp_path / "new"
    run_study(study(5), STREAM, out=folder, init_from=finished)
    model = load_run(finished, arm="two", seed=0)
    how = {"seeds": [0], "steps": 5, "learning_rate": 1e-2, "optimizer": COSINE, "evaluate_at": (5,)}
    program = make_program(model, COSINE)
    [record] = train_runs(program, [model], STREAM, **how)
    expected, found = named_arrays(program.model(record.params)), named_arrays(load_run(folder, arm="two", seed=0))
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-5, atol=1e-6)
        start = named_arrays(model)[name]
        assert not np.array_equal(found[name], start), name
    assert json.loads((folder / "result.json").read_text())["settings"]["init_from"] == str(finished)
    # It is another run than one that begins at random: a folder holds one of both.
    assert {row.key for row in read_rows(folder / "runs.jsonl")}.isdisjoint(_keys(tmp_path))
    with pytest.raises(UserError, match="holds a run of"):
        run_study(study(5), STREAM, out=folder)


def _keys(tmp_path):
    run_study(study(5), STREAM, out=tmp_path / "random")
    return {row.key for row in read_rows(tmp_path / "random" / "runs.jsonl")}


def test_what_cannot_begin_so_says_why(finished, tmp_path):
    def refused(said, asked, folder=finished, **options):
        with refuses(said):
            run_study(asked, STREAM, out=tmp_path / "new", init_from=folder, **options)
        assert not (tmp_path / "new").exists()

    refused("no such folder", study(5), folder=tmp_path / "none")
    refused("has no model one/seed-1", study(5, seeds=2))
    refused("has no model three/seed-0", study(5, arms={"one": ARMS["one"], "three": ARMS["one"]}))
    deeper = dataclasses.replace(ARMS["one"], depth=2)
    refused("its arm 'two' is another model", study(5, arms={"one": ARMS["one"], "two": deeper}))
    refused("give one", study(5), go_on_from=finished)
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    save_tokenizer(other / "vocabulary.json", ListTokenizer("char", "abc"))
    with pytest.raises(UserError, match="its ids are of another tokenizer .* give --tokenizer .*vocabulary.json"):
        FirstWeights(other, [("one", 0)], lambda name, seed: None, ListTokenizer("char", "abd"))
    with pytest.raises(UserError, match="cannot go on: .* --init-from FOLDER"):
        run_study(study(9), STREAM, out=tmp_path / "new", go_on_from=finished)
