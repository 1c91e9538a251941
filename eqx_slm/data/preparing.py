"""Text to shards, once: read in order, tokenize in parallel, write in order; resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import UserError
from ..files import write_json_atomic
from .corpora import SPLITS
from .documents import Item, OnError, Position, Problem, Skipped, Source
from .manifest import NAME, VOCABULARY, Manifest, SplitCounts, is_prepared
from .shards import SHARD_TOKENS, ShardWriter, cannot_write, folder_lock, token_dtype
from .sources import lasting
from .splits import SplitRule
from .tokenizer import Tokenizer
from .vocabulary import save_tokenizer
from .workers import Chunk, TokenizingPool, chunks

PROGRESS = ".progress.json"
COMMIT_BYTES = 64 << 20  # of text between two points that a killed run goes on from


@dataclass(frozen=True)
class Told:
    """How far preparing is: documents, bytes and tokens so far, and whether it started in the middle."""

    documents: int
    bytes: int
    tokens: int
    seconds: float
    resumed: bool


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    rule: SplitRule,
    workers: int | None = None,
    on_error: OnError = "stop",
    on_leak: Literal["stop", "keep"] = "stop",
    shard_tokens: int = SHARD_TOKENS,
    commit_bytes: int = COMMIT_BYTES,
    on_progress: Callable[[Told], None] | None = None,
) -> Manifest:
    """Tokenizes a source into a folder of shards with a manifest.

    Documents are read in order; between two documents of a split stands the tokenizer's separator. The result depends
    on nothing but source, tokenizer, rule and `shard_tokens`: not on the number of workers, nor on how often the
    process was killed on the way. A folder that holds an unfinished run of the same is gone on with.

    **Arguments:**

    - `source`: see `open_source`. `tokenizer`: see `make_tokenizer`. `rule`: see `split_rule`.
    - `folder`: new, empty, or of an unfinished run.
    - `workers`: tokenizing processes; None is one a core, 0 tokenizes in this process.
    - `on_error`: what to do with a record that is no document: "stop", or "skip" and count.
    - `on_leak`: what to do where a document is in two splits: "stop", or "keep" it and write the count.
    - `shard_tokens`: tokens a shard. `commit_bytes`: bytes of text between two points to go on from.
    - `on_progress`: told after every chunk.

    **Returns:** the `Manifest`.

    **Raises:** `UserError` for bad records, leaks, a folder with something else in it, or a disk that is full.
    """
    folder = Path(folder).expanduser()
    if on_leak not in ("stop", "keep"):
        raise UserError(f"on_leak={on_leak!r}: allowed is 'stop' or 'keep'")
    if shard_tokens < 1:
        raise UserError(f"shard_tokens={shard_tokens}: give at least 1")
    plan = {
        "source": source.spec,
        "split_rule": str(rule),
        "tokenizer": tokenizer.hash,
        "shard_tokens": shard_tokens,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_lock(folder):
            if is_prepared(folder):
                return _finished(folder, plan)
            run = _Run(source, tokenizer, folder, rule, plan, on_error, shard_tokens, on_progress)
            try:
                with TokenizingPool(tokenizer, workers) as pool:
                    run.read(pool, commit_bytes)
                return run.finish(on_leak)
            finally:
                run.close()
    except OSError as error:
        raise cannot_write(folder, error) from error


def _finished(folder: Path, plan: dict[str, Any]) -> Manifest:
    manifest = Manifest.read(folder)
    if manifest.source != {**lasting(plan["source"]), "shard_tokens": plan["shard_tokens"]} or (
        manifest.split_rule,
        manifest.tokenizer["hash"],
    ) != (plan["split_rule"], plan["tokenizer"]):
        raise UserError(f"{folder} holds other prepared data: name another folder, or remove it")
    _clean(folder)
    return manifest


def _clean(folder: Path) -> None:
    """Removes what only an unfinished run needs, temporary files of killed runs too."""
    for leftover in (*folder.glob("hashes-*.bin"), *folder.glob(".*.part"), *folder.glob(".*.tmp")):
        leftover.unlink()
    (folder / PROGRESS).unlink(missing_ok=True)


class _Run:
    """A run of `prepare`: the state of everything that grows, and the points at which it is safe."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        folder: Path,
        rule: SplitRule,
        plan: dict[str, Any],
        on_error: OnError,
        shard_tokens: int,
        on_progress: Callable[[Told], None] | None,
    ) -> None:
        self.source, self.tokenizer, self.folder, self.rule, self.plan = source, tokenizer, folder, rule, plan
        self.tell = on_progress or (lambda told: None)
        self.shard_tokens = shard_tokens
        state = self._state()
        self.resumed = bool(state["at"])
        self.at = Position(*state["at"]) if state["at"] else None
        self.skipped = Skipped.of(on_error, state["skipped"])
        self.counts = {split: SplitCounts(**state["counts"].get(split, {})) for split in SPLITS}
        dtype = token_dtype(tokenizer.vocab_size)
        self.writers = {
            split: ShardWriter(folder, split, dtype, shard_tokens, state["writers"].get(split)) for split in SPLITS
        }
        # Where equal texts may meet in two splits, every document leaves 8 bytes of its hash.
        hashed = SPLITS if rule.kind != "content" else ()
        self.hashes = {
            split: ShardWriter(folder, f"hashes-{split}", np.dtype("<u8"), 2**62, state["hashes"].get(split))
            for split in hashed
        }
        self.separator = np.asarray(tokenizer.separator, np.int32)

    def _state(self) -> dict[str, Any]:
        path = self.folder / PROGRESS
        empty = {"at": None, "skipped": None, "counts": {}, "writers": {}, "hashes": {}}
        if path.exists():
            try:
                data = json.loads(path.read_text("utf-8"))
                plan, state = data["plan"], data["state"]
            except (ValueError, KeyError) as error:
                raise UserError(f"{path} is damaged ({error}): remove {self.folder} and prepare again") from None
            if plan != json.loads(json.dumps(self.plan)):
                changed = ", ".join(key for key in self.plan if plan.get(key) != json.loads(json.dumps(self.plan[key])))
                raise UserError(
                    f"{self.folder} holds an unfinished run with another {changed}: name another folder, or remove it"
                )
            return state
        others = [p.name for p in self.folder.iterdir() if p.name != ".lock" and not _ours(p.name)]
        if others:
            raise UserError(
                f"{self.folder} holds {others[0]!r}, which is not prepared data: name a new or empty folder"
            )
        save_tokenizer(self.folder / VOCABULARY, self.tokenizer)
        self._save(empty)
        return empty

    def _save(self, state: dict[str, Any]) -> None:
        write_json_atomic(self.folder / PROGRESS, {"plan": self.plan, "state": state}, indent=None)

    def commit(self) -> None:
        """Everything so far survives from here on."""
        self._save(
            {
                "at": self.at,
                "skipped": self.skipped.state(),
                "counts": {split: asdict(counts) for split, counts in self.counts.items()},
                "writers": {split: writer.commit() for split, writer in self.writers.items()},
                "hashes": {split: writer.commit() for split, writer in self.hashes.items()},
            }
        )

    def _items(self) -> Iterator[Item]:
        if self.at is None:
            yield from self.source.items()
            return
        rest = self.source.items(self.at)
        next(rest, None)  # the record that the last commit ended with
        yield from rest

    def read(self, pool: TokenizingPool, commit_bytes: int) -> None:
        """Reads, tokenizes and writes to the end."""
        started, since = time.perf_counter(), 0
        for chunk, ids in pool.map(chunks(self._items()), lambda chunk: chunk.documents):
            self._write(chunk, ids)
            since += chunk.size
            if since >= commit_bytes:
                self.commit()
                since = 0
            total = list(self.counts.values())
            self.tell(
                Told(
                    sum(c.documents for c in total),
                    sum(c.bytes for c in total),
                    sum(c.tokens for c in total),
                    time.perf_counter() - started,
                    self.resumed,
                )
            )

    def _write(self, chunk: Chunk, ids: list[np.ndarray]) -> None:
        pieces: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        hashes: dict[str, list[int]] = {split: [] for split in SPLITS}
        tokens = iter(ids)
        for item in chunk.items:
            if isinstance(item, Problem):
                self.skipped.see(item)
                continue
            split = self.rule(item)
            counts = self.counts[split]
            document = next(tokens)
            between = len(self.separator) if counts.documents else 0
            if between:
                pieces[split].append(self.separator)
            pieces[split].append(document)
            counts.add(len(item.text), len(item.data), len(document) + between, item.group)
            if self.hashes:
                hashes[split].append(int.from_bytes(hashlib.sha256(item.data).digest()[:8], "little"))
        for split in SPLITS:
            self.writers[split].add(pieces[split])
            if hashes[split]:
                self.hashes[split].add([np.array(hashes[split], "<u8")])
        self.at = chunk.items[-1].at

    def finish(self, on_leak: Literal["stop", "keep"]) -> Manifest:
        """Names the last shards, looks for leaks, writes the manifest."""
        counts = self.counts
        for split in ("train", "valid"):
            if not counts[split].documents:
                raise UserError(
                    f"{self.source.name} has no document in the {split} split by the rule '{self.rule}'; give more "
                    "text, other shares (--valid-share), --split content, or --unit paragraph for a long text file"
                )
        shards = {split: tuple(writer.finish()) for split, writer in self.writers.items()}
        for split, writer in self.writers.items():
            if writer.tokens and max(s.largest for s in shards[split]) >= self.tokenizer.vocab_size:
                raise UserError(f"{self.tokenizer.name} gave an id beyond its {self.tokenizer.vocab_size} in {split}")
        leaks = self._leaks()
        if on_leak == "stop" and leaks["documents"]:
            raise UserError(
                f"{leaks['documents']} documents of {self.source.name} are in two splits ({leaks['pairs']}); use "
                "--split content, which keeps equal texts together, or keep them with --on-leak keep"
            )
        manifest = Manifest(
            source={**lasting(self.plan["source"]), "shard_tokens": self.shard_tokens},
            split_rule=str(self.rule),
            tokenizer={
                "name": self.tokenizer.name,
                "vocab_size": self.tokenizer.vocab_size,
                "hash": self.tokenizer.hash,
                "separator": list(self.tokenizer.separator),
                "token_bytes": token_dtype(self.tokenizer.vocab_size).itemsize,
            },
            counts=counts,
            shards=shards,
            skipped=self.skipped.state(),
            leaks=leaks,
        )
        manifest.write(self.folder)
        _clean(self.folder)
        return manifest

    def _leaks(self) -> dict[str, Any]:
        """Documents that are in two splits, by the hash of their text."""
        if not self.hashes:
            return {"documents": 0, "pairs": {}, "checked": "equal texts fall into one split by the rule"}
        files = {split: [self.folder / s.file for s in writer.finish()] for split, writer in self.hashes.items()}
        pairs: dict[str, int] = {}
        for small, others in (("test", ("train", "valid")), ("valid", ("train",))):
            known = np.unique(np.concatenate([np.zeros(0, "<u8"), *(np.fromfile(p, "<u8") for p in files[small])]))
            for other in others:
                leaked = 0
                for path in files[other]:
                    hashes = np.memmap(path, np.dtype("<u8"), "r")
                    for start in range(0, len(hashes), 1 << 22):  # whatever the size, a few megabytes at a time
                        leaked += int(np.isin(hashes[start : start + (1 << 22)], known).sum())
                if leaked:
                    pairs[f"{other}, {small}"] = leaked
        return {"documents": sum(pairs.values()), "pairs": pairs, "checked": "sha256 of every document's text"}

    def close(self) -> None:
        """Closes the files as they are."""
        for writer in (*self.writers.values(), *self.hashes.values()):
            writer.close()


def _ours(name: str) -> bool:
    """Whether a file in a folder without progress is what a run leaves that was killed at its very start."""
    return name == VOCABULARY or name.startswith((f".{VOCABULARY}.", f".{PROGRESS}.", f".{NAME}."))
