"""Training straight from documents: read in order, tokenized on the fly, packed, shuffled in a buffer."""

from __future__ import annotations

import functools
import operator
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from ..errors import UserError
from .documents import OnError, Source
from .lane import Lane
from .order import Mixture
from .sources import lasting, spec_hash
from .splits import SplitRule
from .state import LARGEST, StreamState, check_cursor
from .stream import BatchIterator, Stream
from .tokenizer import Tokenizer
from .tokens import check_sizes

BUFFER_SEQUENCES = 10_000
_KEPT = 4  # batches that a state may step back over


class StreamingStream(Stream):
    """The papers' way: the documents of a source in order, packed into T + 1 tokens, through a shuffle buffer.

    Every process reads all documents and keeps its own rows. A new pass begins where the text ends. Several sources are
    packed and shuffled each for itself and mixed by weight sequence by sequence (see `Mixture`), so that the request
    holds for every prefix of what is trained on.

    **Arguments:**

    - `sources`: see `open_source`; `rules`: how each is split; only training documents are trained on.
    - `tokenizer`: one for all.
    - `weights`: how many sequences of each source; equal by default.
    - `buffer`: sequences in the shuffle buffers together; fewer where they would hold more than 25 MB.
    - `workers`: tokenizing threads of each source; 0 tokenizes in the caller's, None is one a core.
    - `on_error`: what to do with a record that is no document: "stop", or "skip" and count.
    - `vocab_size` (by default the tokenizer's) and the rest: see `Stream`.

    **Raises:** `UserError` for sizes that do not fit, and where a source has no text in a split that is needed.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        sources: Source | Sequence[Source],
        tokenizer: Tokenizer,
        *,
        rules: SplitRule | Sequence[SplitRule],
        weights: Sequence[float | int | str] | None = None,
        buffer: int = BUFFER_SEQUENCES,
        workers: int | None = 0,
        on_error: OnError = "stop",
        vocab_size: int | None = None,
        **options: Any,
    ) -> None:
        size = tokenizer.vocab_size if vocab_size is None else vocab_size
        super().__init__(vocab_size=size, tokenizer=tokenizer, **options)
        check_sizes(buffer=buffer)
        check_sizes(0, workers=workers or 0)
        self.sources: tuple[Source, ...] = (sources,) if isinstance(sources, Source) else tuple(sources)
        one = isinstance(rules, SplitRule)
        self.rules: tuple[SplitRule, ...] = (rules,) * len(self.sources) if one else tuple(rules)
        self.workers = workers
        self.on_error: OnError = on_error
        self.mixture = Mixture([1] * len(self.sources) if weights is None else weights)
        if len(self.mixture) != len(self.sources) or len(self.rules) != len(self.sources):
            raise UserError(f"{len(self.sources)} sources, {len(self.mixture)} weights, {len(self.rules)} rules")
        # What the state may hold, less the batches that it may step back over and a part of a sequence for each source.
        most = LARGEST // (4 * (self.sequence_length + 1)) - _KEPT * self.batch_size - len(self.sources)
        self.buffer = min(buffer, most)
        if self.buffer < len(self.sources):
            raise UserError(
                f"a batch of {self.batch_size} x {self.sequence_length} leaves no room for a shuffle buffer in "
                f"{LARGEST:,} bytes; give a smaller batch, or prepare the data"
            )
        self._eval: list[np.ndarray] | None = None
        self.info = {
            "corpus": " + ".join(source.name for source in self.sources),
            "corpus_hash": spec_hash(self.identity()),
            "corpus_note": f"streamed through a shuffle buffer of {self.buffer:,} sequences",
            "split_rule": "; ".join(sorted({str(rule) for rule in self.rules})),
            "tokenizer": tokenizer.name,
            "tokenizer_hash": tokenizer.hash,
            **self.info,
        }

    def identity(self) -> dict[str, Any]:
        return {
            "sources": [spec_hash(lasting(source.spec)) for source in self.sources],
            "rules": [str(rule) for rule in self.rules],
            "tokenizer": self.tokenizer.hash,
            "weights": list(self.mixture.quotas),
            "buffer": self.buffer,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
        }

    def batches(self, seed: int, *, start: int = 0) -> StreamingBatches:
        """The endless batches of a seed; a `start` is read up to, which `resume` does not need."""
        if start < 0:
            raise ValueError(f"start is {start}; give an integer of at least 0")
        iterator = StreamingBatches(self, seed)
        for _ in range(start):
            next(iterator)
        return iterator

    def batch(self, seed: int, index: int) -> np.ndarray:
        """Batch `index`; everything before it is read for it, so this is for the first few."""
        return next(self.batches(seed, start=index))

    def resume(self, state: StreamState) -> StreamingBatches:
        check_cursor(state, self.identity())
        return StreamingBatches(self, state.cursor["seed"], state)

    def eval_batches(self) -> list[np.ndarray]:
        """The validation batches, int32[B, T+1] each: about `eval_tokens` targets, equal for all seeds and arms.

        They are the first validation documents of each source, packed without overlap; at least one batch, at most all.
        """
        if self._eval is None:
            self._eval = self._read_eval()
        return self._eval

    def _read_eval(self) -> list[np.ndarray]:
        which, ordinals = self.mixture.locate(np.arange(self._wanted_batches() * self.batch_size))
        found = []
        for number in range(len(self.sources)):
            sequences = self.lane(number, "valid", workers=0).sequences()
            found.append([row for _, row in zip(range(int((which == number).sum())), sequences, strict=False)])
        # As many whole batches as every source has sequences for.
        short = [i for i in range(len(which)) if ordinals[i] >= len(found[which[i]])]
        count = (short[0] if short else len(which)) // self.batch_size
        if count < 1:
            number = int(which[short[0]])
            raise UserError(
                f"the valid split of {self.sources[number].name} has {len(found[number])} sequences of "
                f"{self.sequence_length + 1} tokens, too few for its part of one batch of {self.batch_size}; "
                "give more text, a larger --valid-share, or a smaller batch"
            )
        rows = np.stack([found[which[i]][ordinals[i]] for i in range(count * self.batch_size)])
        return [self._own_rows(part) for part in rows.reshape(count, self.batch_size, -1)]

    def lane(self, number: int, split: str = "train", **options: Any) -> Lane:
        """One of the sources, packed."""
        source, rule, length = self.sources[number], self.rules[number], self.sequence_length + 1
        return Lane(source, rule, self.tokenizer, length=length, split=split, on_error=self.on_error, **options)

    def token_counts(self) -> NoReturn:
        """Not known: raises `UserError`."""
        raise UserError(
            "a streamed source is not read ahead, so what its training split holds is not known: prepare it"
        )

    def training_tokens(self, most: int | None = None) -> NoReturn:
        self.token_counts()


class StreamingBatches(BatchIterator):
    """The batches of a `StreamingStream`; dropping it ends its threads."""

    def __init__(self, stream: StreamingStream, seed: int, state: StreamState | None = None) -> None:
        self._stream, self._seed, self._index = stream, int(seed), 0
        self._recent: deque[np.ndarray] = deque(maxlen=_KEPT)
        self._ahead: deque[np.ndarray] = deque()  # batches of a state that had stepped back
        shares = [max(1, stream.buffer * quota // stream.mixture.period) for quota in stream.mixture.quotas]
        self._lanes = [
            stream.lane(number, capacity=share, label=f"{seed}/shuffle/{number}", workers=stream.workers)
            for number, share in enumerate(shares)
        ]
        if state is not None:
            self._restore(state)
        # Ends the threads, at the latest before Python takes itself apart.
        self.close = weakref.finalize(self, _close, self._lanes)

    def __next__(self) -> np.ndarray:
        stream = self._stream
        if self._ahead:
            batch = self._ahead.popleft()
        else:
            first = self._index * stream.batch_size
            which, _ = stream.mixture.locate(np.arange(first, first + stream.batch_size))
            batch = np.stack([self._lanes[lane].next() for lane in which.tolist()])
        self._recent.append(batch)
        self._index += 1
        return stream._own_rows(batch).copy()

    @property
    def skipped(self) -> dict[str, int]:
        """How many records were left out so far, by kind (read ahead included)."""
        return dict(functools.reduce(operator.add, (lane.skipped.counts for lane in self._lanes)))

    def state(self, *, back: int = 0) -> StreamState:
        """The state after the last batch, or up to 4 batches earlier."""
        if not 0 <= back <= len(self._recent):
            raise ValueError(f"back={back}: a state can step back over at most {len(self._recent)} batches here")
        ahead = [*list(self._recent)[len(self._recent) - back :], *self._ahead]
        parts = [batch.reshape(-1) for batch in ahead]
        parts += [part for lane in self._lanes for part in (*lane.rows, lane.left)]
        cursor = {
            "stream": self._stream.identity(),
            "seed": self._seed,
            "batch": self._index - back,
            "ahead": len(ahead),
            "lanes": [lane.state() for lane in self._lanes],
        }
        return StreamState(cursor, np.concatenate([np.zeros(0, np.int32), *parts]))

    def _restore(self, state: StreamState) -> None:
        stream, cursor, tokens = self._stream, state.cursor, state.tokens
        length, self._index = stream.sequence_length + 1, state.batches

        def take(count: int) -> np.ndarray:
            nonlocal tokens
            taken, tokens = tokens[:count], tokens[count:]
            return taken

        for _ in range(cursor["ahead"]):
            self._ahead.append(take(stream.batch_size * length).reshape(stream.batch_size, length))
        for lane, data in zip(self._lanes, cursor["lanes"], strict=True):
            lane.restore(data, take(data["rows"] * length).reshape(-1, length), take(data["left"]).copy())


def _close(lanes: list[Lane]) -> None:
    for lane in lanes:
        lane.close()
