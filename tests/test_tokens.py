"""Ids and sizes where they come in: nothing wraps, nothing is rounded, and the message names split, place and id."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm.checks import INT32, check_sizes
from eqx_slm.data import Corpus, TokenStream, make_stream, make_tokenizer, open_data
from eqx_slm.data.tokens import Tokens, as_tokens, check_processes
from eqx_slm.errors import UserError

SIZES = {"vocab_size": 300, "sequence_length": 4, "batch_size": 2}


def with_bad(array, place=5):
    """Twenty good ids and what is bad at a place."""
    whole = np.arange(20).astype(array.dtype) if array.dtype.kind != "U" else np.array(["1"] * 20)
    whole[place] = array[0]
    return whole


BAD = {
    "-2**63": np.array([-(2**63)]),
    "-2**32 + 9": np.array([-(2**32) + 9]),
    "2**32 + 9": np.array([2**32 + 9]),
    "-1": np.array([-1], np.int8),
    "2**63 + 1": np.array([2**63 + 1], np.uint64),
    "2**64 - 7": np.array([2**64 - 7], np.uint64),
    "2**31": np.array([2**31], np.uint32),
    "300": np.array([300], np.uint16),
    "nan": np.array([np.nan]),
    "inf": np.array([np.inf]),
    "7.5": np.array([7.5], np.float32),
    "object None": np.array([None], object),
    "object 2**70": np.array([2**70], object),
    "object float": np.array([3.5], object),
    "object bool": np.array([True], object),
    "object text": np.array(["7"], object),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_bad_id_is_named_with_its_split_and_place(name, split):
    given_ = {"train": np.arange(20), "valid": np.arange(20), "test": np.arange(20), split: with_bad(BAD[name])}
    with refuses(rf"^the {split} split has ") as error:
        TokenStream.from_tokens(given_.pop("train"), given_.pop("valid"), **given_, **SIZES)
    message = str(error.value)
    assert "at place 5" in message
    value = with_bad(BAD[name])[5]
    assert repr(value.item() if isinstance(value, np.generic) else value) in message


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros(20, bool), "has False at place 0"),
        (np.zeros(20), "has 0.0 at place 0"),
        ([True, False] * 10, "has True at place 0"),
        (["1"] * 20, "has '1' at place 0"),
        ([1] * 19 + [None], "has None at place 19"),
        ([1] * 19 + [2**64], "token id 18446744073709551616 at place 19"),
        ([2**64, -1] * 10, "token id -1 at place 1"),
        ([1, [2, 3]] * 10, "several lengths"),
        (np.zeros((10, 2), np.int32), r"has shape \(10, 2\); give one row of integers"),
        (np.array(3), r"has shape \(\)"),
        (np.array([1 + 2j]), "at place 0"),
        (np.zeros(20, "datetime64[s]"), "at place 0"),
    ],
)
def test_what_is_no_row_of_integers(ids, message):
    with refuses("^it .*" + message):
        as_tokens(ids, 300, "it")


@given(st.lists(st.integers(0, 299), max_size=30), st.sampled_from(["list", "u2", "<i8", "u8", "O", "jax", "tuple"]))
def test_good_ids_of_every_kind_are_kept(ids, kind):
    made = {"list": list, "tuple": tuple, "jax": lambda i: jnp.array(i, jnp.int32)}
    found = as_tokens(made.get(kind, lambda i: np.array(i, kind))(ids), 300, "it")
    assert found.dtype == np.int32 and found.tolist() == ids


@given(st.integers(-(2**70), 2**70))
def test_every_integer_is_kept_or_refused(value):
    if 0 <= value < 300:
        assert as_tokens([value], 300, "it").tolist() == [value]
    else:
        with pytest.raises(UserError, match=f"token id {value} at place 0"):
            as_tokens([value], 300, "it")


@pytest.mark.parametrize("lengths", [[1, -2], [2**40, 1], [1.5, 2], [float("nan")], [None], ["3"]])
def test_byte_lengths_are_ids_too(lengths):
    with refuses("byte_lengths has "):
        TokenStream.from_tokens(np.arange(20), np.arange(20), byte_lengths=np.array(lengths), **SIZES)


@pytest.mark.parametrize("spec", ["byte", "char", "word", "bpe:258"])
def test_decoding_neither_wraps_nor_rounds(spec, tmp_path):
    corpus = Corpus("x", ("a b a b a b\n",), ("a",), (), split_rule="", hash="tokens")
    tokenizer = make_tokenizer(spec, corpus, cache_dir=tmp_path)
    good = tokenizer.encode("a b")
    nothing = tokenizer.decode([tokenizer.vocab_size + 1])
    assert "\ufffd" in nothing
    for beyond in (-1, 2**31, -(2**32) + 97, 2**64 + 97, -(2**63)):
        assert tokenizer.decode([beyond]) == nothing  # U+FFFD, never another id's text
    assert tokenizer.decode(good.astype(np.uint64)) == tokenizer.decode(good.tolist()) == tokenizer.decode(good)
    for bad in ([97.5], [float("nan")], [1.0], [True], ["97"], [None]):
        with pytest.raises(UserError, match="no token id"):
            tokenizer.decode(np.array(bad))


def test_ids_on_the_disk_are_checked_like_those_in_memory(tmp_path):
    from eqx_slm.data import open_prepared, prepare, split_rule
    from eqx_slm.data.tokenizer import ByteTokenizer

    class Wrong(ByteTokenizer):
        def encode(self, text):
            return super().encode(text) + 1000 * text.startswith("bad")

    source = Corpus("m", ("good", "bad"), ("v" * 30,), (), "official", "m")
    with pytest.raises(UserError, match="byte gave an id beyond its 256 in train"):
        prepare(source, Wrong(), tmp_path / "out", rule=split_rule(source), workers=0)
    with pytest.raises(UserError, match="is prepared data that is not finished"):
        open_prepared(tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


@pytest.mark.parametrize("size", [0, -1, 10**30, 2**31, 1.5, float("nan"), float("inf"), "8", None, True, [8]])
def test_sizes_are_integers_that_fit(size):
    with refuses("^batch_size=.*: it must be (a whole number, at|at (least 1|most 2,147,483,647)$)"):
        check_sizes(most=INT32, eval_tokens=3, batch_size=size)


@pytest.mark.parametrize("size", [0, -1, 10**30, 2**31])
@pytest.mark.parametrize("name", ["sequence_length", "batch_size", "eval_tokens", "vocab_size"])
def test_sizes_of_a_stream(name, size):
    with pytest.raises(UserError, match=f"^{name}={size}: it must be at (least 1|most 2,147,483,647)$"):
        TokenStream.from_tokens(np.arange(20), np.arange(20), **{**SIZES, name: size})


@pytest.mark.parametrize("name", ["sequence_length", "batch_size", "eval_tokens", "pad_vocab_to"])
def test_sizes_through_the_door(name, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph {i}" for i in range(400)))
    for size in (0, 10**30):
        with pytest.raises(UserError, match=f"{name}=.*: it must be at "):
            open_data(str(tmp_path / "a.txt"), "byte", **{"sequence_length": 8, "batch_size": 2, name: size})
    with pytest.raises(UserError, match="workers=-1: it must be at least 0"):
        open_data(f"stream:{tmp_path}/a.txt", "byte", workers=-1, sequence_length=8, batch_size=2)


@pytest.mark.parametrize(
    ("index", "count", "message"),
    [
        (2, 2, "process_index is 2 of process_count 2"),
        (-1, 2, "process_index=-1: it must be at least 0"),
        (0, 0, "process_count=0: it must be at least 1"),
        (0.5, 2, "process_index=0.5: it must be a whole number, at least 0"),
        (0, 3, "does not divide among 3"),
        (0, 10**30, "process_count=10000.*: it must be at most"),
    ],
)
def test_processes(index, count, message):
    with pytest.raises(UserError, match=message):
        check_processes(4, index, count)


def test_numpy_sizes_are_integers():
    check_sizes(most=INT32, a=np.int32(3), b=np.uint8(1))


EMPTY = ("", " ", "\t\n", "stream:", "stream: ", "mix:", "mix:0.5=", "mix:0.5= ,0.5=x")


@pytest.mark.parametrize("data", EMPTY)
def test_an_empty_name_is_refused(data, monkeypatch, tmp_path):
    """It would be the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("text\n\n" * 900)
    calls = [open_data] if data.startswith(("stream:", "mix:")) else [open_data, make_stream]
    for call in calls:
        with refuses("names nothing|write mix:WEIGHT=SOURCE"):
            call(data, "byte", sequence_length=4, batch_size=2)


# ---------------------------------------------------------------------------------------------------------------------
# Tokens in parts


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(1, 7), st.data())
def test_parts_are_read_as_one(sizes, length, data):
    whole = np.arange(sum(sizes), dtype=np.int32)
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    tokens = Tokens([part.astype(np.uint16) for part in parts])
    assert len(tokens) == len(whole)
    np.testing.assert_array_equal(tokens.read(), whole)
    if len(whole) >= length:
        starts = np.array(data.draw(st.lists(st.integers(0, len(whole) - length), max_size=8)), np.int64)
        windows = tokens.windows(starts, length)
        np.testing.assert_array_equal(windows, starts[:, None] + np.arange(length))
        assert windows.dtype == np.int32
    start, count = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 20))
    np.testing.assert_array_equal(tokens.read(start, count), whole[start : start + count])
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, int), *tokens.blocks(3)]), whole)
