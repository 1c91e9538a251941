"""Splits: by the names people give their files, else by hash."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from text_files import some_texts, write_texts

from eqx_slm.data import load_corpus, open_data, open_source, prepare, split_rule
from eqx_slm.data.documents import START, Document
from eqx_slm.data.splits import SPLITS, SplitRule, hashed_split, split_of_name
from eqx_slm.data.tokenizer import ByteTokenizer
from eqx_slm.errors import UserError

NAMES = {
    **{"train/00.jsonl.zst": "train", "val.jsonl": "valid", "data/validation-00000-of-00002.parquet": "valid"},
    **{"Test_1.jsonl": "test", "wiki.train.tokens": "train", "ptb.valid.txt": "valid", "en_valid.txt": "valid"},
    **{"c4-train.00000-of-01024.json.gz": "train", "c4-validation.00000-of-00008.json.gz": "valid"},
    **{"TinyStories-valid.txt": "valid", "wiki.test.raw": "test", "input.train.txt": "train", "dev.jsonl": "valid"},
    **{"eval/0.txt": "valid", "training-monolingual/news.en-00001-of-00100": "train", "dev-v1.1.json": "valid"},
    **{"news.en.heldout-00000-of-00050": "valid", "split=test/part-0.parquet": "test", "train.en": "train"},
    **{"owt_val_003.jsonl": "valid", "testset.txt.gz": "test", "TRAIN": "train", "train_chunk_7.ndjson": "train"},
    **{"trainer/x.py": "", "contest.txt": "", "latest.jsonl": "", "devices.txt": "", "value.txt": "", "a/b.txt": ""},
    **{"corpus.trn": "train", "corpus.tst": "test", "vld/0.jsonl": "valid", "data_train_clean.txt": ""},
    **{"restrain.txt": "", "a test of it.txt": "", "train/test.jsonl": "", "train_test.jsonl": ""},
}


@pytest.mark.parametrize("name", NAMES)
def test_the_split_that_a_name_says(name):
    assert split_of_name(name) == NAMES[name]


OFFICIAL = [
    ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
    ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt", "README", "LICENSE"),
    ("c4-train.00000-of-01024.jsonl.gz", "c4-train.00001-of-01024.jsonl.gz", "c4-validation.00000-of-00008.jsonl.gz"),
    ("data/train-00000-of-00002.parquet", "data/validation-00000-of-00002.parquet", "README.md", "dataset_infos.json"),
    ("TinyStories-train.txt", "TinyStories-valid.txt"),
    ("train/a.txt", "train/b.txt", "val/a.txt"),
    ("train/part-0.jsonl", "dev/part-0.jsonl", "test/part-0.jsonl", "train/_SUCCESS", "train/.part-0.crc"),
    ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw", "SHA256SUMS", "state.json"),
    ("input.train.txt", "input.eval.txt", "LICENSE.txt"),
    ("en_train.txt", "en_valid.txt", "en_test.txt", "en_train.idx", "en_train.txt.md5"),
    ("my.train", "my.heldout", "CITATION.cff"),
    ("news/training/0.jsonl", "news/validation/0.jsonl", "dataset_info.json", "x.lock", "_committed_12"),
]
DIFFERENT = [  # a name alone says nothing, all together do
    ("data_train_clean.txt", "data_valid_clean.txt", "data_test_clean.txt"),
    ("bookTrain.txt", "bookVal.txt", "bookTest.txt"),
    ("c4_train_v2_clean_0.jsonl", "c4_train_v2_clean_1.jsonl", "c4_dev_v2_clean_0.jsonl"),
    ("my-train-lower.tokens", "my-heldout-lower.tokens", "README.md"),
    ("2024TrainSet_en.txt.bak.txt", "2024DevSet_en.txt.bak.txt"),
    ("wikitrain.txt", "wikivalid.txt", "wikitest.txt"),
    ("my_booktrain_en.txt", "my_bookdev_en.txt"),
    ("traintext.jsonl", "validtext.jsonl", "testtext.jsonl"),
]
UNCLEAR = [
    (("data_train_clean.txt", "data_test_clean.txt"), "none valid"),
    (("bookTrain.txt", "bookValid.txt", "contest.txt"), "contest.txt is not"),
    (("wiki.train.tokens", "wiki.valid.tokens", "more.txt"), "more.txt is not"),
    (("train.jsonl", "valid.jsonl", "extra.jsonl"), "extra.jsonl is not"),
    (("data/train-0.parquet", "data/test-0.parquet"), "none valid; .* the test text would be trained on"),
    (("train.txt", "test.txt", "README.md"), "named train and test"),
    (("corpus.txt", "corpus_test.txt"), "corpus_test.txt is named as a split and corpus.txt is not"),
    (("a.jsonl", "val.jsonl"), "a.jsonl is not"),
    (("train/a.jsonl", "valid/test.jsonl"), "valid/test.jsonl is not"),
    (("valid.jsonl", "test.jsonl"), "none train"),
    (("train/a.txt", "val/a.txt", "unsup/a.txt", "urls.py"), "unsup/a.txt is not|urls.py is not"),
    (("wikitrain.txt", "wikitest.txt"), "none valid"),
    (("train.md", "test.md"), "none valid"),
    (("part/train.rst", "part/test.rst"), "none valid"),
    (("train.dat", "test.dat"), "none valid"),
    (("train/a.tex", "test/a.tex"), "none valid"),
    (("validate.txt", "train.txt", "test.txt"), "validate.txt is not"),
]
NO_SPLITS = [
    ("train.py", "test.py"),  # two programs
    ("train.py", "test_it.py", "tests/test_x.py", "eval.py", "dev.md", "README.md"),  # source code
    ("model.py", "requirements/test.txt", "requirements/dev.txt", "README.md"),
    ("train/a.txt", "train/b.txt", "train/c.md"),  # of one split, which was named
    ("a.txt", "b.md", "README.md", "contest.txt", "latest.txt"),
    ("my_test_notes.txt", "my_eval_notes.txt", "other.txt"),  # of no training
    ("trained.txt", "tested.txt", "trainer.txt", "tester.txt", "valuation.txt"),  # words that begin with one
    ("contest.txt", "latest.txt", "restrain.txt", "interval.txt"),  # and that end with one
    ("training_notes.txt", "book.txt"),
    ("Training notes.txt", "training-plan.txt", "diary.txt"),
    ("train.md", "valid.md", "test.md", "notes.md"),
    ("validate.js", "train.js", "test.js"),
]


def lay(folder, names):
    """Files of ten texts each, which name their file; companions hold what no reader could take for a document."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".parquet", ".jsonl", ".gz"):
            write_texts(path, [f"{name} {i}" for i in range(10)])
        else:
            path.write_text("".join(f"{name} {i}\n\n" for i in range(10)))
    return folder


