import bz2
import gzip
import json
import lzma
import re
import sys
import types

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from refusals import refuses
from text_files import FORMATS, json_line, some_texts, texts_of, write_texts

from eqx_slm.data import load_corpus, open_source
from eqx_slm.data.documents import Document, Problem, Skipped
from eqx_slm.data.formats import BOM, Fields
from eqx_slm.data.splits import split_rule
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
    assert [item.group for item in items] == groups
    for number, item in enumerate(items):
        again = source.items(item.at)
        assert next(again) == item
        assert [later.text for later in again] == TEXTS[number + 1 :]
    assert json.loads(json.dumps(source.spec)) == source.spec


def test_text_files_fall_into_lines(tmp_path):
    text = "one\ntwo\n\n \nthree\r\nfour\n\nfive"
    (tmp_path / "a.txt").write_bytes(text.encode())
    source = open_source(str(tmp_path / "a.txt"), fields=Fields(unit="line"))
    assert texts_of(source) == (expected := ["one\n", "two\n", "three\n", "four\n", "five"])
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


# ---------------------------------------------------------------------------------------------------------------------
# What is no document


GOOD = json_line("good")


def broken(path, kind):
    """Writes a file with one bad record; returns the kind of problem, what its message must say, and what is good."""
    zst = zstandard.ZstdCompressor().compress
    if kind == "truncated zst":
        whole = zst(b"".join(json_line(t) for t in some_texts(6_000)))
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
    *("truncated zst", "damaged zst", "truncated gz", "truncated parquet"),
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
    with refuses(message) as error:
        for item in source.items():
            if isinstance(item, Problem):
                Skipped("stop").see(item)
    assert "--on-error skip" in str(error.value)
    texts = [item.text for item in items if isinstance(item, Document)]
    assert texts[-1] == "after"  # the next file is read
    if found not in ("truncated", "column"):
        assert texts.count("good") == 2 or texts == ["x", "after"]
    if kind.endswith(" zst"):
        assert texts[0] == "good"
    if kind == "truncated zst":
        assert 1000 < len(texts) < 5_900 and texts[1:-1] == some_texts(6_000)[: len(texts) - 2]
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


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.txt", "array.json"])
@pytest.mark.parametrize("unit", ["file", "line"])
def test_byte_order_marks_at_the_start_of_any_line(tmp_path, name, unit):
    texts = [text.replace("\n", " ") + "\n" for text in some_texts(6)]
    lines = [json_line(text) if "json" in name else text.encode() + b"\n" for text in texts]
    data = BOM + b"\n" + lines[0] + BOM + lines[1] + BOM + BOM + lines[2] + BOM + b" \r\n" + b"".join(lines[3:]) + BOM
    if name == "array.json":
        data = BOM + json.dumps([{"text": text} for text in texts]).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    items = list(open_source(str(tmp_path / name), fields=Fields(unit=unit)).items())
    assert "".join(item.text for item in items if isinstance(item, Document)).split() == "".join(texts).split()
    assert not any(isinstance(item, Problem) or "\ufeff" in item.text for item in items)


REFUSED = {
    **{name: b"a,b\n1,2\n" for name in ("a.csv", "a.TSV", "a.csv.gz", "a.tar.gz", "a.txt.bz2", "a.jsonl.xz")},
    **{
        name: b"some text\n"
        for name in ("a.arrow", "a.array_record", "a.npy", "a.bin", "a.pdf", "a.zip", "a.tar", "a.parquet.gz")
    },
    **{"a.txt": bz2.compress(b"text"), "b.txt": lzma.compress(b"text"), "c.txt": gzip.compress(b"text")},
    **{"d.txt": zstandard.compress(b"text"), "e": b"PK\x03\x04rest", "f.text": b"%PDF-1.7\n", "g.jsonl": b"\x1f\x8b.."},
    **{"h.txt": "text".encode("utf-16"), "i.jsonl": b'{"text": "x"}\n'.decode().encode("utf-16-be"), "j.txt": b"a\0b"},
    **{"k.jsonl": b'\xff\xfe{\0"\0', "l.json": b'{\n "text": "x"\n}\n', "m.json": b'{\n"a": [\n{"text": "x"}]}'},
    **{"n.jsonl": b'[\n{"text": "x"}\n]\n', "o.txt": b'{"text": "x"}\n', "p": b'\n{"text": "x"}\n{"text": "y"}\n'},
    **{
        "q.json": b"[1, ",
        "r.json.gz": gzip.compress(b'{\r\n "text": 1}'),
        "s.jsonl.00": b'{"text": "x"}\n{"text": "y"}\n',
    },
}


