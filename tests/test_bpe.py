"""Byte-level BPE, trained and published: exact round trips, plain merges as the reference, and text that breaks it."""

import json
import unicodedata

import numpy as np
import pytest
import tiktoken
import tiktoken.load
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tokenizer_texts import CORPUS, SAMPLE, check_round_trip, texts

from eqx_slm.data import Corpus, bpe, load_corpus, make_tokenizer
from eqx_slm.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small_bpe(cache):
    return make_tokenizer("bpe:300", CORPUS, cache_dir=cache)


@pytest.fixture(scope="module")
def stdlib_bpe(cache):
    """Ranks of real text, large enough for merges of merges; one part of the standard library trains in a second."""
    whole = load_corpus()
    part = Corpus("part", whole.valid, whole.test, (), split_rule="", hash=whole.hash + "/valid")
    return part, make_tokenizer("bpe:2048", part, cache_dir=cache)


@given(texts)
def test_bpe_round_trip(small_bpe, text):
    check_round_trip(small_bpe, text)


@given(texts)
def test_bpe_round_trip_with_many_ranks(stdlib_bpe, text):
    check_round_trip(stdlib_bpe[1], text)


@given(st.binary())
def test_arbitrary_bytes_become_ids_and_come_back(stdlib_bpe, data):
    """Every byte string is reachable, though only valid UTF-8 is text."""
    encoding = stdlib_bpe[1].encoding
    ids = encoding._encode_bytes(data)
    assert encoding.decode_bytes(ids) == data
    assert stdlib_bpe[1].decode(ids) == data.decode("utf-8", "replace")


def test_bpe_has_exactly_n_ids_with_the_end_of_text_last(small_bpe):
    assert small_bpe.name == "bpe:300" and small_bpe.vocab_size == 300
    assert small_bpe.separator == (299,)
    assert small_bpe.decode([299]) == bpe.END_OF_TEXT
    assert small_bpe.byte_lengths[299] == 0
    assert small_bpe.byte_lengths[:256].tolist() == [1] * 256
    assert (small_bpe.byte_lengths[256:299] > 1).all()


def test_the_end_of_text_written_out_is_ordinary_text(small_bpe):
    check_round_trip(small_bpe, bpe.END_OF_TEXT)
    assert 299 not in small_bpe.encode(bpe.END_OF_TEXT)


def test_every_rank_is_reached_by_merges_of_lower_ranks(stdlib_bpe):
    encoding = stdlib_bpe[1].encoding
    ranks = {}
    for i in range(2047):
        token = encoding.decode_single_token_bytes(i)
        assert len(bpe.merge(token, ranks)) == (1 if i < 256 else 2)
        assert token not in ranks
        ranks[token] = i


@given(texts)
def test_tiktoken_merges_as_plain_bpe_does(stdlib_bpe, text):
    tokenizer = stdlib_bpe[1]
    ranks = {tokenizer.encoding.decode_single_token_bytes(i): i for i in range(2047)}
    pieces = [piece.encode("utf-8") for piece in split_like_the_trainer(text)]
    expected = [ranks[token] for piece in pieces for token in bpe.merge(piece, ranks)]
    if all(unicodedata.category(character) != "Cn" for character in text):
        assert tokenizer.encode(text).tolist() == expected


def split_like_the_trainer(text):
    from tokenizers import Regex, pre_tokenizers

    return [piece for piece, _ in pre_tokenizers.Split(Regex(bpe.PATTERN), "isolated").pre_tokenize_str(text)]


@given(texts)
def test_pieces_cover_the_text(text):
    assert "".join(split_like_the_trainer(text)) == text


def test_a_different_pattern_would_be_noticed(stdlib_bpe):
    """The control of the test above: GPT-2's pattern in the encoder gives other ids on ordinary code."""
    _, tokenizer = stdlib_bpe
    ranks = {tokenizer.encoding.decode_single_token_bytes(i): i for i in range(2047)}
    gpt2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    other = tiktoken.Encoding("other", pat_str=gpt2, mergeable_ranks=ranks, special_tokens={})
    assert other.encode_ordinary(SAMPLE) != tokenizer.encode(SAMPLE).tolist()


def test_training_is_deterministic(stdlib_bpe, tmp_path):
    part, tokenizer = stdlib_bpe
    again = make_tokenizer("bpe:2048", part, cache_dir=tmp_path)
    assert again.hash == tokenizer.hash
    np.testing.assert_array_equal(again.encode_documents(part.valid), tokenizer.encode_documents(part.valid))
    # Fewer ids are a prefix of more.
    assert bpe.train_bpe(part.train, 1000) == bpe.train_bpe(part.train, 2047)[:1000]


def test_merges_compress_code(stdlib_bpe):
    part, tokenizer = stdlib_bpe
    text = part.valid[0]
    assert len(text.encode("utf-8")) / len(tokenizer.encode(text)) > 2.5


