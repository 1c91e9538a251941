"""Prepared folders: shards that grow under a temporary name, and the manifest that says what they hold."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cores import usable_cores
from ..errors import UserError
from ..files import json_hash, sealed, sync_folder, unsealed, write_json_atomic
from ..visible import visible
from .splits import SPLITS
from .tokens import Tokens

FORMAT = 1
MANIFEST = "manifest.json"
PROGRESS = ".progress.json"  # where prepare is, as long as it has not finished
VOCABULARY = "vocabulary.json"
SHARD_TOKENS = 1 << 26
MOST_SHARDS = 10_000  # of a split: each is a file, and mapped
_BLOCK = 1 << 21  # tokens that are held before they are written


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
        self._held: list[np.ndarray] = []
        self._held_tokens = 0
        self._file: Any = None
        self._tokens = state["tokens"]  # in the file
        self._recover()

    def _final(self) -> Path:
        return self.folder / f"{self.split}-{len(self.shards):05d}.bin"

    def _part(self) -> Path:
        return self.folder / f".{self._final().name}.part"

    def _recover(self) -> None:
        part, final = self._part(), self._final()
        if final.exists():  # finished after the last commit: it is unfinished again
            os.replace(final, part)
        for later in (*self.folder.glob(f"{self.split}-*.bin"), *self.folder.glob(f".{self.split}-*.bin.part")):
            if int(later.name.split(".bin")[0].rsplit("-", 1)[1]) > len(self.shards):
                later.unlink()
        if self._tokens == 0:
            part.unlink(missing_ok=True)
            return
        size = self._tokens * self.dtype.itemsize
        if part.stat().st_size < size:
            raise UserError(f"{part} is shorter than it was: remove {self.folder} and prepare again")
        self._file = open(part, "r+b", buffering=0)
        self._file.truncate(size)
        self._file.seek(size)

    def add(self, *tokens: np.ndarray) -> None:
        """Appends ids."""
        self._held += tokens
        self._held_tokens += sum(map(len, tokens))
        if self._held_tokens >= _BLOCK:
            self._write()

    def _write(self) -> None:
        tokens = np.concatenate([np.zeros(0, self.dtype), *(ids.astype(self.dtype) for ids in self._held)])
        self._held, self._held_tokens = [], 0
        while len(tokens):
            room = self.shard_tokens - self._tokens
            self._append(tokens[:room])
            tokens = tokens[room:]
            if self._tokens == self.shard_tokens:
                if len(self.shards) == MOST_SHARDS:
                    raise UserError(
                        f"{self.split} has more than {MOST_SHARDS:,} shards of {self.shard_tokens:,} tokens: "
                        "name another folder, with a larger --shard-tokens"
                    )
                self._finish_shard()

    def _append(self, tokens: np.ndarray) -> None:
        if self._file is None:
            self._file = open(self._part(), "xb", buffering=0)
        data = tokens.data.cast("B")
        while len(data):
            data = data[self._file.write(data) :]
        self._tokens += len(tokens)

    def _finish_shard(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        part, final = self._part(), self._final()
        largest = int(np.memmap(part, self.dtype, "r").max())
        shard = Shard(final.name, self._tokens, largest, _sha256(part))
        os.replace(part, final)
        sync_folder(self.folder)
        self.shards.append(shard)
        self._file, self._tokens = None, 0

    def commit(self) -> dict[str, Any]:
        """Brings everything to the disk and says how far that is."""
        self._write()
        if self._file is not None:
            os.fsync(self._file.fileno())
        return {"shards": [asdict(shard) for shard in self.shards], "tokens": self._tokens}

    def finish(self) -> tuple[Shard, ...]:
        """Gives the last shard its name."""
        self._write()
        if self._tokens:
            self._finish_shard()
        return tuple(self.shards)

    def close(self) -> None:
        """Closes the file as it is."""
        if self._file is not None:
            self._file.close()


@dataclass
class SplitCounts:
    """Of one split: documents, characters, UTF-8 bytes and tokens (separators counted), and the same by set."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    sets: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, characters: int, size: int, tokens: int, group: str) -> None:
        """Counts a document."""
        self.documents += 1
        self.characters += characters
        self.bytes += size
        self.tokens += tokens
        if group:
            counts = self.sets.setdefault(group, {"documents": 0, "bytes": 0, "tokens": 0})
            for name, more in (("documents", 1), ("bytes", size), ("tokens", tokens)):
                counts[name] += more

    def row(self) -> dict[str, Any]:
        """As JSON, with bytes a token; sets in the order of their names, where there are some."""
        row = {**asdict(self), "bytes_per_token": round(self.bytes / self.tokens, 4) if self.tokens else None}
        sets = row.pop("sets")
        return {**row, "sets": dict(sorted(sets.items()))} if sets else row


