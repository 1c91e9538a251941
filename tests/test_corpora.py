import gzip
import hashlib
import json
import pathlib
import sysconfig
import tempfile

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from text_files import json_line, some_texts, write_texts

from eqx_slm.data import load_corpus, make_stream, open_source, split_rule
from eqx_slm.data.formats import Fields
from eqx_slm.data.splits import SPLITS, hashed_split
from eqx_slm.errors import UserError


def split_of(name):
    return hashed_split(name.encode("utf-8"))


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return folder


@pytest.fixture
def fake_python(tmp_path, monkeypatch):
    """An empty standard library and package folder in place of the real ones."""
    folders = {"stdlib": tmp_path / "lib", "purelib": tmp_path / "packages", "platlib": tmp_path / "packages"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(folders[name]))
    return folders


def modules(split, count):
    """Names of modules that the hash puts into a split."""
    names = (f"module{i}" for i in range(10_000))
    found = [name for name in names if split_of(name) == split]
    return found[:count]


# ---------------------------------------------------------------------------------------------------------------------
# The standard library


def test_standard_library_splits_are_large_enough_and_reproducible():
    corpus = load_corpus()
    sizes = {split: sum(len(text) for text in getattr(corpus, split)) for split in SPLITS}
    assert corpus.name == "stdlib" and corpus.note.startswith("python 3.")
    assert "top-level module" in corpus.split_rule
    assert sum(sizes.values()) > 5_000_000
    assert 0.80 < sizes["train"] / sum(sizes.values()) < 0.96
    assert sizes["valid"] > 200_000 and len(corpus.valid) >= 5
    assert corpus == load_corpus()
    held_out = {*corpus.valid, *corpus.test}
    assert max(map(len, held_out.intersection(corpus.train)), default=0) < 100  # an __init__ of one comment, no more


def test_a_whole_package_falls_into_one_split(fake_python):
    (train,), (valid,), (test,) = modules("train", 1), modules("valid", 1), modules("test", 1)
    filler = "x = 1\n" * 60_000
    files = {f"{name}/{part}.py": f"# {name} {part}\n{filler}" for name in (train, valid, test) for part in "abc"}
    write(fake_python["stdlib"], files)
    corpus = load_corpus()
    for name, documents in ((train, corpus.train), (valid, corpus.valid), (test, corpus.test)):
        assert [text.splitlines()[0] for text in documents] == [f"# {name} {part}" for part in "abc"]


def test_tests_and_generated_files_are_left_out(fake_python):
    (train,), (valid,) = modules("train", 1), modules("valid", 1)
    good = {f"{train}.py": "a = 1\n" * 100_000, f"{valid}.py": "b = 2\n" * 100_000}
    bad = {
        "test/test_x.py": "t",
        f"{train}/tests/test_y.py": "t",
        f"{train}/test/test_y.py": "t",
        "idlelib/idle_test/z.py": "t",
        "site-packages/p.py": "t",
        "encodings/utf.py": "t",
        "lib2to3/l.py": "t",
        f"{train}/__pycache__/c.py": "t",
        "_sysconfigdata_linux.py": "t",
        "sitecustomize.py": "t",
        "config-3.11-x86_64-linux-gnu/python-config.py": "t",
        "empty.py": "",
        "README.txt": "t",
        "latin.py": b"# -*- coding: nonsense -*-\n",
        "bytes.py": b"x = '\xff'\n",
    }
    write(fake_python["stdlib"], good | bad)
    corpus = load_corpus()
    assert corpus.train == ("a = 1\n" * 100_000,)
    assert corpus.valid == ("b = 2\n" * 100_000,)
    assert corpus.test == ()


def test_sources_are_decoded_as_python_decodes_them(fake_python):
    (train,), (valid,) = modules("train", 1), modules("valid", 1)
    filler = b"y = 1\r\n" * 100_000
    files = {
        f"{train}.py": b"# coding: latin-1\r\n# caf\xe9\r\n" + filler,
        f"{valid}.py": b"\xef\xbb\xbf# caf\xc3\xa9\n" + filler,
    }
    write(fake_python["stdlib"], files)
    corpus = load_corpus()
    assert corpus.train[0].startswith("# coding: latin-1\n# café\ny = 1\n")
    assert corpus.valid[0].startswith("# café\ny = 1\n")


def test_without_any_sources_the_message_says_what_to_give(fake_python):
    with refuses("give a text file or folder"):
        load_corpus()


# ---------------------------------------------------------------------------------------------------------------------
# Named corpora


