"""Feeding: batches on the device ahead of the step, and a batch's distinct tokens found on the host."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np

from ..nn.embed_batch import Distinct
from .state import StreamState
from .stream import BatchIterator


class Fed(NamedTuple):
    """A batch on the device, int32[B, T+1], and the distinct tokens of its inputs where they were asked for."""

    tokens: jax.Array
    distinct: Distinct | None


def host_distinct(tokens: np.ndarray, vocab_size: int) -> Distinct:
    """The distinct tokens of a batch as `eqx_slm.nn.embed_batch.distinct_tokens` finds them, but by numpy.

    **Arguments:** `tokens`: int[...] ids below `vocab_size`.

    **Returns:** a `Distinct` of numpy arrays: `ids` ascending, padded with 0 to min(tokens, vocabulary), so that every
    batch of a shape has the same shapes; `inverse`; `number`.
    """
    flat = tokens.reshape(-1)
    present = np.zeros(vocab_size, bool)  # no sorting: O(tokens + vocabulary)
    present[flat] = True
    found = np.flatnonzero(present)
    ids = np.zeros(min(len(flat), vocab_size), np.int32)
    ids[: len(found)] = found
    arrays: Any = (ids, (np.cumsum(present, dtype=np.int32) - 1)[flat], np.asarray(len(found), np.int32))
    return Distinct(*arrays)


class Feed:
    """Puts batches on the device `ahead` steps before they are asked for; transfers run while the step does.

    **Arguments:** `batches`: a stream's iterator. `ahead`: how many batches wait on the device, 0 to 4. `distinct`: the
    vocabulary's size where the distinct tokens of the inputs `[:, :-1]` are wanted. `device`: a device or sharding; the
    default device where None.

    `state()` is that after the last batch that was handed out, whatever waits.
    """

    def __init__(
        self, batches: BatchIterator, *, ahead: int = 2, distinct: int | None = None, device: Any = None
    ) -> None:
        if not 0 <= ahead <= 4:
            raise ValueError(f"ahead={ahead}: give 0 to 4 batches")
        self._batches, self._ahead, self._distinct, self._device = batches, ahead, distinct, device
        self._waiting: deque[Fed] = deque()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> Fed:
        while len(self._waiting) <= self._ahead:
            batch = next(self._batches)
            distinct = None if self._distinct is None else host_distinct(batch[:, :-1], self._distinct)
            # Returns before the transfer is done.
            self._waiting.append(Fed(*jax.device_put((batch, distinct), self._device)))
        return self._waiting.popleft()

    def state(self) -> StreamState:
        """Where the run is in its data."""
        return self._batches.state(back=len(self._waiting))
