import gzip
import json
import sys
import types

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from text_files import FORMATS, json_line, some_texts, texts_of, write_texts

from eqx_slm.data import open_source
from eqx_slm.data.documents import START, Document, Problem, Skipped
from eqx_slm.data.formats import Fields
from eqx_slm.data.splits import SplitRule, split_rule
from eqx_slm.data.splits import split_of_name as split_of_file
from eqx_slm.errors import UserError

TEXTS = some_texts(40)


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_gives_its_documents_and_any_can_be_gone_on_from(tmp_path, ending):
    groups = ["Pile-CC" if i % 3 else "Github" for i in range(len(TEXTS))]
    for part, (texts, names) in enumerate([(TEXTS[:25], groups[:25]), (TEXTS[25:], groups[25:])]):
        write_texts(tmp_path / f"part-{part}.{ending}", texts, names)
    source = open_source(str(tmp_path))
    items = list(source.items())
    assert [item.text for item in items] == TEXTS and [item.data.decode() for item in items] == TEXTS
    assert not source.official and not source.whole_files
    if ending != "array_record":
        assert [item.group for item in items] == groups
    for number, item in enumerate(items):
        again = source.items(item.at)
        assert next(again) == item
        assert [later.text for later in again] == TEXTS[number + 1 :]
    assert json.loads(json.dumps(source.spec)) == source.spec


@pytest.mark.parametrize("unit", ["line", "paragraph"])
def test_text_files_fall_into_lines_or_paragraphs(tmp_path, unit):
    text = "one\ntwo\n\n \nthree\r\nfour\n\nfive"
    (tmp_path / "a.txt").write_bytes(text.encode())
    source = open_source(str(tmp_path / "a.txt"), fields=Fields(unit=unit))
    expected = (
        ["one\n", "two\n", "three\n", "four\n", "five"] if unit == "line" else ["one\ntwo\n", "three\nfour\n", "five"]
    )
    assert texts_of(source) == expected
    for number, item in enumerate(source.items()):
        assert texts_of(source, item.at) == expected[number:]
        assert text.split("\n")[item.at.line - 1].strip("\r") == item.text.split("\n")[0]


def test_text_files_whole(tmp_path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(b"first"))
    (tmp_path / ".hidden").write_bytes(b"\xff")
    source = open_source(str(tmp_path))
    assert texts_of(source) == ["first", "one\ntwo"] and source.whole_files
    assert split_rule(source).kind == "path"


def test_fields_with_dots(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"data": {"body": "x"}, "set": "s"}\n{"data.body": "y"}\n')
    items = list(open_source(str(path), fields=Fields(text="data.body", group="set")).items())
    assert [(item.text, item.group) for item in items] == [("x", "s"), ("y", "")]


def test_globs_lists_and_addresses_find_the_same(tmp_path):
    for name in ("x/b.jsonl", "x/y/a.jsonl", "x/c.txt"):
        write_texts(tmp_path / name, TEXTS[:3])
    by_glob = open_source(str(tmp_path / "**" / "*.jsonl"))
    assert [file.name for file in by_glob.files] == ["x/b.jsonl", "x/y/a.jsonl"]
    assert texts_of(by_glob) == TEXTS[:3] * 2
    assert texts_of(open_source([str(tmp_path / "x/b.jsonl"), str(tmp_path / "x/y")])) == TEXTS[:3] * 2
    memory = fsspec.filesystem("memory")
    memory.pipe("/pile/train/00.jsonl.zst", zstandard.ZstdCompressor().compress(json_line("far")))
    memory.pipe("/pile/val.jsonl", json_line("away"))
    for name in ("memory://pile", "memory://pile/**"):
        source = open_source(name)
        assert [file.name for file in source.files] == ["train/00.jsonl.zst", "val.jsonl"]
        assert source.official and texts_of(source) == ["far", "away"]
        assert texts_of(source, list(source.items())[1].at) == ["away"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/00.jsonl.zst", "train"),
        ("val.jsonl", "valid"),
        ("data/validation-00000-of-00002.parquet", "valid"),
        ("Test_1.jsonl", "test"),
        ("training.txt", ""),
        ("trainer/x.py", ""),
        ("contest.txt", ""),
    ],
)
def test_official_splits_by_name(name, split):
    assert split_of_file(name) == split


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