def test_named_corpora(data_root):
    for name, sizes in {
        "tiny_shakespeare": (892_117, 111_669, 111_606),
        "ptb": (5_101_618, 399_782, 449_945),
    }.items():
        corpus = load_corpus(name, data_root=data_root)
        assert corpus.name == name and corpus.split_rule == "official"
        assert tuple(len(getattr(corpus, split)[0].encode("utf-8")) for split in SPLITS) == sizes
        assert load_corpus(str(data_root / name)).hash == corpus.hash


def test_a_folder_with_the_three_splits_keeps_them(tmp_path):
    write(tmp_path / "mine", {f"{split}.txt": f"text of {split}\n" for split in SPLITS} | {"other.txt": "no document"})
    for corpus in (load_corpus("mine", data_root=tmp_path), load_corpus(str(tmp_path / "mine"))):
        assert (corpus.train, corpus.valid, corpus.test) == (
            ("text of train\n",),
            ("text of valid\n",),
            ("text of test\n",),
        )


def test_an_empty_official_split_is_named(tmp_path):
    write(tmp_path, {"train.txt": "a", "valid.txt": "", "test.txt": ""})
    with refuses("valid.txt is empty"):
        load_corpus(str(tmp_path))


def test_unknown_name(tmp_path):
    with refuses("no corpus 'nothing-here'.*no data root was given.*give 'stdlib'"):
        load_corpus("nothing-here")
    with pytest.raises(UserError, match="no such folder with three splits"):
        load_corpus("nothing-here", data_root=tmp_path)
    with refuses("give 'stdlib', the path of a text file or folder"):
        load_corpus("site-packages")


# ---------------------------------------------------------------------------------------------------------------------
# A user's own files


def test_a_folder_is_split_by_the_hash_of_each_path(tmp_path):
    files = {f"part{i % 3}/file{i}.txt": f"text {i}" for i in range(200)} | {".hidden": b"\xff", ".git/x": b"\xff"}
    corpus = load_corpus(str(write(tmp_path, files)))
    placed = {text: split for split in SPLITS for text in getattr(corpus, split)}
    assert placed == {text: split_of(name) for name, text in files.items() if isinstance(text, str)}
    assert "each file's path" in corpus.split_rule
    # One more file moves no other.
    write(tmp_path, {"aaa.txt": "first of all"})
    more = load_corpus(str(tmp_path))
    for split in SPLITS:
        assert set(getattr(corpus, split)) <= set(getattr(more, split))
    assert more.hash != corpus.hash


def test_one_file_is_split_by_the_hash_of_each_block(tmp_path):
    blocks = [f"Block {i % 300}\nof two lines" for i in range(600)]  # every block occurs twice
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(blocks) + "\n")
    corpus = load_corpus(str(path))
    assert corpus.name == "book.txt" and "block" in corpus.split_rule
    found = {split: getattr(corpus, split)[0].strip().split("\n\n") for split in SPLITS}
    for split in SPLITS:
        assert found[split] == [block for block in blocks if split_of(block) == split]
    # By hash, not by position: the same blocks in reverse fall into the same splits.
    path.write_text("\r\n\r\n".join(reversed([block.replace("\n", "\r\n") for block in blocks])))
    assert load_corpus(str(path)).valid[0].strip().split("\n\n") == found["valid"][::-1]


def test_few_files_and_single_lines_fall_back_to_smaller_units(tmp_path):
    write(tmp_path / "three", {f"{i}.txt": "\n\n".join(f"block {i} {j}" for j in range(200)) for i in range(3)})
    assert "block" in load_corpus(str(tmp_path / "three")).split_rule
    write(tmp_path, {"lines.txt": "".join(f"line {i}\n" for i in range(500))})
    assert "each line" in load_corpus(str(tmp_path / "lines.txt")).split_rule


