"""Text sources: the running Python's own standard library, named corpora, and a user's files.

A corpus is three tuples of documents. Where a corpus has official splits they are kept; everything else is split by
the sha256 of a *name* (or of the text of a block), never by position, so that adding a file moves no other file.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError

SPLITS = ("train", "valid", "test")
VALID_SHARE = 0.05
TEST_SHARE = 0.05

# The salt was chosen once, by the sizes of the splits alone: with it CPython 3.11 to 3.13 have 4.5-6.1% of their bytes
# in each of the two small splits, and no single module makes up half of either.
_SALT = "split 61/"

# Tests, vendored packages, generated tables, and folders that distributions patch or leave out.
_SKIPPED_FOLDERS = frozenset(
    "test tests idle_test site-packages dist-packages encodings lib2to3 idlelib __pycache__".split()
)
# Written or patched per installation: near-copies of each other, or not Python's own.
_SKIPPED_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
_ENOUGH_SOURCE = 1_000_000  # characters; a frozen or zipped install has (almost) none
_MOST_PACKAGES = 24_000_000  # characters of installed packages, when they stand in for the standard library


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


@dataclass(frozen=True)
class _Document:
    name: str
    text: str


def load_corpus(data: str = "stdlib", *, data_root: str | Path | None = None) -> Corpus:
    """Read a corpus.

    **Arguments:**

    - `data`: "stdlib" (the sources of the running Python's standard library), "site-packages" (of the installed
        packages), the name of a folder below `data_root` that holds train.txt, valid.txt and test.txt, or the path of
        a text file or of a folder of text files. A folder is split by the hash of each file's relative path, unless
        it holds train.txt, valid.txt and test.txt itself; one file by the hash of each blank-line separated block.
    - `data_root`: the folder of the named corpora.

    **Returns:** the `Corpus`. Text is UTF-8; CR LF line ends become LF, and a leading byte-order mark is dropped.

    Raises `UserError` if there is nothing of that name, if a file is not UTF-8 (naming the file and the byte), or if
    there is too little text to split.
    """
    if data == "stdlib":
        return _standard_library()
    if data == "site-packages":
        return _installed_packages(note="")
    if data_root is not None and _has_official_splits(Path(data_root) / data):
        return _official(Path(data_root) / data)
    path = Path(data).expanduser()
    if path.is_file():
        return _from_files(path.name, [(path.name, path)])
    if path.is_dir():
        if _has_official_splits(path):
            return _official(path)
        return _from_files(path.resolve().name, list(_text_files(path)))
    where = "no data root was given" if data_root is None else f"{data_root} has no such folder with three splits"
    raise UserError(
        f"no corpus {data!r}: {where}, and it is no file or folder; give 'stdlib', 'site-packages', the path of a text "
        "file or folder, or a data root that holds <name>/train.txt, valid.txt and test.txt"
    )


def split_of(name: str) -> str:
    """The split ("train", "valid" or "test") of a name: 5% valid and 5% test by sha256, whatever else there is."""
    digest = hashlib.sha256((_SALT + name).encode("utf-8")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < VALID_SHARE:
        return "valid"
    return "test" if share < VALID_SHARE + TEST_SHARE else "train"


# ---------------------------------------------------------------------------------------------------------------------
# Python sources


def _standard_library() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    documents = _python_sources(root)
    if sum(len(document.text) for document in documents) < _ENOUGH_SOURCE:
        return _installed_packages(note="no standard-library sources here: the installed packages' sources instead")
    return _split(
        "stdlib",
        documents,
        key=lambda document: _top_level(document.name),
        rule="sha256 of the top-level module, 5% valid, 5% test",
        note=f"python {platform.python_version()} standard library",
    )


def _installed_packages(*, note: str) -> Corpus:
    roots = sorted({Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")})
    packages: dict[str, list[_Document]] = {}
    for document in (document for root in roots for document in _python_sources(root)):
        packages.setdefault(_top_level(document.name), []).append(document)
    # Whole packages in the order of their hashes, so that the choice does not favour the start of the alphabet.
    chosen: list[_Document] = []
    total = 0
    for name in sorted(packages, key=lambda name: hashlib.sha256(name.encode("utf-8")).digest()):
        size = sum(len(document.text) for document in packages[name])
        if total + size <= _MOST_PACKAGES:
            chosen += packages[name]
            total += size
    if total < _ENOUGH_SOURCE:
        raise UserError(
            "this Python has neither standard-library nor package sources to train on; "
            "give a text file or folder as the data"
        )
    return _split(
        "site-packages",
        sorted(chosen, key=lambda document: document.name),
        key=lambda document: _top_level(document.name),
        rule="sha256 of the top-level package, 5% valid, 5% test",
        note=note or f"packages installed for python {platform.python_version()}",
    )


def _python_sources(root: Path) -> list[_Document]:
    documents = []
    for name, path in _walk(root, skip=_SKIPPED_FOLDERS):
        if not name.endswith(".py") or path.name.startswith(_SKIPPED_FILES) or not _top_level(name).isidentifier():
            continue
        try:
            raw = path.read_bytes()
            encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)  # honours a coding cookie, as import does
            text = _normalise(raw.decode(encoding))
        except (OSError, SyntaxError, UnicodeError, LookupError):
            continue  # not the user's files: nothing to be done about them
        if text.strip():
            documents.append(_Document(name, text))
    return documents


def _top_level(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


# ---------------------------------------------------------------------------------------------------------------------
# Text files


def _has_official_splits(folder: Path) -> bool:
    return all((folder / f"{split}.txt").is_file() for split in SPLITS)


def _official(folder: Path) -> Corpus:
    splits: dict[str, list[_Document]] = {}
    for split in SPLITS:
        text = _read_text(folder / f"{split}.txt")
        if split != "test" and not text.strip():
            raise UserError(f"{folder / split}.txt is empty; a corpus needs text to train on and to validate on")
        splits[split] = [_Document(split, text)]
    return _corpus(folder.resolve().name, splits, rule="official")


def _from_files(name: str, files: list[tuple[str, Path]]) -> Corpus:
    documents = [_Document(relative, _read_text(path)) for relative, path in files]
    documents = [document for document in documents if document.text.strip()]
    if not documents:
        raise UserError(f"{name} holds no text; give a text file, or a folder of text files, that is not empty")
    by_file = _assign(documents, key=lambda document: document.name)
    if by_file["train"] and by_file["valid"]:
        return _corpus(name, by_file, rule="sha256 of each file's relative path, 5% valid, 5% test")
    # One file, or so few that the hash leaves a split empty: go below the level of files. Blocks with equal text fall
    # into the same split, so that a repeated block cannot leak.
    for unit, separator, joint in (("blank-line separated block", r"\n[ \t]*\n\s*", "\n\n"), ("line", r"\n", "\n")):
        splits = _split_blocks(documents, separator, joint)
        if splits["train"] and splits["valid"]:
            return _corpus(name, splits, rule=f"sha256 of each {unit}, 5% valid, 5% test")
    raise UserError(
        f"{name} holds too little text to split by hash (5% valid): the validation split would be empty; "
        "give more text, or a folder with train.txt, valid.txt and test.txt"
    )


def _split_blocks(documents: list[_Document], separator: str, joint: str) -> dict[str, list[_Document]]:
    splits: dict[str, list[_Document]] = {split: [] for split in SPLITS}
    for document in documents:
        blocks: dict[str, list[str]] = {split: [] for split in SPLITS}
        for block in re.split(separator, document.text):
            if block.strip():
                blocks[split_of(block.strip())].append(block)
        for split in SPLITS:
            if blocks[split]:
                splits[split].append(_Document(document.name, joint.join(blocks[split]) + "\n"))
    return splits


def _text_files(root: Path) -> Iterator[tuple[str, Path]]:
    for name, path in _walk(root, skip=frozenset({"__pycache__"})):
        if not any(part.startswith(".") for part in name.split("/")):
            yield name, path


def _read_text(path: Path) -> str:
    try:
        return _normalise(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: {error.reason} at byte offset {error.start}; "
            "convert the file to UTF-8, or leave it out"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a readable text file") from None


# ---------------------------------------------------------------------------------------------------------------------
# Shared


def _walk(root: Path, *, skip: frozenset[str]) -> list[tuple[str, Path]]:
    """Every file below `root` as (path relative to it with slashes, path), sorted by that name."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skip]
        for file in files:
            path = Path(folder, file)
            if path.is_file():  # no broken links, no sockets
                found.append((path.relative_to(root).as_posix(), path))
    return sorted(found)