def named(texts):
    return {text.split(" ")[0] for text in texts}


@pytest.mark.parametrize("names", OFFICIAL, ids=lambda names: names[0])
def test_splits_by_name_are_kept(tmp_path, names):
    data = [name for name in names if split_of_name(name) and not name.endswith(("idx", "md5", "_SUCCESS", "crc"))]
    for paths in (str(lay(tmp_path, names)), [str(tmp_path / name) for name in data]):
        source = open_source(paths)
        rule = split_rule(source)
        assert rule.kind == "official"
        found = {(item.name.split("/")[-1], rule(item)) for item in source.items()}
        assert found == {(name.split("/")[-1], split_of_name(name)) for name in data}
    corpus = load_corpus(str(tmp_path))
    for split in SPLITS:
        assert named(getattr(corpus, split)) == {name for name in data if split_of_name(name) == split}


@pytest.mark.parametrize("names", DIFFERENT, ids=lambda names: names[0])
def test_names_that_differ_in_the_splits_word_alone(tmp_path, names):
    source = open_source(str(lay(tmp_path, names)))
    assert split_rule(source).kind == "official"
    for item in source.items():
        word = item.name.lower()
        assert item.split == ("train" if "train" in word else "test" if "test" in word else "valid")


@pytest.mark.parametrize("note", ["valid/notice.txt", "valid/x/manifest.txt", "test/state.txt", "train/y/metadata.txt"])
def test_a_note_alone_in_the_folder_of_a_split_is_text_where_others_are(tmp_path, note):
    """A whole split would be gone without a word."""
    names = ("train/a.txt", "valid/b.txt") if note.startswith("t") else ("train/a.txt", "test/b.txt")
    source = open_source(str(lay(tmp_path, (*names, note, "citation.txt"))))
    assert {item.name for item in source.items()} == {*names, note} and split_rule(source).kind == "official"


