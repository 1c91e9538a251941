"""Text to shards, once: read in order, tokenize in parallel, write in order; resumable at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..checks import INT32, check_sizes, whole
from ..errors import UserError
from ..files import LOCK, Lock, write_json_atomic
from .documents import START, Document, OnError, Position, Problem, Skipped, Source, no_text
from .shards import (
    MANIFEST,
    PROGRESS,
    SHARD_TOKENS,
    VOCABULARY,
    Manifest,
    ShardWriter,
    SplitCounts,
    is_prepared,
    token_dtype,
)
from .sources import lasting
from .splits import SPLITS, SplitRule
from .tokenizer import Tokenizer, padded_vocab
from .tokenizing import tokenized
from .vocabulary import save_tokenizer

COMMIT_BYTES = 64 << 20  # of text between two points that a killed run goes on from


@dataclass(frozen=True)
class Progress:
    """How far preparing is: documents and bytes so far, and the seconds and tokens of this process."""

    documents: int
    bytes: int
    seconds: float
    own_tokens: int


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
    on_progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Tokenizes a source into a folder of shards with a manifest.

    Documents are read in order; between two documents of a split stands the tokenizer's separator. The result depends
    on nothing but source, tokenizer, rule and `shard_tokens`: not on the number of workers, nor on how often the
    process was killed on the way. A folder that holds an unfinished run of the same is gone on with.

    **Arguments:**

    - `source`, `tokenizer`, `rule`: see `open_source`, `make_tokenizer`, `split_rule`.
    - `folder`: new, empty, or of an unfinished run.
    - `workers`: tokenizing threads; None is one a core, 0 tokenizes in the caller's.
    - `on_error`: what to do with a record that is no document, or that the tokenizer refuses: "stop", or "skip" and
        count. `on_leak`: with a document that is in two splits: "stop", or "keep" it and write the count.
    - `shard_tokens`: tokens a shard. `commit_bytes`: bytes of text between two points to go on from.
    - `on_progress`: told about every half megabyte of text.

    **Returns:** the `Manifest`.

    **Raises:** `UserError` for bad records, leaks, a folder with something else in it, or a disk that is full.
    """
    folder = Path(folder).expanduser()
    if on_leak not in ("stop", "keep"):
        raise UserError(f"on_leak={on_leak!r}: allowed is 'stop' or 'keep'")
    check_sizes(most=INT32, shard_tokens=shard_tokens, commit_bytes=commit_bytes)
    whole("workers", workers or 0, 0, most=INT32)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            files.callback(Lock(folder).release)
            run = _Run(source, tokenizer, folder, rule, on_error, shard_tokens)
            if is_prepared(folder):
                return run.finished()
            run.open(files)
            run.read(workers, commit_bytes, on_progress or (lambda progress: None))
            return run.finish(on_leak)
    except OSError as error:
        if file := next((each for each in (folder, *folder.parents) if each.is_file()), None):
            raise UserError(f"{file} is a file; --out names a folder, new or empty") from None
        raise UserError(
            f"cannot write {error.filename or folder}: {error.strerror or error}; nothing half-written has its final "
            "name. Make room and give the same command again: it goes on where it stopped"
        ) from error


