"""Tokenizers that others made: Hugging Face's tokenizer.json of several kinds, tiktoken's files, a run's own."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tokenizer_texts import CORPUS, check_round_trip, texts
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from eqx_slm.data import make_stream, make_tokenizer
from eqx_slm.data.bpe import bytes_of_characters
from eqx_slm.data.open import open_data
from eqx_slm.data.sources import open_source
from eqx_slm.data.splits import split_rule
from eqx_slm.data.tokenizer_files import open_tokenizer_file
from eqx_slm.data.vocabulary import export_tokenizer, load_tokenizer, save_tokenizer, tokenizer_for
from eqx_slm.errors import UserError

TEXTS = [*CORPUS.train, "the cat sat on the mat, the dog did not. " * 20]


def byte_level(**level):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=level.get("add_prefix_space", False))
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"]
    )
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def word_piece():
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special))
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return inner


def unigram():
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    inner.train_from_iterator(TEXTS, trainer)
    return inner


def word_level():
    inner = Tokenizer(models.WordLevel(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=["<unk>"]))
    return inner


KINDS = {"byte-level": byte_level, "word-piece": word_piece, "unigram": unigram, "word-level": word_level}


@pytest.fixture(scope="module", params=sorted(KINDS))
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    inner = KINDS[request.param]()
    inner.save(str(path))
    return request.param, inner, path


def test_ids_and_text_are_the_librarys(made):
    kind, inner, path = made
    tokenizer = make_tokenizer(str(path), CORPUS)
    assert tokenizer.vocab_size == inner.get_vocab_size() and tokenizer.name == str(path)
    for text in ("the cat sat", "def f(x):\n    return 1234", "The  naïve café"):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.tolist() == inner.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == inner.decode(ids.tolist(), skip_special_tokens=False)
    assert tokenizer.encode("").size == 0 and tokenizer.decode([]) == ""
    assert tokenizer.decode([tokenizer.vocab_size, -1]) == "\ufffd\ufffd"
    assert (tokenizer.byte_lengths is not None) == (kind == "byte-level")
    ends = {"byte-level": "<|endoftext|>", "word-piece": "[SEP]", "unigram": "</s>"}
    assert tokenizer.separator == ((inner.token_to_id(ends[kind]),) if kind in ends else ())


def test_a_tokenizer_of_another_kind_of_text_is_refused_and_small_losses_are_said(tmp_path):
    """Whatever a file has no ids for is left out: of such a text the losses look wonderful."""
    from eqx_slm.data.tokenizer import lost_share
    from eqx_slm.data.tokenizer_files import HubTokenizer

    def trained(text, name, unknown=None):
        inner = Tokenizer(models.BPE(unk_token=unknown))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        specials = [unknown] if unknown else []
        inner.train_from_iterator([text], trainers.BpeTrainer(vocab_size=60, special_tokens=specials))
        inner.save(str(tmp_path / name))
        return tmp_path / name

    def stream(text, tokenizer):
        (folder := tmp_path / "texts").mkdir(exist_ok=True)
        for split in ("train", "valid", "test"):
            (folder / f"{split}.txt").write_text(text)
        return make_stream(str(folder), str(tokenizer), sequence_length=8, batch_size=2, eval_tokens=16)

    many = "the quick brown fox jumps over the lazy dog. " * 30
    for unknown in (None, "[UNK]"):
        with refuses(r"has no ids for \d\d% of the characters of texts"):
            stream(many, trained("abcde " * 20, "narrow.json", unknown))
        for data in (f"stream:{tmp_path / 'texts'}", None):
            with pytest.raises(UserError, match=r"has no ids for \d\d% of the characters"):
                if data:
                    open_data(data, str(tmp_path / "narrow.json"), sequence_length=8, batch_size=2, eval_tokens=16)
                else:
                    source = open_source(str(tmp_path / "texts"))
                    tokenizer_for(str(tmp_path / "narrow.json"), source, split_rule(source))  # as `prepare` does
    whole = trained(many, "whole.json")
    assert "loses" not in stream(many, whole).info["corpus_note"]
    assert "The tokenizer loses" in stream(many + "Zürich € 100 " * 4, whole).info["corpus_note"]
    assert lost_share(HubTokenizer("whole", whole.read_text()), "the € fox") == pytest.approx(1 / 7)
    assert lost_share(HubTokenizer("trained", TRAINED), "Zürich € ") == 0


@given(texts)
def test_byte_level_loses_no_byte(text):
    from eqx_slm.data.tokenizer_files import HubTokenizer

    tokenizer = HubTokenizer("trained", TRAINED)
    check_round_trip(tokenizer, text)
    assert b"".join(tokenizer.token_bytes()[i] for i in tokenizer.encode(text)) == text.encode()


TRAINED = byte_level().to_str()


def test_spelling_is_that_of_its_merges():
    from eqx_slm.data.tokenizer_files import HubTokenizer

    tokenizer = HubTokenizer("trained", TRAINED)
    for pieces in (256, 300):
        spelled = tokenizer.spell(pieces)
        assert len(spelled) == tokenizer.vocab_size and max(map(max, filter(None, spelled))) < pieces
    assert [bytes(ids) for ids in tokenizer.spell()] == tokenizer.token_bytes()


def test_what_a_file_says_of_lengths_and_special_tokens_changes_no_text(tmp_path):
    inner = byte_level()
    plain = inner.encode("the cat <|endoftext|> sat " * 50, add_special_tokens=False).ids
    inner.enable_truncation(8)
    inner.enable_padding(length=64)
    inner.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = make_tokenizer(str(tmp_path), CORPUS)  # a folder with the file will do
    text = "the cat <|endoftext|> sat " * 50
    ids = tokenizer.encode(text)
    assert len(ids) > len(plain) and 0 not in ids  # what looks like the end of a text in a text is none
    assert tokenizer.decode(ids) == text


def test_the_end_of_a_text_is_what_the_config_beside_says(tmp_path):
    inner = byte_level()
    inner.add_special_tokens([AddedToken("<stop>", special=True)])
    inner.save(str(tmp_path / "tokenizer.json"))
    for end in ("<stop>", {"content": "<stop>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
        tokenizer = make_tokenizer(str(tmp_path / "tokenizer.json"), CORPUS)
        assert tokenizer.separator == (inner.token_to_id("<stop>"),)
    ids = tokenizer.encode_documents(("the cat", "the dog"))
    assert tokenizer.decode(ids) == "the cat<stop>the dog"


@pytest.mark.parametrize("change", ["prefix", "normalizer", "lstrip", "few bytes"])
def test_bytes_are_not_counted_where_some_are_lost(change):
    from eqx_slm.data.tokenizer_files import HubTokenizer

    inner = byte_level(add_prefix_space=change == "prefix")
    if change == "normalizer":
        inner.normalizer = normalizers.NFC()
    if change == "lstrip":
        inner.add_tokens([AddedToken("cat", lstrip=True)])
    if change == "few bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        inner.train_from_iterator(["the cat"], trainers.BpeTrainer(vocab_size=300))
    assert HubTokenizer(change, inner.to_str()).byte_lengths is None


def test_a_suffix_of_words_is_no_byte_level(tmp_path):
    """CLIP's kind: a byte's character with a suffix is another token, whose bytes are not the text's."""
    for how in ({"end_of_word_suffix": "</w>"}, {"continuing_subword_prefix": "##"}):
        told = json.loads(byte_level().to_str())
        told["model"] |= how | {"merges": []}
        suffix = how.get("end_of_word_suffix", "")
        size = max(told["model"]["vocab"].values()) + 1
        told["model"]["vocab"] |= {
            (token + suffix if suffix else "##" + token): size + i for i, token in enumerate(bytes_of_characters())
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(told))
        assert open_tokenizer_file(str(tmp_path / "tokenizer.json")).byte_lengths is None


