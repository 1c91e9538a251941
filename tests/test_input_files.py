"""Which files a path, folder, glob or address names, whatever they are called and whatever lies beside them."""

import json
import os
import socket
import subprocess
import sys

import fsspec
import pytest
import zstandard
from text_files import json_line, some_texts, texts_of, write_texts

from eqx_slm.data import load_corpus, open_source, split_rule
from eqx_slm.data.documents import Document, Problem
from eqx_slm.data.files import find_files
from eqx_slm.errors import UserError

TEXTS = some_texts(60)


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


def test_nothing_there(tmp_path):
    for name in (str(tmp_path / "*.jsonl"), str(tmp_path / "none"), "memory://nowhere/**", [], str(tmp_path)):
        with pytest.raises(UserError, match="give|name"):
            open_source(name)
    with pytest.raises(UserError, match="cannot list 'nosuch://x'"):
        open_source("nosuch://x")
    with pytest.raises(UserError, match="no official splits"):
        split_rule(open_source(str(write_texts(tmp_path / "a.jsonl", ["x"]))), "official")


def names(*patterns):
    return [file.name for file in open_source(list(map(str, patterns))).files]


def test_a_file_is_read_once_however_often_it_is_named(tmp_path, monkeypatch):
    write_texts(tmp_path / "b" / "a.jsonl", TEXTS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alias.jsonl").symlink_to("b/a.jsonl")
    for given in (["b", "b/*.jsonl"], ["b/a.jsonl", "./b/a.jsonl", str(tmp_path / "b")], ["b", "alias.jsonl"], ["."]):
        assert texts_of(open_source(given)) == TEXTS
    assert load_corpus(".").hash == load_corpus(str(tmp_path)).hash


def test_links_that_go_round_or_nowhere(tmp_path):
    write_texts(tmp_path / "a" / "x.jsonl", TEXTS)
    for link, target in (("loop", ".."), ("twice", "../a"), ("self", "self"), ("broken.jsonl", "nowhere")):
        (tmp_path / "a" / link).symlink_to(target)
    assert names(tmp_path) == ["a/x.jsonl"]
    assert names(tmp_path / "**" / "*.jsonl") == ["a/x.jsonl"] == names(tmp_path / "**")
    assert names(tmp_path / "a" / "*") == ["x.jsonl"]


def test_pipes_and_sockets(tmp_path):
    write_texts(tmp_path / "x.jsonl", TEXTS)
    os.mkfifo(tmp_path / "pipe.jsonl")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket.jsonl"))
    server.close()
    assert names(tmp_path) == ["x.jsonl"] == names(tmp_path / "*.jsonl")
    for name in (str(tmp_path / "pipe.jsonl"), "/dev/null", str(tmp_path / "socket.jsonl")):
        with pytest.raises(UserError, match="a pipe or a device"):
            open_source(name)


def test_files_and_folders_that_cannot_be_read(tmp_path, monkeypatch):
    for name in ("a/x.txt", "a/y.txt", "b/z.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text\n\n" * 40)
    source = open_source(str(tmp_path), fields=None)
    scan = os.scandir

    def forbidden(path="."):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match="cannot list the folder .*b: Permission denied"):
        load_corpus(str(tmp_path))
    monkeypatch.undo()
    write_texts(tmp_path / "c" / "one.jsonl", ["one"])
    write_texts(tmp_path / "c" / "two.jsonl", ["two"])
    source = open_source(str(tmp_path / "c"))
    (tmp_path / "c" / "one.jsonl").unlink()  # after it was found
    gone, two = source.items()
    assert isinstance(gone, Problem) and gone.kind == "unreadable" and "No such file" in gone.message
    assert isinstance(two, Document) and two.text == "two"


def test_files_without_a_byte(tmp_path):
    write_texts(tmp_path / "a.jsonl", TEXTS)
    for name in ("empty.jsonl", "empty.txt", "empty.json", "empty"):
        (tmp_path / name).touch()
    assert texts_of(open_source(str(tmp_path))) == TEXTS and len([*open_source(str(tmp_path)).items()]) == len(TEXTS)
    (tmp_path / "empty.parquet").touch()
    (problem,) = (item for item in open_source(str(tmp_path)).items() if isinstance(item, Problem))
    assert problem.kind == "truncated" and "empty.parquet" in problem.message


NAMES = [b"caf\xe9.jsonl", "日本.jsonl".encode(), b"new\nline.jsonl", b"\xed\xa0\xbd.jsonl", "naïve 🙂.jsonl".encode()]


@pytest.mark.parametrize("raw", NAMES)
def test_names_of_any_bytes(tmp_path, raw):
    folder = os.path.join(os.fsencode(tmp_path), b"f" + raw.removesuffix(b".jsonl"))
    os.mkdir(folder)
    for name, text in ((raw, "one"), (b"a" + raw, "two"), (b"b" + raw, "")):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(json_line(text))
    for given in (str(tmp_path), os.fsdecode(folder), os.fsdecode(folder) + "/*.jsonl"):
        source = open_source(given)
        assert sorted(texts_of(source)) == ["one", "two"]
        words = [json.dumps(source.spec, ensure_ascii=False), source.name]
        words += [item.message if isinstance(item, Problem) else item.path for item in source.items()]
        for word in words:
            assert word.encode("utf-8") and "\n" not in word
    texts = {f"{i}": f"text {i}" for i in range(60)}
    for name, text in texts.items():
        with open(os.path.join(folder, name.encode() + raw.replace(b"jsonl", b"txt")), "w") as file:
            file.write(text)
    for name in (raw, b"a" + raw, b"b" + raw):
        os.unlink(os.path.join(folder, name))
    corpus = load_corpus(str(tmp_path))
    assert sorted(corpus.train + corpus.valid + corpus.test) == sorted(texts.values())


def test_names_where_the_locale_knows_ascii_only(tmp_path):
    for i in range(60):
        (tmp_path / f"é{i}.txt").write_text(f"text {i} é", "utf-8")
    (tmp_path / "日.md").write_bytes(b"one\xff")
    code = """if True:
        import os, sys
        from eqx_slm.data import load_corpus
        try:
            load_corpus(sys.argv[1])
        except ValueError as error:
            print(error)
        os.unlink(os.path.join(os.fsencode(sys.argv[1]), "\\u65e5.md".encode()))
        print(load_corpus(sys.argv[1]).hash)
    """
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:backslashreplace"}
    run = [sys.executable, "-c", code, str(tmp_path)]
    said, found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "not UTF-8" in said and said.endswith("skip") and found == load_corpus(str(tmp_path)).hash


def test_hidden_files_are_read_where_they_are_named(tmp_path):
    write_texts(tmp_path / ".cache" / "a.jsonl", TEXTS)
    write_texts(tmp_path / ".cache" / ".b.jsonl", ["hidden"])
    assert names(tmp_path / ".cache") == ["a.jsonl"] == names(tmp_path / ".cache" / "*.jsonl")
    assert names(tmp_path / ".cache" / ".b.jsonl") == [".b.jsonl"]
    with pytest.raises(UserError, match="holds no text"):
        find_files(str(tmp_path))
