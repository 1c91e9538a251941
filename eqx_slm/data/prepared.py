"""Training from prepared folders: shards mapped into memory, windows in a pseudo-random order."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from .base import IndexedStream, check_processes
from .corpora import SPLITS
from .manifest import VOCABULARY, Manifest
from .mix import Schedule
from .order import places
from .shards import ShardedTokens, check_shards
from .stream import EVAL_SEED
from .tokenizer import Tokenizer
from .vocabulary import load_tokenizer


@dataclass(frozen=True, eq=False)
class PreparedStream(IndexedStream):
    """The tokens of prepared folders, read as `TokenStream` reads tokens in memory: the same windows, the same order.

    One folder: an epoch reads every window once, and what does not fill a batch is dropped. Several: each sequence
    comes from the folder that the `Schedule` of the weights names; each folder starts its next epoch when its own
    windows are used up.

    Use `open_prepared`, which checks everything.
    """

    folders: tuple[Path, ...]
    manifests: tuple[Manifest, ...]
    tokens: tuple[dict[str, ShardedTokens], ...]
    schedule: Schedule
    tokenizer: Tokenizer | None
    vocab_size: int
    sequence_length: int
    batch_size: int
    eval_tokens: int = 16384
    byte_lengths: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    process_index: int = 0
    process_count: int = 1

    def _count(self, folder: int, split: str) -> int:
        return max(0, (len(self.tokens[folder][split]) - 1) // self.sequence_length)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the training windows of one folder."""
        if len(self.folders) > 1:
            raise ValueError("a mixture has no common epoch: each folder has its own")
        return self._count(0, "train") // self.batch_size

    def batch(self, seed: int, index: int) -> np.ndarray:
        """Training batch `index` of a seed, int32[B, T+1]: inputs are columns [:-1], targets [1:]; any epoch."""
        if index < 0:
            raise ValueError(f"batch index {index} is negative; give an integer of at least 0")
        rows = self._own_rows(np.arange(self.batch_size))
        if len(self.folders) == 1:
            epoch, step = divmod(index, self.steps_per_epoch)
            order = places(self._count(0, "train"), step * self.batch_size + rows, seed=seed, epoch=epoch)
            return self._windows(0, "train", order)
        which, ordinals = self.schedule.locate(index * self.batch_size + rows)
        batch = np.empty((len(rows), self.sequence_length + 1), np.int32)
        for folder in np.unique(which).tolist():
            mine = np.flatnonzero(which == folder)
            epochs, at = np.divmod(ordinals[mine], self._count(folder, "train"))
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                order = places(self._count(folder, "train"), at[now], seed=f"{seed}/folder {folder}", epoch=epoch)
                batch[mine[now]] = self._windows(folder, "train", order)
        return batch

    def _windows(self, folder: int, split: str, order: np.ndarray) -> np.ndarray:
        return self.tokens[folder][split].windows(order * self.sequence_length, self.sequence_length + 1)

    def identity(self) -> dict[str, Any]:
        """What decides the batches, as JSON."""
        return {
            "prepared": [manifest.hash for manifest in self.manifests],
            "weights": list(self.schedule.quotas),
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
        }

    def eval_batches(self) -> list[np.ndarray]:
        """The validation batches, int32[B, T+1] each: about `eval_tokens` targets, equal for all seeds and arms.

        They are the first windows of one fixed permutation of each folder's validation split, mixed by the weights.
        """
        return [self._own_rows(batch) for batch in self._eval]

    @cached_property
    def _eval(self) -> np.ndarray:
        count = max(1, round(self.eval_tokens / (self.batch_size * self.sequence_length)))
        while count > 1 and not self._enough(count):
            count -= 1
        which, ordinals = self.schedule.locate(np.arange(count * self.batch_size))
        batch = np.empty((len(which), self.sequence_length + 1), np.int32)
        for folder in range(len(self.folders)):
            mine = np.flatnonzero(which == folder)
            order = places(self._count(folder, "valid"), ordinals[mine], seed=EVAL_SEED)
            batch[mine] = self._windows(folder, "valid", order)
        return batch.reshape(count, self.batch_size, -1)

    def _enough(self, count: int) -> bool:
        which, _ = self.schedule.locate(np.arange(count * self.batch_size))
        return all(int((which == i).sum()) <= self._count(i, "valid") for i in range(len(self.folders)))

    def token_counts(self) -> np.ndarray:
        """How often each id occurs in the training splits, int64[vocab_size]."""
        counts = np.zeros(self.vocab_size, np.int64)
        for tokens in self.tokens:
            for block in tokens["train"].blocks():
                counts += np.bincount(block, minlength=self.vocab_size)
        return counts

    def training_tokens(self, most: int | None = None) -> np.ndarray:
        """The first `most` tokens of the first folder's training split, all by default, int32[n]."""
        train = self.tokens[0]["train"]
        return train.read(0, len(train) if most is None else most)