def test_dropout_is_left_out_and_ids_that_would_move_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    told = json.loads(byte_level().to_str())
    path.write_text(json.dumps(told | {"model": told["model"] | {"dropout": 0.5}}))
    made, text = open_tokenizer_file(str(path)), "the cat sat on a mat, and ran far. " * 20
    assert len({tuple(made.encode(text).tolist()) for _ in range(4)}) == 1
    path.write_text(json.dumps(told))
    assert made.hash == open_tokenizer_file(str(path)).hash
    token = {"id": 5000, "content": "<|far|>", "single_word": False, "lstrip": False, "rstrip": False}
    token |= {"normalized": False, "special": True}
    path.write_text(json.dumps(told | {"added_tokens": [token]}))
    with refuses(r"has '<\|far\|>' at id 5000, .* must follow the others without a gap"):
        open_tokenizer_file(str(path))


def test_saved_and_loaded_it_is_the_same(made, tmp_path):
    _, _, path = made
    tokenizer = make_tokenizer(str(path), CORPUS)
    save_tokenizer(tmp_path / "vocabulary.json", tokenizer)
    again = load_tokenizer(tmp_path / "vocabulary.json")
    spaced = tmp_path / "spaced.json"  # spaces in the file are not the tokenizer
    spaced.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    for each in (again, make_tokenizer(str(tmp_path), CORPUS), make_tokenizer(str(spaced), CORPUS)):
        assert (each.hash, each.separator) == (tokenizer.hash, tokenizer.separator)
        assert each.encode("the cat").tolist() == tokenizer.encode("the cat").tolist()
    export_tokenizer(tmp_path / "exported.json", tokenizer)
    inner = Tokenizer.from_file(str(tmp_path / "exported.json"))
    assert inner.encode("the cat", add_special_tokens=False).ids == tokenizer.encode("the cat").tolist()


