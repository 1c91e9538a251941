import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed import OFFICIAL, SEPARATOR, folder_stream, memory, streaming, take, trained_tokenizer, write_folder

from eqx_slm.data import (
    Corpus,
    Stream,
    open_data,
    open_prepared,
    open_source,
    prepare,
)
from eqx_slm.data.documents import Document
from eqx_slm.data.splits import split_rule
from eqx_slm.data.tokenizer import ByteTokenizer
from eqx_slm.errors import UserError
from eqx_slm.train.loop import Batches

# ---------------------------------------------------------------------------------------------------------------------
# Packing and shuffling


@given(st.lists(st.text("abcde", max_size=20), min_size=1, max_size=15).filter(any), st.integers(1, 8))
def test_packing_loses_and_duplicates_no_token(texts, length):
    """Without a buffer, sequences in a row are the documents in a row, the separator between, pass after pass."""
    rows = take(streaming(texts, length=length, batch=1, buffer=1).batches(0), 30)
    assert all(row.shape == (1, length + 1) and row.dtype == np.int32 for row in rows)
    count = 30 * (length + 1)
    expected = "\n".join(texts * (count // max(1, sum(map(len, texts))) + 1))
    assert "".join(map(chr, np.concatenate(rows).reshape(-1))) == expected[:count]


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 2**64 - 1))
def test_the_buffer_gives_a_permutation(count, capacity, seed):
    """Sequences are two characters of a document each; the first tells its place."""
    text = "".join(chr(40 + i) + "." for i in range(count))
    batches = streaming([text], length=1, batch=1, buffer=capacity).batches(seed)
    out = [int(row[0, 0]) - 40 for row in take(batches, count)]
    assert all(i < step + capacity for step, i in enumerate(out))  # never from beyond the buffer
    assert sorted(out) == list(range(count)) and batches.state().cursor["buffer"]["rows"] == 0
    if capacity == 1:
        assert out == list(range(count))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return trained_tokenizer(tmp_path_factory.mktemp("cache"))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 5, 10_000]), st.integers(2, 5), st.integers(1, 3))
def test_an_epoch_is_a_permutation_of_what_was_packed(seed, buffer, length, batch):
    texts = [f"document {i}" for i in range(12)]
    stream = streaming(texts, length=length, batch=batch, buffer=buffer)
    tokens = [t for text in texts * 3 for t in [SEPARATOR, *text.encode()]][1:]
    once_more = sum(len(text) + 1 for text in texts)
    rows = iter(row for b in stream.batches(seed) for row in b)
    start = 0
    for epoch in (1, 2):
        # So many tokens have been read after this epoch: every document with a separator, the very first without.
        end = (epoch * once_more - 1) // (length + 1) * (length + 1)
        packed = [tuple(tokens[i : i + length + 1]) for i in range(start, end, length + 1)]
        given_ = [tuple(row.tolist()) for row in itertools.islice(rows, len(packed))]
        assert Counter(given_) == Counter(packed)
        start = end


# ---------------------------------------------------------------------------------------------------------------------
# Mixing


