"""Streamed sources for the tests: in memory, and JSON lines in two packed files with a few bad records."""

from text_files import json_line, some_texts, write_texts

from eqx_slm.data import Corpus, StreamingStream, make_tokenizer, open_source
from eqx_slm.data.splits import SplitRule, split_rule
from eqx_slm.data.tokenizer import ByteTokenizer

OFFICIAL = SplitRule("official")
SEPARATOR = ord("\n")


def memory(train, valid=("valid text " * 40,), name="memory"):
    return Corpus(name, tuple(train), tuple(valid), (), "official", name)


def streaming(train, *, length=7, batch=2, **options):
    options = {"rule": OFFICIAL, "eval_tokens": 4, **options}
    return StreamingStream(
        memory(train) if isinstance(train, list) else train,
        ByteTokenizer(),
        sequence_length=length,
        batch_size=batch,
        **options,
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def write_folder(folder):
    """JSON lines in two files, one packed, with a bad record in the other, on line 71."""
    texts = some_texts(300)
    write_texts(folder / "a.jsonl.zst", texts[:150])
    lines = [json_line(text) for text in texts[150:]]
    (folder / "b.jsonl").write_bytes(b"".join(lines[:70]) + b"broken\n" + b"".join(lines[70:]))
    return folder


def trained_tokenizer(cache):
    """bpe:300 of some of the same texts."""
    corpus = Corpus("x", tuple(some_texts(80)), (), (), split_rule="", hash="x")
    return make_tokenizer("bpe:300", corpus, cache_dir=cache)


def folder_stream(folder, tokenizer, **options):
    source = open_source(str(folder))
    options = {"sequence_length": 15, "batch_size": 4, "eval_tokens": 120, "buffer": 20, **options}
    return StreamingStream(source, tokenizer, rule=split_rule(source, valid=0.2, test=0.1), on_error="skip", **options)