def open_prepared(
    folders: str | Path | Sequence[str | Path],
    *,
    sequence_length: int = 128,
    batch_size: int = 16,
    eval_tokens: int = 16384,
    vocab_size: int | None = None,
    weights: Sequence[float | int | str] | None = None,
    verify: Literal["hash", "size"] = "hash",
    process_index: int = 0,
    process_count: int = 1,
) -> PreparedStream:
    """Opens what `prepare` wrote.

    **Arguments:**

    - `folders`: one, or several of one tokenizer. `weights`: how many sequences of each; equal by default.
    - `sequence_length`, `batch_size`, `eval_tokens`: see `TokenStream`.
    - `vocab_size`: the model's; by default the tokenizer's.
    - `verify`: "hash" reads every shard once and compares its sha256 (about a second a gigabyte), "size" looks at
        sizes only.
    - `process_index`, `process_count`: which rows of every batch are this process's.

    **Raises:** `UserError` for a folder that is not prepared, a shard that is not what its manifest says, an id that is
    not below `vocab_size` (naming shard and byte), tokenizers that differ, or too little text for a batch.
    """
    paths = [folders] if isinstance(folders, str | Path) else list(folders)
    where = tuple(Path(path).expanduser() for path in paths)
    if not where:
        raise UserError("no prepared folder: give at least one")
    if verify not in ("hash", "size"):
        raise UserError(f"verify={verify!r}: allowed is 'hash' or 'size'")
    sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "eval_tokens": eval_tokens}
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} is {size}; give an integer of at least 1")
    check_processes(batch_size, process_index, process_count)
    schedule = Schedule([1] * len(where) if weights is None else weights)
    if len(schedule) != len(where):
        raise UserError(f"{len(where)} folders, but {len(schedule)} weights: give one for each")
    manifests = tuple(Manifest.read(folder) for folder in where)
    first = manifests[0].tokenizer
    for folder, manifest in zip(where, manifests, strict=True):
        if manifest.tokenizer["hash"] != first["hash"]:
            raise UserError(
                f"{folder} was prepared with {manifest.tokenizer['name']}, {where[0]} with {first['name']}: "
                "a mixture needs one tokenizer"
            )
    dtype = np.dtype(f"<u{first['token_bytes']}")
    size = first["vocab_size"] if vocab_size is None else vocab_size
    tokens = []
    for folder, manifest in zip(where, manifests, strict=True):
        check_shards(folder, [s for split in SPLITS for s in manifest.shards[split]], dtype, hashes=verify == "hash")
        splits = {split: ShardedTokens(folder, manifest.shards[split], dtype) for split in SPLITS}
        for split, there in splits.items():
            there.check_ids(split, size)
            need = batch_size * sequence_length + 1
            if split != "test" and len(there) < need:
                raise UserError(
                    f"the {split} split of {folder} has {len(there):,} tokens, but one batch of {batch_size} x "
                    f"{sequence_length} needs {need:,}; give more text, or a smaller batch size or sequence length"
                )
        tokens.append(splits)
    if size < first["vocab_size"]:
        raise UserError(
            f"vocab_size is {size}, but the tokenizer {first['name']} has {first['vocab_size']} ids; "
            f"raise --vocab-size to at least {first['vocab_size']}"
        )
    tokenizer = load_tokenizer(where[0] / VOCABULARY)
    if tokenizer.hash != first["hash"]:
        raise UserError(f"{where[0] / VOCABULARY} is not the tokenizer of its manifest: prepare again")
    lengths = tokenizer.byte_lengths
    return PreparedStream(
        folders=where,
        manifests=manifests,
        tokens=tuple(tokens),
        schedule=schedule,
        tokenizer=tokenizer,
        vocab_size=size,
        sequence_length=sequence_length,
        batch_size=batch_size,
        eval_tokens=eval_tokens,
        byte_lengths=None if lengths is None else np.pad(lengths, (0, size - len(lengths))),
        info=_info(where, manifests, schedule, size),
        process_index=process_index,
        process_count=process_count,
    )


def _info(
    folders: tuple[Path, ...], manifests: tuple[Manifest, ...], schedule: Schedule, vocab_size: int
) -> dict[str, Any]:
    def total(name: str) -> dict[str, int]:
        return {split: sum(getattr(m.counts[split], name) for m in manifests) for split in SPLITS}

    note = "prepared"
    if len(folders) > 1:
        weights = ", ".join(f"{f.name} {q}" for f, q in zip(folders, schedule.quotas, strict=True))
        note = f"prepared, mixed by sequences: {weights} of {schedule.period}"
    return {
        "corpus": " + ".join(folder.resolve().name for folder in folders),
        "corpus_hash": manifests[0].hash if len(manifests) == 1 else [m.hash for m in manifests],
        "corpus_note": note,
        "split_rule": "; ".join(sorted({m.split_rule for m in manifests})),
        "tokenizer": manifests[0].tokenizer["name"],
        "tokenizer_hash": manifests[0].tokenizer["hash"],
        "documents": total("documents"),
        "bytes": total("bytes"),
        "tokens": total("tokens"),
        "vocab_size": vocab_size,
        "python": platform.python_version(),
    }
