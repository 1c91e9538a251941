"""The data command from the outside: terminals, names, one field for every way in, settings refused at once."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_data_command import described, run
from text_files import json_line, some_texts

from eqx_slm.data import Corpus, open_data, prepare, split_rule
from eqx_slm.data.documents import START
from eqx_slm.data.shards import Manifest
from eqx_slm.data.tokenizer import ByteTokenizer
from eqx_slm.errors import UserError


def shell(line, folder, **environment):
    """A line of a shell, DATA standing for the command; its exit code, output and errors."""
    here = {"PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "80", **environment}
    line = line.replace("DATA", f"{sys.executable} -W error -m eqx_slm.data")
    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=folder, env={**os.environ, **here}, capture_output=True
    )
    return run.returncode, run.stdout.decode(), run.stderr.decode()


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Records in a file, and of a set, with names that not every terminal shows."""
    folder = tmp_path_factory.mktemp("named")
    lines = [json.dumps({"text": f"text {i}", "meta": {"pile_set_name": "caf\u00e9 \ud83d"}}) for i in range(200)]
    (folder / "naïve.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("line", "environment", "first"),
    [
        ("DATA describe naïve.jsonl --tokenizer byte >&-", {}, ""),
        ("DATA describe naïve.jsonl --tokenizer byte --json | head -1", {}, "{"),
        ("DATA --help >&-", {}, ""),
        (
            "DATA describe naïve.jsonl --tokenizer byte",
            {"PYTHONIOENCODING": "ascii"},
            "na\\xefve.jsonl: tokenizer byte",
        ),
        (
            "DATA prepare naïve.jsonl --tokenizer byte --out é",
            {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            "",
        ),
    ],
)
def test_terminals(named, line, environment, first):
    code, output, errors = shell(line, named, **environment)
    assert (code, errors) == (0, "") and output.startswith(first)
    assert all(len(row) <= 80 for row in output.splitlines())


def test_a_name_that_is_no_utf_8(named, capsys):
    folder = os.fsencode(named) + b"/\xff-set"
    os.makedirs(folder)
    with open(folder + b"/\xe9.jsonl", "wb") as file:
        file.write(b"".join(json_line(f"text {i}") for i in range(150)))
    out = named / "by-bytes"
    arguments = ["prepare", os.fsdecode(folder), "--tokenizer", "byte", "--out", str(out), "--json"]
    code, output, errors = run(arguments, capsys)
    assert (code, errors) == (0, "") and json.loads(output)["splits"]["train"]["documents"] > 100
    assert run(arguments, capsys)[0] == 0  # the same again: nothing to do
    assert json.loads((out / "manifest.json").read_bytes())["source"]["files"][0][0].endswith(".jsonl")
    stream = open_data(str(out), sequence_length=4, batch_size=2)
    assert json.loads(json.dumps(stream.info)) == stream.info


def test_half_surrogates_in_the_name_of_a_set(tmp_path):
    class Named(Corpus):
        def items(self, start=START, split=""):
            return (item._replace(group="half \ud83d") for item in super().items(start, split))

    source = Named("n", ("a", "b"), ("c" * 20,), (), "official", "n")
    options = {"rule": split_rule(source), "workers": 0, "commit_bytes": 1}
    manifest = prepare(source, ByteTokenizer(), tmp_path / "out", **options)
    assert Manifest.read(tmp_path / "out") == manifest == prepare(source, ByteTokenizer(), tmp_path / "out", **options)
    assert list(manifest.counts["train"].sets) == ["half \ud83d"]


def test_a_byte_order_mark_before_a_manifest(tmp_path, prepared):
    shutil.copytree(prepared / "out", tmp_path / "out")
    for name in ("manifest.json", "vocabulary.json"):
        path = tmp_path / "out" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    stream, plain = (open_data(str(folder / "out"), sequence_length=4, batch_size=2) for folder in (tmp_path, prepared))
    assert stream.digest(0, 3) == plain.digest(0, 3)


@pytest.mark.parametrize("spec", ["bpe:300", "byte", "word:eos=none"])
def test_every_way_in_reads_the_same_field(tmp_path, capsys, spec):
    """`--text-field` in describe and prepare, `text_field` in memory and streamed: the same documents."""
    texts = some_texts(300)
    rows = [json.dumps({"body": {"main": text}, "text": "not this"}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    arguments = [tmp_path / "a.jsonl", "--tokenizer", spec, "--text-field", "body.main"]
    table = described(arguments, capsys)
    assert sum(row["documents"] for row in table["splits"].values()) == 300
    assert sum(row["bytes"] for row in table["splits"].values()) == sum(len(text.encode()) for text in texts)
    assert run(["prepare", *arguments, "--out", tmp_path / "out"], capsys)[0] == 0
    sizes = {"sequence_length": 8, "batch_size": 2}
    path = str(tmp_path / "a.jsonl")
    in_memory = open_data(path, spec, text_field="body.main", **sizes)
    stored = open_data(str(tmp_path / "out"), **sizes)
    streamed = open_data(f"stream:{path}", spec, text_field="body.main", **sizes)
    assert in_memory.digest(0, 40) == stored.digest(0, 40)
    assert in_memory.info["tokenizer_hash"] == stored.info["tokenizer_hash"]
    for stream in (in_memory, stored, streamed):
        words = set(stream.decode(np.concatenate([next(stream.batches(0)) for _ in range(2)])).split())
        assert "not" not in words
    (tmp_path / "plain.txt").write_text("some text\n\n" * 99)
    for data in (str(tmp_path / "plain.txt"), f"stream:{tmp_path}/plain.txt"):
        with pytest.raises(UserError, match="plain.txt has no records .* --text-field x can choose nothing: leave it"):
            open_data(data, "byte", text_field="x", **sizes)
    with pytest.raises(UserError, match="is prepared, so that --text-field x can choose nothing"):
        open_data(str(tmp_path / "out"), text_field="x", **sizes)
    for data in (path, f"stream:{path}"):
        with pytest.raises(UserError, match="line 1 .*no text in the field 'nothing'.*--text-field"):
            next(open_data(data, spec, text_field="nothing", **sizes).batches(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--valid-share", "0"], "training needs"),
        (["--valid-share", "nan"], "shares"),
        (["--test-share", "1"], "shares"),
        (["--valid-share", "-0.1"], "shares"),
        (["--workers", "-1"], "workers=-1: it must be at least 0"),
        (["--pad-vocab-to", "-3"], "pad_vocab_to=-3: "),
        (["--shard-tokens", "0", "--out", "new"], "shard_tokens=0: "),
        (["--shard-tokens", "1" + "0" * 30, "--out", "new"], "shard_tokens=1000"),
        (["--tokenizer", "bpe:3"], "N of 'bpe:N'"),
    ],
)
def test_settings_are_refused_at_the_start(named, capsys, monkeypatch, options, message):
    monkeypatch.chdir(named)
    command = "prepare" if "--out" in options else "describe"
    tokenizer = [] if "--tokenizer" in options else ["--tokenizer", "byte"]
    code, output, errors = run([command, "naïve.jsonl", *tokenizer, *options], capsys)
    assert (code, output) == (2, "") and errors.count("\n") == 1 and message in errors
    assert not (named / "new" / "manifest.json").exists()