def test_notes_in_the_folder_of_a_split_are_texts_where_texts_end_so(tmp_path):
    texts = ("train/ohio.txt", "train/state.txt", "train/notice.txt", "valid/a.txt", "valid/manifest.txt")
    beside = (
        "train/README.txt",
        "valid/LICENSE.txt",
        "train/_SUCCESS",
        "train/notice.md",
        "citation.txt",
        "valid/x.log",
    )
    source = open_source(str(lay(tmp_path / "text", (*texts, *beside))))
    assert sorted({item.name for item in source.items()}) == sorted(texts)
    records = ("train/a.jsonl", "valid/a.jsonl")
    source = open_source(str(lay(tmp_path / "records", (*records, "train/state.txt"))))
    assert {item.name for item in source.items()} == {*records}


ONE_ENDING = [
    ("en_ewt-ud-train.conllu", "en_ewt-ud-dev.conllu", "en_ewt-ud-test.conllu"),
    ("train.src", "valid.src", "test.src"),
    ("train.dat", "val.dat"),
    ("train/a.py", "valid/b.py", "test/c.py"),
    ("corpus_train.sentences", "corpus_heldout.sentences"),
]


@pytest.mark.parametrize("names", ONE_ENDING, ids=lambda names: names[0])
def test_where_all_files_say_a_split_their_one_ending_may_be_any(tmp_path, names):
    corpus = load_corpus(str(lay(tmp_path, names)))
    for split, name in zip(SPLITS, names, strict=False):
        assert named(getattr(corpus, split)) == {name}
    assert split_rule(open_source(str(tmp_path))).kind == "official"


@pytest.mark.parametrize("where", ["valid", "test"])
def test_what_is_in_the_training_split_too_is_said(tmp_path, where):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text("the same\n" if split == "train" else split)
    (tmp_path / f"{where}.txt").write_text("\n\n the same \n\n")
    said = f"The {where} text is in the training text, all of it: its loss says nothing of other text."
    assert load_corpus(str(tmp_path)).note == said
    for split in SPLITS:
        (tmp_path / f"{split}.txt").unlink()
        write_texts(tmp_path / f"{split}.jsonl", ["the same", f"own {split}", f"more {split}"])
    said = "1 of 3 valid documents are in the training text too. 1 of 3 test documents are in the training text too."
    assert load_corpus(str(tmp_path)).note == said


@pytest.mark.parametrize("outer", ["\n", " \n\n", "\u3000", "\r\n"])
def test_texts_equal_but_for_outer_white_space_are_one_every_way_in(tmp_path, outer):
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text(("test " if split == "test" else "the same ") * 20, newline="")
    (tmp_path / "valid.txt").write_text(outer + "the same " * 20 + outer, newline="")
    for data in (str(tmp_path), f"stream:{tmp_path}"):
        note = open_data(data, "byte", sequence_length=4, batch_size=2).info["corpus_note"]
        assert note.startswith("The valid text is in the training text, all of it")
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ("one text", "another text"))
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "train.jsonl").write_text(rows)
    (tmp_path / "records" / "valid.jsonl").write_text(json.dumps({"text": f"one text{outer}"}) + "\n")
    for name in (".", "records"):
        source = open_source(str(tmp_path / name))
        with refuses("1 documents .* are in two splits"):
            prepare(source, ByteTokenizer(), tmp_path / "out" / name, rule=split_rule(source), workers=0)


