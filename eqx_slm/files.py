"""Files that are either whole or not there (a temporary name, fsync, rename), and folders with one writer."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from .errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)  # what a full disk says


def write_bytes_atomic(path: str | Path, data: bytes) -> Path:
    """Write `data` so that a reader (or a crash) sees the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and take the final name in one rename.

    **Arguments:** `path`: the file; missing parent folders are made. `data`: its whole content.

    **Returns:** the path, as a `Path`. Raises `OSError` where the file system does, and then leaves no temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile: it makes files that only their owner can read, here the usual umask is wanted.
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def write_text_atomic(path: str | Path, text: str) -> Path:
    """Write `text` as UTF-8, newlines as they are, like [`write_bytes_atomic`][]."""
    return write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | Path, value: Any, *, indent: int | None = 1) -> Path:
    """Write `json_ready(value)` as strict JSON (no NaN, no Infinity), like [`write_bytes_atomic`][]."""
    ready = json_ready(value)
    try:
        return write_text_atomic(path, json.dumps(ready, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")
    except UnicodeEncodeError:  # half a surrogate pair in a name: only escapes can say it
        return write_text_atomic(path, json.dumps(ready, indent=indent, allow_nan=False) + "\n")


def json_ready(value: Any) -> Any:
    """Copy a tree of plain values for strict JSON: non-finite floats become `None`, tuples lists, NumPy values plain.

    **Arguments:** `value`: dicts with string keys, lists, tuples, strings, numbers, `None`, paths, or scalars and
    arrays that have `.tolist()`.

    **Returns:** the copy. Raises `ValueError` for any other type.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return json_ready(value.tolist())
    raise ValueError(f"cannot write a {type(value).__name__} as JSON; give dicts, lists, strings, numbers or None")


def check_new(folder: Path) -> None:
    """Raises `UserError` for a folder that holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: name a new or an empty folder")


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """`json_ready(content)` with the hash of all of it under "sha256", so that one flipped bit shows."""
    content = json_ready(content)
    return {**content, "sha256": json_hash(content)}


def unsealed(content: Any, name: str | Path) -> Any:
    """What `sealed` was given. Without a hash, as earlier versions wrote it, the content is taken as it is.

    **Raises:** `UserError`, with the `name` of what was read, where content and hash do not fit.
    """
    if not isinstance(content, dict) or "sha256" not in content:
        return content
    rest = {key: value for key, value in content.items() if key != "sha256"}
    if content["sha256"] != json_hash(rest):
        raise UserError(f"{name} is damaged, or was changed by hand: its content is not what its hash was made of")
    return rest


def json_hash(content: Any) -> str:
    """The sha256 of a JSON value, whatever the order of names and the spaces it is written with."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def folder_with(file: str, option: str, folder: str | Path) -> Path:
    """The folder that an option names; `UserError` where there is none, or none with that file."""
    path = Path(folder)
    if not (path / file).is_file():
        why = f"it holds no {file}, as a finished study does" if path.is_dir() else "there is no such folder"
        raise UserError(f"{option} {folder}: {why}")
    return path


def check_space(folder: Path, size: int) -> None:
    """Raises `OSError` (ENOSPC) where the disk of a folder has no room for `size` bytes and a little more."""
    free = shutil.disk_usage(folder).free
    needed = size + 2**16
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free", str(folder))


LOCK = ".lock"


class Lock:
    """The only process that writes to a folder: a lock that ends with the process, however that ends."""

    def __init__(self, folder: Path):
        """**Arguments:** `folder`, which exists. Raises `UserError`, naming the process, where another has it."""
        import fcntl  # not everywhere; whoever only reads needs none

        self.path = folder / LOCK
        while True:
            self.file = open(self.path, "a+", encoding="utf-8")
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.file.seek(0)
                holder = self.file.read().strip() or "another process"
                self.file.close()
                raise UserError(f"{folder} is in use by {holder}: wait for it, or name another folder") from None
            try:  # the one who had it may have removed the file that we opened
                if os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path)):
                    break
            except FileNotFoundError:
                pass
            self.file.close()
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self.file.flush()

    def release(self) -> None:
        """Lets the next one in."""
        with contextlib.suppress(OSError):  # of a folder that was made read-only the file stays, and locks nothing
            self.path.unlink(missing_ok=True)
        self.file.close()


def folder_name(name: str) -> str:
    """A name as the name of a folder: itself where it can be one."""
    if re.fullmatch(r"[\w.+=-]*\w[\w.+=-]*", name) and len(name.encode()) <= 100:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return re.sub(r"[^\w.+=-]+", "-", name)[:20].strip("-.") + "-" + digest


def sync_folder(folder: Path) -> None:
    """Brings renames in a folder to the disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
