"""Training straight from documents: read in order, tokenized on the fly, packed, shuffled in a buffer."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

import numpy as np

from ..checks import INT32, whole
from ..errors import UserError
from ..files import json_hash
from .documents import START, Document, OnError, Position, Problem, Skipped, Source
from .order import draw, label_start
from .sources import lasting
from .splits import SplitRule
from .state import LARGEST, StreamState, check_cursor
from .stream import BatchIterator, Stream
from .tokenizer import Tokenizer, padded_vocab
from .tokenizing import tokenized

BUFFER_SEQUENCES = 10_000
_KEPT = 4  # batches that a state may step back over
_NONE = np.zeros(0, np.int32)


class StreamingStream(Stream):
    """The papers' way: the documents of a source in order, packed into T + 1 tokens, through a shuffle buffer.

    Every process reads all documents and keeps its own rows. A new pass begins where the text ends.

    **Arguments:**

    - `source`: see `open_source`; `rule`: how it is split; only training documents are trained on.
    - `tokenizer`: see `make_tokenizer`.
    - `buffer`: sequences in the shuffle buffer; fewer where they would hold more than 25 MB.
    - `workers`: tokenizing threads; 0 tokenizes in the caller's, None is one a core.
    - `on_error`: what to do with a record that is no document: "stop", or "skip" and count.
    - `vocab_size`, `pad_vocab_to` and the rest: see `make_stream`.

    **Raises:** `UserError` for sizes that do not fit, and where the source has no text in a split that is needed.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        rule: SplitRule,
        buffer: int = BUFFER_SEQUENCES,
        workers: int | None = 0,
        on_error: OnError = "stop",
        vocab_size: int | None = None,
        pad_vocab_to: int = 1,
        train_tokens: int | None = None,
        **options: Any,
    ) -> None:
        if train_tokens is not None:
            raise UserError(f"train_tokens is {train_tokens}: streamed text has no known part; prepare it first")
        size = padded_vocab(tokenizer.vocab_size if vocab_size is None else vocab_size, pad_vocab_to)
        super().__init__(vocab_size=size, tokenizer=tokenizer, **options)
        whole("buffer", buffer, most=INT32)
        whole("workers", workers or 0, 0, most=INT32)
        self.source, self.rule, self.workers = source, rule, workers
        self.on_error: OnError = on_error
        # What the state may hold, less the batches that it may step back over and a part of a sequence.
        self.buffer = min(buffer, LARGEST // (4 * (self.sequence_length + 1)) - _KEPT * self.batch_size - 1)
        if self.buffer < 1:
            raise UserError(
                f"a batch of {self.batch_size} x {self.sequence_length} leaves no room for a shuffle buffer in "
                f"{LARGEST:,} bytes; give a smaller batch, or prepare the data"
            )
        self._eval: list[np.ndarray] | None = None
        note = getattr(source, "note", "")  # of text that is in memory
        self.info = {
            "corpus": source.name,
            "corpus_hash": json_hash(self.identity()),
            "corpus_note": f"{note} streamed through a shuffle buffer of {self.buffer:,} sequences".lstrip(),
            "split_rule": str(rule),
            **self.info,
        }

    def identity(self) -> dict[str, Any]:
        return {
            "source": json_hash(lasting(self.source.spec)),
            "rule": str(self.rule),
            "tokenizer": self.tokenizer.hash,
            "buffer": self.buffer,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
        }

    def batches(self, seed: int, *, start: int = 0) -> StreamingBatches:
        """The endless batches of a seed; a `start` is read up to, which `resume` does not need."""
        iterator = StreamingBatches(self, seed)
        for _ in range(whole("start", start, 0)):
            next(iterator)
        return iterator

    def batch(self, seed: int, index: int) -> np.ndarray:
        """Batch `index`; everything before it is read for it, so this is for the first few."""
        return next(self.batches(seed, start=index))

    def resume(self, state: StreamState) -> StreamingBatches:
        check_cursor(state, self.identity())
        return StreamingBatches(self, state.cursor["seed"], state)

    def eval_batches(self) -> list[np.ndarray]:
        if self._eval is None:
            packing = Packing(self, "valid")
            rows = [*itertools.islice(packing, self._wanted_batches() * self.batch_size)]
            packing.close()
            if len(rows) < self.batch_size:
                raise UserError(
                    f"the valid split of {self.source.name} has {len(rows)} sequences of {self.sequence_length + 1} "
                    f"tokens, too few for one batch of {self.batch_size}; give more text, a larger --valid-share, or "
                    "a smaller batch"
                )
            whole = range(0, len(rows) - self.batch_size + 1, self.batch_size)
            self._eval = [np.stack(rows[at : at + self.batch_size])[self.own] for at in whole]
        return self._eval

    def token_counts(self) -> NoReturn:
        """Not known: raises `UserError`."""
        raise UserError(
            "a streamed source is not read ahead, so what its training split holds is not known: prepare it"
        )

    def training_tokens(self, most: int | None = None) -> NoReturn:
        self.token_counts()


class Packing(Iterator[np.ndarray]):
    """The documents of one split in a row, cut into sequences, int32[T+1]; one pass.

    Sequences run across documents and do not overlap; a separator stands before every document but the first of all.
    What is left at the end of a pass (less than a sequence) begins the first sequence of the next, so no token is lost
    and none comes twice.

    **Attributes**, from which it goes on: `at`: the document that is being cut. `used`: how many of its tokens are
    done, with the separator before it where it is `parted`. `left`: the part of a sequence that is begun.
    """

    def __init__(self, stream: StreamingStream, split: str, workers: int | None = 0) -> None:
        self._stream, self._split, self._workers = stream, split, workers
        self.at: Position | None = None
        self.used, self.parted, self.left = 0, False, _NONE
        self.skipped = Skipped(stream.on_error)
        self._sequences = self._cut()

    def __next__(self) -> np.ndarray:
        return next(self._sequences)

    def again(self, *, parted: bool) -> None:
        """Begins a pass, with what the last one left."""
        self.at, self.parted = None, parted
        self._sequences = self._cut()

    def close(self) -> None:
        """Ends the threads of the pass."""
        self._sequences.close()

    def _wanted(self, document: Document) -> bool:
        return self._stream.rule(document) == self._split

    def _cut(self) -> Generator[np.ndarray, None, None]:
        stream, at, parted, have = self._stream, self.at, self.parted, self.left
        length, separator = stream.sequence_length + 1, np.asarray(stream.tokenizer.separator, np.int32)
        items = stream.source.items(at or START, self._split if stream.rule.kind == "official" else "")
        for item, ids in tokenized(items, stream.tokenizer, wanted=self._wanted, workers=self._workers):
            if isinstance(item, Problem):
                self.skipped.see(item)
                continue
            ids = np.concatenate([separator, ids]) if parted else ids
            if at is None:
                self.at, self.used, self.parted = item.at, 0, parted
            elif item.at != at or self.used > len(ids):
                break
            parted, at = True, None
            while True:
                part = ids[self.used : self.used + length - len(have)]
                have = np.concatenate([have, part])  # a copy: a view would keep the whole document
                self.used += len(part)
                if len(have) < length:
                    break
                self.left = _NONE
                yield have
                have = _NONE
        if at is not None:
            raise UserError(f"{stream.source.name} has no document at {tuple(at)} any more: it changed since the state")
        self.left = have


class StreamingBatches(BatchIterator):
    """The batches of a `StreamingStream`; dropping it ends its threads.

    A draw takes a place of the buffer that depends on seed, pass and number alone, and the next sequence is put there:
    each pass comes out as a permutation of itself.
    """

    def __init__(self, stream: StreamingStream, seed: int, state: StreamState | None = None) -> None:
        self._stream, self._seed, self._index = stream, whole("seed", seed, None), 0
        self._epoch, self._draws, self._ended = -1, 0, True
        self._rows: list[np.ndarray] = []
        self._packing = Packing(stream, "train", stream.workers)
        self._recent: deque[np.ndarray] = deque(maxlen=_KEPT)
        self._ahead: deque[np.ndarray] = deque()  # batches of a state that had stepped back
        if state is not None:
            self._restore(state)
        # Ends the threads, at the latest before Python takes itself apart.
        self.close = weakref.finalize(self, self._packing.close)

    def __next__(self) -> np.ndarray:
        stream = self._stream
        if self._ahead:
            batch = self._ahead.popleft()
        else:
            batch = np.stack([self._draw() for _ in range(stream.batch_size)])
        self._recent.append(batch)
        self._index += 1
        return batch[stream.own].copy()

    def _draw(self) -> np.ndarray:
        while self._ended and not self._rows:
            self._epoch, self._draws, self._ended, left = self._epoch + 1, 0, False, len(self._packing.left)
            self._packing.again(parted=self._epoch > 0)
            while len(self._rows) < self._stream.buffer and (row := self._pull()) is not None:
                self._rows.append(row)
            if not self._rows and len(self._packing.left) == left:  # a whole pass gave not a token
                source, rule = self._stream.source, self._stream.rule
                raise UserError(f"{source.name} has no training text by the rule '{rule}'; give more text")
        label = f"{self._seed}/shuffle/0/{self._epoch}"
        place = draw(label_start(label), self._draws, len(self._rows))
        self._draws += 1
        row, new = self._rows[place], self._pull()
        self._rows[place] = self._rows[-1] if new is None else new
        if new is None:
            self._rows.pop()
        return row

    def _pull(self) -> np.ndarray | None:
        row = None if self._ended else next(self._packing, None)
        self._ended = row is None
        return row

    @property
    def skipped(self) -> dict[str, int]:
        """How many records were left out so far, by kind (read ahead included)."""
        return dict(self._packing.skipped.counts)

    def state(self, *, back: int = 0) -> StreamState:
        """The state after the last batch, or up to 4 batches earlier."""
        if not 0 <= back <= len(self._recent):
            raise ValueError(f"back={back}: a state can step back over at most {len(self._recent)} batches here")
        ahead = [*list(self._recent)[len(self._recent) - back :], *self._ahead]
        packing = self._packing
        cursor = {
            "stream": self._stream.identity(),
            "seed": self._seed,
            "batch": self._index - back,
            "ahead": len(ahead),
            "buffer": {"epoch": self._epoch, "draws": self._draws, "ended": self._ended, "rows": len(self._rows)},
            "packing": {"at": packing.at, "used": packing.used, "parted": packing.parted, "left": len(packing.left)},
        }
        return StreamState(cursor, np.concatenate([*(batch.reshape(-1) for batch in ahead), *self._rows, packing.left]))

    def _restore(self, state: StreamState) -> None:
        buffer, packing = state.cursor["buffer"], state.cursor["packing"]
        size, length = self._stream.batch_size, self._stream.sequence_length + 1
        sequences = state.tokens[: len(state.tokens) - packing["left"]].reshape(-1, length)
        ahead = state.cursor["ahead"]
        self._index = state.batches
        self._ahead.extend(sequences[: ahead * size].reshape(ahead, size, length))
        self._rows = [*sequences[ahead * size :]]
        self._epoch, self._draws, self._ended = buffer["epoch"], buffer["draws"], buffer["ended"]
        self._packing.at = None if packing["at"] is None else Position(*packing["at"])
        self._packing.used, self._packing.parted = packing["used"], packing["parted"]
        self._packing.left = state.tokens[len(state.tokens) - packing["left"] :].copy()
