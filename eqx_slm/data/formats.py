"""Documents of one file: text, JSON lines, parquet, ArrayRecord."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError
from .documents import Document, Item, Position, Problem
from .files_in import Damaged, InputFile, need, open_raw, open_unpacked, skip_to

Unit = Literal["file", "paragraph", "line"]
LARGEST_FILE = 256 << 20  # bytes of a text file that may be one document: it is held in memory


@dataclass(frozen=True)
class Fields:
    """How a file falls into documents.

    - `text`: the field of a JSON record or the column of a parquet file; dots go into objects (`data.text`).
    - `group`: the field with the name of the set that a document belongs to, where there is one.
    - `unit`: what a document of a text file is.
    - `records`: what an ArrayRecord holds, UTF-8 text or JSON objects.
    """

    text: str = "text"
    group: str = "meta.pile_set_name"
    unit: Unit = "file"
    records: Literal["text", "json"] = "text"


def read_items(file: InputFile, number: int, fields: Fields, split: str, start: Position) -> Iterator[Item]:
    """Documents and problems of a file from `start` on (`start.offset` 0 is its beginning).

    A file that ends early or cannot be read gives one problem, after the documents before it.
    """
    maker = _Maker(file, number, fields, split)
    try:
        if file.format == "jsonl":
            yield from _json_lines(maker, start)
        elif file.format == "parquet":
            yield from _parquet(maker, start)
        elif file.format == "array_record":
            yield from _array_record(maker, start)
        elif fields.unit == "file":
            yield from _whole_file(maker)
        else:
            yield from _blocks(maker, start)
    except Damaged as damage:
        at = Position(number, maker.offset, maker.line)
        yield Problem("truncated", f"{file.path}: {damage} at byte {damage.offset:,}, after line {maker.line - 1}", at)
    except OSError as error:
        at = Position(number, maker.offset, maker.line)
        yield Problem("unreadable", f"{file.path}, line {maker.line}: {error.strerror or error}", at)


@dataclass
class _Maker:
    """Makes items of one file and knows how far it has read."""

    file: InputFile
    number: int
    fields: Fields
    split: str
    offset: int = 0
    line: int = 1
    word: str = "line"

    def at(self) -> Position:
        return Position(self.number, self.offset, self.line)

    def where(self, byte: int | None = None) -> str:
        text = f"{self.file.path}, {self.word} {self.line}"
        return text if byte is None else f"{text} (byte {byte:,})"

    def bad(self, kind: str, what: str, byte: int | None = None) -> Problem:
        return Problem(kind, f"{self.where(byte)}: {what}", self.at())

    def document(self, data: bytes, group: str = "", byte: int | None = None) -> Item:
        """A document of UTF-8 bytes."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return self.bad("utf-8", f"not UTF-8, {error.reason}", (byte or 0) + error.start)
        return self.of_text(text, data, group, byte)

    def of_text(self, text: str, data: bytes, group: str, byte: int | None) -> Item:
        if not text or text.isspace():
            return self.bad("empty", "an empty document", byte)
        return Document(text, data, self.at(), self.file.path, self.file.name, group, self.split)

    def record(self, line: bytes, byte: int | None = None) -> Item:
        """A document of a JSON object."""
        try:
            # json.loads of bytes would let surrogates pass.
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            return self.bad("utf-8", f"not UTF-8, {error.reason}", (byte or 0) + error.start)
        except (ValueError, RecursionError) as error:
            return self.bad("json", f"not JSON, {error}", byte)
        text = _field(value, self.fields.text)
        if not isinstance(text, str):
            have = ", ".join(map(repr, list(value)[:8])) if isinstance(value, dict) else type(value).__name__
            return self.bad("field", f"no text in the field {self.fields.text!r}; the record has {have}", byte)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return self.bad("utf-8", "the text holds half a surrogate pair, which is no character", byte)
        group = _field(value, self.fields.group)
        return self.of_text(text, data, group if isinstance(group, str) else "", byte)


def _field(value: Any, path: str) -> Any:
    if isinstance(value, dict) and path in value:
        return value[path]
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _json_lines(maker: _Maker, start: Position) -> Iterator[Item]:
    maker.offset, maker.line = start.offset, start.line
    with open_unpacked(maker.file) as stream:
        skip_to(stream, maker.file, start.offset)
        for line in stream:
            if not line.isspace():
                # A byte order mark, which some editors write before the first line.
                yield maker.record(line if maker.offset else line.removeprefix(b"\xef\xbb\xbf"), maker.offset)
            maker.offset += len(line)
            maker.line += 1


