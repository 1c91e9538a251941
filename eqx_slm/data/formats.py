"""Documents of one file: text, JSON lines, a JSON array, parquet, ArrayRecord."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError
from .documents import Document, Item, Position, Problem, shown
from .files import InputFile, need
from .packed import BLOCK, Damaged, open_raw, open_unpacked, skip_to

Unit = Literal["file", "paragraph", "line"]
LARGEST = 256 << 20  # bytes of one record, and of a text file that is one document: they are held in memory
BOM = b"\xef\xbb\xbf"  # some editors write it before the first line; `cat` brings it to the start of any
_MAGIC = {
    **{b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstandard data"},
    **{b"BZh91AY": "bzip2 data", b"\xfd7zXZ": "xz data", b"PK\x03\x04": "a zip archive", b"%PDF-": "a PDF"},
    **{b"PAR1": "parquet", b"ARROW1": "an Arrow file", b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file"},
}


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


def read_items(
    file: InputFile, number: int, fields: Fields, split: str, start: Position, *, largest: int = LARGEST
) -> Iterator[Item]:
    """Documents and problems of a file from `start` on (`start.offset` 0 is its beginning).

    A file that ends early, is damaged or cannot be read gives one problem, after the documents before that: whole lines
    of text. `largest` bounds a plain text file that is one document, in bytes.
    """
    place = Place(file, number, fields, split)
    try:
        if file.format == "parquet":
            yield from _parquet(place, start)
        elif file.format == "array_record":
            yield from _array_record(place, start)
        elif file.format == "unread":
            yield place.refused(
                f"{file.ending or 'such'} files are not read{' packed' if file.packing else ''}; give text, JSON lines "
                "(.jsonl), parquet or ArrayRecord, the first two plain, .gz or .zst"
            )
        else:
            with open_unpacked(file) as stream:
                yield from _text(place, stream, start, LARGEST if file.packing else largest)
    except Damaged as damage:
        what = f"{damage} at byte {damage.offset:,}, after {place.word} {place.line - 1}"
        yield Problem("truncated", f"{shown(file.path)}: {what}", place.at())
    except OSError as error:
        message = str(error.strerror or error).splitlines() or [type(error).__name__]
        yield Problem("unreadable", f"{place.where()}: {message[0]}", place.at())


@dataclass
class Place:
    """Where in a file reading is; makes the documents and problems there."""

    file: InputFile
    number: int
    fields: Fields
    split: str
    offset: int = 0
    line: int = 1
    word: str = "line"

    def at(self) -> Position:
        """The place as a position."""
        return Position(self.number, self.offset, self.line)

    def where(self, byte: int | None = None) -> str:
        """The place in words."""
        text = f"{shown(self.file.path)}, {self.word} {self.line}"
        return text if byte is None else f"{text} (byte {byte:,})"

    def bad(self, kind: str, what: str, byte: int | None = None) -> Problem:
        """A problem at this place."""
        return Problem(kind, f"{self.where(byte)}: {what}", self.at())

    def refused(self, what: str, kind: str = "format") -> Problem:
        """A problem of the whole file."""
        return Problem(kind, f"{shown(self.file.path)}: {what}", self.at())

    def large(self, what: str) -> Problem:
        """A problem of size."""
        return self.bad("large", f"more than {LARGEST >> 20} MiB in one {what}")

    def document(self, data: bytes, group: str = "", byte: int | None = None) -> Item:
        """A document of UTF-8 bytes."""
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return self.bad("utf-8", f"not UTF-8, {error.reason}", (byte or 0) + error.start)
        if not text or text.isspace():
            return self.bad("empty", "an empty document", byte)
        return Document(text, data, self.at(), shown(self.file.path), self.file.name, shown(group), self.split)

    def record(self, line: bytes, byte: int | None = None) -> Item:
        """A document of a JSON object in UTF-8."""
        try:
            value = json.loads(line.decode("utf-8"))  # of bytes it would let surrogates pass
        except UnicodeDecodeError as error:
            return self.bad("utf-8", f"not UTF-8, {error.reason}", (byte or 0) + error.start)
        except (ValueError, RecursionError) as error:
            return self.bad("json", f"not JSON, {error}", byte)
        return self.value(value, byte)

    def value(self, value: Any, byte: int | None = None) -> Item:
        """A document of a JSON object."""
        text, group = (_field(value, path) for path in (self.fields.text, self.fields.group))
        if not isinstance(text, str):
            keys = f"has {', '.join(map(repr, list(value)[:8]))}" if isinstance(value, dict) else ""
            have = keys or f"is a {type(value).__name__}, no object"
            others = {path: len(text) for path, text in _leaves(value) if isinstance(text, str) and text.strip()}
            what = f"no text in the field {self.fields.text!r}; the record {have}"
            return self.bad("field", what + _hint(max(others, key=others.__getitem__, default="")), byte)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return self.bad("utf-8", "the text holds half a surrogate pair, which is no character", byte)
        return self.document(data, group if isinstance(group, str) else "", byte)


def _field(value: Any, path: str) -> Any:
    if isinstance(value, dict) and path in value:
        return value[path]
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _leaves(value: Any, path: str = "", depth: int = 4) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key, depth - 1)
    elif path:
        yield path, value


def _hint(path: str) -> str:
    return f"; {path!r} holds text: give --text-field {path if path.isprintable() else repr(path)}" if path else ""


def _text(place: Place, stream: io.BufferedReader, start: Position, largest: int) -> Iterator[Item]:
    """Text and JSON in UTF-8."""
    head = stream.peek()
    first, whole, _ = head.removeprefix(BOM).lstrip().partition(b"\n")
    what = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")
    if what:
        end = "convert it to UTF-8" if what == "UTF-16" else "give it the ending of what it is, or leave it out"
        yield place.refused(f"this is {what}, not text in UTF-8; {end}", "utf-8" if what == "UTF-16" else "format")
    elif whole and place.file.records and first.rstrip() in (b"{", b"[")[: 1 + (place.file.format == "jsonl")]:
        yield place.refused("JSON over several lines; give one record a line (jq -c), or an array named .json", "json")
    elif place.file.format == "json" and first.startswith(b"["):
        yield from _json_array(place, stream, start)
    elif place.file.records:
        yield from _json_lines(place, stream, start)
    elif b"\0" in head[:8000]:
        yield place.refused("holds zero bytes, as binary data and UTF-16 do; give text in UTF-8, or leave it out")
    elif _like_records(head):
        yield place.refused("JSON lines by what it holds: name it .jsonl, so that its records are read")
    elif place.fields.unit == "file":
        yield from _whole_file(place, stream, start, largest)
    else:
        yield from _blocks(place, stream, start)


def _like_records(head: bytes) -> bool:
    lines = [line for line in head.removeprefix(BOM).split(b"\n", 3)[:2] if line.strip()]
    try:
        return bool(lines) and all(line.startswith(b'{"') and any(_leaves(json.loads(line))) for line in lines)
    except (ValueError, RecursionError):
        return False


def _json_array(place: Place, stream: io.BufferedReader, start: Position) -> Iterator[Item]:
    data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        yield place.large("array; write one record a line")
        return
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield place.refused(f"not JSON, {error}", "json")
        return
    place.word = "record"
    for place.offset in range(start.offset, len(values)):
        place.line = place.offset + 1
        yield place.value(values[place.offset])


def _lines(place: Place, stream: io.BufferedReader, start: Position) -> Iterator[tuple[int, int, bytes | None]]:
    """Lines that are not blank as (offset, line from 1, bytes); no bytes where a line is too long to be held."""
    skip_to(stream, place.file, start.offset)
    place.offset, place.line = start.offset, start.line
    while line := stream.readline(LARGEST + 1):
        size = len(line)
        bare = line.removeprefix(BOM)
        while bare.startswith(BOM):
            bare = bare.removeprefix(BOM)
        if size > LARGEST:
            yield place.offset, place.line, None
            while not line.endswith(b"\n") and (line := stream.readline(BLOCK)):
                size += len(line)
        else:
            yield place.offset + size - len(bare), place.line, bare
        place.offset += size
        place.line += 1


def _json_lines(place: Place, stream: io.BufferedReader, start: Position) -> Iterator[Item]:
    for byte, _, line in _lines(place, stream, start):
        if line is None:
            yield place.large("line")
        elif not line.isspace() and line:
            yield place.record(line, byte)


def _whole_file(place: Place, stream: io.BufferedReader, start: Position, largest: int) -> Iterator[Item]:
    """The text as one document, none where it is blank; of a damaged file its whole lines."""
    skip_to(stream, place.file, start.offset)
    place.offset, place.line = start.offset, start.line
    parts, size, damage = [], 0, None
    try:
        while size <= largest and (block := stream.read1(BLOCK)):
            parts.append(block)
            size += len(block)
    except Damaged as error:
        damage = error
    if size > largest:
        yield place.large("document; use --unit paragraph or --unit line")
        return
    data = b"".join(parts)
    data = data[: data.rfind(b"\n") + 1] if damage else data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if damage is None:
            place.line = data.count(b"\n", 0, error.start) + 1
            message = f"{place.where(error.start)}: not UTF-8, {error.reason}"
            yield Problem("utf-8", message, start._replace(file=place.number))
            return
        data = data[: data.rfind(b"\n", 0, error.start) + 1]
        text = data.decode("utf-8")
    if "\ufeff" in text:
        text = "\n".join(line.lstrip("\ufeff") for line in text.split("\n"))
    text = text.replace("\r\n", "\n")
    if text and not text.isspace():
        yield place.document(text.encode("utf-8"), byte=0)
    if damage:
        place.offset += len(data)
        place.line += data.count(b"\n")
        raise damage


def _blocks(place: Place, stream: io.BufferedReader, start: Position) -> Iterator[Item]:
    """Lines, or paragraphs (runs of lines that are not blank); blank lines are between documents."""
    held: list[bytes] = []
    size, first, number = 0, start.offset, start.line

    def document() -> Iterator[Item]:
        if held:
            now = place.offset, place.line
            place.offset, place.line = first, number
            yield place.document(b"".join(held), byte=first) if size <= LARGEST else place.large("paragraph")
            place.offset, place.line = now
            held.clear()

    try:
        for byte, line, data in _lines(place, stream, start):
            blank = data is not None and (data.isspace() or not data)
            if blank or data is None or place.fields.unit == "line":
                yield from document()
            if data is None:
                yield place.large("line")
            elif not blank:
                first, number, size = (first, number, size + len(data)) if held else (byte, line, len(data))
                if size <= LARGEST:
                    held.append(data.replace(b"\r\n", b"\n"))
    except Damaged:
        yield from document()
        raise
    yield from document()


def _parquet(place: Place, start: Position) -> Iterator[Item]:
    pyarrow, parquet = (need(name, f"reading {shown(place.file.path)}") for name in ("pyarrow", "pyarrow.parquet"))

    place.word, column = "row", place.fields.text
    with open_raw(place.file) as raw:
        try:
            table = parquet.ParquetFile(raw)
            types = dict(_columns(table.schema_arrow))
            texts = [path for path, kind in types.items() if _is_text(kind) and "binary" not in str(kind)]
            if column not in types:
                have = ", ".join(map(shown, types))
                yield place.refused(f"no column {column!r}; there are {have}{_hint(''.join(texts[:1]))}", "column")
                return
            if not _is_text(types[column]):
                what = f"the column {column!r} is {types[column]}, not text{_hint(''.join(texts[:1]))}"
                yield place.refused(what, "column")
                return
            columns = [column]
            if _is_text(types.get(place.fields.group, "")) and place.fields.group != column:
                columns.append(place.fields.group)
            done = 0
            place.offset, place.line = start.offset, start.offset + 1
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                if done + rows <= start.offset:
                    done += rows
                    continue
                for batch in table.iter_batches(256, row_groups=[group], columns=columns):
                    read = [_bytes(batch, path) for path in columns]
                    for text, name in zip(read[0], read[-1], strict=True):
                        if done >= start.offset:
                            place.offset, place.line = done, done + 1
                            group_name = (name or b"").decode("utf-8", "backslashreplace") if len(read) > 1 else ""
                            if text is None:
                                yield place.bad("field", f"nothing in the column {column!r}")
                            else:
                                yield place.document(text, group_name)
                        done += 1
        except (pyarrow.ArrowException, EOFError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Damaged(f"not a whole parquet file ({reason})", place.file.size) from error


def _columns(fields: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields:
        if str(field.type).startswith("struct"):
            yield from _columns(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


def _is_text(kind: Any) -> bool:
    kind = getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind
    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def _bytes(batch: Any, path: str) -> list[bytes | None]:
    """A column as bytes, since a writer may have put in what is not UTF-8."""
    import pyarrow
    import pyarrow.compute

    head, *inner = [path] if path in batch.schema.names else path.split(".")
    column = batch.column(head)
    column = pyarrow.compute.struct_field(column, inner) if inner else column
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary()).to_pylist()


def _array_record(place: Place, start: Position) -> Iterator[Item]:
    if place.file.remote:
        yield place.refused("ArrayRecord files are read from a local disk", "unreadable")
        return
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise UserError(
            f"reading {place.file.path} needs the package array_record, which comes with grain but not for Windows"
        ) from None

    place.word = "record"
    place.offset, place.line = start.offset, start.offset + 1
    try:
        reader = ArrayRecordReader(place.file.path)
        count = reader.num_records()
        reader.seek(start.offset) if start.offset else None
        for place.offset in range(start.offset, count):
            place.line = place.offset + 1
            data = reader.read()
            yield place.record(data) if place.fields.records == "json" else place.document(data)
        reader.close()
    except (RuntimeError, IndexError, ValueError) as error:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(f"not a whole ArrayRecord file ({message})", place.file.size) from error
