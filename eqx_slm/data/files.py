"""Input files: which ones a path, folder, glob or address names, and what their names say."""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UserError

_PACKINGS = {".gz": "gz", ".zst": "zst", ".zstd": "zst"}
_RECORDS = {
    **{".jsonl": "jsonl", ".jsonlines": "jsonl", ".ndjson": "jsonl", ".json": "json"},
    **{".parquet": "parquet", ".pq": "parquet"},
}
# Records and packed or binary files that nobody means to read as text. What is missing here and no UTF-8 is found by
# its first bytes.
_UNREAD = frozenset(
    ".bz2 .xz .lzma .lz4 .br .z .7z .zip .tar .tgz .rar .csv .tsv .arrow .feather .orc .avro .npy .npz .bin .pkl"
    " .pickle .pt .pth .safetensors .h5 .hdf5 .msgpack .tfrecord .array_record .arrayrecord .mds .sqlite .db .xls .xlsx"
    " .doc .docx .pdf".split()
)
# Endings of text that is data, not the source of something.
TEXT = frozenset(["", *"txt text tokens tok raw bpe en de fr es it nl ru zh ja ko".split()])
# What lies beside data and is none: notes on it, and what programs leave there.
_COMPANION = re.compile(
    r"(readme|licen[cs]e|copying|notice|citation|changelog|datasheet)\b.*|(dataset[-_]?(infos?|dict|card)|state|metadata"
    r"|manifest|checksums?|md5sums?|sha\d+sums?)(\.\w+)*|_.*|.*\.(idx|index|crc|md5|sha\d+|lock|cff|log|sig|asc|part|tmp)"
)


@dataclass(frozen=True)
class InputFile:
    """A file to read: `path` as opened, `name` below what the user gave, its size in bytes, when it was changed."""

    path: str
    name: str
    size: int
    changed: int = 0  # nanoseconds; 0 where the file system does not say

    @property
    def remote(self) -> bool:
        """Whether fsspec opens it."""
        return "://" in self.path

    @cached_property
    def packing(self) -> str:
        """ "gz", "zst" or ""."""
        return _PACKINGS.get(os.path.splitext(self.name)[1].lower(), "")

    @property
    def ending(self) -> str:
        """The ending of its name in lower case, without that of the packing: ".jsonl"."""
        stem, ending = os.path.splitext(self.name)
        return (os.path.splitext(stem)[1] if self.packing else ending).lower()

    @cached_property
    def format(self) -> str:
        """ "jsonl", "json", "parquet", "hub", "text" or, of a kind that is not read, "unread"."""
        if self.path.startswith("hf:"):
            return "hub"
        form = _RECORDS.get(self.ending, "unread" if self.ending in _UNREAD else "text")
        return "unread" if self.packing and form == "parquet" else form

    @property
    def records(self) -> bool:
        """Whether it holds records, each with a field for the text."""
        return self.format not in ("text", "unread")

    @property
    def companion(self) -> bool:
        """Whether it is, beside data, no document: README, LICENSE, dataset_info.json, _SUCCESS, .idx, ..."""
        name = self.name.rsplit("/", 1)[-1].lower()
        return _COMPANION.fullmatch(name) is not None and (self.format == "json" or not self.records)


