"""Compiled programs kept on disk, each with its hash: a damaged one is compiled again, never run."""

import contextlib
import hashlib
import os
import secrets
import time
from pathlib import Path
from typing import Any

_DIGEST = hashlib.sha256().digest_size
_ABANDONED = 3600.0  # seconds after which a temporary file is one of a process that was killed


def keep_verified(folder: Path) -> bool:
    """Has JAX keep its compiled programs in `folder` as files that begin with the sha256 of the rest.

    JAX's own files carry no hash and are written in place: one with a flipped bit can end the process or run as another
    program, one that a full disk cut short stays. Here a file appears whole or not at all, and one that is not what its
    hash says is removed and compiled again. JAX has no public way to say how programs are kept, so this replaces one
    private function, for this folder alone.

    **Returns:** whether it could: a JAX in which that function is another keeps its programs in its own way.
    """
    try:
        from jax._src import compilation_cache as theirs
        from jax._src.compilation_cache_interface import CacheInterface

        before = theirs.get_file_cache
    except (ImportError, AttributeError):
        return False

    class Verified(CacheInterface):
        """The programs of a folder by their keys."""

        def __init__(self) -> None:
            self._path = folder

        def get(self, key: str) -> bytes | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            return read_verified(folder / key)

        def put(self, key: str, value: bytes) -> None:
            write_verified(folder / key, value)

    def chosen(path: str) -> Any:
        return (Verified(), path) if path == str(folder) else before(path)

    theirs.get_file_cache = chosen
    _sweep(folder)
    return True


def read_verified(path: Path) -> bytes | None:
    """What `write_verified` was given; None where there is no such file, or a damaged one, which is removed."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
        return data[_DIGEST:]
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def write_verified(path: Path, data: bytes) -> None:
    """Writes data with its hash before it; nothing where the disk is full or read-only, since it only saves time."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)  # not flushed: what a power failure tears does not fit its hash
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sweep(folder: Path) -> None:
    """Removes what killed processes left."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".*.tmp"):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
