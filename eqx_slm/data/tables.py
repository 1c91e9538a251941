"""Rows: parquet, and data sets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .documents import Item, shown
from .files import need
from .packed import Damaged, open_raw
from .records import Place, hint_of, longest_text


def parquet_rows(place: Place, start: int) -> Iterator[Item]:
    """The rows of a parquet file from `start` on."""
    pyarrow, parquet = (need(name, f"reading {shown(place.file.path)}") for name in ("pyarrow", "pyarrow.parquet"))
    place.word, column, group = "row", place.fields.text, place.fields.group
    with open_raw(place.file) as raw:
        try:
            table = parquet.ParquetFile(raw)
            columns = _columns(table.schema_arrow)
            if (found := columns.get(column)) is None or found.kind not in ("string", "binary"):
                have = f"no column {column!r}; there are {shown(', '.join(columns))}"
                if found is not None:
                    have = f"the column {column!r} is {found.type}, not text"
                yield place.refused(have + hint_of(_like_text(table, columns)), "column")
                return
            wanted = [found, *(each for name, each in columns.items() if name == group and each.kind == "string")]
            index = 0
            for number in range(table.num_row_groups):
                rows = table.metadata.row_group(number).num_rows
                if index + rows <= start:
                    index += rows
                    continue
                names = [".".join(each.path) for each in wanted]
                for batch in table.iter_batches(256, row_groups=[number], columns=names):
                    texts, *groups = (_bytes(batch, each.path) for each in wanted)
                    for text, name in zip(texts, groups[0] if groups else [None] * len(texts), strict=True):
                        place.offset, place.line, index = index, index + 1, index + 1
                        if index <= start:
                            continue
                        if text is None:
                            yield place.bad("field", f"nothing in the column {column!r}")
                        else:
                            yield place.document(text, (name or b"").decode("utf-8", "backslashreplace"))
        except (pyarrow.ArrowException, EOFError, KeyError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Damaged(f"not a whole parquet file ({reason})", place.file.size) from error


@dataclass(frozen=True)
class _Column:
    path: tuple[str, ...]  # a name may have dots itself
    type: Any

    @property
    def kind(self) -> str:
        """ "string" or "binary" for all kinds of them, as they are or in a dictionary."""
        name = str(self.type.value_type if str(self.type).startswith("dictionary") else self.type)
        return name.removeprefix("large_").removesuffix("_view")


def _columns(schema: Any) -> dict[str, _Column]:
    """Every column by its names with dots between them; of two of one name that of the fewest parts."""
    found = list(_leaves(schema))
    return {".".join(each.path): each for each in (*found, *sorted(found, key=lambda each: -len(each.path)))}


def _leaves(fields: Any, path: tuple[str, ...] = ()) -> Iterator[_Column]:
    for field in fields:
        if str(field.type).startswith("struct"):
            yield from _leaves(field.type, (*path, field.name))
        else:
            yield _Column((*path, field.name), field.type)


def _like_text(table: Any, columns: dict[str, _Column]) -> str:
    """The column whose first rows hold the most text, "" where none holds any."""
    texts = {name: column for name, column in columns.items() if column.kind == "string"}
    batch = next(table.iter_batches(64, columns=[".".join(column.path) for column in texts.values()]), None)
    if batch is None:  # no rows
        return ""
    found = {
        name: [(text or b"").decode("utf-8", "replace") for text in _bytes(batch, column.path)]
        for name, column in texts.items()
    }
    return longest_text((name, text) for name, rows in found.items() for text in rows)


def _bytes(batch: Any, path: tuple[str, ...]) -> list[bytes | None]:
    """A column as bytes, since a writer may have put in what is not UTF-8."""
    pyarrow, compute = (need(name, "reading parquet") for name in ("pyarrow", "pyarrow.compute"))
    column = batch.column(path[0])
    column = compute.struct_field(column, list(path[1:])) if path[1:] else column
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