class _Run:
    """A run of `prepare`: the state of everything that grows, and the points at which it is safe."""

    def __init__(
        self, source: Source, tokenizer: Tokenizer, folder: Path, rule: SplitRule, on_error: OnError, shard_tokens: int
    ) -> None:
        self.source, self.tokenizer, self.folder, self.rule = source, tokenizer, folder, rule
        self.skipped, self.shard_tokens = Skipped(on_error), shard_tokens
        plan = {"source": source.spec, "split_rule": str(rule), "tokenizer": tokenizer.hash}
        plan |= {"shard_tokens": shard_tokens, "version": 2}  # of what an unfinished run leaves
        self.plan = json.loads(json.dumps(plan))  # as it comes back from a file
        self.made_of = {**lasting(self.plan["source"]), "shard_tokens": shard_tokens}

    def finished(self) -> Manifest:
        """What is there, where it is what would be made."""
        manifest = Manifest.read(self.folder)
        there = (manifest.source, manifest.split_rule, manifest.tokenizer["hash"])
        if there != (self.made_of, self.plan["split_rule"], self.plan["tokenizer"]):
            raise UserError(f"{self.folder} holds other prepared data: name another folder, or remove it")
        self._clean()
        return manifest

    def _clean(self) -> None:
        """Removes what only an unfinished run needs, temporary files of killed runs too."""
        for leftover in (*self.folder.glob("hashes-*.bin"), *self.folder.glob(".*.part"), *self.folder.glob(".*.tmp")):
            leftover.unlink()
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def open(self, files: contextlib.ExitStack) -> None:
        """Takes up the state of an unfinished run, or begins."""
        state = self._state()
        self.at = Position(*state["at"]) if state["at"] else None
        self.skipped = Skipped(self.skipped.policy, **state["skipped"])
        self.counts = {split: SplitCounts(**state["counts"].get(split, {})) for split in SPLITS}
        sorts = {split: (token_dtype(self.tokenizer.vocab_size), self.shard_tokens) for split in SPLITS}
        if self.rule.kind != "content":  # equal texts may meet in two splits: every document leaves 8 bytes of its hash
            sorts |= {f"hashes-{split}": (np.dtype("<u8"), 2**62) for split in SPLITS}
        self.writers: dict[str, ShardWriter] = {}
        for name, (dtype, size) in sorts.items():
            self.writers[name] = ShardWriter(self.folder, name, dtype, size, state["writers"].get(name))
            files.callback(self.writers[name].close)

    def _state(self) -> dict[str, Any]:
        path = self.folder / PROGRESS
        if path.exists():
            try:
                data = json.loads(path.read_bytes())
                plan, state = data["plan"], data["state"]
            except (ValueError, KeyError) as error:
                raise UserError(f"{path} is damaged ({error}): remove {self.folder} and prepare again") from None
            if plan != self.plan:
                changed = ", ".join(key for key in self.plan if plan.get(key) != self.plan[key])
                raise UserError(
                    f"{self.folder} holds an unfinished run with another {changed}: name another folder, or remove it"
                )
            return state
        for other in self.folder.iterdir():  # a run that was killed at its very start leaves these
            ours = other.name.startswith((f".{VOCABULARY}.", f".{PROGRESS}.", f".{MANIFEST}."))
            if other.name not in (LOCK, VOCABULARY) and not ours:
                raise UserError(
                    f"{self.folder} holds {other.name!r}, which is not prepared data: name a new or empty folder"
                )
        save_tokenizer(self.folder / VOCABULARY, self.tokenizer)
        empty = {"at": None, "skipped": {}, "counts": {}, "writers": {}}
        self._save(empty)
        return empty

    def _save(self, state: dict[str, Any]) -> None:
        write_json_atomic(self.folder / PROGRESS, {"plan": self.plan, "state": state}, indent=None)

    def _commit(self) -> None:
        """Everything so far survives from here on."""
        counts = {split: asdict(counts) for split, counts in self.counts.items()}
        writers = {name: writer.commit() for name, writer in self.writers.items()}
        self._save({"at": self.at, "skipped": self.skipped.state(), "counts": counts, "writers": writers})

    def read(self, workers: int | None, commit_bytes: int, tell: Callable[[Progress], None]) -> None:
        """Reads, tokenizes and writes to the end."""
        started, since, told, own = time.perf_counter(), 0, 0, 0
        items = self.source.items(self.at or START)
        if self.at is not None:
            next(items, None)  # the record that the last commit ended with
        for item, ids in tokenized(items, self.tokenizer, workers=workers):
            self.at = item.at
            if isinstance(item, Problem):
                self.skipped.see(item)
                continue
            self._write(item, ids)
            since, told, own = since + len(item.data), told + len(item.data), own + len(ids)
            if since >= commit_bytes:
                self._commit()
                since = 0
            if told >= 1 << 19:
                tell(self._progress(started, own))
                told = 0
        tell(self._progress(started, own))

    def _progress(self, started: float, own: int) -> Progress:
        counts = self.counts.values()
        documents, size = sum(c.documents for c in counts), sum(c.bytes for c in counts)
        return Progress(documents, size, time.perf_counter() - started, own)

    def _write(self, document: Document, ids: np.ndarray) -> None:
        split = self.rule(document)
        counts = self.counts[split]
        separator = np.asarray(self.tokenizer.separator if counts.documents else (), np.int32)
        self.writers[split].add(separator, ids)
        counts.add(len(document.text), len(document.data), len(ids) + len(separator), document.group)
        if hashes := self.writers.get(f"hashes-{split}"):
            hashes.add(np.frombuffer(hashlib.sha256(document.text.strip().encode()).digest()[:8], "<u8"))

    def finish(self, on_leak: Literal["stop", "keep"]) -> Manifest:
        """Names the last shards, looks for leaks, writes the manifest."""
        if not any(count.documents for count in self.counts.values()):
            raise UserError(no_text(self.source, self.skipped))
        for split in ("train", "valid"):
            if not self.counts[split].documents:
                raise UserError(
                    f"{self.source.name} has no document in the {split} split by the rule '{self.rule}'; give more "
                    "text, other shares (--valid-share), --split content, or --unit line for a long text file"
                )
        files = {name: writer.finish() for name, writer in self.writers.items()}
        size, tokenizer = self.tokenizer.vocab_size, self.tokenizer
        for split in SPLITS:
            if any(shard.largest >= size for shard in files[split]):
                raise UserError(f"{tokenizer.name} gave an id beyond its {size} in {split}")
        leaks = self._leaks()
        if on_leak == "stop" and leaks["documents"]:
            raise UserError(
                f"{leaks['documents']} documents of {self.source.name} are in two splits ({leaks['pairs']}); use "
                "--split content, which keeps equal texts together, or keep them with --on-leak keep"
            )
        manifest = Manifest(
            source=self.made_of,
            split_rule=str(self.rule),
            tokenizer={
                "name": tokenizer.name,
                "vocab_size": size,
                "hash": tokenizer.hash,
                "separator": list(tokenizer.separator),
                "token_bytes": token_dtype(size).itemsize,
            },
            counts=self.counts,
            shards={split: files[split] for split in SPLITS},
            skipped=self.skipped.state(),
            leaks=leaks,
        )
        manifest.write(self.folder)
        self._clean()
        return manifest

    def _leaks(self) -> dict[str, Any]:
        """Documents that are in two splits, by the hash of their text."""
        if self.rule.kind == "content":
            return {"documents": 0, "pairs": {}, "checked": "equal texts fall into one split by the rule"}
        shards = {split: self.writers[f"hashes-{split}"].shards for split in SPLITS}
        hashes = {
            split: np.memmap(self.folder / files[0].file, "<u8", "r") if files else np.zeros(0, "<u8")
            for split, files in shards.items()
        }
        pairs: dict[str, int] = {}
        for small, other in (("test", "train"), ("test", "valid"), ("valid", "train")):
            known = np.unique(hashes[small])
            blocks = (hashes[other][i : i + (1 << 22)] for i in range(0, len(hashes[other]), 1 << 22))
            if leaked := sum(int(np.isin(block, known).sum()) for block in blocks):
                pairs[f"{other}, {small}"] = leaked
        return {"documents": sum(pairs.values()), "pairs": pairs, "checked": "sha256 of every document's text"}


