"""Tokenizers: the common interface, and the ones that need no library (bytes, characters, words)."""

from __future__ import annotations

import abc
import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unicodedata import combining

import numpy as np

from ..checks import INT32, whole
from ..cores import usable_cores
from ..errors import UserError
from ..files import json_hash
from .tokens import integers

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

    def token_bytes(self) -> list[bytes]:
        """The bytes that each id stands for, none for one that stands for nothing; of words and characters in UTF-8."""
        return [self.decode([i]).encode("utf-8") for i in range(self.vocab_size)]

    def spell(self, pieces: int = 256) -> list[list[int]]:
        """Every id's bytes in a smaller vocabulary: the 256 bytes, then the first `pieces` - 256 merges.

        **Raises:** `UserError` for fewer pieces than bytes, and more than there are merges for.
        """
        if pieces != 256:
            raise UserError(f"pieces={pieces}: the tokenizer {self.name} has no merges, its pieces are the 256 bytes")
        return [list(token) for token in self.token_bytes()]

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        """The ids of all documents, the separator between two of them, int32[t]."""
        separator = np.asarray(self.separator, np.int32)
        with ThreadPoolExecutor(min(8, usable_cores())) as threads:  # tiktoken releases the GIL
            pieces = [piece for ids in threads.map(self.encode, documents) for piece in (separator, ids)][1:]
        return np.concatenate([np.zeros(0, np.int32), *pieces])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}, {self.vocab_size} ids>"


def lost_share(tokenizer: Tokenizer, text: str) -> float:
    """The share of a text's characters that do not come back from its ids; nothing where it has none.

    White space, case and accents do not count: a tokenizer may change those on purpose.
    """
    before, after = (Counter(_bare(each)) for each in (text, tokenizer.decode(tokenizer.encode(text))))
    return (before - after).total() / max(before.total(), 1)


SAMPLE = 100_000  # characters that a tokenizer from a file is tried on
MOST_LOST = 0.2  # of the characters; where more have no ids, the text that is left is another one


def check_lost(tokenizer: Tokenizer, name: str, texts: Iterable[Iterable[str]]) -> float:
    """The largest share of a text's characters that a tokenizer loses, by the begin of each of several texts.

    **Raises:** `UserError` where the losses would be those of another text than `name`.
    """
    if tokenizer.byte_lengths is not None:
        return 0.0
    samples = ("".join(itertools.islice(text, SAMPLE)) for text in texts)
    share = max((lost_share(tokenizer, sample) for sample in samples), default=0.0)
    if share > MOST_LOST:
        raise UserError(
            f"the tokenizer {tokenizer.name} has no ids for {share:.0%} of the characters of {name}: it was made of "
            "another kind of text; train one on this, or give it an alphabet of bytes"
        )
    return share


def _bare(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not (c.isspace() or combining(c)))


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8; a line feed between documents."""

    def __init__(self) -> None:
        self.name, self.vocab_size, self.hash = "byte", 256, json_hash(["byte"])
        self.byte_lengths = np.ones(256, np.int32)
        self.separator = (ord("\n"),)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        data = b"".join(bytes([i]) if 0 <= i < 256 else REPLACEMENT.encode() for i in id_list(ids))
        return data.decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        return [bytes([i]) for i in range(256)]

    def content(self) -> dict[str, Any]:
        return {"kind": "byte"}


class ListTokenizer(Tokenizer):
    """A list of characters (`char`) or of words between white space (`word:eos=...`) in the order of their ids.

    `<unk>` stands for all others; a list of characters may do without. With `eos=newline` (else `none`) every line, an
    empty one too, ends with `<eos>`, as is usual for Penn Treebank and WikiText.
    """

    def __init__(self, name: str, entries: Iterable[str]) -> None:
        self.name, self.entries = name, list(entries)
        self.vocab_size, self.hash = len(self.entries), json_hash([name, *self.entries])
        self._ids = {entry: i for i, entry in enumerate(self.entries)}
        lossless = name == "char" and UNKNOWN not in self._ids  # words lose the white space between them
        self.byte_lengths = np.array([len(c.encode("utf-8")) for c in self.entries], np.int32) if lossless else None

    @classmethod
    def of_text(cls, name: str, train: Iterable[str], others: Iterable[str]) -> ListTokenizer:
        """What the training text has: its characters by code point, and `<unk>` where other splits have more; or its
        words, most frequent first (`<eos>` counted like a word, `<unk>` too), ties by code points."""
        if name == "char":
            known = set().union(*train)
            return cls(name, [*sorted(known), *([] if set().union(*others) <= known else [UNKNOWN])])
        counts: Counter[str] = Counter()
        for document in train:
            counts.update(_words(document, name))
        counts.setdefault(UNKNOWN, 0)
        return cls(name, sorted(counts, key=lambda word: (-counts[word], word)))

    def encode(self, text: str) -> np.ndarray:
        unknown = self._ids.get(UNKNOWN, -1)
        parts = text if self.name == "char" else _words(text, self.name)
        ids = np.array([self._ids.get(part, unknown) for part in parts], np.int32)
        if unknown < 0 and (ids < 0).any():
            raise UserError(
                f"character {text[int(np.argmin(ids))]!r} is none of the {self.vocab_size} of this 'char' tokenizer; "
                "leave it out, or use the tokenizer 'byte'"
            )
        return ids

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        parts = [self.entries[i] if 0 <= i < self.vocab_size else REPLACEMENT for i in id_list(ids)]
        if self.name == "char":
            return "".join(REPLACEMENT if part == UNKNOWN else part for part in parts)
        if self.name == "word:eos=newline":
            parts = ["\n" if part == END_OF_SENTENCE else part for part in parts]
        return " ".join(parts).replace(" \n", "\n").replace("\n ", "\n")

    def content(self) -> dict[str, Any]:
        return {"kind": "list", "entries": self.entries}


def _words(text: str, name: str) -> list[str]:
    if name == "word:eos=none":
        return text.split()
    lines = text.removesuffix("\n").split("\n") if text else []
    return [word for line in lines for word in (*line.split(), END_OF_SENTENCE)]


def padded_vocab(size: int, multiple: int) -> int:
    """The smallest multiple that is at least `size`; `UserError` where the multiple is below 1 (which pads nothing)."""
    whole("pad_vocab_to", multiple, most=INT32)
    return -(-size // multiple) * multiple


def id_list(ids: Iterable[int] | np.ndarray) -> list[int]:
    """Ids from a list, a numpy or a JAX array as plain integers; `UserError` where one is none."""
    return integers(ids, "the row of ids").reshape(-1).tolist()


def refusal(error: BaseException, what: str) -> BaseException:
    """What to raise in place of a tokenizer library's error: one line. A panic of its Rust is no `Exception`; whatever
    else is none (an interrupt) stays what it is."""
    if isinstance(error, UserError) or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
        return error
    return UserError(f"{what}: {(str(error).splitlines() or [type(error).__name__])[0][:200]}")
