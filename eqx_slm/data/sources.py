"""Sources by what the user typed: named corpora, files, folders, globs, addresses, Hugging Face data sets."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .corpora import Corpus, Named, in_memory, split_by, standard_library
from .documents import START, Item, Position, Problem, shown
from .files import InputFile, find_files, need
from .formats import LARGEST, Fields, read_items
from .shards import refuse_prepared
from .splits import SPLITS, hashed_split, official_splits, split_of_name, split_rule, without_companions


@dataclass(frozen=True)
class FileSource:
    """The documents of files, one file after another in the order of their names."""

    name: str
    files: tuple[InputFile, ...]
    fields: Fields = Fields()
    splits: tuple[str, ...] = ()  # the official split of each file, or nothing
    unclear: str = ""  # why the names of the files leave open what to train on
    largest: int = LARGEST  # bytes of a plain text file that is one document

    @property
    def size(self) -> int:
        """The bytes of all files, as stored."""
        return sum(file.size for file in self.files)

    @property
    def official(self) -> bool:
        """Whether every file's name says its split."""
        return bool(self.splits)

    @property
    def whole_files(self) -> bool:
        """Whether every document is a text file."""
        return self.fields.unit == "file" and not any(file.records for file in self.files)

    @property
    def spec(self) -> dict:
        """Names, sizes and times of change of the files, and how they are read."""
        files = [[shown(file.name), file.size, file.changed] for file in self.files]
        return {"kind": "files", "files": files, "fields": dataclasses.asdict(self.fields), "splits": [*self.splits]}

    def items(self, start: Position = START, split: str = "") -> Iterator[Item]:
        """Documents and problems from a position on; no file of another official split than `split` is read."""
        for number in range(start.file, len(self.files)):
            own = self.splits[number] if self.splits else ""
            first = start if number == start.file else Position(number)
            if split in ("", own):
                yield from read_items(self.files[number], number, self.fields, own, first, largest=self.largest)


def open_source(
    data: str | Sequence[str], *, data_root: str | Path | None = None, fields: Fields | None = None
) -> FileSource | Corpus:
    """A source by name.

    **Arguments:**

    - `data`: `stdlib` (the sources of the running Python's standard library), the name of a folder below `data_root`,
        files, folders, globs or fsspec addresses of text, JSON lines (.jsonl, plain, .gz or .zst; an array in .json
        too) or parquet; or `hf:NAME` (`hf:NAME:CONFIG`). Several are read one after another.
    - `data_root`: the folder of the named corpora.
    - `fields`: which field is the text, and what a document of a text file is.

    **Returns:** the source. Where every file's name says train, valid (val, validation, dev, eval) or test, those are
    the splits; of a folder with train.txt, valid.txt and test.txt nothing else is read. Text files too few to be split
    by the hash of their paths are read into memory and split by the hash of each block between blank lines, or line.

    **Raises:** `UserError` where there is nothing of that name.
    """
    fields = fields or Fields()
    names = [data] if isinstance(data, str | Path) else list(data)
    names = [str(name) for name in names]
    if not names or not all(name.strip() for name in names):
        raise UserError(f"no data in {data!r}: name a corpus, a file, a folder or a glob ('.' is the working folder)")
    if wrong := next((name for name in names if name.startswith(("mix:", "stream:"))), ""):
        raise UserError(f"{wrong!r} is for training: here leave out stream:, and name a prepared folder of mix: alone")
    if data_root is not None and not str(data_root).strip():
        raise UserError("data_root is empty: give the folder that holds the named corpora, or leave it out")
    alone = [name for name in names if name == "stdlib" or name.startswith("hf:")]
    if alone and len(names) > 1:
        raise UserError(f"{alone[0]} cannot be one of several inputs: give it alone, or write a mix: of prepared data")
    if alone and fields.unit != "file":
        raise UserError(f"{alone[0]} has documents of its own: --unit {fields.unit} is for text files")
    if alone:
        return standard_library() if alone[0] == "stdlib" else _hugging_face(alone[0], fields)
    paths = [_find(name, data_root) for name in names]
    name = _label(paths[0]) if len(paths) == 1 else f"{len(paths)} sources"
    files = _files(paths)
    if fields.text != Fields.text and not any(file.records for file in files):
        raise UserError(
            f"{name} has no records (.jsonl, .json or .parquet by name), so that --text-field {shown(fields.text)} can "
            "choose nothing: leave it out"
        )
    if len(paths) == 1 and fields.unit == "file" and Path(paths[0]).is_dir() and (three := _three(files)):
        return _collect(FileSource(name, three, fields, SPLITS))
    # Splits are looked for below what the paths of all files share.
    below = os.path.commonprefix([file.path for file in files]).rfind("/") + 1
    splits, unclear = official_splits(files, [file.path[below:] for file in files])
    source = FileSource(name, files, fields, splits, unclear)
    if splits:
        return dataclasses.replace(source, largest=max(LARGEST, source.size))
    # Would the hash of the paths leave a split empty? Then the same as in memory: blocks of the text.
    known = {hashed_split(file.name.encode("utf-8", "surrogateescape")) for file in files if file.size}
    if source.whole_files and not unclear and not known >= {"train", "valid"} and source.size <= LARGEST:
        with contextlib.suppress(UserError):  # a broken file: who reads the source is told, and may leave it out
            return _collect(source)
    return source


