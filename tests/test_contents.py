"""What a file holds where that is not what its name says: JSON lines, pointers and pages are not trained on as text."""

import gzip
import json

import pytest
import zstandard
from text_files import json_line, texts_of

from eqx_slm.data import load_corpus, open_source
from eqx_slm.data.contents import BOM
from eqx_slm.data.documents import Problem
from eqx_slm.data.formats import Fields
from eqx_slm.errors import UserError

RECORD = json_line("x")
LONG = json.dumps({"text": "a line of a book. " * 20_000}).encode() + b"\n"  # above the first block that is read
UNNAMED = {
    "space": b'{ "text": "x"}\n{ "text": "y"}\n',
    "tab": b'{\t"text": "x"}\n',
    "long": LONG + RECORD,
    "long alone": LONG.rstrip(b"\n"),
    "long escapes": json.dumps({"n": [1, {"a": None}], "text": "日本" * 30_000}).encode(),
    "arrays": b'[{"role": "user", "content": "hi"}]\n[{"role": "user", "content": "ho"}]\n',
    "lists": b'["one text"]\n["another"]\n',
    "comment": b"# a comment\n\n" + RECORD * 3,
    "slashes": b"// a comment\n" + RECORD,
    "blank": b"\n \r\n\n\n" + RECORD * 2,
    "marked": BOM + b"\n\n" + BOM + RECORD,
    "broken first": b'{"text": "cut o\n' + RECORD * 3,
    "broken later": RECORD * 2 + b"torn\n",
    "array over lines": b"[\n" + RECORD.rstrip() + b",\n" + RECORD + b"]\n",
}


def pieces(data, pack):
    """Packed so that the first pieces are of a few bytes, as bgzip and appending writers do."""
    return b"".join(pack(part) for part in (data[:1], data[1:9], data[9:]))


@pytest.mark.parametrize("kind", UNNAMED)
@pytest.mark.parametrize("name", ["a.txt", "a", "a.txt.gz", "a.zst"])
def test_json_lines_under_the_name_of_text_are_not_trained_on(tmp_path, kind, name):
    data = UNNAMED[kind]
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(name[-3:] if name[-3:] == ".gz" else name[-4:])
    (tmp_path / name).write_bytes(pieces(data, pack) if pack else data)
    for unit in ("file", "line"):
        (problem,) = open_source(str(tmp_path / name), fields=Fields(unit=unit)).items()
        assert isinstance(problem, Problem) and "JSON lines by what it holds: name it .jsonl" in problem.message


TEXT_OF_BRACKETS = {
    "code": "[x for x in y]\n{'a': 1}\n",
    "numbers": "[1]\n[2]\nand so on\n",
    "a section": "[section]\nkey = 1\n",
    "quoted": '{"a": 1} is how JSON looks.\n\nIt is text.\n',
    "one of many": '# Notes\n\nSome text\n{"a": 1}\nmore text\n',
    "a long line": "{ " + "word " * 60_000,
    "comments": "# one\n# two\n",
    "brackets": "[\n]\n",
}


@pytest.mark.parametrize("kind", TEXT_OF_BRACKETS)
@pytest.mark.parametrize("pack", [None, gzip.compress])
def test_text_with_brackets_is_text(tmp_path, kind, pack):
    data = TEXT_OF_BRACKETS[kind].encode()
    path = tmp_path / ("a.txt.gz" if pack else "a.txt")
    path.write_bytes(pieces(data, pack) if pack else data)
    found = texts_of(open_source(str(path)))  # blocks of it may be in several splits
    assert sorted("".join(found).split()) == sorted(data.decode().split())


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGES = {
    "doctype": b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n",
    "bare": b"\n  <HTML><head><title>502</title></head></HTML>",
    "comment": BOM + b'<!-- a -->\n<html lang="en">',
    "s3": b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>',
    "old": b"<head><title>502 Bad Gateway</title></head>\n<body>",
    "centred": b"<center><h1>403 Forbidden</h1></center>",
}
NO = (
    b"404: Not Found",
    b"Entry not found\n",
    b"Repository not found",
    b"Invalid username or password.",
    b"Access to dataset some/one is restricted. You must be authenticated to access it.",
    b'{"error": "Unauthorized"}\n',
    b'{"message": "Not Found", "documentation_url": "https://docs.github.com/rest", "status": "404"}',
    b"Forbidden",
)
PLAIN = ("a.txt", "a.jsonl", "a.json", "a.parquet", "a.tokens", "a", "a.csv", "a.arrow", "a.zip", "a.txt.xz")
EVERY = (*PLAIN, "a.jsonl.gz", "a.txt.zst", "a.md.gz", "a.csv.gz")


@pytest.mark.parametrize("name", (*EVERY, "a.py", "a.md"))
def test_pointers_in_place_of_a_file_are_named(tmp_path, name):
    for data, told in (
        (LFS, "Git LFS, not the file: run git lfs pull"),
        (b"/annex/objects/SHA256E-s1--a", "git-annex"),
    ):
        (tmp_path / name).write_bytes(data)
        (problem,) = open_source(str(tmp_path / name)).items()
        assert isinstance(problem, Problem) and told in problem.message and "\n" not in problem.message


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_a_server_gave_in_place_of_a_file_is_named(tmp_path, name, page):
    (tmp_path / name).write_bytes(PAGES[page])
    (problem,) = open_source(str(tmp_path / name)).items()
    assert isinstance(problem, Problem) and "this is an HTML or XML page" in problem.message
    with pytest.raises(UserError, match="download it again"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("no", NO)
def test_a_line_that_a_server_gave_in_place_of_a_file_is_named(tmp_path, name, no):
    (tmp_path / name).write_bytes(no)
    (problem,) = open_source(str(tmp_path / name)).items()
    assert isinstance(problem, Problem) and problem.message.startswith(f"{tmp_path / name}: a server gave '")
    assert problem.message.endswith("in place of the file: download it again") and "\n" not in problem.message


def test_pages_that_are_meant_are_text(tmp_path):
    for name in ("a.html", "b.htm", "c.md", "d.php"):
        (tmp_path / name).write_bytes(PAGES["doctype"])
    (tmp_path / "e.txt").write_text("version https is what <html> needs\n")
    (tmp_path / "f.html.gz").write_bytes(gzip.compress(PAGES["doctype"]))
    (tmp_path / "g.txt").write_text("404: Not Found\n\nA novel.\n")
    (tmp_path / "h.jsonl").write_text('{"error": "not found", "text": "one of many"}\n{"error": "x", "text": "y"}\n')
    assert len(texts_of(open_source(str(tmp_path)))) == 9
