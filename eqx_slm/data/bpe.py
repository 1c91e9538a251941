"""Byte-level BPE: ranks trained here or published ones, always encoded by tiktoken."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tiktoken

from ..errors import UserError
from .tokenizer import REPLACEMENT, Tokenizer, id_list, refusal

END_OF_TEXT = "<|endoftext|>"

# How text falls into pieces before merging; the trainer and the encoder get this very string. It is the GPT-4 pattern
# less the special case of contractions (a letter run may take one leading apostrophe anyway, and in source code "'s"
# is rarely a contraction), and uses only what Oniguruma (the trainer) and fancy-regex (tiktoken) read alike: no
# possessive quantifiers, no case-insensitive groups.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LONGEST_TOKEN = 64  # bytes; keeps rulers of dashes and long blanks from becoming tokens
_SPARE = 64  # candidates beyond N, for those that `train_bpe` refuses
_DOWNLOAD_SECONDS = 20.0
# fancy-regex gives up where `\s+(?!\S)` has a million characters to step back over; half of that always works.
_LONGEST_BLANK = 1 << 19
_BLANKS = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{2,}")  # Unicode's White_Space
_LONGEST_PIECE = 4096  # characters: the trainer's time is quadratic in a piece, and no token is nearly as long


class TiktokenTokenizer(Tokenizer):
    """A `tiktoken.Encoding`, with its end-of-text token (no bytes long) between documents."""

    def __init__(self, encoding: tiktoken.Encoding, *, label: str = "") -> None:
        special = {encoding.encode_single_token(text): text.encode("utf-8") for text in encoding.special_tokens_set}
        table = [_single_token_bytes(encoding, i) for i in range(encoding.n_vocab)]
        digest = hashlib.sha256(label.encode("utf-8"))
        for token in table:
            digest.update(b"-" if token is None else len(token).to_bytes(4, "big") + token)
        self.encoding, self.label = encoding, label
        self.name, self.vocab_size, self.hash = encoding.name, encoding.n_vocab, digest.hexdigest()
        # A special token, and an id that stands for nothing, adds no byte to a text.
        self.byte_lengths = np.array(
            [0 if i in special else len(token or b"") for i, token in enumerate(table)], np.int32
        )
        self.separator = (encoding.eot_token,)
        self._bytes = [REPLACEMENT.encode() if token is None else token for token in table]
        self._table = [token or b"" for token in table]

    def encode(self, text: str) -> np.ndarray:
        parts = [text] if len(text) <= _LONGEST_BLANK else _within_long_blanks(text)
        try:
            # Nothing in a text is special: "<|endoftext|>" in a file is ordinary characters.
            ids = [self.encoding.encode_to_numpy(part, disallowed_special=()) for part in parts]
        except BaseException as error:
            raise refusal(error, f"{self.name} cannot encode the text") from None
        return (ids[0] if len(ids) == 1 else np.concatenate(ids)).astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        data = b"".join(self._bytes[i] if 0 <= i < self.vocab_size else REPLACEMENT.encode() for i in id_list(ids))
        return data.decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        return self._table

    def spell(self, pieces: int = 256) -> list[list[int]]:
        special = {self.encoding.encode_single_token(text) for text in self.encoding.special_tokens_set}
        return spelled(self.name, self._table, special, pieces)

    def content(self) -> dict[str, Any]:
        encoding: Any = self.encoding
        ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
        return {
            "kind": "tiktoken",
            "label": self.label,
            "pattern": encoding._pat_str,
            "special": encoding._special_tokens,
            "size": encoding.n_vocab,
            "ids": [rank for _, rank in ranks],
            "tokens": [base64.b64encode(token).decode("ascii") for token, _ in ranks],
        }


def _within_long_blanks(text: str) -> list[str]:
    """The text, cut within every run of white space that is too long for a pattern; ids elsewhere do not change."""
    cuts = [0]
    for run in _BLANKS.finditer(text):
        cuts += range(run.start() + _LONGEST_BLANK, run.end(), _LONGEST_BLANK)
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _single_token_bytes(encoding: tiktoken.Encoding, token: int) -> bytes | None:
    try:
        return encoding.decode_single_token_bytes(token)
    except KeyError:  # published vocabularies have gaps
        return None


def load_tiktoken(name: str) -> TiktokenTokenizer:
    """A published tiktoken encoding by name.

    Raises `UserError` if its file is neither in `$TIKTOKEN_CACHE_DIR` nor downloaded within 20 seconds.
    """
    found: list[tiktoken.Encoding] = []
    failed: list[BaseException] = []

    def get() -> None:
        try:
            found.append(tiktoken.get_encoding(name))
        except BaseException as error:  # whatever the HTTP library of the day raises
            failed.append(error)

    # tiktoken downloads without a time limit: behind a firewall that drops packets it would hang for minutes.
    thread = threading.Thread(target=get, daemon=True)
    thread.start()
    thread.join(_DOWNLOAD_SECONDS)
    if found:
        return TiktokenTokenizer(found[0], label=name)
    own = f", or ./{name} for the folder of that name" if os.path.isdir(name) else ""
    reason = type(failed[0]).__name__ if failed else f"no answer within {_DOWNLOAD_SECONDS:g} s"
    raise UserError(
        f"the ranks of {name!r} are not on this machine and cannot be downloaded ({reason}); set TIKTOKEN_CACHE_DIR "
        f"to a folder that holds tiktoken's file, or use 'bpe:8192', which needs no network{own}"
    )


def train_bpe(documents: Iterable[str], n_tokens: int) -> list[bytes]:
    """Learn at most `n_tokens` tokens: the 256 bytes in order, then merges, most frequent pair first.

    tiktoken knows tokens by their bytes, not by the pair that made them. Each token is therefore kept only if merging
    its bytes with the tokens before it leaves exactly two pieces, so that every rank can be reached.
    """
    from tokenizers import Tokenizer as Trainee
    from tokenizers import models, pre_tokenizers, trainers

    trainee: Any = Trainee(models.BPE())
    trainee.pre_tokenizer = pieces(PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens + _SPARE,  # pyright: ignore[reportCallIssue]
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
    )
    trainee.train_from_iterator(_in_short_pieces(documents), trainer)
    byte_of = bytes_of_characters()
    learned = sorted(trainee.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes([i]) for i in range(256)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for text, _ in learned:
        token = bytes(byte_of[character] for character in text)
        if len(tokens) < n_tokens and len(token) > 1 and len(merge(token, ranks)) == 2:
            ranks[token] = len(tokens)
            tokens.append(token)
    return tokens


def pieces(pattern: str, *, as_bytes: bool = True) -> Any:
    """What cuts text into pieces and shows their bytes as characters, in Hugging Face's library."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, level]) if as_bytes else split


