"""One source of a streaming stream: tokenized, packed and shuffled, a pass after the other; with its cursor."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import numpy as np

from ..errors import UserError
from .documents import START, MemorySource, OnError, Position, Problem, Skipped, Source
from .order import draw, label_start
from .sources import FileSource
from .splits import SplitRule
from .tokenizer import Tokenizer
from .tokenizing import tokenized


@dataclasses.dataclass
class Cursor:
    """Where a lane is: its pass, the draws made in it, and the document that is being cut.

    `used` counts the tokens of that document that are done, the separator before it (where it is `parted`) included.
    """

    epoch: int = -1
    draws: int = 0
    ended: bool = True
    at: Position | None = None
    used: int = 0
    parted: bool = False


class Lane:
    """The documents of one split in a row, cut into sequences of `length` tokens, shuffled through a buffer.

    Sequences run across documents and do not overlap; the separator stands before every document but the first of all.
    What is left at the end of a pass (less than a sequence) begins the first sequence of the next, so no token is lost
    and none comes twice. A draw takes a place of the buffer that depends on label, pass and number alone, and the next
    sequence is put there: each pass comes out as a permutation of itself.

    **Arguments:** `source` and its split `rule`; `length`: T + 1; `capacity`: sequences in the buffer; `label`: decides
    the shuffle; `workers`, `on_error`: see `StreamingStream`.
    """

    def __init__(
        self,
        source: Source,
        rule: SplitRule,
        tokenizer: Tokenizer,
        *,
        length: int,
        split: str = "train",
        capacity: int = 1,
        label: str = "",
        workers: int | None = 0,
        on_error: OnError = "stop",
    ) -> None:
        self.source, self.rule, self.split = only(source, rule, split), rule, split
        self.tokenizer, self.workers, self.skipped = tokenizer, workers, Skipped(on_error)
        self.length, self.capacity, self.label = length, capacity, label
        self.separator = np.asarray(tokenizer.separator, np.int32)
        self.cursor = Cursor()
        self.rows: list[np.ndarray] = []
        self.left = np.zeros(0, np.int32)
        self._sequences = self.sequences()

    def next(self) -> np.ndarray:
        """The next sequence, int32[length]."""
        cursor = self.cursor
        while cursor.ended and not self.rows:
            cursor.epoch, cursor.draws, cursor.ended, left = cursor.epoch + 1, 0, False, len(self.left)
            self._sequences = self.sequences()
            while len(self.rows) < self.capacity and (row := self._pull()) is not None:
                self.rows.append(row)
            if not self.rows and len(self.left) == left:  # a whole pass gave not a token
                raise UserError(f"{self.source.name} has no training text by the rule '{self.rule}'; give more text")
        place = draw(label_start(f"{self.label}/{cursor.epoch}"), cursor.draws, len(self.rows))
        cursor.draws += 1
        row, new = self.rows[place], self._pull()
        self.rows[place] = self.rows[-1] if new is None else new
        if new is None:
            self.rows.pop()
        return row

    def _pull(self) -> np.ndarray | None:
        row = None if self.cursor.ended else next(self._sequences, None)
        self.cursor.ended = row is None
        return row

    def sequences(self, at: Position | None = None) -> Generator[np.ndarray, None, None]:
        """One pass, or the rest of the one that the cursor is in, int32[length] each."""
        cursor = self.cursor
        parted, have = (cursor.epoch > 0 if at is None else cursor.parted), self.left
        items = self.source.items(START if at is None else at)
        for item, ids in tokenized(items, self.tokenizer, wanted=self._wanted, workers=self.workers):
            if isinstance(item, Problem):
                self.skipped.see(item)
                continue
            ids = np.concatenate([self.separator, ids]) if parted else ids
            if at is None:
                cursor.at, cursor.used, cursor.parted = item.at, 0, parted
            elif item.at != at or cursor.used > len(ids):
                break
            parted, at = True, None
            while True:
                part = ids[cursor.used : cursor.used + self.length - len(have)]
                have = np.concatenate([have, part])  # a copy: a view would keep the whole document
                cursor.used += len(part)
                if len(have) < self.length:
                    break
                self.left = np.zeros(0, np.int32)
                yield have
                have = self.left
        if at is not None:
            raise UserError(f"{self.source.name} has no document at {tuple(at)} any more: it changed since the state")
        self.left = have

    def _wanted(self, document: Any) -> bool:
        return self.rule(document) == self.split

    def close(self) -> None:
        """Ends the threads of the pass."""
        self._sequences.close()

    def state(self) -> dict[str, Any]:
        """Where this lane is, as JSON; the tokens of `rows` and `left` are apart."""
        return {**dataclasses.asdict(self.cursor), "rows": len(self.rows), "left": len(self.left)}

    def restore(self, state: dict[str, Any], rows: np.ndarray, left: np.ndarray) -> None:
        """Goes on from a state."""
        at = None if state["at"] is None else Position(*state["at"])
        known = {field.name: state[field.name] for field in dataclasses.fields(Cursor)}
        self.cursor, self.rows, self.left = Cursor(**{**known, "at": at}), list(rows), left
        self._sequences = self.sequences(at)


def only(source: Source, rule: SplitRule, split: str) -> Source:
    """The part of a source that can hold a split: with official splits, no file of the others is read."""
    if rule.kind == "official" and isinstance(source, FileSource):
        kept = [i for i, there in enumerate(source.splits) if there == split]
        files, splits = tuple(source.files[i] for i in kept), tuple(source.splits[i] for i in kept)
        return dataclasses.replace(source, files=files, splits=splits)
    if rule.kind == "official" and isinstance(source, MemorySource):
        return dataclasses.replace(source, splits={split: source.splits.get(split, ())})
    return source
