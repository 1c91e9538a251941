"""A run folder whose files were damaged, swapped or lost: found and named in one line, none loaded in silence."""

import json
import random
import shutil

import jax
import numpy as np
import pytest
from refusals import refuses
from tiny import tiny_config, tiny_stream

from eqx_slm import UserError, load_run
from eqx_slm.study import Study, load_results, paired
from eqx_slm.study.folder import read_rows
from eqx_slm.study.study import run_study
from eqx_slm.train import RunConfig
from eqx_slm.train.checkpoint import named_arrays

RUN = RunConfig(steps=4, evaluations=2)
STUDY = Study("tiny", {"one": tiny_config(), "two": tiny_config()}, 2, (1e-2,), (paired("one"),), report=(), run=RUN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_study(STUDY, tiny_stream(), out=folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def refused(said, function, *arguments, **named):
    with refuses() as error:
        function(*arguments, **named)
    assert said in str(error.value)


def model_of(folder, seed, name="model.safetensors", arm="one"):
    return folder / arm / f"seed-{seed}" / "lr-0.01" / name


def test_another_runs_weights_are_refused(folder):
    own = model_of(folder, 0)
    shutil.copy(model_of(folder, 1), own)
    refused("it was saved with seed 1, not 0", load_run, folder, arm="one")
    shutil.copy(model_of(folder, 0, arm="two"), own)
    refused("it was saved with arm 'two', not 'one'", load_run, folder, arm="one")
    own.unlink()
    refused("has no model one/seed-0", load_run, folder, arm="one", seed=0)


@pytest.mark.parametrize(
    "change", [{"placement": "post"}, {"positions": "none"}, {"mixer": {"kind": "attention", "n_heads": 4}}]
)
def test_a_config_that_is_not_the_weights_own_is_refused(folder, change):
    """None of these shows in a shape: the same weights would be another function."""
    file = model_of(folder, 0, "model.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused("model.safetensors is another file: it was saved with config", load_run, folder, arm="one")


def test_spaces_and_order_of_a_config_mean_nothing(folder):
    file = model_of(folder, 0, "model.json")
    told = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(told.items()))))
    assert load_run(folder, arm="one")


def same(a, b):
    a, b = named_arrays(a), named_arrays(b)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_random_damage_is_found(whole, folder):
    """Of every file that is read again: cut, one bit flipped, gone. What is read afterwards is what was written, or is
    refused in a line; a report that lacks rows says so by reading the study's own results."""
    chance, models = random.Random(0), {seed: load_run(whole, arm="one", seed=seed) for seed in (0, 1)}
    rows, results = read_rows(whole / "runs.jsonl"), load_results(whole)
    readers = {
        "runs.jsonl": lambda: set(map(str, read_rows(folder / "runs.jsonl"))) <= set(map(str, rows)),
        "result.json": lambda: str(load_results(folder).comparisons) == str(results.comparisons),
        "one/seed-0/lr-0.01/model.safetensors": lambda: same(load_run(folder, arm="one"), models[0]),
        "one/seed-1/lr-0.01/model.json": lambda: same(load_run(folder, arm="one", seed=1), models[1]),
    }
    found = 0
    for trial in range(80):
        name, reads = list(readers.items())[trial % 4]
        file, data = folder / name, (whole / name).read_bytes()
        at = chance.randrange(len(data))
        kind = chance.choice(["cut", "flip", "flip", "gone"])
        changed = (
            data[:at] if kind == "cut" else data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        )
        file.unlink() if kind == "gone" else file.write_bytes(changed)
        try:
            assert reads(), (name, kind, at)
        except UserError as error:
            assert "\n" not in str(error)
            found += 1
        except UserWarning as warned:  # the place where the hash stands
            assert "has no hash" in str(warned)
            found += 1
        file.write_bytes(data)
    assert found > 50
    assert jax.tree.structure(load_run(folder, arm="one")) == jax.tree.structure(models[0])
