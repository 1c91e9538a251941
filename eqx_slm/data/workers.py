"""Tokenizing in parallel: processes that only tokenize; what comes out has the order of what went in."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import UserError
from .documents import Document, Item
from .tokenizer import Tokenizer
from .vocabulary import tokenizer_to_json
from .worker import read_tokens, write_documents

CHUNK_BYTES = 1 << 19  # of text a worker gets at once

# The child imports this package's tokenizers without the package's __init__, and so without jax: a second of start and
# 200 MB less a process. It is a process of its own rather than one of multiprocessing's, which would import the
# user's __main__ again.
_BOOT = """
import sys, types
package = types.ModuleType("eqx_slm")
package.__path__ = [sys.argv[1]]
data = types.ModuleType("eqx_slm.data")
data.__path__ = [sys.argv[1] + "/data"]
sys.modules.update({"eqx_slm": package, "eqx_slm.data": data})
from eqx_slm.data.worker import main
main()
"""

T = TypeVar("T")


@dataclass
class Chunk:
    """Some records in a row: what a worker gets at once. `last` is where the last of them starts."""

    items: list[Item] = field(default_factory=list)
    size: int = 0

    @property
    def documents(self) -> list[Document]:
        return [item for item in self.items if isinstance(item, Document)]


def chunks(items: Iterator[Item], size: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Records in groups of about `size` bytes of text."""
    chunk = Chunk()
    for item in items:
        chunk.items.append(item)
        chunk.size += len(item.data) if isinstance(item, Document) else 0
        if chunk.size >= size or len(chunk.items) >= 4096:
            yield chunk
            chunk = Chunk()
    if chunk.items:
        yield chunk


class _Process:
    def __init__(self, description: bytes) -> None:
        package = str(Path(__file__).resolve().parents[1])
        self.child = subprocess.Popen(
            [sys.executable, "-c", _BOOT, package], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._send([description])

    def _send(self, documents: list[bytes]) -> None:
        assert self.child.stdin is not None
        write_documents(self.child.stdin, documents)

    def encode(self, documents: list[bytes]) -> list[np.ndarray]:
        assert self.child.stdout is not None
        try:
            self._send(documents)
            return read_tokens(self.child.stdout)
        except (EOFError, BrokenPipeError) as error:
            code = self.child.wait()
            raise RuntimeError(f"a tokenizing process ended with code {code}; was it killed for memory?") from error

    def close(self) -> None:
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class TokenizingPool:
    """Tokenizes documents in `workers` processes; with 0 workers in this one. Results do not depend on the number.

    **Arguments:** `tokenizer`; `workers`: how many processes; None is one a core.

    Use it in a `with`; at the latest the processes end with this one.
    """

    def __init__(self, tokenizer: Tokenizer, workers: int | None = None) -> None:
        workers = cores() if workers is None else workers
        if workers < 0:
            raise UserError(f"workers={workers}: give 0 (tokenize in this process) or more")
        self.tokenizer, self.workers = tokenizer, workers
        self._threads: ThreadPoolExecutor | None = None
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._processes: list[_Process] = []
        self._finalize = weakref.finalize(self, _close, self._processes)

    def __enter__(self) -> TokenizingPool:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
            self._threads = None
        self._finalize()

    def _start(self) -> ThreadPoolExecutor:
        if self._threads is None:
            description = json.dumps(tokenizer_to_json(self.tokenizer)).encode("utf-8")
            for _ in range(self.workers):
                self._processes.append(_Process(description))
                self._idle.put(self._processes[-1])
            self._threads = ThreadPoolExecutor(self.workers, "tokenize")  # the threads wait for pipes
        return self._threads

    def _encode(self, documents: list[bytes]) -> list[np.ndarray]:
        process = self._idle.get()
        try:
            return process.encode(documents)
        finally:
            self._idle.put(process)

    def map(
        self, chunks: Iterable[T], documents: Callable[[T], list[Document]]
    ) -> Iterator[tuple[T, list[np.ndarray]]]:
        """Every chunk with the ids of its documents, int32[t] each, in order; a few chunks are read ahead."""
        if self.workers == 0:
            for chunk in chunks:
                yield chunk, [self.tokenizer.encode(document.text) for document in documents(chunk)]
            return
        threads = self._start()
        waiting: deque[tuple[T, Future[list[np.ndarray]]]] = deque()
        source = iter(chunks)
        done = False
        while True:
            while not done and len(waiting) < 2 * self.workers + 2:
                try:
                    chunk = next(source)
                except StopIteration:
                    done = True
                else:
                    data = [document.data for document in documents(chunk)]
                    waiting.append((chunk, threads.submit(self._encode, data)))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            yield chunk, future.result()


def _close(processes: list[_Process]) -> None:
    while processes:
        processes.pop().close()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
