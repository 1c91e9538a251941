"""Token streams: what all have in common, and windows of known tokens in a fixed pseudo-random order."""

from __future__ import annotations

import abc
import copy
import functools
import hashlib
import platform
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..checks import INT32, check_sizes, shown, whole
from ..errors import UserError
from .order import Mixture, places
from .splits import SPLITS
from .state import StreamState, check_cursor
from .tokenizer import Tokenizer
from .tokens import Tokens, as_tokens, check_processes

EVAL_SEED, PART_SEED = "validation", "part"  # strings: no integer seed of a run gives the same order


class BatchIterator(Iterator[np.ndarray], abc.ABC):
    """Endless batches, int32[B, T+1], that know where they are."""

    @abc.abstractmethod
    def state(self, *, back: int = 0) -> StreamState:
        """The state after the last batch, or `back` batches earlier (what has been read ahead)."""


class Stream(abc.ABC):
    """Batches of token windows in an order that depends on the seed alone.

    **Arguments** and attributes:

    - `vocab_size`: the model's; at least the tokenizer's.
    - `sequence_length`: T, in tokens. `batch_size`: B, in windows of all processes.
    - `eval_tokens`: about how many targets `eval_batches` holds.
    - `tokenizer`: for `encode` and `decode`, if there is one. `info`: what a report needs, as JSON.
    - `byte_lengths`: the bytes of each id, int32[vocab_size], or None for a tokenizer that loses bytes.
    - `process_index`, `process_count`: a process gets rows [i B / n, (i + 1) B / n) of every batch.

    **Raises:** `UserError` where one of them does not fit.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        sequence_length: int = 128,
        batch_size: int = 16,
        eval_tokens: int = 16384,
        tokenizer: Tokenizer | None = None,
        byte_lengths: np.ndarray | None = None,
        info: dict[str, Any] | None = None,
        process_index: int = 0,
        process_count: int = 1,
        **unknown: Any,
    ) -> None:
        if unknown:
            options = "vocab_size, sequence_length, batch_size, eval_tokens, train_tokens, process_index, process_count"
            raise UserError(f"a stream has no option {next(iter(unknown))!r}; it has {options}")
        sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "eval_tokens": eval_tokens}
        check_sizes(most=INT32, vocab_size=vocab_size, **sizes)
        check_processes(batch_size, process_index, process_count)
        if tokenizer is not None:
            if vocab_size < (known := tokenizer.vocab_size):
                raise UserError(
                    f"vocab_size is {vocab_size}, but the tokenizer {tokenizer.name} has {known} ids; "
                    f"raise --vocab-size to at least {known}, or leave it out"
                )
            byte_lengths = tokenizer.byte_lengths if byte_lengths is None else byte_lengths
            info = {**(info or {}), "tokenizer": tokenizer.name, "tokenizer_hash": tokenizer.hash}
        if byte_lengths is not None:
            byte_lengths = as_tokens(byte_lengths, INT32, "byte_lengths")
            if len(byte_lengths) > vocab_size:
                raise UserError(f"byte_lengths has {len(byte_lengths):,} entries for {vocab_size:,} ids; give one each")
            byte_lengths = np.pad(byte_lengths, (0, vocab_size - len(byte_lengths)))
        self.vocab_size, self.sequence_length, self.batch_size = vocab_size, sequence_length, batch_size
        self.eval_tokens, self.tokenizer, self.byte_lengths = eval_tokens, tokenizer, byte_lengths
        self.process_index, self.process_count, share = process_index, process_count, batch_size // process_count
        self.own = slice(process_index * share, (process_index + 1) * share)  # of the rows of a whole batch
        self.info = {**(info or {}), "vocab_size": vocab_size, "python": platform.python_version()}

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
    def identity(self) -> dict[str, Any]:
        """What decides the batches, as JSON."""

    @abc.abstractmethod
    def eval_batches(self) -> list[np.ndarray]:
        """The validation batches, int32[B, T+1] each: about `eval_tokens` targets, at least one batch, at most all.

        They are equal for all seeds and arms: the first windows of one fixed permutation of each validation split,
        mixed by the weights; of streamed text the first validation documents, packed without overlap.
        """

    @abc.abstractmethod
    def token_counts(self) -> np.ndarray:
        """How often each id occurs in the training split, int64[vocab_size]."""

    @abc.abstractmethod
    def training_tokens(self, most: int | None = None) -> np.ndarray:
        """The first `most` tokens of the (first) training split in the order of the text, all by default, int32[n]."""

    def digest(self, seed: int, steps: int) -> str:
        """sha256 (hex) of the first `steps` training batches of a seed: equal digests are equal data in equal order."""
        digest = hashlib.sha256(f"{self.vocab_size} {self.batch_size} {self.sequence_length}".encode())
        for _, batch in zip(range(whole("steps", steps, 0)), self.batches(seed), strict=False):
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
        if not isinstance(text, str):
            raise UserError(f"the text to encode is {shown(text)}: give a string")
        return self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids, or the ids themselves for a stream made without a tokenizer."""
        if self.tokenizer is None:
            return " ".join(str(i) for i in np.asarray(ids).reshape(-1).tolist())
        return self.tokenizer.decode(ids)

    def of_rows(self, rows: slice) -> Stream:
        """The same stream, which makes these rows of its batches alone: what a process' own devices hold, say."""
        stream = copy.copy(self)
        stream.own = rows
        return stream

    def _wanted_batches(self) -> int:
        return max(1, round(self.eval_tokens / (self.batch_size * self.sequence_length)))