def test_exported_merges_come_back(tmp_path):
    ours = make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path)
    export_tokenizer(tmp_path / "tokenizer.json", ours)
    theirs = make_tokenizer(str(tmp_path / "tokenizer.json"), CORPUS)
    assert theirs.vocab_size == ours.vocab_size and theirs.separator == ours.separator
    np.testing.assert_array_equal(theirs.byte_lengths, ours.byte_lengths)
    for text in TEXTS:
        np.testing.assert_array_equal(theirs.encode(text), ours.encode(text))


def test_tiktoken_ranks(tmp_path):
    ours = make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path)
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(ours.token_bytes()[:-1])]
    for name in ("mine.tiktoken", "tokenizer.model"):
        (tmp_path / name).write_text("".join(lines))
        tokenizer = make_tokenizer(str(tmp_path / name), CORPUS)
        assert tokenizer.vocab_size == 300 and tokenizer.separator == (299,)
        check_round_trip(tokenizer, TEXTS[0])


@pytest.mark.parametrize("name", ["r50k_base", "o200k_base"])
def test_published_ranks_give_tiktokens_ids(name, data_root, tmp_path, monkeypatch):
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(data_root / "tiktoken"))
    theirs = tiktoken.get_encoding(name)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in theirs._mergeable_ranks.items()]
    (tmp_path / f"{name}.tiktoken").write_text("".join(lines))
    ours = make_tokenizer(str(tmp_path / f"{name}.tiktoken"), CORPUS)
    for text in (*TEXTS, "I'LL don't WE'RE  \n\n  x=1234567\tÀÉ naïve 日本語 🙂/\r\n  "):
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)


@pytest.mark.parametrize("count", [256, 259, 49_000])
@pytest.mark.parametrize("name", ["o200k_base.tiktoken", "my_cl100k_base.tiktoken", "r50k_base.model"])
def test_published_ranks_that_are_cut_are_no_whole_vocabulary(tmp_path, name, count):
    ranks = [bytes([i]) for i in range(256)] + [i.to_bytes(3, "big") for i in range(count - 256)]
    lines = "".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(ranks))
    (tmp_path / name).write_text(lines)
    with refuses(
        rf"{name} has {count:,} ranks, not the [\d,]+ of \w+_base: get it again, or give it a name of its own"
    ):
        make_tokenizer(str(tmp_path / name), CORPUS)
    (tmp_path / "mine.tiktoken").write_text(lines)
    assert make_tokenizer(str(tmp_path / "mine.tiktoken"), CORPUS).vocab_size == count + 1


