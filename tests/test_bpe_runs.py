"""Text that breaks a tokenizer: long runs of one kind of character, in encoding and in training."""

import itertools
import time

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tokenizer_texts import CORPUS, SAMPLE, texts

from eqx_slm.data import bpe, make_tokenizer


@pytest.fixture(scope="module")
def small_bpe(tmp_path_factory):
    return make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path_factory.mktemp("cache"))


RUNS = {
    "spaces": " ",
    "tabs": "\t",
    "no-break spaces": "\u00a0",
    "line feeds": "\n",
    "CR LF": "\r\n",
    "ideographic spaces": "\u3000",
    "line separators": "\u2028",
    "blank lines": " \t\n",
    "letters": "a",
    "digits": "7",
    "dashes": "-",
    "combining marks": "\u0301",
    "zero-width spaces": "\u200b",
    "ideographs": "日本",
}


def run_of(name, size=None):
    """A million and more where a pattern steps back over white space, else fewer."""
    size = size or (1_100_000 if RUNS[name].isspace() else 100_000)
    return (RUNS[name] * size)[:size]


@pytest.mark.parametrize("name", RUNS)
def test_long_runs_of_one_character(small_bpe, name):
    """tiktoken's own encoder raises at a million white-space characters."""
    text = "one" + run_of(name) + "two three"
    ids = small_bpe.encode(text)
    assert small_bpe.byte_lengths[ids].sum() == len(text.encode())
    assert small_bpe.decode(ids) == text
    for end in ("one", "two three"):  # nothing but the run is touched
        own = small_bpe.encode(end)
        np.testing.assert_array_equal(ids[: len(own)] if end == "one" else ids[-len(own) :], own)


@pytest.mark.parametrize("name", ["spaces", "CR LF"])
def test_published_patterns_too(data_root, monkeypatch, name):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_root / "tiktoken"))
    encoding = tiktoken.get_encoding("o200k_base" if name == "spaces" else "r50k_base")
    text = "one" + run_of(name) + "two"
    ids = bpe.TiktokenTokenizer(encoding).encode(text)
    assert encoding.decode(ids) == text and encoding.decode(ids[:1]) == "one"


@given(texts, texts, st.integers(2, 40), st.sampled_from([" ", "\t", "\n", "\u00a0", " \n"]))
def test_a_text_is_cut_within_long_blanks_only(small_bpe, before, after, size, blank):
    """With a limit of 8."""
    text = before + blank * size + after
    whole = small_bpe.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_LONGEST_BLANK", 8)
        cut, parts = small_bpe.encode(text), bpe._within_long_blanks(text)
    assert "".join(parts) == text and small_bpe.decode(cut) == text
    assert all(run.end() - run.start() <= 8 for part in parts for run in bpe._BLANKS.finditer(part))
    assert all(part[:1].isspace() and text_before[-8:].isspace() for text_before, part in itertools.pairwise(parts))
    if not any(run.end() - run.start() > 8 for run in bpe._BLANKS.finditer(text)):
        np.testing.assert_array_equal(cut, whole)


def test_a_run_just_below_the_limit_is_encoded_whole(small_bpe):
    text = "x" + " " * ((1 << 19) - 1) + "y" * 10
    np.testing.assert_array_equal(small_bpe.encode(text), small_bpe.encoding.encode_ordinary(text))


def test_whatever_else_the_encoder_raises_is_one_line(small_bpe, monkeypatch):
    class PanicException(BaseException):
        """As pyo3 raises it."""

    class Failing:
        name = "broken"

        def __init__(self, error):
            self.error = error

        def encode_to_numpy(self, *_, **__):
            raise self.error

    for error in (ValueError("several\nlines"), PanicException("a panic"), RuntimeError()):
        monkeypatch.setattr(small_bpe, "encoding", Failing(error))
        with refuses("bpe:300 cannot encode the text"):
            small_bpe.encode("x")
    monkeypatch.setattr(small_bpe, "encoding", Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        small_bpe.encode("x")


@pytest.mark.parametrize("name", ["letters", "dashes", "spaces", "line feeds", "combining marks", "random letters"])
def test_training_is_linear_in_the_longest_run(name):
    """400,000 letters in a row took 144 s; the trainer's time is quadratic in a piece."""
    size = 200_000
    letters = np.random.default_rng(0).integers(97, 107, size).astype(np.uint8).tobytes().decode()
    text = letters if name == "random letters" else run_of(name, size)
    started = time.process_time()
    tokens = bpe.train_bpe(["some words " * 20 + text + " and more words" * 20], 300)
    assert time.process_time() - started < 10
    assert 256 < len(tokens) <= 300 and len(set(tokens)) == len(tokens)


def test_documents_in_pieces_train_as_they_are():
    """Pieces one by one count as the document does: a document is cut into them where one is too long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_LONGEST_PIECE", 12)  # "import " * 3 has none so long, the blanks below have
        pieces = bpe.train_bpe([SAMPLE * 9, "a word and another word   \n" * 9], 290)
    assert pieces == bpe.train_bpe([SAMPLE * 9, "a word and another word   \n" * 9], 290)
