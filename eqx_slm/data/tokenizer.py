"""Tokenizers: the common interface, and the ones that need no library (bytes, characters, words)."""

from __future__ import annotations

import abc
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import UserError
from .tokens import check_sizes, integers

UNKNOWN = "<unk>"
END_OF_SENTENCE = "<eos>"
REPLACEMENT = "\ufffd"


class Tokenizer(abc.ABC):
    """Text to token ids and back.

    **Attributes:**

    - `name`: the specification in full, such as "bpe:8192" or "word:eos=newline".
    - `vocab_size`: every id is below it.
    - `hash`: sha256 (hex) of what decides the ids.
    - `byte_lengths`: int32[vocab_size], the UTF-8 bytes that each id stands for, where not a byte of the corpus is
        lost; otherwise None, and bits per byte have no meaning.
    - `separator`: the ids put between two documents, possibly none.
    """

    name: str
    vocab_size: int
    hash: str
    byte_lengths: np.ndarray | None
    separator: tuple[int, ...] = ()

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32[t]."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """The text of ids; an id that stands for nothing (a padded vocabulary has such) becomes U+FFFD."""

    @abc.abstractmethod
    def content(self) -> dict[str, Any]:
        """What decides the ids, as JSON; `kind` says which class reads it."""

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The ids of all documents, the separator between two of them, int32[t]."""
        separator = np.asarray(self.separator, np.int32)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:  # tiktoken releases the GIL
            pieces = [piece for ids in threads.map(self.encode, documents) for piece in (separator, ids)][1:]
        return np.concatenate([np.zeros(0, np.int32), *pieces])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {self.vocab_size} ids>"


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8; a line feed between documents."""

    def __init__(self) -> None:
        self.name, self.vocab_size, self.hash = "byte", 256, _hash(["byte"])
        self.byte_lengths = np.ones(256, np.int32)
        self.separator = (ord("\n"),)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        data = b"".join(bytes([i]) if 0 <= i < 256 else REPLACEMENT.encode() for i in id_list(ids))
        return data.decode("utf-8", "replace")

    def content(self) -> dict[str, Any]:
        return {"kind": "byte"}


class CharTokenizer(Tokenizer):
    """One id for each of some characters, in the order of code points; unless `lossless`, one more, the last, for all
    others."""

    def __init__(self, characters: Iterable[str], *, lossless: bool) -> None:
        self.characters = sorted(set(characters))
        self._unknown = None if lossless else len(self.characters)
        # A table from code points to ids: numpy then encodes a whole text at once.
        self._points = np.array([ord(c) for c in self.characters], np.uint32)
        self.name, self.vocab_size = "char", len(self.characters) + (not lossless)
        self.hash = _hash(["char", *self.characters, *([] if lossless else [UNKNOWN])])
        self.byte_lengths = np.array([len(c.encode("utf-8")) for c in self.characters], np.int32) if lossless else None

    @classmethod
    def of_text(cls, train: Iterable[str], others: Iterable[str]) -> CharTokenizer:
        """The characters of the training text; lossless where other splits have none that it lacks."""
        known = set().union(*train)
        return cls(known, lossless=set().union(*others) <= known)

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = np.minimum(np.searchsorted(self._points, points), len(self._points) - 1)
        strange = self._points[ids] != points
        if strange.any():
            if self._unknown is None:
                raise UserError(
                    f"character {text[int(np.argmax(strange))]!r} is none of the {len(self.characters)} of this 'char' "
                    "tokenizer; leave it out, or use the tokenizer 'byte'"
                )
            ids[strange] = self._unknown
        return ids.astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        count = len(self.characters)
        return "".join(self.characters[i] if 0 <= i < count else REPLACEMENT for i in id_list(ids))

    def content(self) -> dict[str, Any]:
        return {"kind": "char", "characters": "".join(self.characters), "unknown": self._unknown is not None}


class WordTokenizer(Tokenizer):
    """White-space separated words in the order of their ids; the rest are `<unk>`.

    With `eos` "newline" (else "none") every line, an empty one too, ends with `<eos>`, as is usual for Penn Treebank
    and WikiText.
    """

    def __init__(self, words: Sequence[str], *, eos: str) -> None:
        self.words, self.eos = list(words), eos
        self._ids = {word: i for i, word in enumerate(self.words)}
        self.name, self.vocab_size = f"word:eos={eos}", len(self.words)
        self.hash = _hash([self.name, *self.words])
        self.byte_lengths = None  # white space, and unknown words, are lost

    @classmethod
    def of_text(cls, train: Iterable[str], *, eos: str) -> WordTokenizer:
        """The words of the training text, most frequent first, `<eos>` counted like a word; ties by code points."""
        counts: Counter[str] = Counter()
        for document in train:
            counts.update(_words(document, eos))
        counts.setdefault(UNKNOWN, 0)
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), eos=eos)

    def encode(self, text: str) -> np.ndarray:
        unknown = self._ids[UNKNOWN]
        return np.array([self._ids.get(word, unknown) for word in _words(text, self.eos)], np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        words = (self.words[i] if 0 <= i < self.vocab_size else REPLACEMENT for i in id_list(ids))
        text = " ".join("\n" if word == END_OF_SENTENCE and self.eos == "newline" else word for word in words)
        return text.replace(" \n", "\n").replace("\n ", "\n")

    def content(self) -> dict[str, Any]:
        return {"kind": "word", "eos": self.eos, "words": self.words}


def _words(text: str, eos: str) -> list[str]:
    if eos == "none":
        return text.split()
    lines = text.removesuffix("\n").split("\n") if text else []
    return [word for line in lines for word in (*line.split(), END_OF_SENTENCE)]


def padded_vocab(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`; `UserError` where the multiple is below 1 (which pads nothing)."""
    check_sizes(pad_vocab_to=multiple)
    return -(-size // multiple) * multiple


def id_list(ids: Iterable[int] | np.ndarray) -> list[int]:
    """Ids from a list, a numpy or a JAX array as plain integers; `UserError` where one is none."""
    return integers(ids, "the row of ids").reshape(-1).tolist()


def _hash(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()
