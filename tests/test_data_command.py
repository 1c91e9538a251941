import itertools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_files import json_line

from eqx_slm import ModelConfig, TableConfig, build, count_parameters, parameter_ledger
from eqx_slm.data import open_data
from eqx_slm.data.command import main
from eqx_slm.data.feed import Feed
from eqx_slm.nn.head import HeadConfig
from eqx_slm.study.command import main as pair_main
from eqx_slm.train.loop import Batches


def run(arguments, capsys):
    """The command's exit code, what it printed, what it said of errors."""
    code = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def described(arguments, capsys):
    code, output, errors = run(["describe", *arguments, "--json"], capsys)
    assert (code, errors) == (0, "")
    return json.loads(output)


# Counted with wc, and published: Penn Treebank has 929,589 training tokens with <eos>, 10,000 types (Mikolov);
# Tiny Shakespeare 65 symbols.
PUBLISHED = {
    ("ptb", "word"): (10_000, {"train": 929_589, "valid": 73_760, "test": 82_430}),
    ("tiny_shakespeare", "char"): (65, {"train": 892_117, "valid": 111_669, "test": 111_606}),
}


@pytest.mark.parametrize(("name", "tokenizer"), list(PUBLISHED))
def test_describe_of_the_known_corpora(data_root, capsys, name, tokenizer):
    table = described([name, "--data-root", data_root, "--tokenizer", tokenizer], capsys)
    vocabulary, tokens = PUBLISHED[name, tokenizer]
    assert table["vocab_size"] == vocabulary and table["split_rule"] == "official"
    for split, count in tokens.items():
        row = table["splits"][split]
        size = (data_root / name / f"{split}.txt").stat().st_size
        assert (row["documents"], row["tokens"], row["bytes"]) == (1, count, size)
        assert row["bytes_per_token"] == pytest.approx(size / count, abs=1e-4)


def test_describe_wikitext_in_the_200k_vocabulary(data_root, capsys, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_root / "tiktoken"))
    arguments = ["wikitext-2", "--data-root", data_root, "--tokenizer", "o200k_base", "--pad-vocab-to", 64]
    table = described(arguments, capsys)
    assert (table["vocab_size"], table["padded_vocab_size"], table["padding"]) == (200_019, 200_064, 45)
    for split in ("train", "valid", "test"):
        assert 4 < table["splits"][split]["bytes_per_token"] < 4.5


