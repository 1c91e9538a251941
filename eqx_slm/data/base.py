"""What every stream is, and the streams whose batch `i` can be had at any time."""

from __future__ import annotations

import abc
import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..errors import UserError
from .state import StreamState, check_cursor
from .tokenizer import Tokenizer

_ENDLESS = 2**48  # batches; more than anyone trains on
_AT_ONCE = 2**16  # tokens gathered at once: small batches cost more in calls than in copying


@runtime_checkable
class BatchIterator(Protocol):
    """Endless batches that know where they are."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Itself."""
        ...

    def __next__(self) -> np.ndarray:
        """The next batch, int32[B, T+1]."""
        ...

    def state(self, *, back: int = 0) -> StreamState:
        """The state after the last batch, or `back` batches earlier (what has been read ahead)."""
        ...


class Stream(abc.ABC):
    """Batches of token windows in an order that depends on the seed alone.

    **Attributes:** `vocab_size`; `sequence_length` T, in tokens; `batch_size` B, in windows of all processes;
    `info`: what a report needs, as JSON; `tokenizer`, or None; `byte_lengths`: the bytes of each id, or None;
    `process_index`, `process_count`: a process gets rows [i B / n, (i + 1) B / n) of every batch.
    """

    vocab_size: int
    sequence_length: int
    batch_size: int
    info: dict[str, Any]
    tokenizer: Tokenizer | None
    byte_lengths: np.ndarray | None
    process_index: int
    process_count: int

    @property
    def padding(self) -> int:
        """Ids of the vocabulary that stand for nothing: those beyond the tokenizer's."""
        return 0 if self.tokenizer is None else self.vocab_size - self.tokenizer.vocab_size

    @abc.abstractmethod
    def batch(self, seed: int, index: int) -> np.ndarray:
        """Training batch `index` of a seed, int32[B, T+1]: inputs are columns [:-1], targets [1:]."""

    @abc.abstractmethod
    def batches(self, seed: int, *, start: int = 0) -> BatchIterator:
        """The endless training batches of a seed from batch `start` on, int32[B, T+1] each."""

    @abc.abstractmethod
    def resume(self, state: StreamState) -> BatchIterator:
        """The batches after a state; `UserError` where it is another stream's."""

    @abc.abstractmethod
    def eval_batches(self) -> list[np.ndarray]:
        """The validation batches, int32[B, T+1] each, equal for all seeds and arms."""

    @abc.abstractmethod
    def token_counts(self) -> np.ndarray:
        """How often each id occurs in the training split, int64[vocab_size]."""

    @abc.abstractmethod
    def training_tokens(self, most: int | None = None) -> np.ndarray:
        """The first `most` tokens of the training split in the order of the text, all by default, int32[n]."""

    def digest(self, seed: int, steps: int) -> str:
        """sha256 (hex) of the first `steps` training batches of a seed: equal digests are equal data in equal order."""
        digest = hashlib.sha256(f"{self.vocab_size} {self.batch_size} {self.sequence_length}".encode())
        for _, batch in zip(range(steps), self.batches(seed), strict=False):
            digest.update(batch.astype("<i4", copy=False).tobytes())
        return digest.hexdigest()

    def eval_bytes(self) -> int | None:
        """UTF-8 bytes that the targets of `eval_batches` stand for; None for a tokenizer that loses bytes."""
        if self.byte_lengths is None:
            return None
        return sum(int(self.byte_lengths[batch[:, 1:]].sum(dtype=np.int64)) for batch in self.eval_batches())

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32[t]; raises `ValueError` for a stream made without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("this stream was made from tokens and has no tokenizer; give `tokenizer=` to encode text")
        return self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids, or the ids themselves for a stream made without a tokenizer."""
        if self.tokenizer is None:
            return " ".join(str(i) for i in np.asarray(ids).reshape(-1).tolist())
        return self.tokenizer.decode(ids)

    def _own_rows(self, rows: np.ndarray) -> np.ndarray:
        """Of the rows of a whole batch, those of this process."""
        share = len(rows) // self.process_count
        return rows[self.process_index * share : (self.process_index + 1) * share]


class IndexedStream(Stream):
    """A stream whose batch `i` can be had at any time: its state is a number."""

    def several(self, seed: int, index: int, count: int) -> Sequence[np.ndarray] | np.ndarray:
        """`count` training batches of a seed from batch `index` on."""
        return [self.batch(seed, index + i) for i in range(count)]

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the batches, as JSON."""

    def batches(self, seed: int, *, start: int = 0) -> IndexedBatches:
        """The endless training batches of a seed from batch `start` on, int32[B, T+1] each, read through Grain."""
        if start < 0:
            raise ValueError(f"start is {start}; give an integer of at least 0")
        return IndexedBatches(self, seed, start)

    def resume(self, state: StreamState) -> IndexedBatches:
        """The batches after a state; `UserError` where it is another stream's."""
        check_cursor(state, self.identity())
        return self.batches(state.cursor["seed"], start=state.batches)


class IndexedBatches:
    """The batches of an `IndexedStream`, through Grain."""

    def __init__(self, stream: IndexedStream, seed: int, start: int) -> None:
        import grain

        # An element is whole batches, several of them where they are small: row by row Grain spends far longer on its
        # own work than numpy on ours. Reading ahead in threads would hide little and leave them behind at exit.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        count = max(1, _AT_ONCE // (stream.batch_size * (stream.sequence_length + 1)))
        source = _BatchSource(stream, seed, start, count)
        self._iterator = iter(grain.MapDataset.source(source).to_iter_dataset(options))
        self._stream, self._seed, self._index = stream, seed, start
        self._waiting: deque[np.ndarray] = deque()

    def __iter__(self) -> IndexedBatches:
        return self

    def __next__(self) -> np.ndarray:
        if not self._waiting:
            self._waiting.extend(next(self._iterator))
        self._index += 1
        return self._waiting.popleft()

    def state(self, *, back: int = 0) -> StreamState:
        """The state after the last batch, or `back` batches earlier."""
        cursor = {"stream": self._stream.identity(), "seed": int(self._seed), "batch": self._index - back}
        return StreamState(cursor)


class _BatchSource:
    """Grain's random-access source whose element `i` is the batches from `start + count i` on, `count` of them."""

    def __init__(self, stream: IndexedStream, seed: int, start: int, count: int) -> None:
        self._stream, self._seed, self._start, self._count = stream, seed, start, count

    def __len__(self) -> int:
        return _ENDLESS // self._count

    def __getitem__(self, index: int) -> Sequence[np.ndarray] | np.ndarray:
        return self._stream.several(self._seed, self._start + index * self._count, self._count)

    def __repr__(self) -> str:  # Grain may print its source
        return f"{type(self._stream).__name__}(seed={self._seed}, start={self._start})"


def check_processes(batch_size: int, index: int, count: int) -> None:
    """Raises `UserError` where the batch does not divide among the processes."""
    if not 0 <= index < count:
        raise UserError(f"process_index is {index} of process_count {count}; give an index below the count")
    if batch_size % count:
        raise UserError(f"a batch of {batch_size} does not divide among {count} processes; give a multiple of {count}")