class TokenStream(Stream):
    """Known tokens, in memory or mapped from the disk, and the order in which a run reads them.

    Training tokens are cut into windows of `sequence_length` + 1 tokens, each starting on the last token of the one
    before, so that every token but the first is a target once. One epoch reads every window once, in an order that
    depends on the seed and the epoch only; what does not fill a batch at the end of an epoch is dropped. Of several
    sources each sequence comes from the one that the mixture names, and each starts its next epoch when its own windows
    are used up. Batch `i` of a seed can be had at any time, which is what resuming and a matched pair stand on. Use
    `make_stream`, `open_prepared` or `TokenStream.from_tokens`.

    **Arguments:** `splits`: of each source the tokens by split. `mixture`: of the sources, where they are several.
    `hashes`: of each source's tokens, where they are known. `train_tokens`: how many distinct targets are trained on,
    in whole windows, all without it; a longer run passes over them again. They are windows of the whole split, the same
    for all seeds, and of a larger part. `options`: see `Stream`.

    **Raises:** `UserError` where a split has not one batch of windows.
    """

    def __init__(
        self,
        splits: Sequence[dict[str, Tokens]],
        *,
        mixture: Mixture | None = None,
        hashes: Sequence[str] | None = None,
        train_tokens: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.splits, self._hashes, self.train_tokens = tuple(splits), hashes, train_tokens
        self.mixture = mixture or Mixture([1] * len(self.splits))
        if len(self.mixture) != len(self.splits):
            raise UserError(f"{len(self.splits)} sources, but {len(self.mixture)} weights: give one for each")
        need = self.batch_size * self.sequence_length + 1
        for number, tokens in enumerate(self.splits):
            where = f" of source {number + 1}" if len(self.splits) > 1 else ""
            for name in ("train", "valid"):
                if len(tokens[name]) < need:
                    raise UserError(
                        f"the {name} split{where} has {len(tokens[name]):,} tokens, but one batch of {self.batch_size} "
                        f"x {self.sequence_length} needs {need:,}; give more text, or a smaller batch size or sequence "
                        "length"
                    )
        counts = {name: sum(len(tokens[name]) for tokens in self.splits) for name in SPLITS}
        self.info = {**self.info, "tokens": counts}
        if train_tokens is not None:
            least, most = need - 1, min(counts["train"] - 1, INT32)
            if len(self.splits) > 1 or not least <= train_tokens <= most:
                allowed = f"a batch, {least:,}, to all, {most:,}" if len(self.splits) == 1 else "a mixture has no part"
                raise UserError(f"train_tokens is {train_tokens}; {allowed}; give another, or leave it out")
            self.info["train_tokens"] = train_tokens // self.sequence_length * self.sequence_length

    @classmethod
    def from_tokens(
        cls,
        train: np.ndarray | Iterable[int],
        valid: np.ndarray | Iterable[int],
        *,
        vocab_size: int,
        test: np.ndarray | Iterable[int] = (),
        **options: Any,
    ) -> TokenStream:
        """A stream over given ids, int[n] each; `options` (`sequence_length`, `batch_size`, ...): see `Stream`.

        Raises `UserError` if the training or the validation split has not one batch of windows, if an id is not below
        `vocab_size` (a gather on an accelerator would clamp it silently), or if a size is not positive.
        """
        whole("vocab_size", vocab_size, most=INT32)
        ids = {"train": train, "valid": valid, "test": test}
        tokens = {name: Tokens([as_tokens(part, vocab_size, f"the {name} split")]) for name, part in ids.items()}
        return cls([tokens], vocab_size=vocab_size, **options)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the training windows of one source."""
        if len(self.splits) > 1:
            raise ValueError("a mixture has no common epoch: each source has its own")
        return self._count(0, "train") // self.batch_size

    def batch(self, seed: int, index: int) -> np.ndarray:
        seed, index = whole("seed", seed, None), whole("index", index, 0)
        rows = np.arange(self.batch_size)[self.own]
        if len(self.splits) == 1:
            epoch, step = divmod(index, self.steps_per_epoch)
            return self._windows(0, "train", step * self.batch_size + rows, seed=seed, epoch=epoch)
        which, ordinals = self.mixture.locate(index * self.batch_size + rows)
        batch = np.empty((len(rows), self.sequence_length + 1), np.int32)
        for source in np.unique(which).tolist():
            mine = np.flatnonzero(which == source)
            epochs, at = np.divmod(ordinals[mine], self._count(source, "train"))
            for epoch in np.unique(epochs).tolist():
                now = epochs == epoch
                label = f"{seed}/folder {source}"
                batch[mine[now]] = self._windows(source, "train", at[now], seed=label, epoch=epoch)
        return batch

    def batches(self, seed: int, *, start: int = 0) -> TokenBatches:
        return TokenBatches(self, seed, start)

    def resume(self, state: StreamState) -> TokenBatches:
        check_cursor(state, self.identity())
        return self.batches(state.cursor["seed"], start=state.batches)

    def dataset(self, seed: int, *, start: int = 0) -> Any:
        """The batches of a seed as a `grain.MapDataset`, int32[B, T+1] each, for a pipeline of Grain's own: its maps,
        threads and iterator state. (`batches` does without: Grain's part is as long as reading a small batch.)"""
        import grain

        return grain.MapDataset.range(start, start + 2**48).map(functools.partial(self.batch, seed))

    def identity(self) -> dict[str, Any]:
        sizes = {"batch_size": self.batch_size, "sequence_length": self.sequence_length}
        if self.train_tokens is not None:
            sizes["train_tokens"] = self.train_tokens
        return {"tokens": self._tokens_hashes, "weights": self.mixture.quotas, **sizes}

    def eval_batches(self) -> list[np.ndarray]:
        return [batch[self.own] for batch in self._eval]

    def token_counts(self) -> np.ndarray:
        if self.train_tokens is not None:
            return np.bincount(self.training_tokens(), minlength=self.vocab_size)
        counts = np.zeros(self.vocab_size, np.int64)
        for tokens in self.splits:
            for block in tokens["train"].blocks():
                counts += np.bincount(block, minlength=self.vocab_size)
        return counts

    def training_tokens(self, most: int | None = None) -> np.ndarray:
        if self.train_tokens is None:
            return self.splits[0]["train"].read(0, most)
        part = np.sort(self._part(np.arange(self._count(0, "train")))) * self.sequence_length
        return self.splits[0]["train"].windows(part + 1, self.sequence_length).reshape(-1)[:most]

    @cached_property
    def _tokens_hashes(self) -> list[str]:
        if self._hashes is not None:
            return list(self._hashes)
        return [hashlib.sha256(tokens["train"].read().astype("<i4").tobytes()).hexdigest() for tokens in self.splits]

    @cached_property
    def _eval(self) -> np.ndarray:
        have = [self._count(source, "valid") for source in range(len(self.splits))]
        quotas, period = self.mixture.quotas, self.mixture.period
        most = min((n + 1) * period // quota // self.batch_size for n, quota in zip(have, quotas, strict=True))
        which = ordinals = np.zeros(0, np.int64)
        for count in range(max(1, min(self._wanted_batches(), most)), 0, -1):
            which, ordinals = self.mixture.locate(np.arange(count * self.batch_size))
            if (np.bincount(which, minlength=len(have)) <= have).all():
                break
        batch = np.empty((len(which), self.sequence_length + 1), np.int32)
        for source in range(len(self.splits)):
            mine = np.flatnonzero(which == source)
            batch[mine] = self._windows(source, "valid", ordinals[mine], seed=EVAL_SEED)
        return batch.reshape(-1, self.batch_size, self.sequence_length + 1)

    def _count(self, source: int, split: str) -> int:
        known = len(self.splits[source][split]) - 1
        if split == "train" and self.train_tokens is not None:
            known = min(known, self.train_tokens)
        return max(0, known // self.sequence_length)

    def _part(self, at: np.ndarray) -> np.ndarray:
        """The windows of the whole training split that make the part of `train_tokens`."""
        whole = (len(self.splits[0]["train"]) - 1) // self.sequence_length
        return places(whole, at, seed=PART_SEED)

    def _windows(self, source: int, split: str, at: np.ndarray, *, seed: int | str, epoch: int = 0) -> np.ndarray:
        order = places(self._count(source, split), at, seed=seed, epoch=epoch)
        if split == "train" and self.train_tokens is not None:
            order = self._part(order)
        return self.splits[source][split].windows(order * self.sequence_length, self.sequence_length + 1)


class TokenBatches(BatchIterator):
    """The batches of a `TokenStream`."""

    def __init__(self, stream: TokenStream, seed: int, start: int) -> None:
        self._stream, self._seed, self._index = stream, whole("seed", seed, None), whole("start", start, 0)

    def __next__(self) -> np.ndarray:
        self._index += 1
        return self._stream.batch(self._seed, self._index - 1)

    def state(self, *, back: int = 0) -> StreamState:
        return StreamState({"stream": self._stream.identity(), "seed": self._seed, "batch": self._index - back})
