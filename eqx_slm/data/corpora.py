"""Text in memory: what a corpus is, and the one made of the running Python's own sources.

Splits are by the sha256 of a *name*, never by position, so that adding a file moves no other file.
"""

from __future__ import annotations

import hashlib
import io
import platform
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from .documents import START, Document, Position
from .files import walk
from .splits import SPLITS, hashed_split

# Tests, vendored packages, generated tables, and folders that distributions patch or leave out.
_SKIPPED_FOLDERS = frozenset(
    "test tests idle_test site-packages dist-packages encodings lib2to3 idlelib __pycache__".split()
)
# Written or patched per installation: near-copies of each other, or not Python's own.
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
_ENOUGH_SOURCE = 1_000_000  # characters; a frozen or zipped install has (almost) none

Named = tuple[str, str]  # a document's name and text


@dataclass(frozen=True)
class Corpus:
    """Three splits of documents in memory, and where they came from; a source that keeps its splits.

    **Arguments:**

    - `name`: "stdlib", the name of a corpus below `data_root`, or the name of the path that was given.
    - `train`, `valid`, `test`: the documents of each split.
    - `split_rule`: one line on how the splits were made.
    - `hash`: sha256 (hex) over the splits, the documents' names and their text.
    - `note`: what a reader of a report should know, such as the version of Python.
    """

    name: str
    train: tuple[str, ...] = field(repr=False)  # megabytes
    valid: tuple[str, ...] = field(repr=False)
    test: tuple[str, ...] = field(repr=False)
    split_rule: str
    hash: str
    note: str = ""
    official: bool = field(default=True, init=False, repr=False)
    whole_files: bool = field(default=False, init=False, repr=False)

    @property
    def splits(self) -> dict[str, tuple[str, ...]]:
        """The documents by the name of their split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def spec(self) -> dict[str, Any]:
        """The name and the hash."""
        return {"kind": "memory", "name": self.name, "sha256": self.hash}

    def items(self, start: Position = START, split: str = "") -> Iterator[Document]:
        """Documents from a position on; `file` counts splits, `offset` documents."""
        for number, (name, texts) in enumerate(self.splits.items()):
            path = f"{self.name}/{name}"
            for i, text in enumerate(texts if split in ("", name) else ()):
                if (at := Position(number, i, i + 1)) >= start[:2]:
                    yield Document(text, text.encode("utf-8"), at, path, path, split=name)


def in_memory(name: str, splits: Mapping[str, Sequence[Named]], *, rule: str, note: str = "") -> Corpus:
    """A corpus of named documents, with their hash."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for part in (split, *(part for document in splits[split] for part in document)):
            data = part.encode("utf-8", "surrogateescape")  # a file's *name* may be any bytes
            digest.update(len(data).to_bytes(8, "big"))  # lengths make the concatenation unambiguous
            digest.update(data)
    train, valid, test = (tuple(text for _, text in splits[split]) for split in SPLITS)
    return Corpus(name, train, valid, test, rule, digest.hexdigest(), note)


def standard_library() -> Corpus:
    """The sources of the running Python's standard library, split by top-level module."""
    documents = _python_sources(Path(sysconfig.get_path("stdlib")))
    splits = split_by(documents, lambda document: _top_level(document[0]))
    enough = sum(len(text) for _, text in documents) >= _ENOUGH_SOURCE
    if not (enough and splits["train"] and splits["valid"]):
        raise UserError("this Python comes without the sources of its library: give a text file or folder as the data")
    note = f"python {platform.python_version()} standard library"
    return in_memory("stdlib", splits, rule="sha256 of the top-level module, 5% valid, 5% test", note=note)


def split_by(documents: Iterable[Named], key: Callable[[Named], str]) -> dict[str, list[Named]]:
    """Documents by the hash of a key."""
    splits: dict[str, list[Named]] = {split: [] for split in SPLITS}
    for document in documents:
        splits[hashed_split(key(document).encode("utf-8", "surrogateescape"))].append(document)
    return splits


def _python_sources(root: Path) -> list[Named]:
    documents = []
    for name, path in walk(root, skip=_SKIPPED_FOLDERS):
        if not name.endswith(".py") or path.name.startswith(_SKIPPED_FILES) or not _top_level(name).isidentifier():
            continue
        try:
            raw = path.read_bytes()
            encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)  # honours a coding cookie, as import does
            text = raw.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
        except (OSError, SyntaxError, UnicodeError, LookupError):
            continue  # not the user's files: nothing to be done about them
        if text.strip():
            documents.append((name, text))
    return documents


def _top_level(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")
