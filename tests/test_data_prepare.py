import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from text_files import json_line, some_texts, write_texts

from eqx_slm.data import (
    Corpus,
    StreamingStream,
    TokenStream,
    make_stream,
    make_tokenizer,
    open_data,
    open_prepared,
    open_source,
    prepare,
)
from eqx_slm.data.documents import START, Document
from eqx_slm.data.preparing import PROGRESS, describe
from eqx_slm.data.shards import Manifest
from eqx_slm.data.splits import SplitRule, split_rule
from eqx_slm.data.tokenizer import ByteTokenizer
from eqx_slm.errors import UserError
from eqx_slm.files import Lock

OFFICIAL = SplitRule("official")


def contents(folder):
    """Every file of a prepared folder but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def memory(train, valid=("v",), test=()):
    return Corpus("memory", tuple(train), tuple(valid), tuple(test), "official", "hash")


def jsonl(folder, count=200, files=3):
    """A folder of JSON lines; returns its source and rule."""
    texts = some_texts(count)
    for i in range(files):
        write_texts(folder / f"{i}.jsonl.zst", texts[i::files], ["odd" if i % 2 else "even"] * len(texts[i::files]))
    source = open_source(str(folder))
    return source, split_rule(source, valid=0.2, test=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# What is written


documents = st.lists(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30), min_size=1, max_size=12
)


@settings(max_examples=20)
@given(documents, documents, st.lists(st.text("ab"), max_size=3), st.integers(1, 40), st.integers(1, 60))
def test_shards_hold_the_joined_tokens(train, valid, test, shard_tokens, commit_bytes):
    """Whatever the documents and the cuts, the shards in a row are `Tokenizer.join` of the documents."""
    tokenizer = ByteTokenizer()
    with tempfile.TemporaryDirectory() as name:
        manifest = prepare(
            memory(train, valid, test),
            tokenizer,
            Path(name, "out"),
            rule=OFFICIAL,
            workers=0,
            on_leak="keep",
            shard_tokens=shard_tokens,
            commit_bytes=commit_bytes,
        )
        for split, texts in (("train", train), ("valid", valid), ("test", test)):
            shards = manifest.shards[split]
            parts = [np.fromfile(Path(name, "out", shard.file), "<u2") for shard in shards]
            expected = tokenizer.encode_documents(texts)
            np.testing.assert_array_equal(np.concatenate([np.zeros(0, np.uint16), *parts]), expected)
            assert all(len(part) == shard_tokens for part in parts[:-1])
            counts = manifest.counts[split]
            assert (counts.documents, counts.tokens) == (len(texts), len(expected))
            assert counts.bytes == sum(len(text.encode()) for text in texts)
            assert counts.characters == sum(map(len, texts))
        assert not [file for file in Path(name, "out").iterdir() if file.name.startswith(".") and file.name != ".lock"]
        assert Manifest.read(Path(name, "out")) == manifest


def test_workers_and_commits_change_nothing(tmp_path):
    source, rule = jsonl(tmp_path / "in")
    tokenizer = make_tokenizer("bpe:300", Corpus("x", tuple(some_texts(50)), (), (), split_rule="", hash="x"))
    told = []
    for name, options in {
        "none": {"workers": 0, "on_progress": told.append},
        "three": {"workers": 3, "commit_bytes": 100},
    }.items():
        prepare(source, tokenizer, tmp_path / name, rule=rule, shard_tokens=300, **options)
    assert contents(tmp_path / "none") == contents(tmp_path / "three")
    manifest = Manifest.read(tmp_path / "none")
    assert told[-1].documents == 200 == sum(counts.documents for counts in manifest.counts.values())
    sets = [counts.sets for counts in manifest.counts.values()]
    assert sum(s.get("odd", {}).get("documents", 0) for s in sets) == 67
    assert manifest.leaks["documents"] == 0 and "200" not in manifest.split_rule
    # Splits are disjoint, by the text.
    seen = {split: set(open_text(tmp_path / "none", tokenizer, split)) for split in ("train", "valid", "test")}
    assert not seen["train"] & seen["valid"] and not seen["train"] & seen["test"] and not seen["valid"] & seen["test"]
    assert set().union(*seen.values()) == set(some_texts(200))


def open_text(folder, tokenizer, split):
    """The documents of a prepared split, from its tokens."""
    ids = open_prepared(folder, sequence_length=1, batch_size=1).splits[0][split].read()
    ends = np.flatnonzero(ids == tokenizer.separator[0])
    return [tokenizer.decode(part[1:] if i else part) for i, part in enumerate(np.split(ids, ends))]


def test_prepared_text_is_read_as_text_in_memory(tmp_path):
    """The same windows in the same order as a `TokenStream`, evaluation too, across shards of an odd size."""
    root = tmp_path / "corpus"
    texts = some_texts(400)
    for split, part in (("train", texts[:300]), ("valid", texts[300:380]), ("test", texts[380:])):
        write_texts(root / f"{split}.txt", part)
    options = {"sequence_length": 16, "batch_size": 6, "eval_tokens": 700}
    in_memory = make_stream(str(root), "bpe:300", **options)
    source = open_source(str(root))
    assert in_memory.tokenizer is not None
    prepare(source, in_memory.tokenizer, tmp_path / "out", rule=split_rule(source), workers=0, shard_tokens=997)
    stream = open_data(str(tmp_path / "out"), **options)
    assert len(stream.splits[0]["train"].parts) > 3
    for seed in (0, 5):
        assert stream.digest(seed, 90) == in_memory.digest(seed, 90)  # three epochs
    for ours, theirs in zip(stream.eval_batches(), in_memory.eval_batches(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert stream.eval_bytes() == in_memory.eval_bytes()
    assert stream.steps_per_epoch == in_memory.steps_per_epoch
    np.testing.assert_array_equal(stream.token_counts(), in_memory.token_counts())
    np.testing.assert_array_equal(stream.training_tokens(1234), in_memory.training_tokens(1234))
    assert stream.decode(stream.encode("a pair")) == "a pair" and stream.padding == 0
    assert {k: v for k, v in stream.info.items() if k in ("bytes", "tokens", "documents")} == {
        k: v for k, v in in_memory.info.items() if k in ("bytes", "tokens", "documents")
    }
    assert json.loads(json.dumps(stream.info)) == stream.info


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


def test_bad_records_are_skipped_once_whatever_interrupts(tmp_path):
    good = [json_line(text) for text in some_texts(60)]
    lines = [part for pair in zip(good, [b"broken\n", b'{"text": ""}\n'] * 30, strict=True) for part in pair]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(lines))
    source = open_source(str(path))
    options = {"rule": SplitRule("content", 0.3, 0.1), "workers": 0, "commit_bytes": 50}
    with refuses(r"a.jsonl, line 2 \(byte \d+\): not JSON"):
        prepare(source, ByteTokenizer(), tmp_path / "out", **options)
    manifest = prepare(source, ByteTokenizer(), tmp_path / "out", on_error="skip", **options)  # goes on
    assert manifest.skipped["counts"] == {"empty": 30, "json": 30} and len(manifest.skipped["first"]) == 10
    assert sum(counts.documents for counts in manifest.counts.values()) == 60
    prepare(source, ByteTokenizer(), tmp_path / "whole", on_error="skip", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class Picky(ByteTokenizer):
    """Refuses texts with an x."""

    def encode(self, text):
        if "x" in text:
            raise UserError("picky cannot encode the text")
        return super().encode(text)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_tokenizer_refuses_is_named_and_can_be_skipped(tmp_path, workers):
    """In `describe`, `prepare` and a streamed source: with file and line, and counted where it may be left out."""
    texts = [text.replace("x", "") for text in some_texts(80)]
    rule = SplitRule("content", 0.3, 0.1)
    one = Document("an x", b"an x", START, "", "")
    texts[40] = next(t for t in (f"{i} x" for i in range(99)) if rule(one._replace(data=t.encode())) == "train")
    source = open_source(str(write_texts(tmp_path / "a.jsonl", texts)))
    options = {"rule": rule, "workers": workers}
    sizes = {"rule": rule, "sequence_length": 8, "batch_size": 2, "workers": workers, "eval_tokens": 32}

    def batches(on_error):
        return StreamingStream(source, Picky(), on_error=on_error, **sizes).batches(0)

    message = r"a.jsonl, line 41: picky cannot encode the text; .*--on-error skip"
    for call in (
        lambda: prepare(source, Picky(), tmp_path / "out", **options),
        lambda: describe(source, Picky(), rule, workers=workers),
        lambda: next(batches("stop")),
    ):
        with refuses(message):
            call()
    manifest = prepare(source, Picky(), tmp_path / "out", on_error="skip", **options)
    assert manifest.skipped["counts"] == {"tokenizer": 1} and "line 41" in manifest.skipped["first"][0]
    assert sum(counts.documents for counts in manifest.counts.values()) == 79
    assert describe(source, Picky(), rule, on_error="skip")["skipped"] == manifest.skipped
    skipping = batches("skip")
    next(skipping)
    assert skipping.skipped["tokenizer"] >= 1


def test_one_process_a_folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    lock = Lock(folder)
    with refuses("is in use by process .*: wait for it, or name another folder"):
        prepared(folder)
    lock.release()
    prepared(folder)


def test_leaks_are_found(tmp_path):
    source = memory(["a", "b", "b", "c"], ["d", "b"], ["c", "e"])
    options = {"rule": OFFICIAL, "workers": 0}
    with pytest.raises(UserError, match=r"3 documents .* in two splits .*train, test.*--split content"):
        prepare(source, ByteTokenizer(), tmp_path / "out", **options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(UserError, match="out is prepared data that is not finished: give its prepare command again"):
        open_source(str(tmp_path / "out"))  # what is there is no text
    manifest = prepare(source, ByteTokenizer(), tmp_path / "out", on_leak="keep", **options)
    assert manifest.leaks["pairs"] == {"train, test": 1, "train, valid": 2}
    assert not list((tmp_path / "out").glob("hashes*"))
    (tmp_path / "more").mkdir()
    os.rename(tmp_path / "out", tmp_path / "more" / "out")  # anywhere below what is named
    for data in (str(tmp_path / "more"), f"stream:{tmp_path}/*/out", f"stream:{tmp_path}/more/out", f"{tmp_path}/m*/*"):
        with refuses("out is prepared data, not text: give it alone as it is"):
            open_data(data, "byte")
    os.rename(tmp_path / "more" / "out" / "manifest.json", tmp_path / "more" / "out" / PROGRESS)
    for data in (str(tmp_path / "more"), f"{tmp_path}/m*/*", f"mix:1={tmp_path}/more/out,1={tmp_path}/more/out"):
        with refuses("out is prepared data that is not finished|only prepared folders are mixed"):
            open_data(data, "byte")
    clean = prepare(memory(["a", "b"], ["c"]), ByteTokenizer(), tmp_path / "clean", **options)
    assert clean.leaks["documents"] == 0


def test_shards_beyond_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("eqx_slm.data.shards.MOST_SHARDS", 1)
    with refuses("train has more than 1 shards of 200 tokens: name another folder, with a larger --shard-tokens"):
        prepared(tmp_path)


def prepared(folder, **options):
    source = memory([f"training text {i}" for i in range(40)], ["validation text"] * 5)
    prepare(source, ByteTokenizer(), folder, rule=OFFICIAL, workers=0, shard_tokens=200, **options)
    return folder


def test_a_damaged_shard(tmp_path):
    folder = prepared(tmp_path / "out")
    shard = folder / "train-00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with refuses(r"train-00001.bin: its sha256 is [0-9a-f]{64}, its manifest says"):
        open_prepared(folder, sequence_length=4, batch_size=2)
    shard.write_bytes(whole[:-2])
    with pytest.raises(UserError, match="train-00001.bin has 398 bytes, its manifest says 400"):
        open_prepared(folder, sequence_length=4, batch_size=2)
    shard.unlink()
    with pytest.raises(UserError, match="train-00001.bin cannot be read"):
        open_prepared(folder, sequence_length=4, batch_size=2)


def test_an_id_beyond_the_vocabulary(tmp_path):
    folder = prepared(tmp_path / "out")
    with refuses(r"train-00000.bin, byte \d+: token id 1\d\d in the train split, .*120") as error:
        open_prepared(folder, sequence_length=4, batch_size=2, vocab_size=120)
    message = str(error.value)
    byte = int(message.split("byte ")[1].split(":")[0])
    tokens = np.fromfile(folder / "train-00000.bin", "<u2")
    assert tokens[byte // 2] >= 120 and (tokens[: byte // 2] < 120).all()
    with pytest.raises(UserError, match="the tokenizer byte has 256 ids; raise --vocab-size to at least 256"):
        open_prepared(folder, sequence_length=4, batch_size=2, vocab_size=255)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "is no prepared data"),
        (lambda f: (f / "manifest.json").write_text("{"), "not a manifest"),
        (lambda f: edit(f, lambda m: m["shards"]["train"].pop()), "was changed"),
        (lambda f: edit(f, lambda m: m.update(format=99)), "another format than 1"),
        (lambda f: (f / "vocabulary.json").unlink(), "cannot read the tokenizer"),
        (lambda f: (f / "vocabulary.json").write_text('{"format": 1}'), "not a tokenizer's description"),
    ],
)
def test_a_damaged_folder(tmp_path, change, message):
    folder = prepared(tmp_path / "out")
    change(folder)
    with refuses(message):
        open_prepared(folder, sequence_length=4, batch_size=2)


def edit(folder, change):
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    (folder / "manifest.json").write_text(json.dumps(data))


def test_folders_with_something_else_in_them(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds 'thesis.tex', which is not prepared data"):
        prepared(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name != ".lock"] == ["thesis.tex"]
    folder = prepared(tmp_path / "out")
    before = contents(folder)
    prepared(folder)  # the same again: nothing to do
    assert contents(folder) == before
    with pytest.raises(UserError, match="holds other prepared data"):
        prepare(memory(["other"]), ByteTokenizer(), folder, rule=SplitRule("content"), workers=0)
    (folder / "manifest.json").unlink()
    (folder / PROGRESS).write_text(json.dumps({"plan": {"source": {}}, "state": {}}))
    with pytest.raises(UserError, match="unfinished run with another source"):
        prepared(folder)


def test_sizes_and_names(tmp_path):
    folder = prepared(tmp_path / "out")
    for options, message in (
        ({"batch_size": 512}, r"the train split has \d+ tokens, but one batch of 512 x 128 needs 65,537"),
        ({"sequence_length": 0}, "sequence_length=0: "),
        ({"batch_size": 6, "process_count": 4}, "a batch of 6 does not divide among 4 processes"),
        ({"weights": [1, 2]}, "1 sources, but 2 weights"),
    ):
        with pytest.raises(UserError, match=message):
            open_prepared(folder, **options)
    with pytest.raises(UserError, match="was prepared with byte, not char"):
        open_data(str(folder), "char")
    with pytest.raises(UserError, match="no document in the valid split"):
        prepare(memory(["a"], []), ByteTokenizer(), tmp_path / "none", rule=OFFICIAL, workers=0)
    padded = open_data(str(folder), sequence_length=4, batch_size=2, pad_vocab_to=100)
    assert (padded.vocab_size, padded.padding) == (300, 44)
    assert isinstance(make_stream(str(Path(__file__)), "byte", batch_size=1), TokenStream)
