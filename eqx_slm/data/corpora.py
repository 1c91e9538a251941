"""Text in memory: what a corpus is, and those made of the running Python's own sources.

Splits are by the sha256 of a *name*, never by position, so that adding a file moves no other file.
"""

from __future__ import annotations

import hashlib
import io
import platform
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .documents import MemorySource
from .files import walk
from .splits import SPLITS, hashed_split

# Tests, vendored packages, generated tables, and folders that distributions patch or leave out.
_SKIPPED_FOLDERS = frozenset(
    "test tests idle_test site-packages dist-packages encodings lib2to3 idlelib __pycache__".split()
)
# Written or patched per installation: near-copies of each other, or not Python's own.
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
_ENOUGH_SOURCE = 1_000_000  # characters; a frozen or zipped install has (almost) none
_MOST_PACKAGES = 24_000_000  # characters of installed packages, when they stand in for the standard library

Named = tuple[str, str]  # a document's name and text


@dataclass(frozen=True)
class Corpus:
    """Three splits of documents, and where they came from.

    **Arguments:**

    - `name`: "stdlib", "site-packages", the name of a corpus below `data_root`, or the name of the path that was given.
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


def in_memory(name: str, splits: Mapping[str, Sequence[Named]], *, rule: str, note: str = "") -> MemorySource:
    """Documents of each split as a source, with their hash."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for part in (split, *(part for document in splits[split] for part in document)):
            data = part.encode("utf-8", "surrogateescape")  # a file's *name* may be any bytes
            digest.update(len(data).to_bytes(8, "big"))  # lengths make the concatenation unambiguous
            digest.update(data)
    texts = {split: tuple(text for _, text in splits[split]) for split in SPLITS}
    return MemorySource(name, texts, digest.hexdigest(), rule, note)


def standard_library() -> MemorySource:
    """The sources of the running Python's standard library, split by top-level module."""
    documents = _python_sources(Path(sysconfig.get_path("stdlib")))
    if sum(len(text) for _, text in documents) < _ENOUGH_SOURCE:
        return installed_packages("no standard-library sources here: the installed packages' sources instead")
    return _by_top_level("stdlib", documents, "module", f"python {platform.python_version()} standard library")


def installed_packages(note: str = "") -> MemorySource:
    """The sources of the installed packages, up to 24 million characters of them, split by package."""
    roots = sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")})
    packages: dict[str, list[Named]] = {}
    for document in (document for root in roots for document in _python_sources(root)):
        packages.setdefault(_top_level(document[0]), []).append(document)
    # Whole packages in the order of their hashes, so that the choice does not favour the start of the alphabet.
    chosen: list[Named] = []
    total = 0
    for name in sorted(packages, key=lambda name: hashlib.sha256(name.encode("utf-8")).digest()):
        size = sum(len(text) for _, text in packages[name])
        if total + size <= _MOST_PACKAGES:
            chosen += packages[name]
            total += size
    if total < _ENOUGH_SOURCE:
        raise UserError(
            "this Python has neither standard-library nor package sources to train on; "
            "give a text file or folder as the data"
        )
    note = note or f"packages installed for python {platform.python_version()}"
    return _by_top_level("site-packages", sorted(chosen, key=lambda document: document[0]), "package", note)


def _by_top_level(name: str, documents: Iterable[Named], what: str, note: str) -> MemorySource:
    splits = split_by(documents, lambda document: _top_level(document[0]))
    if not (splits["train"] and splits["valid"]):
        raise UserError(f"{name} has too few sources to split by hash; give a text file or folder as the data")
    return in_memory(name, splits, rule=f"sha256 of the top-level {what}, 5% valid, 5% test", note=note)


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
