"""Token streams: windows of a split in a fixed pseudo-random order, as whole batches, through Grain."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .base import IndexedStream, check_processes
from .order import permutation
from .sources import SPLITS, load_corpus
from .tokenizer import Tokenizer, make_tokenizer, padded_vocab

EVAL_SEED = "validation"  # a string: no integer seed of a run gives the same order


@dataclass(frozen=True, eq=False)
class TokenStream(IndexedStream):
    """The tokens of a corpus and the order in which a run reads them.

    Training tokens are cut into windows of `sequence_length` + 1 tokens, each starting on the last token of the one
    before, so that every token but the first is a target once. One epoch reads every window once, in an order that
    depends on the seed and the epoch only; what does not fill a batch at the end of an epoch is dropped. Batch `i` of
    a seed can be had at any time, which is what resuming and a matched pair stand on.

    **Arguments:**

    - `train`, `valid`, `test`: int32[n] token ids.
    - `vocab_size`: the model's vocabulary; at least the tokenizer's.
    - `sequence_length`: T, in tokens.
    - `batch_size`: B, in windows.
    - `eval_tokens`: about how many validation tokens `eval_batches` holds.
    - `byte_lengths`: int32[vocab_size] bytes of each id, or None for a tokenizer that loses bytes.
    - `info`: what a report needs, as plain JSON values.
    - `tokenizer`: for `encode` and `decode`, if there is one.
    - `process_index`, `process_count`: which rows of every batch are this process's; all by default.

    Use `make_stream` or `TokenStream.from_tokens`, which check all this.
    """

    train: np.ndarray
    valid: np.ndarray
    vocab_size: int
    sequence_length: int
    batch_size: int
    eval_tokens: int = 16384
    byte_lengths: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    test: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    tokenizer: Tokenizer | None = None
    process_index: int = 0
    process_count: int = 1

    @classmethod
    def from_tokens(
        cls,
        train: np.ndarray | Iterable[int],
        valid: np.ndarray | Iterable[int],
        *,
        vocab_size: int,
        sequence_length: int,
        batch_size: int,
        eval_tokens: int = 16384,
        test: np.ndarray | Iterable[int] = (),
        byte_lengths: np.ndarray | None = None,
        info: dict[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> TokenStream:
        """A stream over given ids.

        Raises `UserError` if the training or the validation split has not one batch of windows, if an id is not below
        `vocab_size` (a gather on an accelerator would clamp it silently), or if a size is not positive.
        """
        sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "eval_tokens": eval_tokens}
        for name, size in {**sizes, "vocab_size": vocab_size}.items():
            if size < 1:
                raise UserError(f"{name} is {size}; give an integer of at least 1")
        check_processes(batch_size, process_index, process_count)
        splits = {"train": _as_tokens(train), "valid": _as_tokens(valid), "test": _as_tokens(test)}
        need = batch_size * sequence_length + 1
        for name, tokens in splits.items():
            _check_ids(name, tokens, vocab_size)
            if name != "test" and len(tokens) < need:
                raise UserError(
                    f"the {name} split has {len(tokens):,} tokens, but one batch of {batch_size} x {sequence_length} "
                    f"needs {need:,}; give more text, or a smaller batch size or sequence length"
                )
        if byte_lengths is not None:
            byte_lengths = np.asarray(byte_lengths, np.int32)
            if byte_lengths.ndim != 1 or len(byte_lengths) > vocab_size:
                raise UserError(f"byte_lengths has shape {byte_lengths.shape}; give one integer for each id")
            byte_lengths = np.pad(byte_lengths, (0, vocab_size - len(byte_lengths)))
        counts = {name: len(tokens) for name, tokens in splits.items()}
        return cls(
            **splits,
            vocab_size=vocab_size,
            sequence_length=sequence_length,
            batch_size=batch_size,
            eval_tokens=eval_tokens,
            byte_lengths=byte_lengths,
            info={**(info or {}), "tokens": counts, "vocab_size": vocab_size, "python": platform.python_version()},
            tokenizer=tokenizer,
            process_index=process_index,
            process_count=process_count,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the training windows."""
        return len(self._windows(self.train)) // self.batch_size

    def batch(self, seed: int, index: int) -> np.ndarray:
        """Training batch `index` of a seed, int32[B, T+1]: inputs are columns [:-1], targets [1:]; any epoch."""
        if index < 0:
            raise ValueError(f"batch index {index} is negative; give an integer of at least 0")
        return self.several(seed, index, 1)[0]

    def several(self, seed: int, index: int, count: int) -> np.ndarray:
        """`count` training batches of a seed from batch `index` on, int32[count, B, T+1], gathered at once."""
        windows, rows = self._windows(self.train), []
        for i in range(index, index + count):
            epoch, step = divmod(i, len(windows) // self.batch_size)
            order = permutation(len(windows), seed=seed, epoch=epoch)
            rows.append(self._own_rows(order[step * self.batch_size : (step + 1) * self.batch_size]))
        return windows[np.stack(rows)]

    def identity(self) -> dict[str, Any]:
        """What decides the batches, as JSON."""
        tokens = hashlib.sha256(np.ascontiguousarray(self.train, "<i4").tobytes()).hexdigest()
        return {"tokens": tokens, "batch_size": self.batch_size, "sequence_length": self.sequence_length}

    def training_tokens(self, most: int | None = None) -> np.ndarray:
        """The first `most` tokens of the training split in the order of the text, all by default, int32[n]."""
        return self.train[:most]

    def eval_batches(self) -> list[np.ndarray]:
        """The validation batches, int32[B, T+1] each: about `eval_tokens` targets, equal for all seeds and arms.

        They are the first windows of one fixed permutation of the validation split; at least one batch, at most all.
        """
        windows = self._windows(self.valid)
        most = len(windows) // self.batch_size
        count = min(max(1, round(self.eval_tokens / (self.batch_size * self.sequence_length))), most)
        rows = permutation(len(windows), seed=EVAL_SEED)[: count * self.batch_size]
        return [self._own_rows(batch) for batch in windows[rows].reshape(count, self.batch_size, -1)]

    def token_counts(self) -> np.ndarray:
        """How often each id occurs in the training split, int64[vocab_size]."""
        return np.bincount(self.train, minlength=self.vocab_size).astype(np.int64, copy=False)

    def _windows(self, tokens: np.ndarray) -> np.ndarray:
        """A view of the windows, int32[(n - 1) // T, T + 1]: no token is copied until a batch is gathered."""
        return np.lib.stride_tricks.sliding_window_view(tokens, self.sequence_length + 1)[:: self.sequence_length]


def make_stream(
    data: str = "stdlib",
    tokenizer: str = "bpe:8192",
    *,
    data_root: str | Path | None = None,
    vocab_size: int | None = None,
    pad_vocab_to: int = 1,
    sequence_length: int = 128,
    batch_size: int = 16,
    eval_tokens: int = 16384,
    cache_dir: str | Path | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> TokenStream:
    """Read a corpus, make its tokenizer, and encode its splits.

    **Arguments:**

    - `data`, `data_root`: see `load_corpus`.
    - `tokenizer`, `cache_dir`: see `make_tokenizer`.
    - `vocab_size`: the model's vocabulary, to pad the tokenizer's; by default the tokenizer's own.
    - `pad_vocab_to`: pads that further, to a multiple.
    - `sequence_length`, `batch_size`, `eval_tokens`, `process_index`, `process_count`: see `TokenStream`.

    **Returns:** a `TokenStream` whose `info` names the corpus, the tokenizer, and the size of every split.

    Raises `UserError` as those do, and if `vocab_size` is smaller than the tokenizer's.
    """
    corpus = load_corpus(data, data_root=data_root)
    made = make_tokenizer(tokenizer, corpus, cache_dir=cache_dir)
    if vocab_size is not None and vocab_size < made.vocab_size:
        raise UserError(
            f"vocab_size is {vocab_size}, but the tokenizer {made.name} has {made.vocab_size} ids; "
            f"give a vocab_size of at least {made.vocab_size}, or leave it out"
        )
    size = padded_vocab(made.vocab_size if vocab_size is None else vocab_size, pad_vocab_to)
    documents = {split: getattr(corpus, split) for split in SPLITS}
    info = {
        "corpus": corpus.name,
        "corpus_hash": corpus.hash,
        "corpus_note": corpus.note,
        "split_rule": corpus.split_rule,
        "tokenizer": made.name,
        "tokenizer_hash": made.hash,
        "documents": {split: len(texts) for split, texts in documents.items()},
        "bytes": {split: sum(len(text.encode("utf-8")) for text in texts) for split, texts in documents.items()},
    }
    return TokenStream.from_tokens(
        made.encode_documents(corpus.train),
        made.encode_documents(corpus.valid),
        test=made.encode_documents(corpus.test),
        vocab_size=size,
        sequence_length=sequence_length,
        batch_size=batch_size,
        eval_tokens=eval_tokens,
        byte_lengths=made.byte_lengths,
        info=info,
        tokenizer=made,
        process_index=process_index,
        process_count=process_count,
    )


def _as_tokens(tokens: np.ndarray | Iterable[int]) -> np.ndarray:
    array = np.asarray(tokens if hasattr(tokens, "__array__") else list(tokens))
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"tokens have shape {array.shape} and dtype {array.dtype}; give one row of integers")
    if array.max() > np.iinfo(np.int32).max:
        raise UserError(f"token id {array.max()} does not fit into 32 bits; give ids below 2**31")
    return array.astype(np.int32, copy=False)


def _check_ids(split: str, tokens: np.ndarray, vocab_size: int) -> None:
    if not len(tokens):
        return
    if tokens.max() >= vocab_size:
        raise UserError(
            f"the {split} split has token id {tokens.max()}, but vocab_size is {vocab_size}; "
            f"raise --vocab-size to at least {tokens.max() + 1}"
        )
    if tokens.min() < 0:
        raise UserError(f"the {split} split has token id {tokens.min()}; ids are at least 0")
