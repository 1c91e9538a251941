"""Packing: documents in a row, the separator between them, cut into sequences of T + 1 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .documents import Position


class Tokenized(NamedTuple):
    """A document's ids and where it starts."""

    ids: np.ndarray
    at: Position


class Packer:
    """Cuts one pass over documents into sequences of `length` tokens; they do not overlap, so no token comes twice.

    Sequences run across documents; the separator stands before every document but the first of all. What is left at
    the end of a pass (less than a sequence) begins the first sequence of the next pass, so no token is lost.

    **Arguments:** `length`: tokens a sequence, T + 1. `separator`: ids between two documents. `left`: what the pass
    before left.
    """

    def __init__(self, length: int, separator: np.ndarray, left: np.ndarray | None = None) -> None:
        self.length, self.separator = length, separator
        self.left = np.zeros(0, np.int32) if left is None else left
        self.at: Position | None = None  # of the document that is being cut
        self.used = 0  # of its tokens, the separator before it included
        self.begun = bool(len(self.left))  # whether a document came before, so that a separator is due
        self.parted = False  # whether a separator is before this one
        self._piece = np.zeros(0, np.int32)
        self._documents: Iterator[Tokenized] = iter(())

    def start(self, documents: Iterator[Tokenized]) -> None:
        """Begins a pass."""
        self._documents, self.at, self.used, self._piece = documents, None, 0, np.zeros(0, np.int32)

    def restart(self, documents: Iterator[Tokenized], used: int, *, parted: bool) -> bool:
        """Goes on within the first of `documents`, of which `used` tokens are done; False where there is none."""
        self._documents = documents
        if not self._advance(parted):
            return False
        self.used = used
        return used <= len(self._piece)

    def _advance(self, parted: bool) -> bool:
        document = next(self._documents, None)
        if document is None:
            return False
        self._piece = np.concatenate([self.separator, document.ids]) if parted else document.ids
        self.at, self.used, self.begun, self.parted = document.at, 0, True, parted
        return True

    def next(self) -> np.ndarray | None:
        """The next sequence, int32[length]; None at the end of the pass."""
        parts, have = [self.left], len(self.left)
        while have < self.length:
            if self.used == len(self._piece) and not self._advance(self.begun):
                self.left = np.concatenate(parts)
                return None
            part = self._piece[self.used : self.used + self.length - have]
            parts.append(part)
            have += len(part)
            self.used += len(part)
        self.left = np.zeros(0, np.int32)
        return np.concatenate(parts)


class ShuffleBuffer:
    """Draws sequences at random from the next `capacity` ones: each pass comes out as a permutation of itself.

    Draw t takes a place that depends on the label and t alone; the next sequence is put there.
    """

    def __init__(self, capacity: int, length: int) -> None:
        self.capacity = capacity
        self._rows = np.empty((min(capacity, 64), length), np.int32)
        self.filled = 0

    @property
    def rows(self) -> np.ndarray:
        """What is buffered, int32[n, length]."""
        return self._rows[: self.filled]

    def put(self, row: np.ndarray) -> None:
        """Adds a sequence at the end."""
        if self.filled == len(self._rows):
            more = min(self.capacity, 2 * self.filled) - self.filled
            self._rows = np.concatenate([self._rows, np.empty((more, self._rows.shape[1]), np.int32)])
        self._rows[self.filled] = row
        self.filled += 1

    def exchange(self, place: int, pull: Callable[[], np.ndarray | None]) -> np.ndarray:
        """Takes the sequence at a place and puts there what `pull` gives, or, where it gives none, the last one."""
        row = self._rows[place].copy()
        new = pull()
        if new is not None:
            self._rows[place] = new
        else:
            self.filled -= 1
            self._rows[place] = self._rows[self.filled]
        return row


def document_ids(tokens: np.ndarray, separator: int) -> np.ndarray:
    """Which document of its sequence each token belongs to: the number of separators before it, int32[..., t].

    A separator belongs to the document that it ends, so that the first token of a document is the first of its number.

    **Arguments:** `tokens`: int[..., t]. `separator`: an id that stands between documents and nowhere else.
    """
    ends = (np.asarray(tokens) == separator).astype(np.int32)
    return np.cumsum(ends, axis=-1, dtype=np.int32) - ends


def document_mask(ids: np.ndarray) -> np.ndarray:
    """What may attend to what, bool[..., t, t]: position i to j where j <= i and both are in one document."""
    t = ids.shape[-1]
    causal = np.tril(np.ones((t, t), bool))
    return (ids[..., :, None] == ids[..., None, :]) & causal.reshape((1,) * (ids.ndim - 1) + (t, t))
