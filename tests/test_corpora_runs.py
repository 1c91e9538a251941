"""The command on the named corpora: a few steps each, with the tokenizer that each is known by."""

import json

import pytest

from eqx_slm.study.command import main

pytestmark = pytest.mark.slow


def train(data_root, folder, data, tokenizer, *, capsys, arm="dense", steps=3):
    """The result of a tiny study on a corpus."""
    code = main(
        [
            *("--data", data, "--data-root", str(data_root), "--tokenizer", tokenizer),
            *("--arms", arm, "--seeds", "1", "--steps", str(steps), "--out", str(folder)),
            *("--sequence-length", "16", "--batch-size", "2"),
            *("--set", "all.d_model=8", "all.channel.d_ff=16", "all.depth=1"),
        ]
    )
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    result = json.loads((folder / "result.json").read_text())
    (run,) = result["arms"][arm]["runs"]
    assert 0 < run["final_nll"] < 20 and not run["diverged"]
    assert len(run["evals"]) == steps
    assert (folder / "report.md").read_text().startswith("#")
    return result


def test_penn_treebank_in_words(data_root, tmp_path, capsys):
    result = train(data_root, tmp_path / "run", "ptb", "word", capsys=capsys)
    stream = result["stream"]
    assert (stream["vocab_size"], stream["tokens"]["train"]) == (10_000, 929_589)
    assert result["arms"]["dense"]["runs"][0]["final_bits_per_byte"] is None  # words lose bytes


def test_tiny_shakespeare_in_characters(data_root, tmp_path, capsys):
    result = train(data_root, tmp_path / "run", "tiny_shakespeare", "char", capsys=capsys)
    assert result["stream"]["vocab_size"] == 65
    run = result["arms"]["dense"]["runs"][0]
    assert run["final_bits_per_byte"] == pytest.approx(run["final_nll"] / 0.6931, rel=1e-3)  # one byte a character
