"""Feeding: batches on the device ahead of the step."""

from __future__ import annotations

from collections import deque
from typing import Any

import jax

from .state import StreamState
from .stream import BatchIterator


class Feed:
    """Puts batches on the device `ahead` steps before they are asked for; transfers run while the step does.

    **Arguments:** `batches`: a stream's iterator. `ahead`: how many batches wait on the device, 0 to 4. `device`: a
    device or sharding; the default device where None.
    """

    def __init__(self, batches: BatchIterator, *, ahead: int = 2, device: Any = None) -> None:
        if not 0 <= ahead <= 4:
            raise ValueError(f"ahead={ahead}: give 0 to 4 batches")
        self._batches, self._ahead, self._device = batches, ahead, device
        self._waiting: deque[jax.Array] = deque()

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> jax.Array:
        """The next batch, int32[B, T+1], on the device."""
        while len(self._waiting) <= self._ahead:  # returns before the transfer is done
            self._waiting.append(jax.device_put(next(self._batches), self._device))
        return self._waiting.popleft()

    def state(self) -> StreamState:
        """That after the last batch that was handed out, whatever waits."""
        return self._batches.state(back=len(self._waiting))
