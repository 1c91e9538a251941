"""One source of a streaming stream: tokenized, packed and shuffled, a pass after the other; with its cursor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import UserError
from .documents import Document, MemorySource, OnError, Position, Problem, Skipped, Source
from .order import draw, label_start
from .pack import Packer, ShuffleBuffer, Tokenized
from .sources import FileSource
from .splits import SplitRule
from .workers import Chunk, TokenizingPool, chunks


class Lane:
    """One source, packed and shuffled: a pass after the other.

    **Arguments:** `source` and its split `rule`; `pool`: what tokenizes; `length`: tokens a sequence, T + 1;
    `capacity`: sequences in its buffer; `label`: decides the shuffle, with the number of the pass; `on_error`: see
    `Skipped`.
    """

    def __init__(
        self,
        source: Source,
        rule: SplitRule,
        pool: TokenizingPool,
        *,
        length: int,
        capacity: int,
        label: str,
        on_error: OnError,
    ) -> None:
        self.source, self.rule, self.pool, self.label = only(source, rule, "train"), rule, pool, label
        self.skipped = Skipped(on_error)
        self.packer = Packer(length, np.asarray(pool.tokenizer.separator, np.int32))
        self.buffer = ShuffleBuffer(capacity, length)
        self.epoch, self.draws, self.ended = -1, 0, True

    def next(self) -> np.ndarray:
        """The next sequence."""
        while self.ended and not self.buffer.filled:
            left = len(self.packer.left)
            self._begin(self.epoch + 1)
            while self.buffer.filled < self.buffer.capacity and (row := self._pull()) is not None:
                self.buffer.put(row)
            if not self.buffer.filled and len(self.packer.left) == left:  # a whole pass gave not a token
                raise UserError(f"{self.source.name} has no training text by the rule '{self.rule}'; give more text")
        place = draw(self._start, self.draws, self.buffer.filled)
        self.draws += 1
        return self.buffer.exchange(place, self._pull)

    def _begin(self, epoch: int) -> None:
        self.epoch, self.draws, self.ended = epoch, 0, False
        self._start = label_start(f"{self.label}/{epoch}")
        self.packer.start(self._documents(None))

    def _pull(self) -> np.ndarray | None:
        if self.ended:
            return None
        row = self.packer.next()
        self.ended = row is None
        return row

    def _documents(self, at: Position | None) -> Iterator[Tokenized]:
        items = self.source.items() if at is None else self.source.items(at)
        for chunk, ids in self.pool.map(chunks(items), self._training):
            tokens = iter(ids)
            for item in chunk.items:
                if isinstance(item, Problem):
                    self.skipped.see(item)
                elif self.rule(item) == "train":
                    yield Tokenized(next(tokens), item.at)

    def _training(self, chunk: Chunk) -> list[Document]:
        return [document for document in chunk.documents if self.rule(document) == "train"]

    def cursor(self) -> dict[str, Any]:
        """Where this lane is, as JSON."""
        packer = self.packer
        return {
            "epoch": self.epoch,
            "draws": self.draws,
            "ended": self.ended,
            "at": None if packer.at is None else list(packer.at),
            "used": packer.used,
            "begun": packer.begun,
            "parted": packer.parted,
            "rows": self.buffer.filled,
            "left": len(packer.left),
        }

    def restore(self, data: dict[str, Any], rows: np.ndarray, left: np.ndarray) -> None:
        """Goes on from a cursor."""
        self.epoch, self.draws, self.ended = data["epoch"], data["draws"], data["ended"]
        self._start = label_start(f"{self.label}/{self.epoch}")
        for row in rows:
            self.buffer.put(row)
        packer = self.packer
        packer.left = left
        packer.begun, packer.parted = data["begun"], data["parted"]
        if self.ended or data["at"] is None:
            if not self.ended:
                packer.start(self._documents(None))
            return
        at = Position(*data["at"])
        if not packer.restart(self._documents(at), data["used"], parted=data["parted"]):
            raise UserError(f"{self.source.name} has no document at {tuple(at)} any more: it changed since the state")


def only(source: Source, rule: SplitRule, split: str) -> Source:
    """The part of a source that can hold a split: with official splits, nothing of the others is read."""
    if rule.kind != "official":
        return source
    if isinstance(source, FileSource):
        kept = [i for i, there in enumerate(source.splits) if there == split]
        files, splits = tuple(source.files[i] for i in kept), tuple(source.splits[i] for i in kept)
        return dataclasses.replace(source, files=files, splits=splits)
    if isinstance(source, MemorySource):
        return dataclasses.replace(source, splits={split: source.splits.get(split, ())})
    return source
