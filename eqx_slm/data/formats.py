"""Documents of one file: text, JSON lines, a JSON array here; rows in `tables`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator

from .contents import BOM, misnamed, stand_in
from .documents import Item, Position
from .files import InputFile
from .packed import BLOCK, Damaged, open_raw, open_unpacked, skip_to
from .records import LARGEST, Fields, Place
from .tables import hub_rows, parquet_rows

# How others come to be what is read.
INSTEAD = {
    ".arrow": ": datasets.load_from_disk(FOLDER).to_parquet(FILE) makes it",
    ".csv .tsv": ": pandas' read_csv(FILE).to_json(NAME.jsonl, orient='records', lines=True) makes it",
    ".zip .tar .tgz .7z .rar .bz2 .xz .lzma .lz4 .br .z": ": unpack it",
    ".bin .npy .npz .pt": "; of ids, TokenStream.from_tokens makes a stream",
}


def read_items(
    file: InputFile, number: int, fields: Fields, split: str, start: Position, *, largest: int = LARGEST
) -> Iterator[Item]:
    """Documents and problems of a file from `start` on (`start.offset` 0 is its beginning).

    A file that ends early, is damaged or cannot be read gives one problem, after the documents before that: whole lines
    of text. `largest` bounds a plain text file that is one document, in bytes.
    """
    place = Place(file, number, fields, split, start.offset, start.line)
    readers = {"parquet": parquet_rows, "hub": hub_rows}
    try:
        if file.format in readers:
            place.line = start.offset + 1
            yield from readers[file.format](place, start.offset)
        elif file.format == "unread" and (said := _in_its_place(file)):
            yield place.refused(said)
        elif file.format == "unread":
            what = f"{file.ending} files are not read{' packed' if file.packing else ''}"
            do = next((do for endings, do in INSTEAD.items() if file.ending in endings.split()), "")
            yield place.refused(f"{what}; give text or JSON lines (.jsonl), plain, .gz or .zst, or parquet{do}")
        else:
            with open_unpacked(file) as stream:
                yield from _text(place, stream, LARGEST if file.packing else largest)
    except Damaged as damage:
        if said := _in_its_place(file):
            yield place.refused(said)
            return
        what = f"{damage} at byte {damage.offset:,}, after {place.word} {place.line - 1}"
        yield place.refused(what, "truncated")
    except OSError as error:
        message = str(error.strerror or error).splitlines() or [type(error).__name__]
        yield place.bad("unreadable", message[0])


def _text(place: Place, stream: io.BufferedReader, largest: int) -> Iterator[Item]:
    """Text and JSON in UTF-8, told apart by name; by what a file holds where that is something else."""
    file, head = place.file, stream.peek()
    first, whole, _ = head.removeprefix(BOM).lstrip().partition(b"\n")
    if said := misnamed(file, head):
        yield place.refused(said)
    elif whole and file.records and first.rstrip() in ((b"{", b"[") if file.format == "jsonl" else (b"{",)):
        yield place.refused("JSON over several lines; give one record a line (jq -c), or an array named .json", "json")
    elif file.format == "json" and first.startswith(b"["):
        yield from _json_array(place, stream)
    else:
        skip_to(stream, file, place.offset)
        whole_file = place.fields.unit == "file" and not file.records
        yield from _whole_file(place, stream, largest) if whole_file else _lines(place, stream)


def _in_its_place(file: InputFile) -> str:
    """What stands in place of a file of rows or a packed one that makes no sense; "" where that is its own damage."""
    with contextlib.suppress(OSError), open_raw(file) as raw:
        return stand_in(file, raw.read(4096), packed=True)
    return ""


def _json_array(place: Place, stream: io.BufferedReader) -> Iterator[Item]:
    data = stream.read(LARGEST + 1)
    if len(data) > LARGEST:
        yield place.large("array; write one record a line")
        return
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        yield place.refused(f"not JSON, {error}", "json")
        return
    for index, record in enumerate(records[place.offset :], place.offset):
        place.word, place.offset, place.line = "record", index, index + 1
        yield place.record(record)


def _whole_file(place: Place, stream: io.BufferedReader, largest: int) -> Iterator[Item]:
    """The text as one document, none where it is blank; of a damaged file its whole lines."""
    parts, size, damage = [], 0, None
    try:
        while size <= largest and (block := stream.read1(BLOCK)):
            parts.append(block)
            size += len(block)
    except Damaged as error:
        damage = error
    if size > largest:
        yield place.large("document; use --unit line")
        return
    data = b"".join(parts)
    data = data[: data.rfind(b"\n") + 1] if damage else data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if not damage:
            where = dataclasses.replace(place, line=data.count(b"\n", 0, error.start) + 1)
            problem = where.bad("utf-8", f"not UTF-8, {error.reason}", error.start)
            yield problem._replace(at=Position(place.number, place.offset, place.line))
            return
        data = data[: data.rfind(b"\n", 0, error.start) + 1]
        text = data.decode("utf-8")
    if "\ufeff" in text:
        text = "\n".join(line.lstrip("\ufeff") for line in text.split("\n"))
    text = text.replace("\r\n", "\n")
    if text and not text.isspace():
        yield place.document(text.encode("utf-8"), text=text)
    if damage:
        place.offset, place.line = place.offset + len(data), place.line + data.count(b"\n")
        raise damage


def _lines(place: Place, stream: io.BufferedReader) -> Iterator[Item]:
    """Records, or the lines of a text, that are not blank."""
    while line := stream.readline(LARGEST + 1):
        bare = line
        while bare.startswith(BOM):
            bare = bare[len(BOM) :]
        byte = place.offset + len(line) - len(bare)
        if len(line) > LARGEST:
            yield place.large("line")
        elif bare and not bare.isspace():
            yield (
                place.json(bare, byte)
                if place.file.records
                else place.document(bare.replace(b"\r\n", b"\n"), byte=byte)
            )
        place.offset += len(line)
        while not line.endswith(b"\n") and (line := stream.readline(BLOCK)):  # the rest of a long one
            place.offset += len(line)
        place.line += 1