@dataclass(frozen=True)
class Manifest:
    """Everything that a prepared folder holds. Two folders with equal manifests hold equal bytes."""

    source: dict[str, Any]
    split_rule: str
    tokenizer: dict[str, Any]  # name, vocab_size, hash, separator, bytes a token on disk
    counts: dict[str, SplitCounts]
    shards: dict[str, tuple[Shard, ...]]
    skipped: dict[str, Any]
    leaks: dict[str, Any]

    @property
    def hash(self) -> str:
        """sha256 (hex) over the tokenizer's and all shards' hashes: equal hashes are equal tokens."""
        shards = {split: [[s.tokens, s.sha256] for s in shards] for split, shards in self.shards.items()}
        return json_hash([self.tokenizer["hash"], shards])

    def write(self, folder: Path) -> None:
        """Writes manifest.json."""
        told = {"format": FORMAT, "hash": self.hash, **dataclasses.asdict(self)}
        write_json_atomic(folder / MANIFEST, sealed(told))

    @classmethod
    def read(cls, folder: str | Path) -> Manifest:
        """Reads manifest.json; `UserError` where there is none, or where it does not fit its own hash."""
        path = Path(folder).expanduser() / MANIFEST
        try:
            data = json.loads(path.read_bytes())
            if data["format"] != FORMAT:
                raise UserError(f"{path} is of another format than {FORMAT}, which this version reads: prepare again")
            data = unsealed(data, path)
            del data["format"]
            said = data.pop("hash")
            for name in ("split_rule", "source", "tokenizer", "skipped", "leaks"):
                if not isinstance(data[name], str if name == "split_rule" else dict):
                    raise ValueError(f"{name} is {data[name]!r:.40}")
            counts = {split: SplitCounts(**counts) for split, counts in data.pop("counts").items()}
            shards = {split: tuple(Shard(**s) for s in shards) for split, shards in data.pop("shards").items()}
            manifest = cls(counts=counts, shards=shards, **data)
            for split, own in shards.items():
                for shard in own:
                    if not re.fullmatch(rf"{re.escape(split)}-\d+\.bin", shard.file):  # another split's, or outside
                        raise ValueError(f"{shard.file!r} is no shard of the {split} split")
            sound = manifest.hash == said
        except OSError as error:
            raise UserError(f"{folder} is no prepared data: cannot read {path} ({error.strerror})") from None
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is not a manifest ({type(error).__name__}: {error}); prepare again") from None
        if not sound:
            raise UserError(f"{path} was changed: its shards do not make its hash; prepare again")
        return manifest

    def tokens(self, folder: Path, vocab_size: int) -> dict[str, Tokens]:
        """The shards, mapped into memory, by split.

        **Raises:** `UserError` naming the first file whose size or sha256 is not what is written here, and shard and
        byte of the first id that is not below `vocab_size`.
        """
        dtype = np.dtype(f"<u{self.tokenizer['token_bytes']}")
        shards = [shard for split in SPLITS for shard in self.shards[split]]
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:  # sha256 releases the GIL
            list(pool.map(lambda shard: _check(folder / shard.file, shard, dtype), shards))
        mapped = {split: [np.memmap(folder / s.file, dtype, "r") for s in self.shards[split]] for split in SPLITS}
        for split in SPLITS:
            for shard, tokens in zip(self.shards[split], mapped[split], strict=True):
                if shard.largest >= vocab_size:
                    place = int(np.argmax(tokens >= vocab_size))
                    raise UserError(
                        f"{folder / shard.file}, byte {place * dtype.itemsize:,}: token id {tokens[place]} in the "
                        f"{split} split, but vocab_size is {vocab_size}; raise --vocab-size to at least "
                        f"{max(s.largest for s in shards) + 1}"
                    )
        return {split: Tokens(parts) for split, parts in mapped.items()}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path, shard: Shard, dtype: np.dtype) -> None:
    again = "prepare again, or copy the file again"
    try:
        size, expected = path.stat().st_size, shard.tokens * dtype.itemsize
        if size != expected:
            raise UserError(f"{path} has {size:,} bytes, its manifest says {expected:,}: {again}")
        if (found := _sha256(path)) != shard.sha256:
            raise UserError(f"{path}: its sha256 is {found}, its manifest says {shard.sha256}: {again}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {again}") from None


def refuse_prepared(path: str | Path, *, finished: bool = True) -> None:
    """Raises `UserError` for a folder that `prepare` made, or (not `finished`) began alone: its files are no text."""
    folder = Path(path).expanduser()
    if is_prepared(folder):
        if finished:
            raise UserError(
                f"{visible(str(path))} is prepared data, not text: give it alone as it is, or several as "
                "mix:WEIGHT=FOLDER,WEIGHT=FOLDER"
            )
    elif (folder / PROGRESS).is_file():
        raise UserError(f"{visible(str(path))} is prepared data that is not finished: give its prepare command again")


def is_prepared(path: str | Path) -> bool:
    """Whether a path is a folder that `prepare` finished; others have a manifest.json too, beside data of their own."""
    folder = Path(path).expanduser()
    ours = (VOCABULARY, "train-00000.bin")  # one of them may be lost
    return (folder / MANIFEST).is_file() and any((folder / name).is_file() for name in ours)
