import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from streamed import folder_stream, streaming, take, trained_tokenizer, write_folder

from eqx_slm.data import (
    StreamingStream,
    StreamState,
    TokenStream,
    open_data,
    open_prepared,
    open_source,
    prepare,
)
from eqx_slm.data.splits import SplitRule, split_rule
from eqx_slm.data.state import LARGEST
from eqx_slm.data.tokenizer import ByteTokenizer
from eqx_slm.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("stream"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return trained_tokenizer(tmp_path_factory.mktemp("cache"))


@settings(max_examples=12)
@given(st.integers(0, 150), st.integers(0, 3), st.integers(0, 4), st.integers(0, 10**6))
def test_streaming_goes_on_from_any_batch(folder, tokenizer, batches, back, workers, seed):
    """Through JSON and an array, with another number of workers, over the end of a pass (about 90 batches)."""
    assume(back <= batches)
    stream = folder_stream(folder, tokenizer)
    whole = stream.batches(seed)
    before = take(whole, batches)
    state = whole.state(back=back)
    copy = StreamState.from_json(json.loads(json.dumps(state.to_json())), state.tokens.copy())
    assert copy.batches == batches - back and copy.tokens.nbytes <= LARGEST
    resumed = folder_stream(folder, tokenizer, workers=workers % 3 if workers < 3 else 0).resume(copy)
    expected = before[batches - back :] + take(whole, 12)
    for ours, theirs in zip(take(resumed, len(expected)), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resumed.state().to_json() == whole.state().to_json()
    resumed.close()


@pytest.mark.parametrize("batches", [0, 1, 2, 5, 30])
def test_streaming_goes_on_within_a_document(batches):
    """The first document has no separator before it, later passes do; it is far longer than a batch."""
    stream = streaming(["abcdefghij" * 30], length=6, batch=1, buffer=1)
    whole = stream.batches(0)
    take(whole, batches)
    for ours, theirs in zip(take(stream.resume(whole.state()), 50), take(whole, 50), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["streaming", "prepared", "memory"])
def test_processes_share_the_batches(folder, tokenizer, tmp_path, kind):
    """1, 2 and 4 processes: disjoint, complete, one global order; a state moves from one number to another."""
    source = open_source(str(folder))
    rule = split_rule(source, valid=0.2, test=0.1)
    sizes = {"sequence_length": 15, "batch_size": 4, "eval_tokens": 120}
    if kind == "prepared":
        prepare(source, tokenizer, tmp_path / "out", rule=rule, workers=0, on_error="skip", shard_tokens=800)

    def opened(index, count):
        where = {"process_index": index, "process_count": count}
        if kind == "streaming":
            return folder_stream(folder, tokenizer, **where)
        if kind == "prepared":
            return open_prepared(tmp_path / "out", **sizes, **where)
        return open_data(str(folder / "a.jsonl.zst"), "byte", **sizes, **where)

    iterator = opened(0, 1).batches(3)
    whole = take(iterator, 30)
    state = opened(0, 1).batches(3)
    take(state, 11)
    state = state.state()
    evaluated = opened(0, 1).eval_batches()
    for count in (2, 4):
        streams = [opened(i, count) for i in range(count)]
        iterators = [stream.batches(3) for stream in streams]
        for batch in whole:
            parts = [next(iterator) for iterator in iterators]
            assert all(len(part) == 4 // count for part in parts)
            np.testing.assert_array_equal(np.concatenate(parts), batch)
        assert sum(stream.eval_bytes() for stream in streams) == opened(0, 1).eval_bytes()  # each its own rows
        parts = [stream.eval_batches() for stream in streams]
        for number, batch in enumerate(evaluated):
            np.testing.assert_array_equal(np.concatenate([part[number] for part in parts]), batch)
        for stream, part in zip(streams, range(count), strict=True):
            rows = slice(part * 4 // count, (part + 1) * 4 // count)
            np.testing.assert_array_equal(next(stream.resume(state)), whole[11][rows])
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        opened(0, 3)
    with pytest.raises(UserError, match="process_index is 2 of process_count 2"):
        opened(2, 2)


@given(st.integers(0, 400), st.integers(0, 3))
def test_indexed_streams_go_on_from_any_batch(batches, back):
    assume(back <= batches)
    texts = [f"training text {i}" for i in range(30)]
    tokens = ByteTokenizer().encode_documents(texts)
    stream = TokenStream.from_tokens(tokens, tokens, vocab_size=256, sequence_length=9, batch_size=3)
    iterator = stream.batches(5, start=batches - 1) if batches else stream.batches(5)
    take(iterator, min(batches, 1))
    if back > 1:
        back = 1
    state = StreamState.from_json(json.loads(json.dumps(iterator.state(back=min(back, min(batches, 1))).to_json())))
    assert not len(state.tokens)  # a cursor alone
    np.testing.assert_array_equal(next(stream.resume(state)), stream.batch(5, state.batches))


def test_states_are_saved_checked_and_refused(folder, tokenizer, tmp_path, monkeypatch):
    stream = folder_stream(folder, tokenizer)
    iterator = stream.batches(0)
    take(iterator, 5)
    state = iterator.state()
    state.save(tmp_path)
    again = StreamState.load(tmp_path)
    np.testing.assert_array_equal(next(stream.resume(again)), next(iterator))
    cursor = json.loads((tmp_path / "data.json").read_text())
    assert cursor["cursor"]["batch"] == 5 and len(cursor["sha256"]) == len(cursor["tokens_sha256"]) == 64
    for change, message in (
        (lambda c: c["cursor"].update(batch=6), "the data cursor is damaged"),
        (lambda c: c.pop("sha256"), "the data cursor is damaged"),
    ):
        changed = json.loads(json.dumps(cursor))
        change(changed)
        with pytest.raises(UserError, match=message):
            StreamState.from_json(changed, state.tokens)
    tokens = state.tokens.copy()
    tokens[3] += 1
    with pytest.raises(UserError, match="the buffered tokens do not belong"):
        StreamState.from_json(cursor, tokens)
    with monkeypatch.context() as patch:  # stopped between the two files: the older state is still whole
        patch.setattr("eqx_slm.data.state.write_json_atomic", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            iterator.state().save(tmp_path)
    assert StreamState.load(tmp_path).to_json() == cursor
    iterator.state().save(tmp_path)
    assert StreamState.load(tmp_path).batches == 6 and len(list(tmp_path.glob("data-*.npy"))) == 1
    with pytest.raises(UserError, match="cannot read the data state"):
        StreamState.load(tmp_path / "nowhere")
    for other in (
        folder_stream(folder, tokenizer, batch_size=2),
        folder_stream(folder, tokenizer, buffer=19),
        StreamingStream(
            open_source(str(folder / "b.jsonl")),
            ByteTokenizer(),
            rule=SplitRule("content"),
            sequence_length=15,
            batch_size=4,
            on_error="skip",
        ),
    ):
        with pytest.raises(UserError, match="the data state belongs to another stream: .* was .*, is "):
            other.resume(state)
    with pytest.raises(ValueError, match="can step back over at most"):
        iterator.state(back=5)


def test_the_state_of_the_papers_setting_is_small_enough():
    """10,000 sequences of 513 tokens, batches of 512: the buffers, filled, and four batches stepped back over."""
    stream = streaming(["x" * 100], length=512, batch=512)
    assert stream.buffer == 10_000
    assert 4 * 513 * (stream.buffer + 4 * 512 + 1) <= LARGEST
    assert streaming(["x" * 100], length=2048, batch=16).buffer < 10_000  # longer ones: fewer
    with pytest.raises(UserError, match="leaves no room for a shuffle buffer"):
        streaming(["x"], length=2**16, batch=64)
