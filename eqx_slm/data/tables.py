"""Rows: parquet, and data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .documents import Item, shown
from .files import need
from .packed import Damaged, open_raw
from .records import Place, hint_of


def parquet_rows(place: Place, start: int) -> Iterator[Item]:
    """The rows of a parquet file from `start` on."""
    pyarrow, parquet = (need(name, f"reading {shown(place.file.path)}") for name in ("pyarrow", "pyarrow.parquet"))
    place.word, column, group = "row", place.fields.text, place.fields.group
    with open_raw(place.file) as raw:
        try:
            table = parquet.ParquetFile(raw)
            kinds = dict(_columns(table.schema_arrow))
            if _kind(kinds.get(column)) not in ("string", "binary"):
                hint = hint_of(next((name for name, kind in kinds.items() if _kind(kind) == "string"), ""))
                have = f"no column {column!r}; there are {shown(', '.join(kinds))}"
                if column in kinds:
                    have = f"the column {column!r} is {kinds[column]}, not text"
                yield place.refused(have + hint, "column")
                return
            columns = [column] + [group] * (_kind(kinds.get(group)) == "string")
            index = 0
            for number in range(table.num_row_groups):
                rows = table.metadata.row_group(number).num_rows
                if index + rows <= start:
                    index += rows
                    continue
                for batch in table.iter_batches(256, row_groups=[number], columns=columns):
                    texts, *groups = (_bytes(batch, name) for name in columns)
                    for text, name in zip(texts, groups[0] if groups else [None] * len(texts), strict=True):
                        place.offset, place.line, index = index, index + 1, index + 1
                        if index <= start:
                            continue
                        if text is None:
                            yield place.bad("field", f"nothing in the column {column!r}")
                        else:
                            yield place.document(text, (name or b"").decode("utf-8", "backslashreplace"))
        except (pyarrow.ArrowException, EOFError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Damaged(f"not a whole parquet file ({reason})", place.file.size) from error


def _columns(fields: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields:
        if str(field.type).startswith("struct"):
            yield from _columns(field.type, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field.type


def _kind(kind: Any) -> str:
    """ "string" or "binary" for all kinds of them, as they are or in a dictionary."""
    name = str(kind.value_type if str(kind).startswith("dictionary") else kind)
    return name.removeprefix("large_").removesuffix("_view")


def _bytes(batch: Any, path: str) -> list[bytes | None]:
    """A column as bytes, since a writer may have put in what is not UTF-8."""
    pyarrow, compute = (need(name, "reading parquet") for name in ("pyarrow", "pyarrow.compute"))
    head, *inner = [path] if path in batch.schema.names else path.split(".")
    column = compute.struct_field(batch.column(head), inner) if inner else batch.column(head)
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.large_binary()).to_pylist()


def hub_rows(place: Place, start: int) -> Iterator[Item]:
    """A split of a data set of the Hugging Face hub; what lies before the start is passed over by the hub's reader."""
    _, path, config, split = place.file.path.split(":")
    rows = need("datasets", "an hf: source", "hf").load_dataset(path, config or None, split=split, streaming=True)
    for index, row in enumerate(rows.skip(start) if start else rows, start):
        place.word, place.offset, place.line = "row", index, index + 1
        yield place.record(row)