@pytest.mark.parametrize(("names", "message"), UNCLEAR, ids=lambda value: str(value[0]))
def test_what_leaves_open_what_to_train_on_is_refused(tmp_path, names, message):
    source = open_source(str(lay(tmp_path, names)))
    for read in (
        lambda: split_rule(source),
        lambda: load_corpus(str(tmp_path)),
        lambda: split_rule(source, "official"),
    ):
        with refuses(f"{message}.*--split content"):
            read()
    assert split_rule(source, "content").kind == "content"
    one = [name for name in names if split_of_name(name) == "train"] or names[:1]
    assert split_rule(open_source(str(tmp_path / one[0]))).kind in ("content", "path", "official")


@pytest.mark.parametrize("names", NO_SPLITS, ids=lambda names: names[0])
def test_names_that_are_no_splits(tmp_path, names):
    for copy in range(60 // len(names)):
        lay(tmp_path / f"part{copy}", names)
    source = open_source(str(tmp_path))
    assert split_rule(source).kind == "path"
    assert {item.name.split("/", 1)[1] for item in source.items()} == {*names}


def test_in_a_tree_of_text_a_readme_is_text_and_beside_records_none(tmp_path):
    write_texts(tmp_path / "a.jsonl", some_texts(60))
    for name in ("README.md", "LICENSE", "dataset_info.json", "_SUCCESS", "a.idx", "a.jsonl.crc", "MD5SUMS"):
        (tmp_path / name).write_text(json.dumps({"no": "document"}))
    (tmp_path / "manifest.json").write_text('{"files": ["a.jsonl"], "version": 3}')
    assert [item.text for item in open_source(str(tmp_path)).items()] == some_texts(60)
    assert open_data(str(tmp_path), "byte", sequence_length=8, batch_size=2).vocab_size == 256
    for name in ("state-of-the-art.txt", "metadata.jsonl", "notes.txt"):
        write_texts(tmp_path / "more" / name, [name])
    assert len([*open_source([str(tmp_path / "a.jsonl"), str(tmp_path / "more")]).items()]) == 63
    assert len([*open_source([str(tmp_path / "README.md"), str(tmp_path / "a.jsonl")]).items()]) == 61  # it was named


@given(st.lists(st.text(min_size=1).filter(lambda t: t.strip()), max_size=8), st.floats(0.01, 0.5), st.floats(0, 0.4))
def test_splits_by_content_depend_on_the_text_alone(texts, valid, test):
    rule, wider = SplitRule("content", valid, test), SplitRule("content", valid + 0.09, test)
    for i, text in enumerate(texts):
        data = text.encode("utf-8", "surrogatepass")
        here, there = (Document(text, data, START._replace(offset=k), f"f{k}", f"f{k}") for k in (i, i + 7))
        assert rule(here) == rule(there)
        if rule(here) == "valid":
            assert wider(here) == "valid"


def test_split_shares():
    rule = SplitRule("content", 0.1, 0.2)
    names = [rule(Document("", str(i).encode(), START, "", "")) for i in range(4000)]
    assert abs(names.count("valid") - 400) < 80 and abs(names.count("test") - 800) < 105
    with pytest.raises(UserError, match="shares"):
        SplitRule("content", 0.6, 0.5)
    with pytest.raises(UserError, match="allowed is auto, official, content or path"):
        split_rule(open_source("stdlib"), "random")


@given(st.binary())
def test_about_one_name_in_ten_is_held_out(prefix):
    splits = [hashed_split(prefix + str(i).encode()) for i in range(1000)]
    assert 15 < splits.count("valid") < 90  # 50 expected, standard deviation 7
    assert 15 < splits.count("test") < 90
