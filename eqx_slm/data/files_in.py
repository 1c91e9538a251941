"""Input files: which ones a path, folder, glob or address names, and their bytes, unpacked."""

from __future__ import annotations

import glob
import gzip
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

Readable = Any  # binary files; what fsspec opens has the methods and not the type
_BLOCK = 1 << 20
_JSON = (".jsonl", ".ndjson", ".json")


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

    @property
    def packing(self) -> str:
        """ "gz", "zst" or ""."""
        return {".gz": "gz", ".zst": "zst", ".zstd": "zst"}.get(Path(self.name).suffix.lower(), "")

    @property
    def format(self) -> str:
        """ "jsonl", "parquet", "array_record" or "text", by the ending of its name."""
        name = self.name.lower()
        if self.packing:
            name = name.rsplit(".", 1)[0]
        if name.endswith(_JSON):
            return "jsonl"
        if name.endswith((".parquet", ".pq")):
            return "parquet"
        return "array_record" if name.endswith((".array_record", ".arrayrecord")) else "text"


class Damaged(Exception):
    """Packed bytes end early or make no sense; `offset` counts bytes of the packed file."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what)
        self.offset = offset


def need(module: str, what: str) -> Any:
    """Imports a module of the `data` extra.

    **Raises:** `UserError` naming the extra where it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            f"{what} needs the package {module.split('.')[0]}, which is not installed: "
            "install the extra, pip install 'eqx_slm[data]'"
        ) from None


def find_files(pattern: str) -> list[InputFile]:
    """The files that a path, a folder, a glob (`**` too) or an address (`s3://...`, by fsspec) names, sorted by name.

    Hidden files and folders are left out where they are not named themselves.

    **Raises:** `UserError` where there are none.
    """
    found = _remote_files(pattern) if "://" in pattern else _local_files(pattern)
    if not found:
        raise UserError(f"no file matches {pattern!r}: give a file, a folder, a glob or an address that fsspec knows")
    return sorted(found, key=lambda file: file.name)


def _local_files(pattern: str) -> list[InputFile]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [_local_file(path, path.name)]
    if path.is_dir():
        root, names = path, (Path(folder, name) for folder, _, files in os.walk(path) for name in files)
    else:
        # The names of what a glob finds are taken below its fixed part, so that they do not depend on where that is.
        fixed = _until(path.parts, glob.has_magic)
        root = Path(*fixed) if fixed else Path()
        names = map(Path, glob.glob(str(path), recursive=True))
    files = []
    for found in names:
        name = found.relative_to(root).as_posix()
        if found.is_file() and not any(part.startswith(".") for part in name.split("/")):
            files.append(_local_file(found, name))
    return files


def _local_file(path: Path, name: str) -> InputFile:
    status = path.stat()
    return InputFile(str(path), name, status.st_size, status.st_mtime_ns)


def _until(parts: tuple[str, ...], stop: Callable[[str], bool]) -> list[str]:
    kept = []
    for part in parts:
        if stop(part):
            break
        kept.append(part)
    return kept


def _remote_files(pattern: str) -> list[InputFile]:
    fsspec = need("fsspec", f"reading {pattern}")
    try:
        system, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(path):
            root = "/".join(_until(tuple(path.split("/")), glob.has_magic))
            found = system.glob(path)
        elif system.isdir(path):
            root, found = path, system.find(path)
        else:
            root, found = path.rsplit("/", 1)[0], [path] if system.exists(path) else []
        return [
            InputFile(system.unstrip_protocol(name), name[len(root) :].lstrip("/"), system.size(name) or 0)
            for name in map(str, found)
            if system.isfile(name)
        ]
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:  # an unknown scheme, a missing driver, no network
        raise UserError(f"cannot list {pattern!r}: {type(error).__name__}: {error}".replace("\n", " ")) from None


def open_raw(file: InputFile) -> Readable:
    """The bytes as stored; raises `OSError` where they cannot be had."""
    if file.remote:
        return need("fsspec", f"reading {file.path}").open(file.path, "rb").open()
    return open(file.path, "rb")


def open_unpacked(file: InputFile) -> Readable:
    """The bytes behind gzip or zstandard, buffered; reading raises `Damaged` where they end early."""
    zstandard = need("zstandard", f"reading {file.path}") if file.packing == "zst" else None
    raw = open_raw(file)
    if file.packing == "gz":
        return io.BufferedReader(_Gzip(raw), _BLOCK)
    if zstandard is not None:
        return io.BufferedReader(_Zstandard(raw, zstandard), _BLOCK)
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BLOCK)


def skip_to(stream: Readable, file: InputFile, offset: int) -> None:
    """Moves to a byte of the unpacked text: at once in a plain file, by unpacking in a packed one."""
    if not file.packing:
        stream.seek(offset)
        return
    while offset > 0:
        block = stream.read(min(offset, _BLOCK))
        if not block:
            return
        offset -= len(block)


class _Gzip(io.RawIOBase):
    def __init__(self, raw: Readable) -> None:
        self._raw, self._unpacked = raw, gzip.GzipFile(fileobj=raw, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return self._unpacked.readinto(buffer)
        except (EOFError, OSError, gzip.zlib.error) as error:  # pyright: ignore[reportAttributeAccessIssue]
            raise Damaged("the gzip data is truncated or damaged", self._raw.tell()) from error

    def close(self) -> None:
        self._unpacked.close()
        self._raw.close()
        super().close()


class _Zstandard(io.RawIOBase):
    """Frame after frame. The package's own stream reader ends silently where a file is cut off, this one does not."""

    def __init__(self, raw: Readable, zstandard: Any) -> None:
        self._raw, self._package = raw, zstandard
        self._frame: Any = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not len(self._ready):
            if not self._packed:
                self._packed = self._raw.read(1 << 16)
                if not self._packed:
                    if self._frame is not None:
                        raise Damaged("the zstandard data is truncated", self._raw.tell())
                    return 0
            if self._frame is None:
                self._frame = self._package.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(self._packed))
            except self._package.ZstdError as error:
                raise Damaged("the zstandard data is damaged", self._raw.tell()) from error
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
