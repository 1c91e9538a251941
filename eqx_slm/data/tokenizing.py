"""Tokenizing in threads while the next documents are read: tiktoken releases the GIL; the order is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ..checks import INT32, whole
from ..cores import usable_cores
from ..errors import UserError
from .documents import Document, Item, Problem
from .tokenizer import Tokenizer

CHUNK_BYTES = 1 << 19  # of text that a thread gets at once

Tokenized = tuple[Item, np.ndarray]  # a problem has no ids


def tokenized(
    items: Iterable[Item],
    tokenizer: Tokenizer,
    *,
    wanted: Callable[[Document], bool] = lambda document: True,
    workers: int | None = None,
) -> Iterator[Tokenized]:
    """Every wanted document with its ids, int32[t], and every problem, in order.

    A document that the tokenizer refuses becomes a `Problem` that names its file and line.

    **Arguments:** `items`: of a source; `workers`: threads; None is one a core, 0 tokenizes in the caller's.
    """
    workers = usable_cores() if workers is None else workers
    whole("workers", workers, 0, most=INT32)
    groups = _groups(item for item in items if isinstance(item, Problem) or wanted(item))

    def encode(group: list[Item]) -> list[Tokenized]:
        return [_encode(item, tokenizer) for item in group]

    if workers == 0:
        for group in groups:
            yield from encode(group)
        return
    waiting: deque[Future[list[Tokenized]]] = deque()
    with ThreadPoolExecutor(min(workers, 256), "tokenize") as threads:
        try:
            for group in groups:
                waiting.append(threads.submit(encode, group))
                if len(waiting) > 2 * workers + 1:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _encode(item: Item, tokenizer: Tokenizer) -> Tokenized:
    if isinstance(item, Problem):
        return item, np.zeros(0, np.int32)
    try:
        return item, tokenizer.encode(item.text)
    except UserError as error:
        message = f"{item.path}, line {item.at.line}: {error}"
        return Problem("tokenizer", message, item.at), np.zeros(0, np.int32)


def _groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    group, size = [], 0
    for item in items:
        group.append(item)
        size += len(item.data) if isinstance(item, Document) else 0
        if size >= CHUNK_BYTES or len(group) >= 4096:
            yield group
            group, size = [], 0
    if group:
        yield group
