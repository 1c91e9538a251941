import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm.data import TokenStream, load_corpus, make_stream
from eqx_slm.errors import UserError

seeds = st.integers(-(2**70), 2**70)


def counting(n_train=1000, n_valid=200, *, sequence_length=8, batch_size=4, **options):
    """A stream whose token at position p is p: a window shows where it was cut."""
    options = {"vocab_size": max(n_train, n_valid), **options}
    return TokenStream.from_tokens(
        np.arange(n_train), np.arange(n_valid), sequence_length=sequence_length, batch_size=batch_size, **options
    )


# ---------------------------------------------------------------------------------------------------------------------
# Batches


shapes = st.tuples(st.integers(1, 12), st.integers(1, 7), st.integers(0, 400))


@given(shapes, seeds)
def test_an_epoch_reads_every_window_once_less_the_remainder(shape, seed):
    length, size, spare = shape
    stream = counting(length * size + 1 + spare, length * size + 1, sequence_length=length, batch_size=size)
    windows = (stream.info["tokens"]["train"] - 1) // length
    steps = windows // size
    assert stream.steps_per_epoch == steps
    for epoch in (0, 1):
        rows = np.concatenate([stream.batch(seed, epoch * steps + i) for i in range(steps)])
        assert rows.shape == (steps * size, length + 1) and rows.dtype == np.int32
        np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(length + 1))  # one piece of text each
        starts = rows[:, 0] // length
        np.testing.assert_array_equal(rows[:, 0] % length, 0)  # cut at multiples of T
        assert len(set(starts.tolist())) == steps * size  # none twice
        assert starts.max() < windows


@given(seeds, st.integers(0, 200))
def test_batches_continue_exactly(seed, start):
    stream = counting()
    whole = list(itertools.islice(stream.batches(seed), start + 3))
    rest = list(itertools.islice(stream.batches(seed, start=start), 3))
    for index, batch in enumerate(rest, start):
        np.testing.assert_array_equal(batch, whole[index])
        np.testing.assert_array_equal(batch, stream.batch(seed, index))
        assert isinstance(batch, np.ndarray) and batch.dtype == np.int32 and batch.shape == (4, 9)


def test_a_grain_pipeline_reads_the_same_batches():
    """In Grain's own threads, and gone on from its own state."""
    stream = counting()
    pipeline = stream.dataset(3, start=2).map(lambda batch: batch[:, 1:]).to_iter_dataset()
    iterator = iter(pipeline)
    for index in range(2, 8):
        np.testing.assert_array_equal(next(iterator), stream.batch(3, index)[:, 1:])
    state = json.loads(json.dumps(iterator.get_state()))
    again = iter(pipeline)
    again.set_state(state)
    for index in range(8, 11):
        np.testing.assert_array_equal(next(again), stream.batch(3, index)[:, 1:])


def test_a_state_goes_on_over_the_ends_of_epochs():
    """Also for one of two processes; an epoch has 6 batches here."""
    stream = counting(25 * 8 + 1, process_index=1, process_count=2)
    batches = stream.batches(3)
    taken = [next(batches) for _ in range(14)]
    np.testing.assert_array_equal(np.stack(taken), [stream.batch(3, i) for i in range(14)])
    np.testing.assert_array_equal(next(stream.resume(batches.state(back=3))), taken[11])


def test_batches_are_the_callers_own():
    stream = counting()
    first = stream.batch(0, 0)
    expected = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(stream.batch(0, 0), expected)
    np.testing.assert_array_equal(stream.training_tokens(), np.arange(1000))


def test_far_batches_cost_no_more_than_near_ones():
    stream = counting()
    assert next(stream.batches(0, start=10**12)).shape == (4, 9)


def test_digest_tells_streams_apart():
    stream = counting()
    assert stream.digest(0, 50) == counting().digest(0, 50)
    others = [
        stream.digest(1, 50),
        stream.digest(0, 51),
        counting(1001).digest(0, 50),
        counting(batch_size=5).digest(0, 50),
    ]
    assert len({stream.digest(0, 50), *others}) == 5


@pytest.mark.parametrize("call", [lambda s: s.batch(0, -1), lambda s: next(s.batches(0, start=-1))])
def test_negative_indices_are_refused(call):
    with pytest.raises(ValueError, match="at least 0"):
        call(counting())


def test_an_option_of_another_name_is_refused():
    with refuses("a stream has no option 'seq_len'; it has vocab_size, sequence_length"):
        counting(seq_len=16)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


