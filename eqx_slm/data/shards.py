"""Token shards on disk: written as they grow under a temporary name, read back through memory maps."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import _sync_folder

SHARD_TOKENS = 1 << 26
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Shard:
    """One finished file: its name, tokens, largest id, and sha256 (hex)."""

    file: str
    tokens: int
    largest: int
    sha256: str


def token_dtype(vocab_size: int) -> np.dtype:
    """Two bytes a token where the ids fit, else four; little-endian."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def cannot_write(path: Path, error: OSError) -> UserError:
    """A full disk, or no right to write, as one line."""
    return UserError(
        f"cannot write {path}: {error.strerror or error}; nothing half-written has its final name. "
        "Make room and give the same command again: it goes on where it stopped"
    )


class ShardWriter:
    """Appends tokens to the shards of one split; every shard but the last holds exactly `shard_tokens`.

    A shard grows as `.train-00000.bin.part` and takes its name, `train-00000.bin`, when it is whole and on the disk.
    `commit` says (as JSON) how far everything is safe; given back as `state`, what was written after it is cut off.
    """

    def __init__(
        self, folder: Path, split: str, dtype: np.dtype, shard_tokens: int, state: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        state = state or {"shards": [], "tokens": 0}
        self.shards = [Shard(**shard) for shard in state["shards"]]
        self._file: Any = None
        self._tokens, self._largest, self._digest = 0, 0, hashlib.sha256()
        self._held: list[np.ndarray] = []
        self._held_tokens = 0
        self._recover(state["tokens"])

    @property
    def tokens(self) -> int:
        """Tokens so far."""
        return sum(shard.tokens for shard in self.shards) + self._tokens + self._held_tokens

    def _final(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.bin"

    def _part(self, number: int) -> Path:
        return self.folder / f".{self.split}-{number:05d}.bin.part"

    def _recover(self, tokens: int) -> None:
        number = len(self.shards)
        part, final = self._part(number), self._final(number)
        if final.exists():  # finished after the last commit: it is unfinished again
            os.replace(final, part)
        for later in (*self.folder.glob(f"{self.split}-*.bin"), *self.folder.glob(f".{self.split}-*.bin.part")):
            if int(later.name.split(".bin")[0].rsplit("-", 1)[1]) > number:
                later.unlink()
        if tokens == 0:
            part.unlink(missing_ok=True)
            return
        self._file = self._open(part, "r+b")
        left = tokens * self.dtype.itemsize
        while left:
            block = self._file.read(min(left, _BLOCK))
            if not block:
                raise UserError(f"{part} is shorter than it was: remove {self.folder} and prepare again")
            left -= len(block)
            self._digest.update(block)
            self._largest = max(self._largest, int(np.frombuffer(block, self.dtype).max()))
        self._tokens = tokens
        self._file.truncate()

    def _open(self, path: Path, mode: str) -> Any:
        try:
            return open(path, mode, buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    def add(self, tokens: Sequence[np.ndarray]) -> None:
        """Appends ids."""
        self._held += tokens
        self._held_tokens += sum(map(len, tokens))
        if self._held_tokens * self.dtype.itemsize >= _BLOCK:
            self._write()

    def _write(self) -> None:
        if not self._held:
            return
        tokens = np.concatenate(self._held)
        self._held, self._held_tokens = [], 0
        while len(tokens):
            room = self.shard_tokens - self._tokens
            self._append(tokens[:room])
            tokens = tokens[room:]
            if self._tokens == self.shard_tokens:
                self._finish_shard()

    def _append(self, tokens: np.ndarray) -> None:
        part = self._part(len(self.shards))
        if self._file is None:
            self._file = self._open(part, "xb")
        data = tokens.astype(self.dtype).data.cast("B")
        self._digest.update(data)
        self._tokens += len(tokens)
        self._largest = max(self._largest, int(tokens.max()))
        try:
            while len(data):
                data = data[self._file.write(data) :]
        except OSError as error:
            raise cannot_write(part, error) from error

    def _sync(self) -> None:
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise cannot_write(self._part(len(self.shards)), error) from error

    def _finish_shard(self) -> None:
        self._sync()
        self._file.close()
        number = len(self.shards)
        os.replace(self._part(number), self._final(number))
        _sync_folder(self.folder)
        self.shards.append(Shard(self._final(number).name, self._tokens, self._largest, self._digest.hexdigest()))
        self._file = None
        self._tokens, self._largest, self._digest = 0, 0, hashlib.sha256()

    def commit(self) -> dict[str, Any]:
        """Brings everything to the disk and says how far that is."""
        self._write()
        self._sync()
        return {"shards": [asdict(shard) for shard in self.shards], "tokens": self._tokens}

    def finish(self) -> list[Shard]:
        """Gives the last shard its name."""
        self._write()
        if self._tokens:
            self._finish_shard()
        return self.shards

    def close(self) -> None:
        """Closes the file as it is."""
        if self._file is not None:
            self._file.close()
            self._file = None


class ShardedTokens:
    """The tokens of a split: shards in a row, memory-mapped, read as one array."""

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: np.dtype) -> None:
        self.shards, self.folder, self.dtype = tuple(shards), folder, dtype
        self._maps = [np.memmap(folder / shard.file, dtype, "r") for shard in self.shards]
        self._ends = np.cumsum([shard.tokens for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The tokens `[s, s + length)` for every start, int32[n, length]."""
        rows = np.empty((len(starts), length), np.int32)
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + length - 1, side="right")
        for number in np.unique(first).tolist():
            which = np.flatnonzero((first == number) & (last == number))
            if len(which) and len(self._maps[number]) >= length:
                offset = int(self._ends[number]) - self.shards[number].tokens
                view = np.lib.stride_tricks.sliding_window_view(self._maps[number], length)
                rows[which] = view[starts[which] - offset]
        for row in np.flatnonzero(first != last).tolist():
            rows[row] = self.read(int(starts[row]), length)
        return rows

    def read(self, start: int, count: int) -> np.ndarray:
        """`count` tokens from `start` on, across shards, int32."""
        pieces = []
        number = int(np.searchsorted(self._ends, start, side="right"))
        while count > 0 and number < len(self.shards):
            offset = int(self._ends[number]) - self.shards[number].tokens
            piece = self._maps[number][start - offset : start - offset + count]
            pieces.append(piece.astype(np.int32))
            start, count, number = start + len(piece), count - len(piece), number + 1
        return np.concatenate([np.zeros(0, np.int32), *pieces])

    def blocks(self, size: int = 1 << 22) -> Iterator[np.ndarray]:
        """All tokens, a few million at a time."""
        for tokens in self._maps:
            for start in range(0, len(tokens), size):
                yield tokens[start : start + size]

    def check_ids(self, split: str, vocab_size: int) -> None:
        """Raises `UserError` naming shard and place of the first id that is not below `vocab_size`."""
        for shard, tokens in zip(self.shards, self._maps, strict=True):
            if shard.largest < vocab_size:
                continue
            for start in range(0, len(tokens), 1 << 22):
                beyond = tokens[start : start + (1 << 22)] >= vocab_size
                if beyond.any():
                    place = start + int(np.argmax(beyond))
                    raise UserError(
                        f"{self.folder / shard.file}, byte {place * self.dtype.itemsize:,}: token id {tokens[place]} "
                        f"in the {split} split, but vocab_size is {vocab_size}; "
                        f"raise --vocab-size to at least {max(s.largest for s in self.shards) + 1}"
                    )


def check_shards(folder: Path, shards: Sequence[Shard], dtype: np.dtype, *, hashes: bool) -> None:
    """Compares sizes, and where asked the sha256 and the largest id, of files with what the manifest says.

    **Raises:** `UserError` naming the first file that differs.
    """

    def check(shard: Shard) -> None:
        path = folder / shard.file
        again = "prepare again, or copy the file again"
        try:
            size = path.stat().st_size
            if size != shard.tokens * dtype.itemsize:
                expected = shard.tokens * dtype.itemsize
                raise UserError(f"{path} has {size:,} bytes, its manifest says {expected:,}: {again}")
            if hashes:
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != shard.sha256:
                    raise UserError(f"{path}: its sha256 is {found}, its manifest says {shard.sha256}: {again}")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; {again}") from None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # sha256 releases the GIL
        for _ in pool.map(check, shards):
            pass


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keeps a second process from writing into the same folder; `UserError` there. Gone when the process is."""
    try:
        import fcntl
    except ImportError:  # no such locks here: nothing is promised
        yield
        return
    with open(folder / ".lock", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is preparing {folder}: wait for it, or name another folder") from None
        yield
