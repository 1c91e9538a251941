import itertools
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from text_files import some_texts

from eqx_slm.data import Corpus, make_tokenizer
from eqx_slm.data.tokenizer import padded_vocab
from eqx_slm.data.vocabulary import export_tokenizer, load_tokenizer, save_tokenizer
from eqx_slm.errors import UserError

CORPUS = Corpus("x", tuple(some_texts(200)), ("valid ∂",), (), split_rule="", hash="vocabulary")
SPECS = ("bpe:310", "byte", "char", "word", "word:eos=none")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {spec: make_tokenizer(spec, CORPUS, cache_dir=cache) for spec in SPECS}


@pytest.mark.parametrize("spec", SPECS)
def test_tokenizers_come_back_from_json(made, spec, tmp_path):
    tokenizer = made[spec]
    again = load_tokenizer(save_tokenizer(tmp_path / "t.json", tokenizer))
    assert (again.name, again.hash, again.vocab_size) == (tokenizer.name, tokenizer.hash, tokenizer.vocab_size)
    assert again.separator == tokenizer.separator and type(again) is type(tokenizer)
    if tokenizer.byte_lengths is None:
        assert again.byte_lengths is None
    else:
        np.testing.assert_array_equal(again.byte_lengths, tokenizer.byte_lengths)
    for text in ("12 model\n the 日本\n\nnew ∂", *some_texts(5, seed=3)):
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))
        assert again.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))


@given(st.text(st.characters(exclude_categories=("Cs", "Cn"))))
def test_exports_encode_alike(exported, text):
    """Against the library that reads the file."""
    ours, hub = exported
    expected = ours.encode(text).tolist()
    assert hub.encode(text, add_special_tokens=False).ids == expected
    assert hub.decode(expected) == text


@pytest.fixture(scope="module", params=["bpe:310", "r50k_base"])
def exported(request, made, tmp_path_factory):
    if request.param == "r50k_base":
        root = request.getfixturevalue("data_root")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TIKTOKEN_CACHE_DIR", str(root / "tiktoken"))
            tokenizer = make_tokenizer("r50k_base", CORPUS)
    else:
        tokenizer = made[request.param]
    path = export_tokenizer(tmp_path_factory.mktemp("exported") / "tokenizer.json", tokenizer)
    hub = tokenizers.Tokenizer.from_file(str(path))
    assert hub.get_vocab_size() == tokenizer.vocab_size
    return tokenizer, hub


def test_a_published_vocabulary_with_gaps(data_root, monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_root / "tiktoken"))
    tokenizer = make_tokenizer("o200k_base", CORPUS)
    path = save_tokenizer(tmp_path / "t.json", tokenizer)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/nonexistent")
    again = load_tokenizer(path)  # needs no file of tiktoken's
    assert (again.hash, again.vocab_size) == (tokenizer.hash, 200_019)
    for text in itertools.chain(some_texts(20), ["<|endoftext|> Ünïcode 日本 🙂"]):
        np.testing.assert_array_equal(again.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hash": "0" * 64}, "is damaged: its hash is another"),
        ({"format": 7}, "is of format 7, this version reads 1"),
        ({"kind": "unigram"}, "kind 'unigram'"),
        ({"tokens": ["!"]}, "not a tokenizer's description"),
    ],
)
def test_damaged_descriptions(made, change, message, tmp_path):
    path = save_tokenizer(tmp_path / "t.json", made["bpe:310"])
    told = {**json.loads(path.read_text()), **change}
    del told["sha256"]  # as an earlier version wrote it
    path.write_text(json.dumps(told), "utf-8-sig")  # the mark is no damage
    with refuses(message):
        load_tokenizer(path)


def test_only_merges_can_be_exported(made, tmp_path):
    with pytest.raises(UserError, match="has no merges"):
        export_tokenizer(tmp_path / "x.json", made["char"])


@given(st.integers(1, 10**6), st.integers(1, 5000))
def test_padding(size, multiple):
    padded = padded_vocab(size, multiple)
    assert padded % multiple == 0 and 0 <= padded - size < multiple