def test_prepare_and_describe(prepared, capsys):
    table = described([prepared / "out"], capsys)
    again = described([prepared / "in", "--tokenizer", "bpe:300", "--valid-share", "0.1", "--workers", 0], capsys)
    for split, row in table["splits"].items():
        other = again["splits"][split]
        assert {k: row[k] for k in ("documents", "characters", "bytes")} == {
            k: other[k] for k in ("documents", "characters", "bytes")
        }
        assert row["tokens"] == other["tokens"] + row["documents"] - 1  # separators
        assert set(row["sets"]) == {"one", "two"}
    assert table["vocab_size"] == 300 and table["leaks"]["documents"] == 0 and "prepared" in table
    code, output, _ = run(["describe", prepared / "out", "--pad-vocab-to", 64], capsys)
    assert code == 0 and "300, padded to 320 (+20)" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "nowhere", "--tokenizer", "byte"], "no corpus 'nowhere'"),
        (["describe", "{}/bad.jsonl", "--tokenizer", "byte"], r"bad.jsonl, line 2 \(byte 14\): not JSON"),
        (
            ["prepare", "{}/bad.jsonl", "--tokenizer", "byte", "--out", "{}/o"],
            r"bad.jsonl, line 2 \(byte 14\): not JSON",
        ),
        (["describe", "{}/bad.jsonl", "--tokenizer", "nothing"], "unknown tokenizer 'nothing'"),
        (["describe", "{}/in", "--tokenizer", "byte", "--split", "official"], "no official splits"),
        (["describe", "--tokenizer", "byte"], "no data: name a corpus"),
        (["describe", "stdlib", "--tokenizer", "byte", "--pad-vocab-to", "0"], "pad_vocab_to=0: "),
        (["export", "{}/x.bin", "--data", "{}/out"], "end the name in .json"),
        (["prepare", "{}/in", "--tokenizer", "byte", "--out", "{}/bad.jsonl"], "bad.jsonl is a file; --out names a"),
        (["prepare", "{}/in", "--tokenizer", "byte", "--out", "{}/bad.jsonl/x/y"], "bad.jsonl is a file; --out names"),
        (["describe", "{}/out", "{}/in", "--tokenizer", "byte"], "out is prepared data, not text: give it alone"),
        (["describe", "{}/ou*", "--tokenizer", "byte"], "out is prepared data, not text: .* mix:WEIGHT=FOLDER"),
        (["describe", "{}/out/*.bin", "--tokenizer", "byte"], "out is prepared data, not text"),
        (["prepare", "{}/out", "--tokenizer", "byte", "--out", "{}/more"], "out is prepared data, not text"),
        (["describe", "{}/empty.txt", "--tokenizer", "byte"], "empty.txt holds no text: give"),
        (
            ["describe", "{}/empty.jsonl", "--tokenizer", "byte", "--on-error", "skip"],
            r"empty.jsonl holds no text \(.*an empty document\): give",
        ),
        (
            ["describe", "mix:1={}/out"],
            "'mix:1=.*' is for training: here leave out stream:, and name a prepared folder of",
        ),
        (["describe", "stream:{}/in"], "is for training"),
        (["prepare", "mix:0.5={0}/out,0.5={0}/out", "--out", "{0}/o"], "is for training"),
        (["export", "{}/x.json", "--data", "mix:1={}/out"], "is for training"),
        (["describe", "{}/folders/*", "--tokenizer", "byte"], "no file matches .*, only folders such as .*folders/a"),
    ],
)
def test_errors_are_one_line(prepared, capsys, arguments, message):
    import re

    (prepared / "bad.jsonl").write_bytes(json_line("x") + b'{"text": "y"')
    (prepared / "empty.txt").write_text("\n \n")
    (prepared / "empty.jsonl").write_bytes(json_line("") + json_line(" "))
    (prepared / "folders" / "a").mkdir(parents=True, exist_ok=True)
    code, output, errors = run([argument.format(prepared) for argument in arguments], capsys)
    assert (code, output) == (2, "") and errors.startswith("error: ") and errors.count("\n") == 1
    assert re.search(message, errors)


NOTHING = {"a.txt": "", "b.txt": "\n \n", "a.jsonl": "", "a.json": "[]", "c/train.jsonl": "", "d/a.txt": "\ufeff\n"}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300", "char", "word"])
@pytest.mark.parametrize("command", ["describe", "prepare"])
def test_nothing_is_said_in_one_line(tmp_path, capsys, name, tokenizer, command):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(NOTHING[name])
    where = tmp_path / name if "/" not in name else (tmp_path / name).parent
    more = ["--out", tmp_path / "out"] if command == "prepare" else []
    code, output, errors = run([command, where, "--tokenizer", tokenizer, *more], capsys)
    assert (
        (code, output) == (2, "") and f"{where.name} holds no text: give a file" in errors and errors.count("\n") == 1
    )


def test_skipped_records_are_counted(prepared, capsys):
    (prepared / "bad.jsonl").write_bytes(json_line("x") + b'{"text": "y"')
    arguments = [prepared / "bad.jsonl", "--tokenizer", "byte", "--on-error", "skip", "--workers", 0]
    assert described(arguments, capsys)["skipped"]["counts"] == {"json": 1}
    code, output, _ = run(["describe", *arguments], capsys)
    assert code == 0 and "left out: 1 json" in output and "line 2" in output


def test_export(prepared, capsys):
    assert run(["export", prepared / "t.json", "--data", prepared / "out"], capsys)[0] == 0
    assert (prepared / "t.json").stat().st_size > 1000


