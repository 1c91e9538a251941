import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tokenizer_texts import CORPUS, check_round_trip, texts

from eqx_slm.data import Corpus, load_corpus, make_tokenizer


@given(texts)
def test_byte_round_trip(text):
    tokenizer = make_tokenizer("byte", CORPUS)
    check_round_trip(tokenizer, text)
    assert tokenizer.encode(text).tolist() == list(text.encode("utf-8"))


def test_bytes_of_documents_and_strange_ids():
    tokenizer = make_tokenizer("byte", CORPUS)
    assert tokenizer.decode(tokenizer.encode_documents(("a", "b"))) == "a\nb"
    assert tokenizer.decode([97, 256, 300, 0xFF, 98]) == "a\ufffd\ufffd\ufffdb"


def tiny(train, valid="", test=""):
    return Corpus("tiny", (train,), (valid,), (test,), split_rule="", hash="tiny")


@given(texts.filter(bool), st.data())
def test_char_round_trip(alphabet, data):
    tokenizer = make_tokenizer("char", tiny(alphabet, alphabet[::-1]))
    assert tokenizer.vocab_size == len(set(alphabet))
    check_round_trip(tokenizer, data.draw(st.text(sorted(set(alphabet)))))


def test_char_with_unknown_characters():
    tokenizer = make_tokenizer("char", tiny("abca", "abd", "é"))
    assert tokenizer.vocab_size == 4 and tokenizer.byte_lengths is None
    assert tokenizer.encode("cabdéz").tolist() == [2, 0, 1, 3, 3, 3]
    assert tokenizer.decode([0, 3, 4]) == "a\ufffd\ufffd"


def test_a_lossless_char_tokenizer_refuses_others():
    tokenizer = make_tokenizer("char", tiny("abc", "ab"))
    with refuses("character 'é'"):
        tokenizer.encode("abé")


def test_tiny_shakespeare_has_65_characters(data_root):
    corpus = load_corpus("tiny_shakespeare", data_root=data_root)
    tokenizer = make_tokenizer("char", corpus)
    assert tokenizer.vocab_size == 65
    check_round_trip(tokenizer, corpus.valid[0])
    assert len(tokenizer.encode_documents(corpus.train)) == 892_117


def test_penn_treebank_counts(data_root):
    corpus = load_corpus("ptb", data_root=data_root)
    plain = make_tokenizer("word:eos=none", corpus)
    assert plain.vocab_size == 9_999
    assert len(plain.encode_documents(corpus.train)) == 887_521
    lines = make_tokenizer("word:eos=newline", corpus)
    assert lines.vocab_size == 10_000
    ids = lines.encode_documents(corpus.train)
    assert len(ids) == 929_589
    assert plain.byte_lengths is None and lines.byte_lengths is None
    counts = np.bincount(ids, minlength=10_000)
    assert (np.diff(counts) <= 0).all()  # most frequent first
    assert make_tokenizer("word", corpus).name == "word:eos=newline"
    assert (lines.encode_documents(corpus.valid) < 10_000).all()


def test_words_round_trip_up_to_white_space():
    tokenizer = make_tokenizer("word", tiny("the cat\n\nthe  dog\n"))
    assert tokenizer.entries == ["<eos>", "the", "cat", "dog", "<unk>"]
    ids = tokenizer.encode("the cat\n\na dog\n")
    assert ids.tolist() == [1, 2, 0, 0, 4, 3, 0]
    assert tokenizer.decode(ids) == "the cat\n\n<unk> dog\n"
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)
    assert tokenizer.encode("").tolist() == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode([1, 99]) == "the \ufffd"


@given(st.lists(st.sampled_from(["a", "b", "<unk>", "\n"])))
def test_words_and_lines_survive(words):
    tokenizer = make_tokenizer("word", tiny("a b\n"))
    ids = tokenizer.encode(" ".join(words) + "\n")
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(ids)), ids)


def test_hashes_tell_tokenizers_apart(tmp_path):
    made = [make_tokenizer(spec, CORPUS) for spec in ("byte", "char", "word", "word:eos=none")]
    made += [make_tokenizer("char", tiny("abc")), make_tokenizer("char", tiny("abc", "d"))]
    made.append(make_tokenizer("bpe:300", CORPUS, cache_dir=tmp_path))
    assert len({tokenizer.hash for tokenizer in made}) == len(made)
    assert make_tokenizer("char", tiny("cba")).hash == make_tokenizer("char", tiny("abc")).hash