def damaged(folder):
    (folder / "list.json").write_text("[1, 2]")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "torn.json").write_text('{"model": {"type"')
    (folder / "strange.json").write_text('{"model": {"type": "Nothing"}}')
    (folder / "empty.json").write_text(Tokenizer(models.BPE()).to_str())
    (folder / "words.tiktoken").write_text("the cat sat\n")
    (folder / "few.tiktoken").write_text("IQ== 0\nIg== 1\n")
    (folder / "binary.model").write_bytes(bytes(range(256)))
    twice = [f"{base64.b64encode(bytes([i])).decode()} 7" for i in range(256)]
    (folder / "twice.tiktoken").write_text("\n".join(twice))
    (folder / "bare").mkdir()
    yield from (
        ("missing.json", "cannot read the tokenizer"),
        ("list.json", "no tokenizer of Hugging Face"),
        ("config.json", "no tokenizer of Hugging Face"),
        ("torn.json", "is not JSON"),
        ("strange.json", "no tokenizer that Hugging Face's library reads"),
        ("empty.json", "has no tokens"),
        ("words.tiktoken", "line 1: not a token in base 64"),
        ("few.tiktoken", "has no rank for the byte 0"),
        ("binary.model", "SentencePiece"),
        ("twice.tiktoken", "gives two tokens one rank"),
        ("bare", "holds no tokenizer"),
    )


def test_a_folder_beside_does_not_hide_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "byte").mkdir()
    assert make_tokenizer("byte", CORPUS).name == "byte"
    (tmp_path / "mine").mkdir()
    with refuses("unknown tokenizer 'mine': write ./mine for the one in the folder"):
        make_tokenizer("mine", CORPUS)


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "spiece.model"])
def test_files_of_an_older_form_say_how_they_become_one(tmp_path, name):
    for each in (name, "vocab.json"):
        (tmp_path / each).write_text("{}")
    for spec in (tmp_path, tmp_path / "vocab.json", tmp_path / name):
        with refuses(
            rf"{name}, transformers makes one: AutoTokenizer.from_pretrained\('.*'\).save_pretrained\('.*'\)\)$"
        ):
            make_tokenizer(str(spec), CORPUS)


def test_what_is_no_tokenizer_is_said_in_one_line(tmp_path):
    for name, told in damaged(tmp_path):
        with refuses() as error:
            make_tokenizer(str(tmp_path / name), CORPUS)
        assert told in str(error.value), name


@pytest.mark.parametrize("spec", ["byte", "char", "bpe:300", "tokenizer.json"])
@given(data=st.data())
def test_no_change_of_a_saved_vocabulary_is_silent(spec, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    (folder / "tokenizer.json").write_text(TRAINED)
    spec = str(folder / spec) if spec.endswith(".json") else spec
    path = save_tokenizer(folder / "vocabulary.json", make_tokenizer(spec, CORPUS, cache_dir=folder))
    told = json.loads(path.read_text())
    field = data.draw(st.sampled_from(sorted(told.keys() - {"sha256"})))
    value = told[field]
    if isinstance(value, dict):
        changed = {**value, "<extra>": 5} if data.draw(st.booleans()) else {name: i + 1 for name, i in value.items()}
    elif isinstance(value, list):
        changed = value[::-1] if len(value) > 1 and value[::-1] != value else [*value, *(value[:1] or [1])]
    else:
        changed = value + 1 if isinstance(value, int) else value + "(" if data.draw(st.booleans()) else value[1:]
    path.write_text(json.dumps({**told, field: changed}))
    with refuses():
        load_tokenizer(path)


def test_streams_and_prepared_data_take_a_file(tmp_path):
    from eqx_slm.data.command import main

    (tmp_path / "tokenizer.json").write_text(TRAINED)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(TEXTS * 40))
    spec = str(tmp_path / "tokenizer.json")
    sizes = {"sequence_length": 8, "batch_size": 2, "eval_tokens": 16}
    stream = make_stream(str(text), spec, **sizes)
    assert stream.vocab_size == 340
    words = ["prepare", str(text), "--out", str(tmp_path / "prepared"), "--tokenizer", spec, "--unit", "line"]
    assert main(words) == 0
    for given_spec in (None, spec, str(tmp_path)):
        prepared = open_data(str(tmp_path / "prepared"), given_spec, **sizes)
        assert prepared.tokenizer.hash == stream.tokenizer.hash
    other = tmp_path / "other.json"
    other.write_text(word_piece().to_str())
    with pytest.raises(UserError, match="was prepared with"):
        open_data(str(tmp_path / "prepared"), str(other), **sizes)