def test_a_script_with_workers_ends(prepared):
    """Silent, and without closing anything."""
    code = f"""
from eqx_slm.data import open_data
stream = open_data("stream:{prepared}/in", "byte", workers=2, sequence_length=8, batch_size=2)
print(next(stream.batches(0)).shape)
batches = stream.batches(1)
next(batches)  # and they are still there at the end
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 9)\n", "")


# ---------------------------------------------------------------------------------------------------------------------
# Training on it


def study(data, folder, capsys, *options):
    """What a tiny study on data prints."""
    code = pair_main(
        [
            *("--data", data, "--arms", "dense", "dense", "--seeds", "1", "--steps", "3", "--out", str(folder)),
            *("--sequence-length", "16", "--batch-size", "2", *options),
            *("--set", "all.d_model=8", "all.channel.d_ff=16", "all.depth=1"),
        ]
    )
    output = capsys.readouterr()
    assert (code, output.err) == (0, ""), output.err
    return output.out


def test_a_pair_trains_on_prepared_and_plans_on_streamed_text(prepared, tmp_path, capsys):
    study(f"{prepared}/out", tmp_path / "a", capsys, "--pad-vocab-to", "64")
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result["comparisons"][0]["verdict"] == "identical arms"
    assert result["config"]["stream"]["tokenizer"] == "bpe:300" and result["stream"]["corpus"] == "out"
    arm = result["arms"]["dense"]
    assert arm["config"]["vocab_size"] == 320 and arm["config"]["padding_ids"] == 20
    assert arm["parameters"]["of_which_padding"] == 20 * 8 * 2
    assert "of which padding" in (tmp_path / "a" / "report.md").read_text()
    said = study(f"stream:{prepared}/in/*", tmp_path / "b", capsys, "--tokenizer", "bpe:300", "--dry-run")
    assert "vocabulary 300" in said and "padding" not in said
    assert pair_main(["--data", f"{prepared}/out", "--tokenizer", "byte"]) == 2
    assert "was prepared with bpe:300, not byte" in capsys.readouterr().err


@given(st.integers(2, 300), st.integers(1, 200), st.sampled_from(["untied", "tied"]))
def test_the_ledger_says_what_padding_costs(used, padding, head):
    config = ModelConfig(used + padding, 8, 1, padding_ids=padding, embedding=TableConfig(), head=HeadConfig(head))
    ledger = parameter_ledger(config)
    plain = ModelConfig(used, 8, 1, embedding=TableConfig(), head=HeadConfig(head))
    assert (
        ledger.padding == ledger.total - parameter_ledger(plain).total == padding * 8 * (2 if head == "untied" else 1)
    )
    assert parameter_ledger(plain).padding == 0 and "of_which_padding" not in parameter_ledger(plain).summary()


def test_padding_must_leave_an_id():
    with pytest.raises(ValueError, match="padding_ids=8: at least 0, and below vocab_size=8"):
        ModelConfig(8, 8, 1, padding_ids=8)
    config = ModelConfig(10, 8, 1, padding_ids=3, context=4)
    shapes = jax.eval_shape(lambda key: build(config, key=key), jax.random.key(0))
    assert count_parameters(shapes) == parameter_ledger(config).total


# ---------------------------------------------------------------------------------------------------------------------
# Feeding


@pytest.mark.parametrize("ahead", [0, 2, 4])
def test_feeding_ahead_changes_neither_batches_nor_state(prepared, ahead):
    streams = [
        open_data(str(prepared / "out"), sequence_length=16, batch_size=4),
        open_data(f"stream:{prepared}/in", "byte", workers=0, sequence_length=16, batch_size=4),
    ]
    for stream in streams:
        assert isinstance(stream, Batches)
        plain = list(itertools.islice(stream.batches(2), 12))
        feed = Feed(stream.batches(2), ahead=ahead)
        for batch in plain[:6]:
            fed = next(feed)
            assert isinstance(fed, jax.Array)
            np.testing.assert_array_equal(fed, batch)
        resumed = Feed(stream.resume(feed.state()), ahead=ahead)
        for batch in plain[6:]:
            np.testing.assert_array_equal(next(resumed), batch)
    with pytest.raises(ValueError, match="give 0 to 4"):
        Feed(streams[0].batches(0), ahead=5)