@pytest.mark.parametrize(
    ("content", "offset"),
    [(b"caf\xe9 au lait", 3), (b"\xef\xbb\xbfok\xff", 5), (b"cut \xe2\x82", 4)],
    ids=["latin", "bom", "cut"],
)
def test_text_that_is_not_utf8_is_named_with_its_offset(tmp_path, content, offset):
    write(tmp_path, {"good.txt": "fine", "bad.txt": content})
    with refuses(rf"bad\.txt, line 1 \(byte {offset}\): not UTF-8, .*;"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize(
    "files", [{}, {"a.txt": ""}, {"a.txt": " \n\n \n", "b.txt": ""}], ids=["no file", "empty", "blank"]
)
def test_an_empty_folder_is_an_error(tmp_path, files):
    with refuses("holds no text"):
        load_corpus(str(write(tmp_path, files)))


def test_too_little_text_to_split(tmp_path):
    write(tmp_path, {"tiny.txt": "one line"})
    with refuses("too little text to split"):
        load_corpus(str(tmp_path / "tiny.txt"))


def test_the_hash_covers_names_text_and_split(tmp_path):
    files = {f"{i}.txt": f"text {i}" for i in range(100)}
    original = load_corpus(str(write(tmp_path / "a", files))).hash
    assert load_corpus(str(write(tmp_path / "b", files))).hash == original  # wherever the folder is
    assert load_corpus(str(write(tmp_path / "c", files | {"7.txt": "text 8"}))).hash != original
    renamed = {("x" + name if name == "7.txt" else name): text for name, text in files.items()}
    assert load_corpus(str(write(tmp_path / "d", renamed))).hash != original
    assert len(original) == len(hashlib.sha256().hexdigest())


# ---------------------------------------------------------------------------------------------------------------------
# One reader: what is in memory is what a source gives


def by_split(source):
    rule, found = split_rule(source), {split: [] for split in SPLITS}
    for item in source.items():
        found[rule(item)].append(item.text)
    return {split: tuple(texts) for split, texts in found.items()}


LINES = b"".join(json_line(text) for text in some_texts(80))
ARRAY = json.dumps([{"text": text} for text in some_texts(80)]).encode()
RECORDS = {
    **{name: LINES for name in ("a.jsonl", "a.jsonlines", "a.ndjson", "a.json", "A.JSONL", "part.0.Json")},
    **{name: gzip.compress(LINES) for name in ("a.jsonl.gz", "a.json.gz", "A.NDJSON.GZ")},
    **{name: zstandard.compress(LINES) for name in ("a.jsonl.zst", "a.jsonlines.zstd", "a.json.zst")},
    "array.json": ARRAY,
    "pretty.json": json.dumps(json.loads(ARRAY), indent=1).encode(),
    "array.json.gz": gzip.compress(ARRAY),
}


@pytest.mark.parametrize("name", [*RECORDS, "a.parquet", "a.PQ"])
def test_records_are_records_every_way_in(tmp_path, name):
    path = tmp_path / name
    if name in RECORDS:
        path.write_bytes(RECORDS[name])
    else:
        write_texts(path.with_suffix(path.suffix.lower().replace("pq", "parquet")), some_texts(80)).rename(path)
    corpora = [load_corpus(str(given)) for given in (path, tmp_path, tmp_path / "*")]
    whole = [text for split in SPLITS for text in getattr(corpora[0], split)]
    assert sorted(whole) == sorted(some_texts(80))
    for corpus in corpora:
        assert {split: getattr(corpus, split) for split in SPLITS} == by_split(open_source(str(path)))
        assert corpus.hash == corpora[0].hash
    stream = make_stream(str(path), "byte", sequence_length=8, batch_size=1)
    assert bytes(stream.training_tokens(len(corpora[0].train[0].encode())).tolist()).decode() == corpora[0].train[0]


@given(st.dictionaries(st.sampled_from([f"{d}{i}.txt" for d in ("", "a/", "b/c/") for i in range(40)]), st.text()))
def test_a_folder_of_texts_in_memory_is_what_its_source_gives(files):
    with tempfile.TemporaryDirectory() as folder:
        try:
            corpus = load_corpus(str(write(pathlib.Path(folder), {"z.txt": "a\n\nb\n\nc" * 40} | files)))
        except UserError:
            return
        assert {split: getattr(corpus, split) for split in SPLITS} == by_split(open_source(folder))


def test_problems_stop_in_one_line_that_names_the_field_with_text(tmp_path):
    write(tmp_path, {"a.jsonl": '{"id": "7", "data": {"body": "some text"}}\n'})
    hint = r"a.jsonl, line 1 .*no text in the field 'text'.*'data.body' holds text: give --text-field data.body"
    with refuses(hint):
        load_corpus(str(tmp_path))
    write(tmp_path, {"a.jsonl": "".join(json.dumps({"data": {"body": text}}) + "\n" for text in some_texts(80))})
    assert len(load_corpus(str(tmp_path), fields=Fields(text="data.body")).train) > 40


@pytest.mark.parametrize("given", ["", " ", "\t\n", [], [""], ["README.md", ""], "hf:", "hf: "])
def test_data_that_names_nothing_is_refused(given):
    with refuses("name a corpus|names no data set"):
        open_source(given)
    for root in ("", " "):
        with pytest.raises(UserError, match="data_root is empty"):
            load_corpus("ptb", data_root=root)


def test_what_is_not_read_into_memory(tmp_path):
    with pytest.raises(UserError, match="stream:hf:someone/texts"):
        load_corpus("hf:someone/texts")
    with pytest.raises(UserError, match="cannot be one of several"):
        open_source(["stdlib", str(tmp_path)])
    with pytest.raises(UserError, match="unit line is for text files"):
        open_source("stdlib", fields=Fields(unit="line"))