@given(shapes, st.integers(1, 4000))
def test_eval_batches(shape, eval_tokens):
    length, size, spare = shape
    stream = counting(
        length * size + 1, length * size + 1 + spare, sequence_length=length, batch_size=size, eval_tokens=eval_tokens
    )
    batches = stream.eval_batches()
    most = (stream.info["tokens"]["valid"] - 1) // length // size
    assert 1 <= len(batches) <= most
    assert len(batches) == most or abs(len(batches) * size * length - eval_tokens) <= size * length
    rows = np.concatenate(batches)
    assert rows.shape == (len(batches) * size, length + 1) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(length + 1))
    assert len(set(rows[:, 0].tolist())) == len(rows)


def test_a_longer_evaluation_contains_the_shorter():
    short, long = (np.concatenate(counting(eval_tokens=tokens).eval_batches()) for tokens in (64, 160))
    np.testing.assert_array_equal(long[: len(short)], short)


def test_eval_bytes():
    lengths = np.arange(1000) % 5
    stream = counting(byte_lengths=lengths)
    assert stream.eval_bytes() == sum(int(lengths[batch[:, 1:]].sum()) for batch in stream.eval_batches())
    assert counting().eval_bytes() is None
    assert (
        TokenStream.from_tokens(
            [0] * 99, [1] * 99, vocab_size=8, sequence_length=4, batch_size=2, byte_lengths=np.array([1, 2])
        ).eval_bytes()
        == 2 * 96
    )


@given(shapes, seeds, st.integers(0, 300))
def test_a_part_is_the_same_windows_for_every_seed_and_of_every_larger_part(shape, seed, more):
    length, size, spare = shape
    sizes = {"sequence_length": length, "batch_size": size}
    count = length * size + min(more, spare)

    def windows(train_tokens, seed, epoch=0):
        stream = counting(length * size + 1 + spare, length * size + 1, train_tokens=train_tokens, **sizes)
        assert stream.info["train_tokens"] == train_tokens // length * length
        steps = stream.steps_per_epoch
        rows = np.concatenate([stream.batch(seed, epoch * steps + i) for i in range(steps)])
        np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(length + 1))
        part = stream.training_tokens()
        assert set(rows[:, 1:].ravel().tolist()) <= set(part.tolist()) and len(part) == train_tokens // length * length
        np.testing.assert_array_equal(part, np.sort(part))  # in the order of the text
        np.testing.assert_array_equal(stream.token_counts(), np.bincount(part, minlength=stream.vocab_size))
        return set(part.tolist())

    part = windows(count, seed)
    assert part == windows(count, seed, epoch=1) == windows(count, seed + 1)
    assert part <= windows(length * size + spare, seed)


def test_token_counts():
    stream = TokenStream.from_tokens([0, 2, 2, 1, 2], [0, 0, 0], vocab_size=5, sequence_length=2, batch_size=1)
    assert stream.token_counts().tolist() == [1, 1, 3, 0, 0] and stream.token_counts().dtype == np.int64


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (((10,), (100,)), {}, r"the train split has 10 tokens, but one batch of 4 x 8 needs 33"),
        (((100,), (32,)), {}, r"the valid split has 32 tokens, but one batch of 4 x 8 needs 33; give more text"),
        (
            ((100,), (100,)),
            {"vocab_size": 99},
            r"the train split has token id 99 at place 99, but vocab_size is 99; raise --vocab-size to at least 100",
        ),
        (((100,), (200,)), {"vocab_size": 100}, r"the valid split has token id 199"),
        (((100,), (100,)), {"vocab_size": 0}, "vocab_size=0: "),
        (((100,), (100,)), {"sequence_length": 0}, "sequence_length=0: it must be at least 1"),
        (((100,), (100,)), {"batch_size": -1}, "batch_size=-1: "),
        (((100,), (100,)), {"eval_tokens": 0}, "eval_tokens=0: "),
        (((-3, 100), (100,)), {}, "the train split has token id -3"),
        (((100,), (100,)), {"train_tokens": 31}, "train_tokens is 31; a batch, 32, to all, 99; give another"),
        (((100,), (100,)), {"train_tokens": 100}, "train_tokens is 100; a batch, 32, to all, 99; give another"),
        (((100,), (100,)), {"test": np.array([5000])}, "the test split has token id 5000"),
        (((100,), (100,)), {"byte_lengths": np.ones(101, np.int32)}, "byte_lengths has 101 entries for 100 ids"),
    ],
)
def test_bad_input(tokens, options, message):
    options = {"vocab_size": 100, "sequence_length": 8, "batch_size": 4, **options}
    with refuses(message):
        TokenStream.from_tokens(*(np.arange(*bounds) for bounds in tokens), **options)