def describe(
    source: Source,
    tokenizer: Tokenizer,
    rule: SplitRule,
    *,
    workers: int | None = 0,
    on_error: OnError = "stop",
    pad_vocab_to: int = 1,
) -> dict[str, Any]:
    """Counts a source.

    **Arguments:** as in `prepare`; `pad_vocab_to`: the multiple that a model's vocabulary would be padded to.

    **Returns:** JSON: name, split rule, tokenizer, vocabulary, and for each split documents, characters, bytes, tokens
    (without separators between documents) and bytes a token.
    """
    counts, skipped = {split: SplitCounts() for split in SPLITS}, Skipped(on_error)
    head = _head(source.name, str(rule), tokenizer.name, tokenizer.vocab_size, pad_vocab_to)
    for item, ids in tokenized(source.items(), tokenizer, workers=workers):
        if isinstance(item, Problem):
            skipped.see(item)
        else:
            counts[rule(item)].add(len(item.text), len(item.data), len(ids), item.group)
    if not any(count.documents for count in counts.values()):
        raise UserError(no_text(source, skipped))
    return {**head, "splits": {split: count.row() for split, count in counts.items()}, "skipped": skipped.state()}


def describe_prepared(folder: Path, *, pad_vocab_to: int = 1) -> dict[str, Any]:
    """The same of a prepared folder, from its manifest; tokens are with separators."""
    manifest = Manifest.read(folder)
    tokenizer = manifest.tokenizer
    head = _head(folder.name, manifest.split_rule, tokenizer["name"], tokenizer["vocab_size"], pad_vocab_to)
    rows = {split: count.row() for split, count in manifest.counts.items()}
    rest = {"skipped": manifest.skipped, "prepared": manifest.hash, "leaks": manifest.leaks}
    return {**head, "splits": rows, **rest}


def _head(name: str, rule: str, tokenizer: str, size: int, multiple: int) -> dict[str, Any]:
    padded = padded_vocab(size, multiple)
    made = {"tokenizer": tokenizer, "vocab_size": size, "padded_vocab_size": padded, "padding": padded - size}
    return {"name": name, "split_rule": rule, **made}