def _whole_file(maker: _Maker) -> Iterator[Item]:
    with open_unpacked(maker.file) as stream:
        data = stream.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        what = f"more than {LARGEST_FILE >> 20} MiB as one document; use --unit paragraph or --unit line"
        yield Problem("large", f"{maker.file.path}: {what}", maker.at())
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"{maker.file.path}, line {line} (byte {error.start:,}): not UTF-8, {error.reason}"
        yield Problem("utf-8", message, maker.at())
        return
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    yield maker.of_text(text, text.encode("utf-8"), "", 0)


def _blocks(maker: _Maker, start: Position) -> Iterator[Item]:
    """Lines, or paragraphs (runs of lines that are not blank); blank lines are between documents."""
    paragraphs = maker.fields.unit == "paragraph"
    offset, number = start.offset, start.line
    held: list[bytes] = []
    with open_unpacked(maker.file) as stream:
        skip_to(stream, maker.file, start.offset)
        for line in stream:
            blank = line.isspace()
            if held and (blank or not paragraphs):
                yield maker.document(b"".join(held), byte=maker.offset)
                held = []
            if not blank:
                if not held:
                    maker.offset, maker.line = offset, number
                held.append(line.replace(b"\r\n", b"\n"))
            offset += len(line)
            number += 1
    if held:
        yield maker.document(b"".join(held), byte=maker.offset)


def _parquet(maker: _Maker, start: Position) -> Iterator[Item]:
    need("pyarrow", f"reading {maker.file.path}")
    import pyarrow
    import pyarrow.parquet

    maker.word = "row"
    with open_raw(maker.file) as raw:
        try:
            table = pyarrow.parquet.ParquetFile(raw)
            names = table.schema_arrow.names
            if maker.fields.text not in names:
                have = ", ".join(names)
                message = f"{maker.file.path}: no column {maker.fields.text!r}; there are {have}"
                yield Problem("column", message, maker.at())
                return
            columns = [maker.fields.text] + [n for n in {maker.fields.group.split(".")[0]} if n in names]
            maker.offset, maker.line = start.offset, start.offset + 1
            done = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if done + rows <= start.offset:
                    done += rows
                    continue
                for batch in table.iter_batches(256, row_groups=[group], columns=columns):
                    texts = batch.column(0)
                    if not (pyarrow.types.is_string(texts.type) or pyarrow.types.is_large_string(texts.type)):
                        kind = "binary" if "binary" in str(texts.type) else str(texts.type)
                        if kind != "binary":
                            message = f"{maker.file.path}: the column {maker.fields.text!r} is {kind}, not text"
                            yield Problem("column", message, maker.at())
                            return
                    groups = batch.column(1).to_pylist() if len(columns) > 1 else [None] * len(texts)
                    # As bytes: a writer may have put in what is not UTF-8.
                    for text, meta in zip(texts.cast(pyarrow.large_binary()).to_pylist(), groups, strict=True):
                        if done >= start.offset:
                            maker.offset, maker.line = done, done + 1
                            yield _row(maker, text, meta)
                        done += 1
        except (pyarrow.ArrowException, EOFError) as error:
            raise Damaged(f"not a whole parquet file ({str(error).splitlines()[0]})", maker.file.size) from error


def _row(maker: _Maker, text: bytes | None, meta: Any) -> Item:
    if text is None:
        return maker.bad("field", f"nothing in the column {maker.fields.text!r}")
    first, _, rest = maker.fields.group.partition(".")
    group = _field({first: meta}, maker.fields.group) if rest else meta
    return maker.document(text, group if isinstance(group, str) else "")


def _array_record(maker: _Maker, start: Position) -> Iterator[Item]:
    if maker.file.remote:
        yield Problem("unreadable", f"{maker.file.path}: ArrayRecord files are read from a local disk", maker.at())
        return
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise UserError(
            f"reading {maker.file.path} needs the package array_record, which comes with grain but not for Windows"
        ) from None

    maker.word = "record"
    maker.offset, maker.line = start.offset, start.offset + 1
    try:
        reader = ArrayRecordReader(maker.file.path)
        count = reader.num_records()
        reader.seek(start.offset) if start.offset else None
        for index in range(start.offset, count):
            maker.offset, maker.line = index, index + 1
            data = reader.read()
            yield maker.record(data) if maker.fields.records == "json" else maker.document(data)
        reader.close()
    except (RuntimeError, IndexError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"not a whole ArrayRecord file ({message})", maker.file.size) from error