def test_the_smallest_split_is_enough():
    stream = counting(33, 33)
    assert stream.steps_per_epoch == 1 and len(stream.eval_batches()) == 1


@pytest.mark.parametrize("tokens", [np.zeros((9, 9), np.int32), np.zeros(99)], ids=["matrix", "floats"])
def test_tokens_are_one_row_of_integers(tokens):
    with pytest.raises(ValueError, match="one row of integers"):
        TokenStream.from_tokens(tokens, tokens, vocab_size=9, sequence_length=2, batch_size=2)


def test_ids_beyond_32_bits_are_not_wrapped():
    with pytest.raises(UserError, match="token id 4294967297 at place 0, .*; give ids below 2"):
        counting(test=np.array([2**32 + 1]))


# ---------------------------------------------------------------------------------------------------------------------
# From text to batches


def test_the_standard_library_makes_a_stream():
    stream = make_stream(sequence_length=64, batch_size=8)
    corpus = load_corpus()
    assert stream.vocab_size == 8192 and stream.info["tokenizer"] == "bpe:8192"
    assert json.loads(json.dumps(stream.info)) == stream.info
    assert stream.info["corpus_hash"] == corpus.hash
    assert stream.info["documents"]["train"] == len(corpus.train)
    assert stream.byte_lengths is not None
    for split in ("train", "valid", "test"):  # not a byte is lost, and the separators between documents are free
        ids = stream.splits[0][split].read()
        assert stream.byte_lengths[ids].sum() == stream.info["bytes"][split]
        assert (ids == 8191).sum() == stream.info["documents"][split] - 1
    assert stream.info["tokens"]["train"] > 1_000_000
    assert 0 < stream.eval_bytes() < stream.info["bytes"]["valid"]
    assert stream.decode(stream.encode("import os\n")) == "import os\n"
    assert sum(batch[:, 1:].size for batch in stream.eval_batches()) == 16384


def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i} of a text, and {i * i} more." for i in range(800)))
    return str(path)


def test_a_padded_vocabulary(tmp_path):
    stream = make_stream(text_file(tmp_path), "byte", vocab_size=320, sequence_length=16, batch_size=2)
    assert stream.vocab_size == 320 and stream.training_tokens().max() < 256
    assert (
        stream.byte_lengths is not None and stream.byte_lengths.shape == (320,) and not stream.byte_lengths[256:].any()
    )
    assert stream.token_counts().shape == (320,)
    assert stream.decode([72, 300, 105]) == "H\ufffdi"


def test_a_vocabulary_that_is_too_small(tmp_path):
    with refuses("vocab_size is 255, but the tokenizer byte has 256 ids"):
        make_stream(text_file(tmp_path), "byte", vocab_size=255)


def test_too_little_text_names_the_numbers(tmp_path):
    with pytest.raises(UserError, match=r"the train split has [\d,]+ tokens, but one batch of 512 x 128 needs 65,537"):
        make_stream(text_file(tmp_path), "byte", batch_size=512)


def test_bits_per_byte_have_no_meaning_for_words(tmp_path):
    stream = make_stream(text_file(tmp_path), "word", sequence_length=8, batch_size=2)
    assert stream.byte_lengths is None and stream.eval_bytes() is None


def test_a_stream_of_tokens_has_no_text():
    stream = counting()
    assert stream.decode([3, 1]) == stream.decode(np.array([3, 1])) == "3 1"
    with pytest.raises(ValueError, match="has no tokenizer"):
        stream.encode("x")


SCRIPT = """
import sys
from eqx_slm.data import TokenStream
stream = TokenStream.from_tokens(range(1000), range(100), vocab_size=1000, sequence_length=8, batch_size=4)
assert "grain" not in sys.modules and "tiktoken" not in sys.modules and "tokenizers" not in sys.modules
batches = stream.batches(0)
first = next(batches)
assert (first == stream.batch(0, 0)).all()
print(first.shape)
"""


def test_a_plain_script_is_silent_and_ends():
    """Grain wants absl flags in places and has threads: a script without either must neither warn nor hang at exit."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "(4, 9)\n", "")
