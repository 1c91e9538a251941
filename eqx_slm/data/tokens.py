"""Token ids and sizes: checked once, where they come in; and the tokens of a split, in memory or mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..checks import INT32, whole
from ..errors import UserError


def check_processes(batch_size: int, index: Any, count: Any) -> None:
    """Raises `UserError` where the batch does not divide among the processes, or this is none of them."""
    whole("process_count", count, most=INT32)
    whole("process_index", index, 0)
    if index >= count:
        raise UserError(f"process_index is {index} of process_count {count}; give an index below the count")
    if batch_size % count:
        raise UserError(f"a batch of {batch_size} does not divide among {count} processes; give a multiple of {count}")


def integers(values: Any, what: str) -> np.ndarray:
    """Ids from a list, a numpy or a JAX array, int[...] or Python's integers: whatever their size, none has wrapped.

    **Raises:** `UserError` naming `what` and the place of the first that is no integer.
    """
    given: Any = values if hasattr(values, "__array__") else list(values)
    try:
        array = np.asarray(given)
        if array.dtype.kind not in "iu" and not hasattr(given, "__array__"):
            array = np.array(given, object)  # 2**64 beside -1 would have become floats, 1 beside "a" text
    except ValueError:
        raise UserError(f"{what} is no row of token ids: its parts have several lengths") from None
    if array.dtype.kind in "iu" or not array.size:
        return array if array.size else array.astype(np.int32)
    flat = array.reshape(-1).tolist()
    strange = [i for i, value in enumerate(flat) if not _whole(value)]
    if strange or array.dtype.kind != "O":  # an array of floats is refused whole: 3.0 was never an id
        place = strange[0] if strange else 0
        raise UserError(
            f"{what} has {flat[place]!r} at place {place:,}, which is no token id; give one row of integers"
        )
    return array


def _whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer() or isinstance(value, int) and not isinstance(value, bool)


def as_tokens(values: Any, vocab_size: int, what: str) -> np.ndarray:
    """Ids as int32[n].

    **Raises:** `UserError` naming `what`, the place and the id where one is not an integer in [0, vocab_size).
    """
    array = integers(values, what)
    if array.ndim != 1:
        raise UserError(f"{what} has shape {array.shape}; give one row of integers")
    if not array.size:
        return np.zeros(0, np.int32)
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise UserError(f"{what} has token id {low} at place {int(np.argmin(array)):,}; ids are at least 0")
    if high >= vocab_size:
        advice = f"raise --vocab-size to at least {high + 1}" if high < INT32 else "give ids below 2**31"
        place = int(np.argmax(array))
        raise UserError(f"{what} has token id {high} at place {place:,}, but vocab_size is {vocab_size}; {advice}")
    return array.astype(np.int32, copy=False)


class Tokens:
    """The tokens of a split: arrays in a row (one in memory, or shards mapped from the disk), read as one."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = tuple(part for part in parts if len(part))
        self._ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)
        self._views: dict[int, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self.parts) else 0

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The tokens `[s, s + length)` for every start s, int32[n, length]."""
        views = self._views.get(length) or self._view(length)
        if len(views) == 1:
            return views[0][starts].astype(np.int32, copy=False)
        rows = np.empty((len(starts), length), np.int32)
        first, last = (np.searchsorted(self._ends, at, side="right") for at in (starts, starts + length - 1))
        for number in np.unique(first).tolist():
            which = np.flatnonzero((first == number) & (last == number))
            if len(which):
                rows[which] = views[number][starts[which] - (int(self._ends[number]) - len(self.parts[number]))]
        for row in np.flatnonzero(first != last).tolist():
            rows[row] = self.read(int(starts[row]), length)
        return rows

    def _view(self, length: int) -> list[np.ndarray]:
        """Every window of every part that has one; no token is copied until some are gathered."""
        view = np.lib.stride_tricks.sliding_window_view
        self._views[length] = [view(part, length) if len(part) >= length else part for part in self.parts]
        return self._views[length]

    def read(self, start: int = 0, count: int | None = None) -> np.ndarray:
        """`count` tokens from `start` on (all by default), across parts, int32[n]."""
        count = len(self) if count is None else count
        pieces, number = [np.zeros(0, np.int32)], int(np.searchsorted(self._ends, start, side="right"))
        while count > 0 and number < len(self.parts):
            offset = int(self._ends[number]) - len(self.parts[number])
            pieces.append(self.parts[number][start - offset : start - offset + count].astype(np.int32, copy=False))
            start, count, number = start + len(pieces[-1]), count - len(pieces[-1]), number + 1
        return np.concatenate(pieces)

    def blocks(self, size: int = 1 << 22) -> Iterator[np.ndarray]:
        """All tokens, a few million at a time."""
        for part in self.parts:
            for start in range(0, len(part), size):
                yield part[start : start + size]
