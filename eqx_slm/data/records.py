"""Records to documents: which field is the text, and what is wrong with those that have none."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .documents import Document, Item, Position, Problem, shown
from .files import InputFile

Unit = Literal["file", "line"]
LARGEST = 256 << 20  # bytes of one record, and of a text file that is one document: they are held in memory


@dataclass(frozen=True)
class Fields:
    """How a file falls into documents.

    - `text`: the field of a JSON record or the column of a parquet file; dots go into objects (`data.text`).
    - `group`: the field with the name of the set that a document belongs to, where there is one.
    - `unit`: what a document of a text file is.
    """

    text: str = "text"
    group: str = "meta.pile_set_name"
    unit: Unit = "file"


TEXTS = ("text", "content", "body", "document", "article", "story", "sentence")


@dataclass
class Place:
    """Where in a file reading is; makes the documents and problems there."""

    file: InputFile
    number: int
    fields: Fields
    split: str
    offset: int
    line: int
    word: str = "line"

    def bad(self, kind: str, what: str, byte: int | None = None) -> Problem:
        """A problem at this place."""
        where = f"{shown(self.file.path)}, {self.word} {self.line}" + ("" if byte is None else f" (byte {byte:,})")
        return Problem(kind, f"{where}: {what}", Position(self.number, self.offset, self.line))

    def refused(self, what: str, kind: str = "format") -> Problem:
        """A problem of the whole file, or of the rest of it."""
        return Problem(kind, f"{shown(self.file.path)}: {what}", Position(self.number, self.offset, self.line))

    def large(self, what: str) -> Problem:
        """A problem of size."""
        return self.bad("large", f"more than {LARGEST >> 20} MiB in one {what}")

    def document(self, data: bytes, group: str = "", byte: int | None = None, *, text: str | None = None) -> Item:
        """A document of UTF-8 bytes (`text`: decoded already)."""
        try:
            text = data.decode("utf-8") if text is None else text
        except UnicodeDecodeError as error:
            return self.bad("utf-8", f"not UTF-8, {error.reason}", (byte or 0) + error.start)
        if not text or text.isspace():
            return self.bad("empty", "an empty document", byte)
        at = Position(self.number, self.offset, self.line)
        return Document(text, data, at, shown(self.file.path), self.file.name, shown(group), self.split)

    def json(self, line: bytes, byte: int | None = None) -> Item:
        """A document of a JSON object in UTF-8."""
        try:
            return self.record(json.loads(line.decode("utf-8")), byte)  # of bytes it would let surrogates pass
        except UnicodeDecodeError as error:
            return self.bad("utf-8", f"not UTF-8, {error.reason}", (byte or 0) + error.start)
        except (ValueError, RecursionError) as error:
            return self.bad("json", f"not JSON, {error}", byte)

    def record(self, record: Any, byte: int | None = None) -> Item:
        """A document of a record: a dictionary, as JSON has it."""
        text, group = (field_of(record, path) for path in (self.fields.text, self.fields.group))
        if not isinstance(text, str):
            keys = f"has {', '.join(map(repr, list(record)[:8]))}" if isinstance(record, dict) else ""
            hint = hint_of(longest_text(leaves(record)))
            have = keys or f"is a {type(record).__name__}, no object"
            held = f", which is {kind_of(text)}" if isinstance(record, dict) and self.fields.text in record else ""
            return self.bad("field", f"no text in the field {self.fields.text!r}{held}; the record {have}{hint}", byte)
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError:
            return self.bad("utf-8", "the text holds half a surrogate pair, which is no character", byte)
        return self.document(data, group if isinstance(group, str) else "", byte, text=text)


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list of objects" if value and isinstance(value[0], dict) else "a list"
    names = {bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def field_of(value: Any, path: str) -> Any:
    """The field of a record by its name, or by a path with dots; None where there is none."""
    if isinstance(value, dict) and path in value:
        return value[path]
    for part in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def leaves(value: Any, path: str = "", depth: int = 4) -> Iterator[tuple[str, Any]]:
    """The fields of a record and of those in it, by their paths."""
    if isinstance(value, dict) and depth:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key, depth - 1)
    elif path:
        yield path, value


def longest_text(fields: Iterable[tuple[str, Any]]) -> str:
    """Of fields and their values the one with the longest text, "" where there is none.

    Text has more than one word: one word is a label, a hash, an address, but under a name that says text. Not all
    scripts put spaces between words.
    """
    texts = [(path, text.strip()) for path, text in fields if isinstance(text, str) and text.strip()]
    words = [(len(text), path) for path, text in texts if len(text.split()) > 1 or not text.isascii()]
    return max(
        words or [(len(text), path) for path, text in texts if path.rpartition(".")[2] in TEXTS], default=(0, "")
    )[1]


def hint_of(path: str) -> str:
    """What to give where the text stands in another field."""
    return f"; {path!r} holds text: give --text-field {path if path.isprintable() else repr(path)}" if path else ""