def _in_short_pieces(documents: Iterable[str]) -> Iterator[str]:
    """The documents; those with pieces beyond 4,096 characters piece by piece, these cut."""
    split = pieces(PATTERN, as_bytes=False)
    for document in documents:
        long = len(document) > _LONGEST_PIECE and (
            max(map(len, document.split()), default=0) > _LONGEST_PIECE
            or any(run.end() - run.start() > _LONGEST_PIECE for run in _BLANKS.finditer(document))
        )
        if not long:
            yield document
            continue
        for piece, _ in split.pre_tokenize_str(document):
            for start in range(0, len(piece), _LONGEST_PIECE):
                yield piece[start : start + _LONGEST_PIECE]


def merge(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Plain BPE, the reference: merge the adjacent pair of lowest rank, the leftmost first, until no pair has one."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 1:
        pairs = [ranks.get(left + right) for left, right in zip(parts, parts[1:], strict=False)]
        lowest = min((rank for rank in pairs if rank is not None), default=None)
        if lowest is None:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def spelled(name: str, table: list[bytes], special: set[int], pieces: int) -> list[list[int]]:
    """Every token's bytes in the 256 bytes and the first merges of its own vocabulary (see `Tokenizer.spell`)."""
    merges = [token for i, token in enumerate(table) if len(token) > 1 and i not in special]
    if not 256 <= pieces <= 256 + len(merges):
        raise UserError(
            f"pieces={pieces}: {name} has the 256 bytes and {len(merges)} merges; take 256 to {256 + len(merges)}"
        )
    # Merges stand in the order of their ids, as they do in every published vocabulary.
    ranks = {token: 256 + i for i, token in enumerate(merges[: pieces - 256])}
    return [[ranks.get(part, part[0]) for part in merge(token, ranks) if part] for token in table]


def bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable character of each byte, inverted: the trainer's alphabet."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def of_ranks(tokens: list[bytes]) -> TiktokenTokenizer:
    """The tokenizer `bpe:N` of trained tokens in the order of their ranks, and the end of a text after them."""
    size, special = len(tokens) + 1, {END_OF_TEXT: len(tokens)}
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return make(f"bpe:{size}", ranks, label=PATTERN, pattern=PATTERN, special=special, size=size)


def make(
    name: str, ranks: dict[bytes, int], *, label: str, pattern: str, special: dict[str, int], size: int
) -> TiktokenTokenizer:
    """The tokenizer of what `TiktokenTokenizer.content` says."""
    whole = len(ranks) + len(special) == size  # published vocabularies have gaps
    sizes = {"explicit_n_vocab": size} if whole else {}
    try:
        encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special, **sizes)
    except BaseException as error:
        raise refusal(error, f"the tokenizer {name} cannot be made") from None
    return TiktokenTokenizer(encoding, label=label)
