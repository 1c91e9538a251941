"""The loss of a finished run on any text: in nats a token, bits a byte, and by how often tokens occur."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from ..checks import whole
from ..data.documents import START, Problem
from ..data.files import find_files
from ..data.formats import read_items
from ..data.records import LARGEST, Fields
from ..data.tokenizer import lost_share
from ..errors import UserError
from ..train.loss import token_losses
from .frequency import ByFrequency
from .text import OpenRun

LOOKED_AT = 1_000_000  # characters, for the share that is lost


@dataclass(frozen=True)
class TextLoss:
    """The loss on a text: `nll` in nats a token over `tokens` targets; `bits_per_byte` where no byte is lost, and
    otherwise the share of its characters that the tokenizer has no ids for, `lost`."""

    nll: float
    tokens: int
    bits_per_byte: float | None
    lost: float = 0.0

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(self.nll)


def read_text(data: str | Path, field: str = "text") -> str:
    """The text of a file, a folder or a glob, as training reads it: records' `field`, packed files, LF line ends.

    Documents have a blank line between them. **Raises:** `UserError` for what cannot be read, naming file and line.
    """
    fields, parts = Fields(text=field), []
    for number, file in enumerate(find_files(str(data))):
        for item in read_items(file, number, fields, "", START, largest=max(LARGEST, file.size)):
            if isinstance(item, Problem):
                raise UserError(item.message)
            parts.append(item.text)
    return "\n\n".join(parts)


def text_loss(run: OpenRun, text: str, *, stride: int | None = None) -> TextLoss:
    """The loss of a run's model on a text.

    Every token but the first is a target once. Windows of the model's context begin every `stride` tokens and count
    their last `stride` targets, the first one all of its own: so a target has at least context - stride tokens before
    it. None is the context, windows that do not overlap, as training evaluates; smaller ones cost more and give less.

    **Raises:** `UserError` for a text of fewer than two tokens, and a stride above the context or below 1.
    """
    stride = _checked(run, stride)
    ids = text_ids(run, text)
    nats = ids_losses(run, ids, stride=stride)
    lengths = run.tokenizer.byte_lengths
    size = None if lengths is None else int(lengths[ids[1:]].sum())
    bits = float(nats.sum()) / math.log(2) / size if size else None
    lost = lost_share(run.tokenizer, text[:LOOKED_AT]) if lengths is None else 0.0
    return TextLoss(float(nats.mean()), len(nats), bits, lost)


def text_ids(run: OpenRun, text: str) -> Any:
    """The ids of a text whose loss is asked, int32[t]; `UserError` where there are fewer than two."""
    ids = np.asarray(run.encode(text), np.int32)
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens: at least two are needed, of which the first is only read")
    return ids


def ids_losses(run: OpenRun, ids: Any, *, stride: int | None = None) -> Any:
    """The loss of every id but the first, float64[t - 1] in nats, in the windows of `text_loss`."""
    context, stride = run.config.context, _checked(run, stride)
    starts = [0]
    while starts[-1] + context + 1 < len(ids):
        starts.append(starts[-1] + stride)
    losses = []
    for first in range(0, len(starts), 8):
        rows, masks = np.zeros((8, context + 1), np.int32), np.zeros((8, context), bool)
        for row, start in enumerate(starts[first : first + 8]):
            own = ids[start : start + context + 1]
            rows[row, : len(own)] = own
            masks[row, (context - stride if start else 0) : len(own) - 1] = True
        losses.append(np.asarray(_losses()(run.model, rows), np.float64)[masks])
    return np.concatenate(losses)


def text_by_frequency(
    run: OpenRun, text: str, *, classes: int = 10, counts: Sequence[int] | np.ndarray | None = None, **how: Any
) -> dict[str, tuple[tuple[float | None, int], ...]]:
    """The loss of a run's model on any text, split by how often tokens occur in the text that it was trained on.

    **Arguments:** `classes`: how many, and one more for what does not occur. `counts`: how often each id occurs; None
    for those of the run's training text. `how`: `stride` of `text_loss`.

    **Returns:** for each of "input by mass", "input by rank", "target by mass", "target by rank" the mean loss (nats a
    token, None without tokens) and the number of tokens of every class, the most frequent first, unseen ids last.

    **Raises:** `UserError` as `text_loss`, and where the run does not know its counts (of a study with frequency=0, or
    of a stream that is not read ahead) and none are given.
    """
    found = run.counts if counts is None else counts
    if found is None:
        raise UserError(
            "how often tokens occur in this run's training text is not known: its study had frequency=0, give it "
            "RunConfig(frequency=10); or give counts="
        )
    found = np.asarray(found)
    if found.ndim != 1 or len(found) < run.tokenizer.vocab_size:
        raise UserError(f"counts of shape {found.shape}: one is needed for each of {run.tokenizer.vocab_size} ids")
    ids = text_ids(run, text)
    return ByFrequency(found, [ids[None]], classes).means(ids_losses(run, ids, **how)[None])


def _checked(run: OpenRun, stride: int | None) -> int:
    return whole("stride", run.config.context if stride is None else stride, most=run.config.context)


@functools.cache
def _losses() -> Any:
    """The compiled losses of windows: one function, so that only another model or shape compiles again."""

    @eqx.filter_jit
    def losses(model: Any, rows: Any) -> Any:
        return token_losses(model.batch_features(rows[:, :-1]), model.read_out(), rows[:, 1:])

    return losses
