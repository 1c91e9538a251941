"""Windows at random places: where they start, what judges, and the paper's own numbers on its data."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_tokens

from eqx_slm import UserError
from eqx_slm.data.tokens import Tokens
from eqx_slm.data.windows import WindowStream
from eqx_slm.study import WindowConfig

TRAIN, VALID, TEST = tiny_tokens(2000), tiny_tokens(300, seed=1), tiny_tokens(200, seed=2)
SPLITS = [{"train": Tokens([TRAIN]), "valid": Tokens([VALID]), "test": Tokens([TEST])}]


def windows(**changes):
    options = {"vocab_size": 64, "sequence_length": 8, "batch_size": 4, "eval_tokens": 30, **changes}
    return WindowStream(SPLITS, **options)


@given(st.integers(0, 99), st.integers(0, 10_000))
def test_a_batch_is_windows_of_the_training_text_by_seed_and_index(seed, index):
    batch = windows().batch(seed, index)
    everywhere = np.lib.stride_tricks.sliding_window_view(TRAIN, 9)
    assert batch.shape == (4, 9) and all((everywhere == row).all(axis=1).any() for row in batch)
    assert (batch == windows().batch(seed, index)).all()
    assert (batch != windows().batch(seed + 1, index)).any()


def test_starts_are_uniform_over_every_place():
    """By a marked text, whose tokens are their places: all 33 places come, none too often."""
    marked = Tokens([np.arange(41, dtype=np.int32)])
    stream = WindowStream(
        [{"train": marked, "valid": marked, "test": marked}], vocab_size=41, sequence_length=8, batch_size=4
    )
    counts = np.bincount([row[0] for i in range(825) for row in stream.batch(0, i)], minlength=33)
    assert len(counts) == 33  # 100 expected of each
    assert ((counts - 100) ** 2 / 100).sum() < 72  # chi square of 32 degrees: P < 0.0001


def test_judging_windows_stand_a_token_apart_and_come_to_the_number_asked():
    for split, text in (("test", TEST), ("valid", VALID)):
        batches = windows(eval_split=split).eval_batches()
        assert [len(batch) for batch in batches] == [4] * 7 + [2]  # the last is shorter: exactly 30
        assert (np.concatenate(batches) == np.lib.stride_tricks.sliding_window_view(text, 9)[:30]).all()
    assert sum(map(len, windows(eval_tokens=10**6).eval_batches())) == 200 - 8


def test_only_the_first_training_tokens_are_read():
    stream = windows(train_tokens=100)
    assert stream.info["tokens"]["train"] == 100
    everywhere = np.lib.stride_tricks.sliding_window_view(TRAIN[:100], 9)
    assert all((everywhere == row).all(axis=1).any() for i in range(20) for row in stream.batch(0, i))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"eval_split": "exam"}, "eval_split='exam'"),
        ({"train_tokens": 0}, "train_tokens"),
        ({"train_tokens": 20}, "train"),
    ],
)
def test_what_cannot_be_is_refused(changes, told):
    with pytest.raises(UserError, match=told):
        windows(**changes)


def test_the_papers_characters(data_root):
    stream = WindowConfig("tiny_shakespeare", data_root=str(data_root)).open()
    assert stream.info["tokens"] == {"train": 892_117, "valid": 111_669, "test": 111_606}
    assert (stream.vocab_size, sum(map(len, stream.eval_batches()))) == (65, 10_000)


def test_the_papers_words(data_root):
    own = {"sequence_length": 64, "batch_size": 32, "eval_tokens": 19_935, "train_tokens": 80_000}
    stream = WindowConfig("ptb", data_root=str(data_root), tokenizer="word:eos=none", **own).open()
    assert (stream.vocab_size, stream.info["tokens"]["train"]) == (9_999, 80_000)
    entries = stream.tokenizer.entries
    assert "<unk>" in entries and "<eos>" not in entries
    assert sum(map(len, stream.eval_batches())) == 19_935