def need(module: str, what: str, extra: str = "data") -> Any:
    """Imports a module of an extra.

    **Raises:** `UserError` naming the extra where it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{what} needs the package {module.split('.')[0]}, which is not installed: "
            f"install the extra, pip install 'eqx_slm[{extra}]'"
        ) from None


def find_files(pattern: str) -> list[InputFile]:
    """The files that a path, a folder, a glob (`**` too) or an address (`s3://...`, by fsspec) names, sorted by name.

    Hidden files and folders are left out where they are not named themselves, and so are pipes and devices; links to
    folders are not followed in a folder or by `**`. A file that has several names is read once.

    **Raises:** `UserError` where there are none.
    """
    found = _remote_files(pattern) if "://" in pattern else _local_files(pattern)
    if not found:
        what = f"{pattern} holds no text" if os.path.isdir(pattern) else f"no file matches {pattern!r}"
        if folder := next(filter(os.path.isdir, glob.iglob(pattern)), "") if glob.has_magic(pattern) else "":
            what += f", only folders such as {folder}"
        raise UserError(f"{what}: give a file, a folder of files, a glob or an address that fsspec knows")
    return sorted(found, key=lambda file: os.fsencode(file.name))


def walk(root: Path, *, skip: frozenset[str] = frozenset()) -> list[tuple[str, Path]]:
    """Every regular file below a folder as (path relative to it with slashes, path), sorted by that name.

    Hidden files and folders are left out, and folders whose name is in `skip`.

    **Raises:** `UserError` where a folder cannot be listed: its text would be missing without a word.
    """

    def stop(error: OSError) -> None:
        raise UserError(f"cannot list the folder {error.filename}: {error.strerror}") from None

    found = []
    for folder, subfolders, files in os.walk(root, onerror=stop):
        subfolders[:] = [name for name in subfolders if name not in skip and not name.startswith(".")]
        paths = (Path(folder, file) for file in files if not file.startswith("."))
        found += [(path.relative_to(root).as_posix(), path) for path in paths if _regular(path)]
    return sorted(found, key=lambda pair: os.fsencode(pair[0]))


def _regular(path: Path) -> os.stat_result | None:
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a broken link, or a file that is gone by now
            return None
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return status if stat.S_ISREG(status.st_mode) else None


def _local_files(pattern: str) -> list[InputFile]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = walk(path, skip=frozenset({"__pycache__"}))
    elif path.exists():
        found = [(path.name, path)]
        if not path.is_file():
            raise UserError(f"{pattern} is a pipe or a device: write what it gives to a file, and name that")
    else:
        # The names of what a glob finds are taken below its fixed part, so that they do not depend on where that is.
        fixed = _fixed(path.parts)
        root, rest = Path(*fixed), path.parts[len(fixed) :]
        try:
            paths = root.glob("/".join((*rest, "*") if rest[-1:] == ("**",) else rest)) if rest else ()
            found = [(path.relative_to(root).as_posix(), path) for path in paths]
        except (ValueError, OSError) as error:  # "a**b" before Python 3.13
            raise UserError(f"cannot list {pattern!r}: {error}") from None
        found = [(name, path) for name, path in found if not re.search(r"(^|/)\.", name)]
    files: dict[str, InputFile] = {}
    for name, path in sorted(found, key=lambda pair: (pair[0].count("/"), os.fsencode(pair[0]))):
        if status := _regular(path):
            # A link to a file that is here too is the same text: it would be read twice, perhaps into two splits.
            files.setdefault(os.path.realpath(path), InputFile(str(path), name, status.st_size, status.st_mtime_ns))
    return list(files.values())


def _fixed(parts: Iterable[str]) -> list[str]:
    """The parts of a path before the first with a `*` or its like."""
    return list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _remote_files(pattern: str) -> list[InputFile]:
    fsspec = need("fsspec", f"reading {pattern}")
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(path):
            root = "/".join(_fixed(path.split("/")))
            found = system.glob(path)
        elif system.isdir(path):
            root, found = path, system.find(path)
        else:
            root, found = path.rsplit("/", 1)[0], [path] if system.exists(path) else []
        files = [
            InputFile(system.unstrip_protocol(path), path[len(root) :].lstrip("/"), system.size(path) or 0)
            for path in map(str, found)
            if system.isfile(path)
        ]
        return [file for file in files if not re.search(r"(^|/)\.", file.name)]
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:  # an unknown scheme, a missing driver, no network
        raise UserError(f"cannot list {pattern!r}: {type(error).__name__}: {error}".replace("\n", " ")) from None