def _normalise(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def _assign(documents: Iterable[_Document], *, key: Callable[[_Document], str]) -> dict[str, list[_Document]]:
    splits: dict[str, list[_Document]] = {split: [] for split in SPLITS}
    for document in documents:
        splits[split_of(key(document))].append(document)
    return splits


def _split(name: str, documents: list[_Document], *, key: Callable[[_Document], str], rule: str, note: str) -> Corpus:
    splits = _assign(documents, key=key)
    if not (splits["train"] and splits["valid"]):
        raise UserError(f"{name} has too few sources to split by hash; give a text file or folder as the data")
    return _corpus(name, splits, rule=rule, note=note)


def _corpus(name: str, splits: dict[str, list[_Document]], *, rule: str, note: str = "") -> Corpus:
    digest = hashlib.sha256()
    for split in SPLITS:
        for part in (split, *(part for document in splits[split] for part in (document.name, document.text))):
            data = part.encode("utf-8", "surrogateescape")  # a file's *name* may be any bytes
            digest.update(len(data).to_bytes(8, "big"))  # lengths make the concatenation unambiguous
            digest.update(data)
    train, valid, test = (tuple(document.text for document in splits[split]) for split in SPLITS)
    return Corpus(name, train, valid, test, split_rule=rule, hash=digest.hexdigest(), note=note)
