"""The worker process: UTF-8 documents in, token ids out, nothing else. Started by `workers.py`."""

from __future__ import annotations

import json
import signal
import struct
import sys
from typing import IO

import numpy as np

from .vocabulary import tokenizer_from_json

FAILED = 2**32 - 1
_COUNT = struct.Struct("<I")


def write_documents(stream: IO[bytes], documents: list[bytes]) -> None:
    """A count, the lengths, the bytes."""
    lengths = np.array([len(document) for document in documents], "<u4")
    stream.write(_COUNT.pack(len(documents)) + lengths.tobytes())
    stream.write(b"".join(documents))
    stream.flush()


def read_documents(stream: IO[bytes]) -> list[bytes] | None:
    """What `write_documents` wrote; None at the end."""
    head = stream.read(_COUNT.size)
    if len(head) < _COUNT.size:
        return None
    (count,) = _COUNT.unpack(head)
    lengths = np.frombuffer(stream.read(4 * count), "<u4").tolist()
    data = stream.read(sum(lengths))
    documents, at = [], 0
    for length in lengths:
        documents.append(data[at : at + length])
        at += length
    return documents


def write_tokens(stream: IO[bytes], tokens: list[np.ndarray]) -> None:
    """A count, the lengths, the ids."""
    lengths = np.array([len(ids) for ids in tokens], "<u4")
    stream.write(_COUNT.pack(len(tokens)) + lengths.tobytes())
    stream.write(np.concatenate([np.zeros(0, np.int32), *tokens]).astype("<i4", copy=False).tobytes())
    stream.flush()


def read_tokens(stream: IO[bytes]) -> list[np.ndarray]:
    """What `write_tokens` wrote; `EOFError` where the worker has gone, `RuntimeError` with what it failed of."""
    head = stream.read(_COUNT.size)
    if len(head) < _COUNT.size:
        raise EOFError("a tokenizing process ended")
    (count,) = _COUNT.unpack(head)
    if count == FAILED:
        (size,) = _COUNT.unpack(stream.read(_COUNT.size))
        raise RuntimeError(stream.read(size).decode("utf-8", "replace"))
    lengths = np.frombuffer(stream.read(4 * count), "<u4")
    ends = np.cumsum(lengths, dtype=np.int64)
    data = stream.read(4 * int(ends[-1]) if count else 0)
    ids = np.frombuffer(data, "<i4")
    return np.split(ids, ends[:-1]) if count else []


def main() -> None:
    """Reads the tokenizer's description, then chunks, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent closes our input
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    description = read_documents(source)
    if description is None:
        return
    tokenizer = tokenizer_from_json(json.loads(description[0]))
    while (documents := read_documents(source)) is not None:
        try:
            tokens = [tokenizer.encode(document.decode("utf-8")) for document in documents]
        except Exception as error:
            message = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
            sink.write(_COUNT.pack(FAILED) + _COUNT.pack(len(message)) + message)
            sink.flush()
        else:
            write_tokens(sink, tokens)
