"""Windows at random places, each for the one token after it: the protocol of arXiv 2512.20877."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ..checks import INT32, whole
from ..errors import UserError
from .open import make_stream
from .order import draw, label_start
from .splits import SPLITS
from .stream import TokenStream
from .tokens import Tokens


class WindowStream(TokenStream):
    """Training windows of `sequence_length` + 1 tokens that start anywhere, drawn with replacement; tests in a row.

    A seed's window number i starts at a place drawn uniformly from all where one fits. `eval_batches` are the first
    `eval_tokens` windows of `eval_split`, each a token after the one before: as many targets, where a model is judged
    by the token after a window. The last batch may be shorter.

    **Arguments:** `eval_split`: "test" or "valid"; `train_tokens`: only the first so many of the training split are
    read (None: all); the rest: see `TokenStream`.

    **Raises:** `UserError` where a split has not one window, and for a split that is none.
    """

    def __init__(
        self,
        splits: list[dict[str, Tokens]],
        *,
        eval_split: str = "test",
        train_tokens: int | None = None,
        **options: Any,
    ) -> None:
        if eval_split not in SPLITS:
            raise UserError(f"eval_split={eval_split!r}: it is one of {', '.join(SPLITS)}")
        if train_tokens is not None:
            whole("train_tokens", train_tokens, most=INT32)
            splits = [{**each, "train": Tokens([each["train"].read(0, train_tokens)])} for each in splits]
        super().__init__(splits, **options)
        self.eval_split = eval_split
        if (have := len(self.splits[0][eval_split])) <= self.sequence_length:
            raise UserError(f"the {eval_split} split has {have:,} tokens, a window needs {self.sequence_length + 1:,}")
        self.info = {**self.info, "windows": f"at random; judged by the first {len(self._starts):,} of {eval_split}"}

    def batch(self, seed: int, index: int) -> np.ndarray:
        if index < 0:
            raise ValueError(f"batch index {index} is negative; give an integer of at least 0")
        tokens, first = self.splits[0]["train"], label_start(f"{seed}/windows")
        places, numbers = len(tokens) - self.sequence_length, index * self.batch_size + np.arange(self.batch_size)
        starts = np.array([draw(first, int(number), places) for number in numbers[self.own]], np.int64)
        return tokens.windows(starts, self.sequence_length + 1)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "windows": "at random"}

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.arange(min(self.eval_tokens, len(self.splits[0][self.eval_split]) - self.sequence_length))

    @cached_property
    def _eval(self) -> Any:
        tokens, size = self.splits[0][self.eval_split], self.batch_size
        starts = (self._starts[i : i + size] for i in range(0, len(self._starts), size))
        return [tokens.windows(part, self.sequence_length + 1) for part in starts]


def open_windows(
    data: str,
    tokenizer: str,
    *,
    eval_split: str = "test",
    train_tokens: int | None = None,
    sequence_length: int = 128,
    batch_size: int = 64,
    eval_tokens: int = 10_000,
    **options: Any,
) -> WindowStream:
    """A `WindowStream` of text in memory; `options` as in `make_stream`."""
    sizes = {"sequence_length": sequence_length, "batch_size": batch_size, "eval_tokens": eval_tokens}
    known = make_stream(data, tokenizer, **sizes, **options)
    return WindowStream(
        list(known.splits),
        **{"eval_split": eval_split, "train_tokens": train_tokens, **sizes},
        **{"vocab_size": known.vocab_size, "tokenizer": known.tokenizer, "info": known.info},
    )
