"""Tokenizers: the common interface, and the ones that need no library (characters, bytes, words)."""

from __future__ import annotations

import abc
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .corpora import Corpus

SPECS = "'bpe:N', 'char', 'byte', 'word:eos=newline', 'word:eos=none' or a tiktoken name such as 'o200k_base'"
UNKNOWN = "<unk>"
END_OF_SENTENCE = "<eos>"
_REPLACEMENT = "\ufffd"


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

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The ids of all documents, the separator between two of them, int32[t]."""
        return self.join([self.encode(document) for document in documents])

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The parts in a row, the separator between two of them, int32[t]."""
        separator = np.asarray(self.separator, np.int32)
        pieces = [piece for part in parts for piece in (separator, part)][1:]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int32)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {self.vocab_size} ids>"


def make_tokenizer(spec: str, corpus: Corpus, *, cache_dir: str | Path | None = None) -> Tokenizer:
    """Make the tokenizer of a specification, trained on the corpus' training split where it is trained at all.

    **Arguments:**

    - `spec`: `bpe:N` (byte-level BPE with exactly N ids, one of them the end of a text), `char`, `byte`,
        `word:eos=newline` (`word` for short; each line ends with `<eos>`), `word:eos=none`, or any tiktoken name.
    - `corpus`: what to train on; its other splits decide whether `char` needs an id for unknown characters.
    - `cache_dir`: where trained ranks are kept; by default `$EQX_SLM_CACHE`, or `~/.cache/eqx_slm`.

    Raises `UserError` for an unknown specification, for more ids than the text supports, or if a tiktoken file can be
    neither found nor downloaded.
    """
    if spec == "byte":
        return ByteTokenizer()
    if spec == "char":
        return CharTokenizer(corpus)
    if spec in ("word", "word:eos=newline", "word:eos=none"):
        return WordTokenizer(corpus, eos_at_newline=spec != "word:eos=none")
    from . import bpe  # the rest need tiktoken

    if spec.startswith("bpe:"):
        return bpe.make_bpe(spec, corpus, cache_dir=cache_dir)
    if spec in bpe.tiktoken_names():
        return bpe.load_tiktoken(spec)
    raise UserError(f"unknown tokenizer {spec!r}: give {SPECS}")


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8; a line feed between documents."""

    def __init__(self) -> None:
        self.name = "byte"
        self.vocab_size = 256
        self.hash = _hash(["byte"])
        self.byte_lengths = np.ones(256, np.int32)
        self.separator = (ord("\n"),)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        data = b"".join(bytes([i]) if 0 <= i < 256 else _REPLACEMENT.encode() for i in as_ids(ids))
        return data.decode("utf-8", "replace")


class CharTokenizer(Tokenizer):
    """One id for each character of the training split, in the order of code points.

    Only if another split has characters that training lacks is there one more id, the last, for all unknown ones.
    """

    def __init__(self, corpus: Corpus) -> None:
        known = set().union(*corpus.train)
        self._set(known, lossless=set().union(*corpus.valid, *corpus.test) <= known)

    @classmethod
    def of_characters(cls, characters: Iterable[str], *, unknown: bool) -> CharTokenizer:
        """The tokenizer of given characters; `unknown` adds an id for all others."""
        tokenizer = cls.__new__(cls)
        tokenizer._set(set(characters), lossless=not unknown)
        return tokenizer

    def _set(self, known: set[str], *, lossless: bool) -> None:
        self.characters = sorted(known)
        self._unknown = None if lossless else len(known)
        # A table from code points to ids: numpy then encodes a whole text at once.
        self._points = np.array([ord(c) for c in self.characters], np.uint32)
        self.name = "char"
        self.vocab_size = len(known) + (not lossless)
        self.hash = _hash(["char", *self.characters, *([] if lossless else [UNKNOWN])])
        self.byte_lengths = np.array([len(c.encode("utf-8")) for c in self.characters], np.int32) if lossless else None

    def encode(self, text: str) -> np.ndarray:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = np.minimum(np.searchsorted(self._points, points), len(self._points) - 1)
        strange = self._points[ids] != points
        if strange.any():
            if self._unknown is None:
                character = text[int(np.argmax(strange))]
                raise UserError(
                    f"character {character!r} is none of the {len(self.characters)} of this 'char' tokenizer; "
                    "leave it out, or use the tokenizer 'byte'"
                )
            ids[strange] = self._unknown
        return ids.astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        count = len(self.characters)
        return "".join(self.characters[i] if 0 <= i < count else _REPLACEMENT for i in as_ids(ids))


class WordTokenizer(Tokenizer):
    """White-space separated words of the training split, most frequent first; the rest are `<unk>`.

    With `eos_at_newline` every line (an empty one too) ends with `<eos>`, as is usual for Penn Treebank and WikiText;
    ties are in the order of the words' code points, and `<eos>` is counted like a word.
    """

    def __init__(self, corpus: Corpus, *, eos_at_newline: bool) -> None:
        self._eos_at_newline = eos_at_newline
        counts: Counter[str] = Counter()
        for document in corpus.train:
            counts.update(self._words(document))
        counts.setdefault(UNKNOWN, 0)
        self._set(sorted(counts, key=lambda word: (-counts[word], word)))

    @classmethod
    def of_words(cls, words: Sequence[str], *, eos: str) -> WordTokenizer:
        """The tokenizer of given words in the order of their ids; `eos` is "newline" or "none"."""
        tokenizer = cls.__new__(cls)
        tokenizer._eos_at_newline = eos == "newline"
        tokenizer._set(list(words))
        return tokenizer

    @property
    def eos(self) -> str:
        """ "newline" or "none"."""
        return "newline" if self._eos_at_newline else "none"

    def _set(self, words: list[str]) -> None:
        self.words = words
        self._ids = {word: i for i, word in enumerate(self.words)}
        self.name = f"word:eos={self.eos}"
        self.vocab_size = len(self.words)
        self.hash = _hash([self.name, *self.words])
        self.byte_lengths = None  # white space, and unknown words, are lost

    def _words(self, text: str) -> list[str]:
        if not self._eos_at_newline:
            return text.split()
        lines = text.removesuffix("\n").split("\n") if text else []
        return [word for line in lines for word in (*line.split(), END_OF_SENTENCE)]

    def encode(self, text: str) -> np.ndarray:
        unknown = self._ids[UNKNOWN]
        return np.array([self._ids.get(word, unknown) for word in self._words(text)], np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        words = (self.words[i] if 0 <= i < self.vocab_size else _REPLACEMENT for i in as_ids(ids))
        text = " ".join("\n" if word == END_OF_SENTENCE and self._eos_at_newline else word for word in words)
        return text.replace(" \n", "\n").replace("\n ", "\n")


def padded_vocab(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`; `UserError` where the multiple is below 1."""
    if multiple < 1:
        raise UserError(f"pad_vocab_to={multiple}: give a multiple of at least 1 (1 pads nothing)")
    return -(-size // multiple) * multiple


def as_ids(ids: Iterable[int] | np.ndarray) -> list[int]:
    """Ids from a list, a numpy or a JAX array as plain integers."""
    return np.asarray(ids if hasattr(ids, "__array__") else list(ids)).reshape(-1).astype(np.int64).tolist()


def _hash(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()
