"""Sources by what the user typed: named corpora, files, folders, globs, addresses, Hugging Face data sets."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .corpus import SPLITS, Corpus, load_corpus
from .documents import START, Item, MemorySource, Position, Problem, Source
from .files_in import InputFile, find_files
from .formats import Fields, _Maker, read_items

_SPLIT_NAMES = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}


@dataclass(frozen=True)
class FileSource:
    """The documents of files, one file after another in the order of their names."""

    name: str
    files: tuple[InputFile, ...]
    fields: Fields = Fields()
    splits: tuple[str, ...] = ()  # the official split of each file, or nothing

    @property
    def official(self) -> bool:
        """Whether every file's name says its split."""
        return bool(self.splits)

    @property
    def named_splits(self) -> set[str]:
        """The splits that files' names say, if only some of them."""
        return {split_of_file(file.name) for file in self.files} - {""}

    @property
    def whole_files(self) -> bool:
        """Whether every document is a text file."""
        return self.fields.unit == "file" and all(file.format == "text" for file in self.files)

    @property
    def spec(self) -> dict:
        """Names, sizes and times of change of the files, and how they are read."""
        files = [[file.name, file.size, file.changed] for file in self.files]
        return {"kind": "files", "files": files, "fields": dataclasses.asdict(self.fields), "splits": [*self.splits]}

    def items(self, start: Position = START) -> Iterator[Item]:
        """Documents and problems from a position on."""
        for number in range(start.file, len(self.files)):
            split = self.splits[number] if self.splits else ""
            first = start if number == start.file else Position(number)
            yield from read_items(self.files[number], number, self.fields, split, first)


@dataclass(frozen=True)
class HuggingFaceSource:
    """A data set of the Hugging Face hub, streamed; splits are official where it has train and validation."""

    name: str
    path: str
    config: str | None = None
    splits: tuple[str, ...] = ("train",)
    fields: Fields = Fields()
    whole_files: bool = False

    @property
    def official(self) -> bool:
        """Whether the data set has a validation split of its own."""
        return len(self.splits) > 1

    @property
    def spec(self) -> dict:
        """The data set's name."""
        return {"kind": "hugging-face", "path": self.path, "config": self.config, "splits": [*self.splits]}

    def items(self, start: Position = START) -> Iterator[Item]:
        """Documents and problems from a position on; what lies before is passed over by the hub's own reader."""
        datasets = _datasets()
        for number in range(start.file, len(self.splits)):
            first = start.offset if number == start.file else 0
            rows = datasets.load_dataset(self.path, self.config, split=self.splits[number], streaming=True)
            split = _SPLIT_NAMES.get(self.splits[number], "train") if self.official else ""
            file = InputFile(f"hf:{self.path}/{self.splits[number]}", self.path, 0)
            maker = _Maker(file, number, self.fields, split, word="row")
            for index, row in enumerate(rows.skip(first) if first else rows, first):
                maker.offset, maker.line = index, index + 1
                try:
                    yield maker.record(json.dumps(row, default=str).encode())
                except (TypeError, ValueError) as error:
                    yield Problem("field", f"{maker.where()}: {error}", maker.at())


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            "an hf: source needs the package datasets, which is not installed: "
            "install the extra, pip install 'eqx_slm[hf]'"
        ) from None
    return datasets


def open_source(
    data: str | Sequence[str], *, data_root: str | Path | None = None, fields: Fields | None = None
) -> Source:
    """A source by name.

    **Arguments:**

    - `data`: `stdlib`, `site-packages`, a corpus below `data_root`, a text file, a folder with train.txt, valid.txt
        and test.txt (all as in `load_corpus`); otherwise files, folders, globs or fsspec addresses of text, JSON lines
        (.jsonl, plain, .gz or .zst), parquet or ArrayRecord files; or `hf:NAME` (`hf:NAME:CONFIG`). Several are read
        one after another.
    - `fields`: which field is the text, and what a document of a text file is.

    **Returns:** a `Source`. Files whose names all say train, valid (val, validation) or test keep those splits.

    **Raises:** `UserError` where there is nothing of that name.
    """
    fields = fields or Fields()
    names = [data] if isinstance(data, str) else list(data)
    if not names:
        raise UserError("no data: name a corpus, a file, a folder or a glob")
    if len(names) == 1 and names[0].startswith("hf:"):
        return _hugging_face(names[0], fields)
    if len(names) == 1 and fields == Fields() and _is_corpus(names[0], data_root):
        return corpus_source(load_corpus(names[0], data_root=data_root))
    files: dict[str, InputFile] = {}
    for name in names:
        if "://" not in name and not _exists(name):
            load_corpus(name, data_root=data_root)  # its message says what is allowed
        files |= {file.path: file for file in find_files(name)}
    found = tuple(files.values())
    splits = tuple(split_of_file(file.name) for file in found)
    label = _label(names[0]) if len(names) == 1 else f"{len(names)} sources"
    official = all(splits) and {"train", "valid"} <= set(splits)
    return FileSource(label, found, fields, splits if official else ())


def corpus_source(corpus: Corpus) -> MemorySource:
    """A corpus as a source with the corpus' splits."""
    return MemorySource(
        corpus.name, {split: getattr(corpus, split) for split in SPLITS}, corpus.hash, corpus.split_rule
    )


def split_of_file(name: str) -> str:
    """The split that a file's name says: `train/00.jsonl.zst`, `val.jsonl`, `test-00001-of-00002.parquet`; or ""."""
    for part in name.lower().split("/"):
        word = re.match(r"[a-z]+", part)
        if word and word[0] in _SPLIT_NAMES and (len(part) == word.end() or not part[word.end()].isalnum()):
            return _SPLIT_NAMES[word[0]]
    return ""


def spec_hash(spec: dict) -> str:
    """sha256 (hex) of a spec."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode("utf-8")).hexdigest()


def lasting(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec without the times of change, which a copy of the files does not share."""
    if spec["kind"] != "files":
        return spec
    return {**spec, "files": [[name, size] for name, size, _ in spec["files"]]}


def _label(name: str) -> str:
    parts = [part for part in name.rstrip("/").split("/") if part and not glob.has_magic(part)]
    return parts[-1] if parts else name


def _is_corpus(name: str, data_root: str | Path | None) -> bool:
    if name in ("stdlib", "site-packages"):
        return True
    if data_root is not None and all((Path(data_root) / name / f"{split}.txt").is_file() for split in SPLITS):
        return True
    path = Path(name).expanduser()
    if path.is_dir():
        return all((path / f"{split}.txt").is_file() for split in SPLITS)
    file = InputFile(name, path.name, 0)
    return path.is_file() and file.format == "text" and not file.packing and path.stat().st_size <= 256 << 20


def _exists(name: str) -> bool:
    return Path(name).expanduser().exists() or glob.has_magic(name)


def _hugging_face(name: str, fields: Fields) -> HuggingFaceSource:
    path, _, config = name.removeprefix("hf:").partition(":")
    datasets = _datasets()
    try:
        there = list(datasets.get_dataset_split_names(path, config or None))
    except Exception as error:  # whatever the hub's client raises
        raise UserError(f"cannot open {name!r}: {type(error).__name__}: {str(error).splitlines()[:1]}") from None
    splits = tuple(split for split in there if split in _SPLIT_NAMES) or tuple(there)
    return HuggingFaceSource(path.split("/")[-1], path, config or None, splits, fields)