@pytest.mark.parametrize(
    ("name", "do"),
    {
        "a.tsv": "to_json",
        "a.csv.gz": "to_json",
        "a.arrow": "to_parquet",
        "a.jsonl.xz": "unpack it",
        "a.bin": "from_tokens",
    }.items(),
)
def test_other_formats_say_how_they_become_text(tmp_path, name, do):
    (tmp_path / name).write_bytes(gzip.compress(b"a,b\n1,2\n") if name.endswith("gz") else b"a,b\n1,2\n")
    (problem,) = open_source(str(tmp_path / name)).items()
    assert do in problem.message


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused_and_never_trained_on(tmp_path, name):
    (tmp_path / name).write_bytes(REFUSED[name])
    (problem, *more) = open_source(str(tmp_path / name)).items()
    assert isinstance(problem, Problem) and "\n" not in problem.message and name in problem.message and not more
    assert re.search("give|convert|name it|one record a line|not JSON", problem.message)
    with refuses(re.escape(name)):
        load_corpus(str(tmp_path))


def test_objects_in_json(tmp_path):
    (tmp_path / "one.json").write_bytes(json_line("alone"))
    (tmp_path / "mixed.json").write_text('[{"text": "a"}, 3, {"text": ""}, {"body": "b"}]')
    assert texts_of(open_source(str(tmp_path / "one.json"))) == ["alone"]
    items = list(open_source(str(tmp_path / "mixed.json")).items())
    assert [item.kind if isinstance(item, Problem) else item.text for item in items] == ["a", "field", "empty", "field"]
    assert "record 4: no text" in items[3].message and "give --text-field body" in items[3].message
    for number, item in enumerate(items):
        assert list(open_source(str(tmp_path / "mixed.json")).items(item.at)) == items[number:]


@pytest.mark.parametrize(
    "head",
    [
        '{ "text": "a b" }\n{ "text": "c d" }\n',
        '\n\n{"text": "a"}\n',
        '# from a crawl\n\n{"text": "a"}\n{"text": "b"}\n',
        '[{"role": "user", "content": "hi"}]\n[{"role": "user", "content": "ho"}]\n',
        '{"id": 3, "text": "' + "a long book. " * 20_000 + '"}\n',
        '[{"text": "' + "a long book. " * 20_000 + '"}]\n',
        '\ufeff\t{"text": "a"}\n',
    ],
)
@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_records_under_a_name_of_text_are_not_trained_on(tmp_path, head, name):
    data = head.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (item,) = open_source(str(tmp_path / name)).items()
    assert isinstance(item, Problem) and "name it .jsonl" in item.message


@pytest.mark.parametrize("text", ["# a heading\n\ntext\n", "{x} is a set\n", "[1] a note\n[2] two\n", "1\n2\n", "#\n"])
def test_text_that_begins_like_others_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert texts_of(open_source(str(tmp_path / "a.txt"))) == [text]


