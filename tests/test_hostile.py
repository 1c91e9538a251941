"""Files made to mislead: every one is a line that names it, and nothing outside of its folder is read."""

import json

import pytest
from refusals import refuses

from eqx_slm import UserError
from eqx_slm.configs import from_dict, read_json, to_dict
from eqx_slm.data import Corpus, prepare
from eqx_slm.data.shards import Manifest
from eqx_slm.data.splits import SplitRule
from eqx_slm.data.tokenizer import ByteTokenizer
from eqx_slm.study.config import read_config
from eqx_slm.study.presets import preset


@pytest.fixture
def folder(tmp_path):
    corpus = Corpus("memory", ("a" * 50,), ("b" * 50,), ("c" * 50,), "official", "hash")
    prepare(corpus, ByteTokenizer(), tmp_path / "out", rule=SplitRule("official"), workers=0)
    return tmp_path / "out"


def edited(folder, change, *, sealed=False):
    """The manifest after a change; without its seal, as if somebody had made it anew, unless it is to stay."""
    file = folder / "manifest.json"
    data = json.loads(file.read_text())
    if not sealed:
        del data["sha256"]
    change(data)
    file.write_text(json.dumps(data))


def names(new):
    def change(data):
        data["shards"]["train"][0]["file"] = new

    return change


@pytest.mark.parametrize(
    "name", ["../train-00000.bin", "/etc/passwd", "valid-00000.bin", "train-x.bin", "a/train-0.bin", ""]
)
def test_a_manifest_names_its_own_files_only(folder, name):
    edited(folder, names(name))
    with pytest.raises(UserError, match="is no shard of the train split"):
        Manifest.read(folder)


@pytest.mark.parametrize("field", ["source", "split_rule", "tokenizer", "counts", "shards", "skipped", "leaks"])
@pytest.mark.parametrize(
    "value", [[1], 10**400, None, "text", {"a": "b"}], ids=["list", "huge", "null", "text", "object"]
)
def test_a_manifest_of_other_types_is_one_line(folder, field, value):
    edited(folder, lambda data: data.update({field: value}))
    try:
        manifest = Manifest.read(folder)
    except UserError as error:
        assert "\n" not in str(error) and "manifest.json" in str(error)
    else:  # a text where a text is, an object where an object is
        assert isinstance(value, str if field == "split_rule" else dict) and getattr(manifest, field) == value


def test_a_manifest_that_was_changed_is_named(folder):
    def lower(data):
        data["shards"]["train"][0]["largest"] = 1

    edited(folder, lower, sealed=True)
    with pytest.raises(UserError, match="is damaged, or was changed by hand"):
        Manifest.read(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[" * 100_000 + "]" * 100_000])
def test_brackets_without_end_are_one_line(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with refuses() as error:
        read_json(tmp_path / "c.json")
    assert "c.json" in str(error.value)


SIZES = [("model", "d_model"), ("model", "depth"), ("model", "vocab_size"), ("stream", "batch_size"), ("steps",)]


@pytest.mark.parametrize("path", SIZES, ids=".".join)
@pytest.mark.parametrize("value", [10**400, -1, 0, 1.5, "7", True, None, [1]], ids=str)
def test_sizes_that_are_none_are_one_line(tmp_path, path, value):
    data = json.loads(json.dumps(to_dict(preset("quick"))))
    inner = data
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(data))
    with refuses() as error:
        read_config(tmp_path / "config.json").resolve(2048)
    assert len(str(error.value)) < 300


def test_a_config_comes_back_whole():
    """What the tests above change is otherwise read as it was written."""
    config = preset("quick")
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