def test_documents_are_joined_by_one_end_of_text(small_bpe):
    parts = [small_bpe.encode(text).tolist() for text in ("a b", "", "c")]
    assert small_bpe.encode_documents(("a b", "", "c")).tolist() == [*parts[0], 299, *parts[1], 299, *parts[2]]
    assert small_bpe.encode_documents(("a b",)).tolist() == parts[0]
    assert small_bpe.encode_documents(()).dtype == np.int32


@pytest.mark.parametrize("spec", ["bpe:256", "bpe:", "bpe:-5", "bpe:1e4", "bpe:²", "bpe:999999999999"])
def test_a_bad_number_of_ids(spec, cache):
    with refuses("integer of at least 257"):
        make_tokenizer(spec, CORPUS, cache_dir=cache)


def test_more_ids_than_the_text_supports(cache):
    with refuses("bpe:50000 asks for 50000 ids.*supports [0-9]+; give 'bpe:[0-9]+'") as error:
        make_tokenizer("bpe:50000", CORPUS, cache_dir=cache)
    most = str(error.value).split("give '")[1].split("'")[0]
    assert make_tokenizer(most, CORPUS, cache_dir=cache).name == most  # the advice works, and one more does not
    with pytest.raises(UserError, match="supports"):
        make_tokenizer(f"bpe:{int(most[4:]) + 1}", CORPUS, cache_dir=cache)


def test_ranks_come_from_the_cache_when_they_are_sound(tmp_path, monkeypatch):
    first = make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()  # one file, and nothing temporary
    trained = []
    train = bpe.train_bpe
    monkeypatch.setattr(bpe, "train_bpe", lambda *arguments: trained.append(1) or train(*arguments))
    assert make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path).hash == first.hash
    assert not trained

    whole = path.read_text()
    content = json.loads(whole)
    swapped = [*content["tokens"][:256], *content["tokens"][:255:-1]]
    for damaged in ("", whole[: len(whole) // 2], "[]", "{}", json.dumps(content | {"tokens": swapped}), "\x00" * 100):
        path.write_text(damaged)
        trained.clear()
        assert make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path).hash == first.hash
        assert trained and path.read_text() == whole  # repaired

    other = Corpus("other", CORPUS.train, CORPUS.valid, (), split_rule="", hash="other")
    trained.clear()
    make_tokenizer("bpe:300", other, cache_dir=tmp_path)
    assert trained and len(list(tmp_path.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path / "file" / "below").vocab_size == 300


def test_the_cache_folder_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("EQX_SLM_CACHE", str(tmp_path / "named"))
    make_tokenizer("bpe:260", CORPUS)
    assert len(list((tmp_path / "named").glob("bpe-260-*.json"))) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Published encodings


@pytest.fixture
def ranks(data_root, monkeypatch):
    """Ranks on this machine only, and no encoding left over from another test."""
    folder = data_root / "tiktoken"
    if not folder.is_dir():
        pytest.skip(f"no tiktoken ranks at {folder}")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})


@pytest.mark.parametrize(("name", "size", "end"), [("o200k_base", 200_019, 199_999), ("r50k_base", 50_257, 50_256)])
def test_published_encodings(ranks, name, size, end):
    tokenizer = make_tokenizer(name, CORPUS)
    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.separator) == (name, size, (end,))
    for text in (SAMPLE, bpe.END_OF_TEXT, "", "\u2028 x"):
        check_round_trip(tokenizer, text)
        assert tokenizer.encode(text).tolist() == tiktoken.get_encoding(name).encode_ordinary(text)
    assert tokenizer.byte_lengths[end] == 0
    assert tokenizer.decode([end, size, size + 10, -1]) == bpe.END_OF_TEXT + 3 * "\ufffd"


class NeitherRequestsNorOS(Exception):
    """Stands for whatever an HTTP library raises."""


def test_without_a_network_the_message_says_what_to_set(tmp_path, monkeypatch):
    def no_network(path):
        raise NeitherRequestsNorOS("HTTPSConnectionPool(...):\nMax retries exceeded")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.load, "read_file", no_network)
    with refuses("'o200k_base'.*set TIKTOKEN_CACHE_DIR .* needs no network$"):
        make_tokenizer("o200k_base", CORPUS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    with refuses("'gpt2'.* or ./gpt2 for the folder of that name$"):
        make_tokenizer("gpt2", CORPUS)


def test_a_network_that_never_answers_is_given_up(monkeypatch):
    import threading

    release = threading.Event()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: release.wait())
    monkeypatch.setattr(bpe, "_DOWNLOAD_SECONDS", 0.05)
    with pytest.raises(UserError, match=r"no answer within 0\.05 s"):
        make_tokenizer("o200k_base", CORPUS)
    release.set()


@pytest.mark.parametrize("spec", ["", "bpe", "chars", "word:eos=tab", "o300k_base", "BPE:300"])
def test_unknown_specification(spec):
    with refuses("unknown tokenizer.*'bpe:N', 'char', 'byte'"):
        make_tokenizer(spec, CORPUS)