def test_mixtures_keep_the_request_in_what_is_trained_on(tmp_path):
    """Sources of different letters: they tell where each row of each batch came from."""
    letters, shares = "abc", ["0.5", "0.3", "0.2"]
    for letter in letters:
        options = {"rule": OFFICIAL, "workers": 0, "on_leak": "keep"}
        prepare(memory([letter * 90] * 5, [letter * 90], letter), ByteTokenizer(), tmp_path / letter, **options)
    mix = "mix:" + ",".join(f"{share}={tmp_path / letter}" for share, letter in zip(shares, letters, strict=True))
    options = {"sequence_length": 8, "batch_size": 4, "eval_tokens": 80}
    mixed = open_data(mix, **options)
    seen = np.zeros(3)
    for step, row in enumerate(row for batch in take(mixed.batches(0), 60) for row in batch):
        which = [letter for letter in letters if ord(letter) in row]
        assert len(which) == 1  # cut each for itself
        seen[letters.index(which[0])] += 1
        assert (abs(seen - np.array([0.5, 0.3, 0.2]) * (step + 1)) < 1).all()
    evaluated = np.concatenate(mixed.eval_batches())
    assert Counter(chr(row.max()) for row in evaluated)["a"] == round(len(evaluated) / 2)
    iterator = mixed.batches(1)
    take(iterator, 7)
    for ours, theirs in zip(take(mixed.resume(iterator.state()), 5), take(iterator, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert mixed.identity() != open_prepared([tmp_path / letter for letter in letters], **options).identity()
    with pytest.raises(ValueError, match="no common epoch"):
        _ = mixed.steps_per_epoch
    for data, message in (("mix:a,b", "write mix:WEIGHT=SOURCE"), (f"stream:{mix}", "only prepared folders are mixed")):
        with pytest.raises(UserError, match=message):
            open_data(data)


# ---------------------------------------------------------------------------------------------------------------------
# Streams


def test_two_arms_and_two_runs_see_the_same_tokens(folder, tokenizer):
    stream, other = folder_stream(folder, tokenizer), folder_stream(folder, tokenizer, workers=2)
    assert isinstance(stream, Stream) and isinstance(stream, Batches)
    assert stream.digest(4, 40) == stream.digest(4, 40) == other.digest(4, 40)
    assert stream.digest(4, 40) != stream.digest(5, 40)
    for ours, theirs in zip(stream.eval_batches(), other.eval_batches(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(stream.batch(4, 2), take(stream.batches(4), 3)[2])
    np.testing.assert_array_equal(stream.batch(4, 2), next(stream.batches(4, start=2)))
    assert json.loads(json.dumps(stream.info)) == stream.info
    lengths = tokenizer.byte_lengths
    assert stream.eval_bytes() == sum(int(lengths[b[:, 1:]].sum()) for b in stream.eval_batches())
    iterator = stream.batches(0)
    take(iterator, 120)
    assert iterator.skipped["json"] >= 1


def test_dropped_batches_leave_no_thread(folder, tokenizer):
    def running():
        return [thread for thread in threading.enumerate() if thread.name.startswith("tokenize")]

    batches = folder_stream(folder, tokenizer, workers=2).batches(0)
    next(batches)
    assert running()
    del batches
    assert not running()


def test_streamed_text_is_the_text(folder, tokenizer):
    """Without shuffling, the rows in a row decode to the training documents in order."""
    source = open_source(str(folder))
    rule = split_rule(source, valid=0.2, test=0.1)
    stream = folder_stream(folder, tokenizer, buffer=1)
    tokens = np.concatenate([batch.reshape(-1) for batch in take(stream.batches(0), 20)])
    texts = [item.text for item in source.items() if isinstance(item, Document) and rule(item) == "train"]
    expected = "".join(f"{text}<|endoftext|>" for text in texts)
    text = stream.decode(tokens)
    assert len(text) > 1000 and expected.startswith(text.rstrip("\ufffd"))


def test_validation_text_is_not_trained_on():
    source = Corpus("m", ("t" * 200,), ("v" * 200,), ("x" * 200,), "official", "m")
    stream = streaming(source)
    assert {int(token) for batch in take(stream.batches(0), 60) for token in batch.reshape(-1)} == {SEPARATOR, ord("t")}
    assert {int(token) for batch in stream.eval_batches() for token in batch.reshape(-1)} == {ord("v")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "sequence_length=0: "),
        ({"buffer": 0}, "buffer=0: "),
        ({"vocab_size": 255}, "the tokenizer byte has 256 ids; raise --vocab-size"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(UserError, match=message):
        streaming(["text"], **options)


def test_streams_say_what_they_cannot_do(folder):
    stream = streaming(["text " * 40])
    for call in (stream.token_counts, stream.training_tokens):
        with pytest.raises(UserError, match="not read ahead.*prepare it"):
            call()
    for call in (lambda: stream.batch(0, -1), lambda: stream.batches(0, start=-1)):
        with pytest.raises(ValueError, match="at least 0"):
            call()
    with pytest.raises(UserError, match="the valid split of m has 0 sequences of 8 tokens, too few"):
        streaming(Corpus("m", ("t" * 200,), (), (), "official", "m")).eval_batches()
    with pytest.raises(UserError, match="has no training text"):
        next(streaming(Corpus("m", (), ("v",), (), "official", "m")).batches(0))
    with pytest.raises(UserError, match="line 71"):
        stream = open_data(f"stream:{folder}", "byte", workers=0, sequence_length=15, batch_size=4)
        take(stream.batches(0), 2)


def test_a_text_shorter_than_a_sequence_comes_round_again():
    stream = streaming(["ab"], length=6, batch=1)
    rows = take(stream.batches(0), 3)
    assert "".join(chr(token) for row in rows for token in row[0]) == "ab\nab\nab\nab\nab\nab\nab\n"
