"""Training straight from documents: read in order, tokenized on the fly, packed, shuffled in a buffer."""

from __future__ import annotations

import platform
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from ..errors import UserError
from .base import Stream, check_processes
from .documents import OnError, Problem, Skipped, Source
from .lane import Lane, only
from .mix import Schedule
from .pack import Packer, Tokenized
from .sources import lasting, spec_hash
from .splits import SplitRule
from .state import LARGEST, StreamState, check_cursor
from .tokenizer import Tokenizer
from .workers import TokenizingPool

BUFFER_SEQUENCES = 10_000
_KEPT = 4  # batches that a state may step back over


class StreamingStream(Stream):
    """The papers' way: the documents of a source in order, packed into T + 1 tokens, through a shuffle buffer.

    Every process reads all documents and keeps its own rows. A new pass begins where the text ends. Several sources are
    packed and shuffled each for itself and mixed by weight sequence by sequence (see `Schedule`), so that the request
    holds for every prefix of what is trained on.

    **Arguments:**

    - `sources`: see `open_source`; `rules`: how each is split; only training documents are trained on.
    - `tokenizer`: one for all.
    - `sequence_length`, `batch_size`, `eval_tokens`: see `TokenStream`.
    - `vocab_size`: the model's; by default the tokenizer's.
    - `weights`: how many sequences of each source; equal by default.
    - `buffer`: sequences in the shuffle buffers together; fewer where they would hold more than 25 MB.
    - `workers`: tokenizing processes; 0 tokenizes in this one, None is one a core.
    - `on_error`: what to do with a record that is no document: "stop", or "skip" and count.
    - `process_index`, `process_count`: which rows of every batch are this process's.

    **Raises:** `UserError` for sizes that do not fit, and where a source has no text in a split that is needed.
    """

    def __init__(
        self,
        sources: Source | Sequence[Source],
        tokenizer: Tokenizer,
        *,
        rules: SplitRule | Sequence[SplitRule],
        sequence_length: int,
        batch_size: int,
        eval_tokens: int = 16384,
        vocab_size: int | None = None,
        weights: Sequence[float | int | str] | None = None,
        buffer: int = BUFFER_SEQUENCES,
        workers: int | None = 0,
        on_error: OnError = "stop",
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        self.sources: tuple[Source, ...] = (sources,) if isinstance(sources, Source) else tuple(sources)
        one = isinstance(rules, SplitRule)
        self.rules: tuple[SplitRule, ...] = (rules,) * len(self.sources) if one else tuple(rules)
        sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "eval_tokens": eval_tokens}
        for name, size in {**sizes, "buffer": buffer}.items():
            if size < 1:
                raise UserError(f"{name} is {size}; give an integer of at least 1")
        check_processes(batch_size, process_index, process_count)
        if vocab_size is not None and vocab_size < tokenizer.vocab_size:
            raise UserError(
                f"vocab_size is {vocab_size}, but the tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids; "
                f"raise --vocab-size to at least {tokenizer.vocab_size}"
            )
        self.schedule = Schedule([1] * len(self.sources) if weights is None else weights)
        if len(self.schedule) != len(self.sources) or len(self.rules) != len(self.sources):
            raise UserError(f"{len(self.sources)} sources, {len(self.schedule)} weights, {len(self.rules)} rules")
        self.tokenizer, self.workers = tokenizer, workers
        self.on_error: OnError = on_error
        self.sequence_length, self.batch_size, self.eval_tokens = sequence_length, batch_size, eval_tokens
        self.process_index, self.process_count = process_index, process_count
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self.byte_lengths = None
        if tokenizer.byte_lengths is not None:
            self.byte_lengths = np.pad(tokenizer.byte_lengths, (0, self.vocab_size - len(tokenizer.byte_lengths)))
        # What the state may hold, less the batches that it may step back over and a part of a sequence for each source.
        row = 4 * (sequence_length + 1)
        most = LARGEST // row - _KEPT * batch_size - len(self.sources)
        self.buffer = min(buffer, most)
        if self.buffer < len(self.sources):
            raise UserError(
                f"a batch of {batch_size} x {sequence_length} leaves no room for a shuffle buffer in {LARGEST:,} "
                "bytes; give a smaller batch, or prepare the data"
            )
        total = sum(self.schedule.quotas)
        self.capacities = [max(1, self.buffer * quota // total) for quota in self.schedule.quotas]
        self._eval: list[np.ndarray] | None = None
        identity = self.identity()
        self.info: dict[str, Any] = {
            "corpus": " + ".join(source.name for source in self.sources),
            "corpus_hash": spec_hash(identity),
            "corpus_note": f"streamed through a shuffle buffer of {self.buffer:,} sequences",
            "split_rule": "; ".join(sorted({str(rule) for rule in self.rules})),
            "tokenizer": tokenizer.name,
            "tokenizer_hash": tokenizer.hash,
            "vocab_size": self.vocab_size,
            "python": platform.python_version(),
        }

    def identity(self) -> dict[str, Any]:
        """What decides the batches, as JSON."""
        return {
            "sources": [spec_hash(lasting(source.spec)) for source in self.sources],
            "rules": [str(rule) for rule in self.rules],
            "tokenizer": self.tokenizer_hash,
            "weights": list(self.schedule.quotas),
            "buffer": self.buffer,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
        }

    @property
    def tokenizer_hash(self) -> str:
        """The tokenizer's hash."""
        assert self.tokenizer is not None
        return self.tokenizer.hash

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
        if index < 0:
            raise ValueError(f"batch index {index} is negative; give an integer of at least 0")
        iterator = self.batches(seed, start=index)
        try:
            return next(iterator)
        finally:
            iterator.close()

    def resume(self, state: StreamState) -> StreamingBatches:
        """The batches after a state; `UserError` where it is another stream's."""
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
        assert self.tokenizer is not None
        count = max(1, round(self.eval_tokens / (self.batch_size * self.sequence_length)))
        which, ordinals = self.schedule.locate(np.arange(count * self.batch_size))
        found: list[list[np.ndarray]] = []
        for number, (source, rule) in enumerate(zip(self.sources, self.rules, strict=True)):
            packer = Packer(self.sequence_length + 1, np.asarray(self.tokenizer.separator, np.int32))
            packer.start(self._encode(only(source, rule, "valid"), rule, "valid", Skipped(self.on_error)))
            rows: list[np.ndarray] = []
            while len(rows) < int((which == number).sum()) and (row := packer.next()) is not None:
                rows.append(row)
            found.append(rows)
        # As many whole batches as every source has sequences for.
        short = [i for i in range(len(which)) if ordinals[i] >= len(found[which[i]])]
        if short:
            count = short[0] // self.batch_size
        if count < 1:
            source = self.sources[which[short[0]]]
            raise UserError(
                f"the valid split of {source.name} has {len(found[which[short[0]]])} sequences of "
                f"{self.sequence_length + 1} tokens, too few for its part of one batch of {self.batch_size}; "
                "give more text, a larger --valid-share, or a smaller batch"
            )
        rows = [found[which[i]][ordinals[i]] for i in range(count * self.batch_size)]
        return [self._own_rows(part) for part in np.stack(rows).reshape(count, self.batch_size, -1)]

    def _encode(self, source: Source, rule: SplitRule, split: str, skipped: Skipped) -> Iterator[Tokenized]:
        assert self.tokenizer is not None
        for item in source.items():
            if isinstance(item, Problem):
                skipped.see(item)
            elif rule(item) == split:
                yield Tokenized(self.tokenizer.encode(item.text), item.at)

    def token_counts(self) -> NoReturn:
        """Not known: raises `UserError`."""
        raise UserError("a streamed source is not read ahead, so its token counts are not known: prepare it first")

    def training_tokens(self, most: int | None = None) -> np.ndarray:
        """The first `most` training tokens in the order of the text, int32[n]; `UserError` without a limit."""
        if most is None:
            raise UserError("a streamed source is not read ahead: give a limit, or prepare it first")
        found, have = [np.zeros(0, np.int32)], 0
        for tokenized in self._encode(self.sources[0], self.rules[0], "train", Skipped(self.on_error)):
            found.append(tokenized.ids)
            have += len(tokenized.ids)
            if have >= most:
                break
        return np.concatenate(found)[:most]


class StreamingBatches:
    """The batches of a `StreamingStream`; `close`, or dropping it, ends its worker processes."""

    def __init__(self, stream: StreamingStream, seed: int, state: StreamState | None = None) -> None:
        assert stream.tokenizer is not None
        self._stream, self._seed, self._index = stream, seed, 0
        self._pool = TokenizingPool(stream.tokenizer, stream.workers)
        self._close = weakref.finalize(self, self._pool.close)  # whoever drops this drops its processes
        self._recent: deque[np.ndarray] = deque(maxlen=_KEPT)
        self._ahead: deque[np.ndarray] = deque()  # batches of a state that had stepped back
        self._lanes = [
            Lane(
                source,
                rule,
                self._pool,
                length=stream.sequence_length + 1,
                capacity=capacity,
                label=f"{seed}/shuffle/{number}",
                on_error=stream.on_error,
            )
            for number, (source, rule, capacity) in enumerate(
                zip(stream.sources, stream.rules, stream.capacities, strict=True)
            )
        ]
        if state is not None:
            self._restore(state)

    def __iter__(self) -> StreamingBatches:
        return self

    def __next__(self) -> np.ndarray:
        stream = self._stream
        if self._ahead:
            batch = self._ahead.popleft()
        else:
            first = self._index * stream.batch_size
            which, _ = stream.schedule.locate(np.arange(first, first + stream.batch_size))
            batch = np.stack([self._lanes[lane].next() for lane in which.tolist()])
        self._recent.append(batch)
        self._index += 1
        return stream._own_rows(batch).copy()

    @property
    def skipped(self) -> dict[str, int]:
        """How many records were left out so far, by kind (read ahead included)."""
        total: dict[str, int] = {}
        for lane in self._lanes:
            for kind, count in lane.skipped.counts.items():
                total[kind] = total.get(kind, 0) + count
        return total

    def state(self, *, back: int = 0) -> StreamState:
        """The state after the last batch, or up to 4 batches earlier."""
        if not 0 <= back <= len(self._recent):
            raise ValueError(f"back={back}: a state can step back over at most {len(self._recent)} batches here")
        ahead = [*list(self._recent)[len(self._recent) - back :], *self._ahead]
        parts = [batch.reshape(-1) for batch in ahead]
        lanes = []
        for lane in self._lanes:
            lanes.append(lane.cursor())
            parts += [lane.buffer.rows.reshape(-1), lane.packer.left]
        cursor = {
            "stream": self._stream.identity(),
            "seed": self._seed,
            "batch": self._index - back,
            "ahead": len(ahead),
            "lanes": lanes,
        }
        return StreamState(cursor, np.concatenate([np.zeros(0, np.int32), *parts]))

    def _restore(self, state: StreamState) -> None:
        stream, tokens = self._stream, state.tokens
        length = stream.sequence_length + 1
        cursor = state.cursor

        def take(count: int) -> np.ndarray:
            nonlocal tokens
            if count > len(tokens):
                raise UserError(
                    "the data state has fewer buffered tokens than its cursor says: take another checkpoint"
                )
            taken, tokens = tokens[:count], tokens[count:]
            return taken

        self._index = state.batches
        for _ in range(cursor["ahead"]):
            self._ahead.append(take(stream.batch_size * length).reshape(stream.batch_size, length))
        for lane, data in zip(self._lanes, cursor["lanes"], strict=True):
            lane.restore(data, take(data["rows"] * length).reshape(-1, length), take(data["left"]).copy())

    def close(self) -> None:
        """Ends the worker processes."""
        self._close()