def load_corpus(data: str = "stdlib", *, data_root: str | Path | None = None, fields: Fields | None = None) -> Corpus:
    """Reads a source into memory.

    **Arguments:** as in `open_source`.

    **Returns:** the `Corpus`. Text is UTF-8; CR LF line ends become LF, and byte-order marks at the start of a line are
    dropped.

    Raises `UserError` if there is nothing of that name, if a file or a record is damaged or no text (naming the file
    and the line or byte), or if there is too little text to split.
    """
    if str(data).startswith("hf:"):
        raise UserError(f"{data} is not read into memory: stream it (stream:{data}), or prepare it")
    source = open_source(data, data_root=data_root, fields=fields)
    return source if isinstance(source, Corpus) else _collect(source)


def lasting(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec without the times of change, which a copy of the files does not share."""
    if spec["kind"] != "files":
        return spec
    return {**spec, "files": [[name, size] for name, size, _ in spec["files"]]}


def _collect(source: FileSource) -> Corpus:
    """The documents of a source in memory, by its split rule; those of too few text files by blocks of their text."""
    rule = split_rule(source)
    source = dataclasses.replace(source, largest=max(LARGEST, source.size))
    documents: list[Named] = []
    splits: dict[str, list[Named]] = {split: [] for split in SPLITS}
    for item in source.items():
        if isinstance(item, Problem):
            raise UserError(f"{item.message}; mend it, or prepare the data with --on-error skip")
        # The three splits of a named corpus are known by their names.
        documents.append((item.name.removesuffix(".txt") if source.official else item.name, item.text))
        splits[rule(item)].append(documents[-1])
    if not documents:
        raise UserError(f"{source.name} holds no text; give a text file, or a folder of text files, that is not empty")
    if splits["train"] and splits["valid"]:
        return in_memory(source.name, splits, rule=str(rule), note=_shared(splits))
    if source.official:
        empty = source.splits.index("valid" if splits["train"] else "train")
        path = shown(source.files[empty].path)
        raise UserError(f"{path} is empty; a corpus needs text to train on and to validate on")
    # Blocks with equal text fall into the same split, so that a repeated block cannot leak.
    units = (("blank-line separated block", r"\n[ \t]*\n\s*", "\n\n"), ("line", r"\n", "\n"))
    for unit, separator, joint in units if source.whole_files else ():
        splits = {split: [] for split in SPLITS}
        for name, text in documents:
            blocks = ((block.strip(), block) for block in re.split(separator, text) if block.strip())
            for split, parts in split_by(blocks, lambda block: block[0]).items():
                splits[split] += [(name, joint.join(part for _, part in parts) + "\n")] if parts else []
        if splits["train"] and splits["valid"]:
            return in_memory(source.name, splits, rule=f"sha256 of each {unit}, 5% valid, 5% test")
    raise UserError(
        f"{source.name} holds too little text to split by hash (5% valid): the validation split would be empty; "
        "give more text, or a folder with train.txt, valid.txt and test.txt"
    )


def _shared(splits: Mapping[str, Sequence[Named]]) -> str:
    """What is to be said of documents that are in the training split and in another, "" where none is."""
    train, said = {text.strip() for _, text in splits["train"]}, []
    for split in ("valid", "test"):
        shared = sum(text.strip() in train for _, text in splits[split])
        if shared and shared == len(splits[split]):
            said.append(f"The {split} text is in the training text, all of it: its loss says nothing of other text.")
        elif shared:
            said.append(f"{shared} of {len(splits[split])} {split} documents are in the training text too.")
    return " ".join(said)


def _find(name: str, data_root: str | Path | None) -> str:
    """The path, glob or address that a name stands for."""
    if "://" in name:
        return name
    corpus = None if data_root is None else Path(data_root).expanduser() / name
    three = corpus is not None and all((corpus / f"{split}.txt").is_file() for split in SPLITS)
    if not three and ((path := Path(name).expanduser()).exists() or glob.has_magic(name)):
        return str(path)
    if corpus is not None and corpus.exists():
        return str(corpus)
    where = "no data root was given" if data_root is None else f"{data_root} has no such folder with three splits"
    raise UserError(
        f"no corpus {name!r}: {where}, and it is no file or folder; give 'stdlib', the path of a text file or "
        "folder, or a data root that holds <name>/train.txt, valid.txt and test.txt"
    )


def _files(paths: Sequence[str]) -> tuple[InputFile, ...]:
    """The files of all inputs, each once, without what beside data is none."""
    files: dict[str, InputFile] = {}
    for path in paths:
        for folder in glob.iglob(path) if glob.has_magic(path) else [path]:
            refuse_prepared(folder)
        for file in find_files(path):
            files.setdefault(file.path if file.remote else os.path.realpath(file.path), file)
    for folder in dict.fromkeys(os.path.dirname(file.path) for file in files.values() if not file.remote):
        refuse_prepared(folder)
    return without_companions(tuple(files.values()), set(paths))


def _three(files: Sequence[InputFile]) -> tuple[InputFile, ...]:
    """train.txt, valid.txt and test.txt, in this order, where all are there."""
    named = {file.name: file for file in files}
    found = [named[name] for split in SPLITS if (name := f"{split}.txt") in named]
    return tuple(found) if len(found) == len(SPLITS) else ()


def _label(path: str) -> str:
    if "://" not in path and Path(path).exists():
        return shown(Path(path).resolve().name)
    parts = [part for part in path.split("/") if part and not glob.has_magic(part)]
    return shown(parts[-1]) if parts else path


def _hugging_face(name: str, fields: Fields) -> FileSource:
    """A data set of the hub: its splits are its files; without a validation split, the training one alone."""
    path, _, config = name.removeprefix("hf:").partition(":")
    if not path.strip():
        raise UserError(f"{name!r} names no data set: write hf:NAME or hf:NAME:CONFIG")
    datasets = need("datasets", "an hf: source", "hf")
    try:
        there = list(datasets.get_dataset_split_names(path, config or None))
    except Exception as error:  # whatever the hub's client raises
        raise UserError(
            f"cannot open {name!r}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        ) from None
    said = {split: split_of_name(split) for split in there}
    official = {"train", "valid"} <= {*said.values()}
    kept = [split for split in there if (said[split] if official else said[split] == "train")] or there
    files = tuple(InputFile(f"hf:{path}:{config}:{split}", f"{path}:{config}:{split}", 0) for split in kept)
    return FileSource(path.split("/")[-1], files, fields, tuple(said[split] for split in kept) if official else ())
