"""Packed files that are cut, damaged or strange: every whole line before the damage, then one problem."""

import gzip
import itertools
import random
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from text_files import json_line, some_texts

from eqx_slm.data import formats
from eqx_slm.data.documents import START, Document, Problem
from eqx_slm.data.files import InputFile
from eqx_slm.data.formats import Fields, read_items

TEXTS = some_texts(6, words=12)
LINES = [json_line(text) for text in TEXTS]
HALF = len(LINES) // 2


def zstandard_blocks(lines):
    """One frame with a checksum, a block a line; and the bytes at which the blocks end."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    blocks = [packer.compress(line) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for line in lines]
    return b"".join(blocks) + packer.flush(), [*itertools.accumulate(map(len, blocks))]


GZIP = b"".join(gzip.compress(b"".join(part), mtime=0) for part in (LINES[:HALF], LINES[HALF:]))
SKIPPABLE = b"\x51\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"mine!"
(FIRST, ENDS), (SECOND, MORE) = zstandard_blocks(LINES[:HALF]), zstandard_blocks(LINES[HALF:])
ZSTANDARD = FIRST + SKIPPABLE + SECOND
ENDS += [len(FIRST + SKIPPABLE) + end for end in MORE]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")

    def read(name, data, start=START, fields=Fields()):  # noqa: B008
        (folder / name).write_bytes(data)
        items = list(read_items(InputFile(str(folder / name), name, len(data)), 0, fields, "", start))
        return [i for i in items if isinstance(i, Document)], [i for i in items if isinstance(i, Problem)]

    return read


def gunzip(data):
    """A byte in, a byte out: what there is before damage, and whether there is damage."""
    out, members = bytearray(), 0
    while data := data.lstrip(b"\0") if members else data:
        member, i = zlib.decompressobj(wbits=31), 0
        try:
            while not member.eof and i < len(data):
                piece = member.decompress(data[i : i + 1], 1)
                while piece or member.unconsumed_tail:
                    out += piece
                    piece = member.decompress(member.unconsumed_tail, 1)
                i += 1
        except zlib.error:
            return bytes(out), True
        if not member.eof:
            return bytes(out), True
        data, members = member.unused_data + data[i:], members + 1
    return bytes(out), not members


def check_gzip(read, data):
    found, problems = read("a.txt.gz", data, fields=Fields(unit="line"))
    text, damaged = gunzip(data)
    if b"\0" in text:  # after a bit has flipped: binary, as it looks
        return
    whole = text[: text.rfind(b"\n") + 1]
    told = [problem for problem in problems if problem.kind == "truncated"]
    assert len(told) == damaged and (damaged or whole == text)
    lines = whole.splitlines(keepends=True)
    assert [document.data for document in found] == [line for line in lines if line.strip() and is_utf8(line)]
    if damaged:
        assert f"after line {len(lines)}" in told[0].message and told[0].at == (0, len(whole), len(lines) + 1)
        assert read("a.txt.gz", data, told[0].at, Fields(unit="line")) == ([], told)


def is_utf8(line):
    return line.decode("utf-8", "ignore").encode() == line


TRAILING = (b"x", b"garbage" * 9, b"\x1f", b"\0\0\x1f\x8b", b"\0" * 9, b"\n", b"PK\x03\x04")
PLAIN = gzip.compress("".join(f"{text}\n" for text in TEXTS[:2]).encode(), mtime=0) * 2


def test_gzip_cut_anywhere_or_followed_by_anything(read):
    for cut in range(len(PLAIN)):
        check_gzip(read, PLAIN[:cut])
    for end in TRAILING:
        check_gzip(read, PLAIN + end)


@given(st.integers(0, 8 * len(PLAIN) - 1))
def test_gzip_with_a_bit_flipped(read, bit):
    damaged = bytearray(PLAIN)
    damaged[bit // 8] ^= 1 << bit % 8
    check_gzip(read, bytes(damaged))


@pytest.mark.parametrize("unit", ["file", "line"])
@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_whole_lines_of_a_damaged_text_file(read, ending, unit):
    lines = [f"{i} {random.Random(i).random()}\n" for i in range(12_000)]
    text = "".join(lines).encode()
    packed = gzip.compress(text) if ending == "gz" else zstandard.compress(text)
    found, (problem,) = read(f"a.txt.{ending}", packed[: len(packed) * 2 // 3], fields=Fields(unit=unit))
    got = "".join(document.text for document in found)
    count = got.count("\n")
    assert 4_000 < count < 9_000 and got == "".join(lines[:count])
    assert problem.kind == "truncated" and problem.message.endswith(f"after line {count}")
    assert read(f"a.txt.{ending}", packed[: len(packed) * 2 // 3], problem.at, Fields(unit=unit)) == ([], [problem])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.jsonl.zst", "A.NDJSON.ZSTD"])
def test_whole_files_have_no_problem(read, name):
    found, problems = read(name, GZIP if name.endswith("gz") else ZSTANDARD)
    assert [document.text for document in found] == TEXTS and not problems
    for document in found[::5]:
        assert read(name, GZIP if name.endswith("gz") else ZSTANDARD, document.at)[0][0] == document


def test_zstandard_cut_anywhere(read):
    first = len(FIRST)
    for cut in range(len(ZSTANDARD)):
        found, problems = read("a.jsonl.zst", ZSTANDARD[:cut])
        assert [document.text for document in found] == TEXTS[: len(found)]
        assert len(problems) == (cut not in (first, first + len(SKIPPABLE)))
        if problems:
            assert problems[0].message.endswith(f"after line {len(found)}")
            frame = zstandard.ZstdDecompressor().decompressobj()
            whole = frame.decompress(ZSTANDARD[:cut]).count(b"\n") if cut < first else HALF
            assert len(found) >= whole
    assert len(read("a.jsonl.zst", ZSTANDARD[:-1])[0]) == len(TEXTS)


@given(st.integers(0, 8 * len(ZSTANDARD) - 1))
def test_zstandard_with_a_bit_flipped(read, bit):
    damaged = bytearray(ZSTANDARD)
    damaged[bit // 8] ^= 1 << bit % 8
    found, problems = read("a.jsonl.zst", bytes(damaged))
    before = sum(end <= bit // 8 for end in ENDS)
    assert [document.text for document in found[:before]] == TEXTS[:before]
    if not any(problem.kind == "truncated" for problem in problems):  # in the frame that nobody reads, or a size
        assert [document.text for document in found] == TEXTS


@pytest.mark.parametrize("end", [b"x", b"no frame at all", b"\x28\xb5\x2f", GZIP, b"\0\0\0\0"])
def test_zstandard_followed_by_something_else(read, end):
    found, (problem,) = read("a.jsonl.zst", ZSTANDARD + end)
    assert [document.text for document in found] == TEXTS
    assert "zstandard data is " in problem.message and problem.message.endswith(f"after line {len(TEXTS)}")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.json.gz"])
def test_a_packed_file_of_no_bytes_or_of_plain_text_is_damaged(read, name):
    for data in (b"", b"plain text\n" * 9):
        found, (problem,) = read(name, data)
        assert not found and problem.kind == "truncated"


@pytest.mark.parametrize(
    ("name", "unit"),
    [("a.jsonl.gz", "file"), ("a.json.zst", "file"), ("a.txt.zst", "file"), ("a.txt.zst", "line")],
)
def test_what_unpacks_to_too_much_is_bounded(read, monkeypatch, name, unit):
    monkeypatch.setattr(formats, "LARGEST", 1 << 20)
    pack = gzip.compress if name.endswith("gz") else zstandard.compress
    bomb = b"a" * (48 << 20)
    bomb = b'{"text": "' + bomb + b'"}\n' if "json" in name else bomb + b"\n"
    one, two = (json_line("one"), json_line("two")) if "json" in name else (b"one\n", b"two\n")
    data = pack(b"[" + bomb + b"]" if ".json." in name else one + bomb + two)
    tracemalloc.start()
    try:
        found, (problem,) = read(name, data, fields=Fields(unit=unit))
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
    assert problem.kind == "large" and "MiB in one" in problem.message
    if ".jsonl" in name:
        assert [document.text for document in found] == ["one", "two"]