# ---------------------------------------------------------------------------------------------------------------------
# What is no document


GOOD = json_line("good")


def broken(path, kind):
    """Writes a file with one bad record; returns the kind of problem, what its message must say, and what is good."""
    zst = zstandard.ZstdCompressor().compress
    if kind == "truncated zst":
        whole = zst(b"".join(json_line(t) for t in some_texts(20_000)))
        path = path.with_suffix(".jsonl.zst")
        path.write_bytes(zst(GOOD) + whole[: len(whole) // 2])
        return path, "truncated", r"a.jsonl.zst: the zstandard data is truncated at byte [\d,]+, after line \d+"
    if kind == "damaged zst":
        path = path.with_suffix(".jsonl.zst")
        path.write_bytes(zst(GOOD) + b"no frame at all")
        return path, "truncated", r"a.jsonl.zst: the zstandard data is damaged"
    if kind == "truncated gz":
        path = path.with_suffix(".jsonl.gz")
        path.write_bytes(gzip.compress(b"".join(json_line(t) for t in some_texts(3000)))[:-400])
        return path, "truncated", "a.jsonl.gz: the gzip data is truncated"
    if kind == "truncated parquet":
        whole = write_texts(path.with_suffix(".parquet"), TEXTS).read_bytes()
        path.with_suffix(".parquet").write_bytes(whole[: len(whole) // 2])
        return path.with_suffix(".parquet"), "truncated", "a.parquet: not a whole parquet file"
    if kind == "truncated array_record":
        whole = write_texts(path.with_suffix(".array_record"), TEXTS).read_bytes()
        path.with_suffix(".array_record").write_bytes(whole[: len(whole) // 2])
        return path.with_suffix(".array_record"), "truncated", "a.array_record: not a whole ArrayRecord file"
    if kind == "parquet without the column":
        path = path.with_suffix(".parquet")
        pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), path)
        return path, "column", "a.parquet: no column 'text'; there are body, n"
    if kind == "parquet with a null":
        path = path.with_suffix(".parquet")
        pyarrow.parquet.write_table(pyarrow.table({"text": ["x", None]}), path)
        return path, "field", "a.parquet, row 2: nothing in the column 'text'"
    if kind == "parquet with numbers":
        path = path.with_suffix(".parquet")
        pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
        return path, "column", "a.parquet: the column 'text' is int64, not text"
    lines = {
        "broken json": (b'{"text": "cut o\n', "json", r"a.jsonl, line 2 \(byte 17\): not JSON"),
        "not an object": (b'["text"]\n', "field", r"a.jsonl, line 2 \(byte 17\): no text in the field 'text'; .* list"),
        "missing field": (
            b'{"body": "x"}\n',
            "field",
            r"line 2 .*: no text in the field 'text'; the record has 'body'",
        ),
        "field of numbers": (b'{"text": 3}\n', "field", r"line 2 .*no text in the field"),
        "invalid utf-8": (b'{"text": "a\xffb"}\n', "utf-8", r"line 2 \(byte 28\): not UTF-8"),
        "half a surrogate": (b'{"text": "\\ud83d"}\n', "utf-8", r"line 2 .*half a surrogate pair"),
        "empty document": (b'{"text": " \\n"}\n', "empty", r"line 2 \(byte 17\): an empty document"),
    }
    line, found, message = lines[kind]
    assert len(GOOD) == 17
    path.write_bytes(GOOD + line + GOOD)
    return path, found, message


BROKEN = (
    *("truncated zst", "damaged zst", "truncated gz", "truncated parquet", "truncated array_record"),
    *("parquet without the column", "parquet with a null", "parquet with numbers"),
    *("broken json", "not an object", "missing field", "field of numbers", "invalid utf-8", "half a surrogate"),
    "empty document",
)


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_records_say_where_and_are_counted(tmp_path, kind):
    path, found, message = broken(tmp_path / "a.jsonl", kind)
    write_texts(tmp_path / "b.jsonl", ["after"])
    source = open_source(str(tmp_path))
    items = list(source.items())
    (problem,) = [item for item in items if isinstance(item, Problem)]
    assert problem.kind == found and str(path) in problem.message
    with pytest.raises(UserError, match=message) as error:
        for item in source.items():
            if isinstance(item, Problem):
                Skipped("stop").see(item)
    assert "\n" not in str(error.value) and "--on-error skip" in str(error.value)
    texts = [item.text for item in items if isinstance(item, Document)]
    assert texts[-1] == "after"  # the next file is read
    if found not in ("truncated", "column"):
        assert texts.count("good") == 2 or texts == ["x", "after"]
    if kind.endswith(" zst"):
        assert texts[0] == "good"
    if kind == "truncated zst":
        assert 1000 < len(texts) < 19_000 and texts[1:-1] == some_texts(20_000)[: len(texts) - 2]
    skipped = Skipped("skip")
    skipped.see(problem)
    assert skipped.state() == {"counts": {found: 1}, "first": [problem.message]}
    # Going on from the problem gives it again, and what follows.
    assert next(source.items(problem.at)) == problem


def test_invalid_utf8_in_text_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xfe\nthree\n")
    (problem,) = open_source(str(tmp_path)).items()
    assert problem.message.endswith("a.txt, line 2 (byte 6): not UTF-8, invalid start byte")
    items = list(open_source(str(tmp_path), fields=Fields(unit="line")).items())
    assert [type(item) for item in items] == [Document, Problem, Document]
    assert "line 2 (byte 6)" in items[1].message


def test_nothing_there(tmp_path):
    for name in (str(tmp_path / "*.jsonl"), str(tmp_path / "none"), "memory://nowhere/**", []):
        with pytest.raises(UserError, match="give|name"):
            open_source(name) if name else open_source(name)
    with pytest.raises(UserError, match="cannot list 'nosuch://x'"):
        open_source("nosuch://x")
    with pytest.raises(UserError, match="no official splits"):
        split_rule(open_source(str(write_texts(tmp_path / "a.jsonl", ["x"]))), "official")


def test_a_byte_order_mark_is_no_json(tmp_path):
    path = write_texts(tmp_path / "a.jsonl", ["one", "two"])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [item.text for item in open_source(str(path)).items()] == ["one", "two"]


def test_files_named_test_are_never_trained_on_unasked(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        write_texts(tmp_path / name, [f"{name} {i}" for i in range(40)])
    with pytest.raises(UserError, match="named train and test.*the test text would be trained on"):
        split_rule(open_source(str(tmp_path)))
    assert split_rule(open_source(str(tmp_path)), "content").kind == "content"
    assert split_rule(open_source(str(tmp_path / "train.jsonl"))).kind == "content"
    write_texts(tmp_path / "valid.jsonl", ["valid"])
    assert split_rule(open_source(str(tmp_path))).kind == "official"
    (tmp_path / "code").mkdir()
    for name in ("train.py", "test_it.py"):
        (tmp_path / "code" / name).write_text("pass\n")
    assert split_rule(open_source(str(tmp_path / "code"))).kind == "path"


@pytest.mark.parametrize(("module", "name"), [("zstandard", "a.jsonl.zst"), ("pyarrow", "a.parquet")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, name):
    path = write_texts(tmp_path / name, ["x"])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {module}, .*pip install 'eqx_slm\[data\]'"):
        list(open_source(str(path)).items())


class FakeRows(list):
    def skip(self, count):
        return FakeRows(self[count:])


def test_hugging_face_streams(monkeypatch):
    rows = {"train": FakeRows({"text": t} for t in TEXTS[:9]), "validation": FakeRows([{"text": "v"}, {"body": 1}])}
    hub = types.ModuleType("datasets")
    hub.get_dataset_split_names = lambda path, config: list(rows)  # pyright: ignore
    hub.load_dataset = lambda path, config, split, streaming: rows[split]  # pyright: ignore
    monkeypatch.setitem(sys.modules, "datasets", hub)
    source = open_source("hf:someone/texts")
    items = list(source.items())
    assert [(item.text, item.split) for item in items[:10]] == [*((t, "train") for t in TEXTS[:9]), ("v", "valid")]
    assert items[10].kind == "field" and "row 2" in items[10].message
    for number, item in enumerate(items):
        assert list(source.items(item.at)) == items[number:]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'eqx_slm\[hf\]'"):
        open_source("hf:someone/texts")