def test_a_pointer_and_what_a_field_holds_are_said(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    for name in ("a.txt", "a.jsonl", "a.json"):
        (tmp_path / name).write_text(pointer)
        (item,) = open_source(str(tmp_path / name)).items()
        assert "a pointer of Git LFS" in item.message and "git lfs pull" in item.message
    rows = [{"text": None}, {"text": 3}, {"text": [{"role": "user"}]}, {"text": ["a"]}, {"text": {}}, {"text": True}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [item.message for item in open_source(str(tmp_path / "b.jsonl")).items()]
    words = ("null", "a number", "a list of objects", "a list", "an object", "true or false")
    for word, message in zip(words, said, strict=True):
        assert f"no text in the field 'text', which is {word};" in message
    (tmp_path / "c.jsonl").write_text('{"hash": "4d7a21464d7a2146", "body": "a b"}\n')
    (item,) = open_source(str(tmp_path / "c.jsonl")).items()
    assert "give --text-field body" in item.message


def test_columns_whose_names_have_dots_and_the_one_that_holds_text(tmp_path):
    struct = pyarrow.array([{"c.d": "the inner text", "kind": "news"}])
    columns = {"id": ["x17"], "a.b": struct, "label": ["positive"], "body": ["a longer text of words"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for column, text in {"a.b.c.d": "the inner text", "body": "a longer text of words", "a.b.kind": "news"}.items():
        assert texts_of(open_source(str(tmp_path / "a.parquet"), fields=Fields(text=column))) == [text]
    (problem,) = open_source(str(tmp_path / "a.parquet")).items()
    assert problem.message.endswith("'body' holds text: give --text-field body")


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"label": "positive", "n": 3}, ""),
        ({"label": "positive", "body": "short"}, "body"),
        ({"sha": "a" * 64, "story": {"content": "two words"}}, "story.content"),
        ({"url": "https://example.org/a/long/address", "raw": "一段没有空格的文字"}, "raw"),
        ({"content": "x", "note": "in more words"}, "note"),
    ],
)
def test_the_field_that_is_hinted_at_holds_text(tmp_path, record, hint):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (problem,) = open_source(str(tmp_path / "a.jsonl")).items()
    assert problem.message.endswith(f"give --text-field {hint}" if hint else repr([*record][-1]))


TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "dictionary")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("column", ["text", "data.text", "a.b.c"])
def test_parquet_columns_of_every_kind_of_text(tmp_path, kind, column):
    is_dictionary = kind == "dictionary"
    type_ = pyarrow.dictionary(pyarrow.int8(), pyarrow.string()) if is_dictionary else getattr(pyarrow, kind)()
    array = pyarrow.array(["one", None, "drei é", "one"]).cast(type_)
    for part in reversed(column.split(".")[1:]):
        array = pyarrow.StructArray.from_arrays([array], [part], mask=pyarrow.array([False, False, False, True]))
    table = pyarrow.table({column.split(".")[0]: array, "meta": [{"pile_set_name": "s"}] * 4, "n": range(4)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    items = list(open_source(str(tmp_path / "a.parquet"), fields=Fields(text=column)).items())
    found = [item.kind if isinstance(item, Problem) else item.text for item in items]
    assert found == ["one", "field", "drei é", "one" if column == "text" else "field"] and items[0].group == "s"
    if kind != "binary" and "binary" not in kind:
        (problem,) = open_source(str(tmp_path / "a.parquet"), fields=Fields(text="body")).items()
        hint = column if column != "text" else "text"
        assert "no column 'body'" in problem.message and f"give --text-field {hint}" in problem.message
    write_texts(tmp_path / "dots.parquet", ["x"])
    dotted = pyarrow.table({"data.text": ["flat"]})
    pyarrow.parquet.write_table(dotted, tmp_path / "dots.parquet")
    assert texts_of(open_source(str(tmp_path / "dots.parquet"), fields=Fields(text="data.text"))) == ["flat"]


def test_groups_and_keys_of_any_characters(tmp_path):
    lines = ['{"text": "a", "meta": {"pile_set_name": "\\ud83d"}}', '{"text": "b", "meta": {"pile_set_name": "x\\ny"}}']
    lines += ['{"\\udc00": "c"}', '{"text": "d", "meta": {"pile_set_name": "日本"}}', '{"a\\nb": "text"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    items = list(open_source(str(tmp_path)).items())
    assert [item.group for item in items if isinstance(item, Document)] == ["\\ud83d", "x\\x0ay", "日本"]
    for item in items:
        words = item.message if isinstance(item, Problem) else item.group
        assert words.encode("utf-8") and "\n" not in words


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
