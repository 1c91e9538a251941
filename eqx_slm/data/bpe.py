"""Byte-level BPE: ranks trained on the corpus or published ones, always encoded by tiktoken."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tiktoken

from ..errors import UserError
from .corpora import Corpus
from .tokenizer import Tokenizer, as_ids

END_OF_TEXT = "<|endoftext|>"

# How text falls into pieces before merging; the trainer and the encoder get this very string. It is the GPT-4 pattern
# less the special case of contractions (a letter run may take one leading apostrophe anyway, and in source code "'s"
# is rarely a contraction), and uses only what Oniguruma (the trainer) and fancy-regex (tiktoken) read alike: no
# possessive quantifiers, no case-insensitive groups.
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_FORMAT = 1
_LONGEST = 64  # bytes a token; keeps rulers of dashes and long blanks from becoming tokens
_SPARE = 64  # candidates beyond N, for those that `train_bpe` refuses
_DOWNLOAD_SECONDS = 20.0
_REPLACEMENT = "\ufffd".encode()


class TiktokenTokenizer(Tokenizer):
    """A `tiktoken.Encoding`, with its end-of-text token (no bytes long) between documents."""

    def __init__(self, encoding: tiktoken.Encoding, *, pattern: str = "") -> None:
        special = {encoding.encode_single_token(text): text.encode("utf-8") for text in encoding.special_tokens_set}
        table = [_single_token_bytes(encoding, i) for i in range(encoding.n_vocab)]
        digest = hashlib.sha256(pattern.encode("utf-8"))
        for token in table:
            digest.update(b"-" if token is None else len(token).to_bytes(4, "big") + token)
        self.encoding = encoding
        self.label = pattern
        self.name = encoding.name
        self.vocab_size = encoding.n_vocab
        self.hash = digest.hexdigest()
        # A special token, and an id that stands for nothing, adds no byte to a text.
        self.byte_lengths = np.array(
            [0 if i in special else len(token or b"") for i, token in enumerate(table)], np.int32
        )
        self.separator = (encoding.eot_token,)
        self._bytes = [_REPLACEMENT if token is None else token for token in table]

    def encode(self, text: str) -> np.ndarray:
        # Nothing in a text is special: "<|endoftext|>" in a file is ordinary characters.
        return self.encoding.encode_to_numpy(text, disallowed_special=()).astype(np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        data = b"".join(self._bytes[i] if 0 <= i < self.vocab_size else _REPLACEMENT for i in as_ids(ids))
        return data.decode("utf-8", "replace")

    def encode_documents(self, documents: Sequence[str]) -> np.ndarray:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:  # tiktoken releases the GIL
            return self.join(list(pool.map(self.encode, documents)))


def _single_token_bytes(encoding: tiktoken.Encoding, token: int) -> bytes | None:
    try:
        return encoding.decode_single_token_bytes(token)
    except KeyError:  # published vocabularies have gaps
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Published ranks


def tiktoken_names() -> list[str]:
    """The names that `load_tiktoken` knows."""
    return tiktoken.list_encoding_names()


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
        return TiktokenTokenizer(found[0], pattern=name)
    reason = type(failed[0]).__name__ if failed else f"no answer within {_DOWNLOAD_SECONDS:g} s"
    raise UserError(
        f"the ranks of {name!r} are not on this machine and cannot be downloaded ({reason}); set TIKTOKEN_CACHE_DIR "
        "to a folder that holds tiktoken's file, or use 'bpe:8192', which needs no network"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Trained ranks


def make_bpe(spec: str, corpus: Corpus, *, cache_dir: str | Path | None = None) -> TiktokenTokenizer:
    """Byte-level BPE `bpe:N` trained on the corpus' training split, from the cache where it has been before.

    The N ids are the 256 bytes, N - 257 merges in the order in which they were learned, and the end of a text.

    **Arguments:**

    - `spec`: `bpe:N` with N at least 257.
    - `corpus`: what to train on.
    - `cache_dir`: where ranks are kept; by default `$EQX_SLM_CACHE`, or `~/.cache/eqx_slm`.

    Raises `UserError` if N is no such number, or if the text has fewer merges that occur twice.
    """
    digits = spec.removeprefix("bpe:")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 9 and int(digits) >= 257):
        raise UserError(
            f"cannot make the tokenizer {spec!r}: N of 'bpe:N' is an integer of at least 257 (256 bytes, end of text)"
        )
    size = int(digits)
    path = _cache_path(size, corpus, cache_dir)
    tokens = _load(path, size)
    if tokens is None:
        tokens = train_bpe(corpus.train, size - 1)
        if len(tokens) < size - 1:
            raise UserError(
                f"{spec} asks for {size} ids, but the training text of {corpus.name} supports {len(tokens) + 1}; "
                f"give 'bpe:{len(tokens) + 1}' or less, or more text"
            )
        _save(path, tokens)
    return TiktokenTokenizer(_encoding(f"bpe:{size}", tokens), pattern=PATTERN)


def train_bpe(documents: Iterable[str], n_tokens: int) -> list[bytes]:
    """Learn at most `n_tokens` tokens: the 256 bytes in order, then merges, most frequent pair first.

    tiktoken knows tokens by their bytes, not by the pair that made them. Each token is therefore kept only if merging
    its bytes with the tokens before it leaves exactly two pieces, so that every rank can be reached.
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trainee

    trainee = Trainee(models.BPE())
    trainee.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens + _SPARE,  # pyright: ignore[reportCallIssue]
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_LONGEST,
    )
    trainee.train_from_iterator(documents, trainer)
    byte_of = _bytes_of_characters()
    learned = sorted(trainee.get_vocab().items(), key=lambda item: item[1])
    tokens = [bytes([i]) for i in range(256)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for text, _ in learned:
        token = bytes(byte_of[character] for character in text)
        if len(tokens) < n_tokens and len(token) > 1 and len(merge(token, ranks)) == 2:
            ranks[token] = len(tokens)
            tokens.append(token)
    return tokens


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


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable character of each byte, inverted: the trainer's alphabet."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _encoding(name: str, tokens: list[bytes]) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        name=name,
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={END_OF_TEXT: len(tokens)},
        explicit_n_vocab=len(tokens) + 1,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The cache: JSON, written at once or not at all, and checked when read


def _cache_path(size: int, corpus: Corpus, cache_dir: str | Path | None) -> Path:
    folder = cache_dir or os.environ.get("EQX_SLM_CACHE") or Path.home() / ".cache" / "eqx_slm"
    content = [_FORMAT, size, corpus.hash, PATTERN, _LONGEST, version("tokenizers"), version("tiktoken")]
    key = hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()
    return Path(folder) / f"bpe-{size}-{key[:32]}.json"


def _checksum(tokens: list[str]) -> str:
    return hashlib.sha256("\n".join([PATTERN, *tokens]).encode("utf-8")).hexdigest()


def _load(path: Path, size: int) -> list[bytes] | None:
    """The tokens in the file, or None if there is none or it is not what was written."""
    try:
        content = json.loads(path.read_text("utf-8"))
        encoded = content["tokens"]
        sound = content["pattern"] == PATTERN and len(encoded) == size - 1 and content["sha256"] == _checksum(encoded)
        return [base64.b64decode(token, validate=True) for token in encoded] if sound else None
    except (OSError, ValueError, KeyError, TypeError, binascii.Error):
        return None


def _save(path: Path, tokens: list[bytes]) -> None:
    encoded = [base64.b64encode(token).decode("ascii") for token in tokens]
    content = {"format": _FORMAT, "pattern": PATTERN, "sha256": _checksum(encoded), "tokens": encoded}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            json.dump(content, file, indent=0)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:  # a read-only home costs seconds at the next start, nothing else
        if temporary is not None:
            temporary.unlink(missing_ok=True)
