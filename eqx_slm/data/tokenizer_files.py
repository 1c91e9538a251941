"""Tokenizers that others made, as files: Hugging Face's tokenizer.json and tiktoken's ranks."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..configs import read_json
from ..errors import UserError
from ..files import json_hash
from .bpe import END_OF_TEXT, TiktokenTokenizer, bytes_of_characters, make, spelled
from .tokenizer import REPLACEMENT, Tokenizer, id_list, refusal

# What ends a text, where no tokenizer_config.json says it; the first that there is.
ENDS = (END_OF_TEXT, "<|end_of_text|>", "<|eot_id|>", "</s>", "<eos>", "<|im_end|>", "[SEP]", "<sep>")
# The patterns of tiktoken's own encodings, by a part of the file's name. The last one is GPT-4's, for all others.
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
SAMPLE = "The 1st quick, brown fox's\n\n\tjumps  over -- na\u00efve \u65e5\u672c \U0001f642. "
PATTERNS = {"r50k": GPT2, "p50k": GPT2, "gpt2": GPT2, "o200k": GPT4O, "": GPT4}
RANKS = {"r50k_base": 50_256, "p50k_base": 50_280, "cl100k_base": 100_256, "o200k_base": 199_998}  # as published


def open_tokenizer_file(spec: str) -> Tokenizer:
    """The tokenizer of a file.

    **Arguments:** `spec`: Hugging Face's tokenizer.json, a `.tiktoken` file or a tiktoken `tokenizer.model` (one
    token a line, its bytes in base 64 and its rank), or a folder with one of them.

    **Raises:** `UserError` where there is none, or it is damaged.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        names = ("tokenizer.json", "tokenizer.model", *sorted(each.name for each in path.glob("*.tiktoken")))
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            what = "neither tokenizer.json nor a .tiktoken file"
            raise UserError(f"the folder {path} holds no tokenizer: {what}{_older(path)}")
        path = found[0]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    if path.suffix != ".json":
        return _of_ranks(path, data)
    told = read_json(path)
    if not isinstance(told, dict) or "model" not in told:
        raise UserError(
            f"{path} is no tokenizer of Hugging Face: it has no 'model'; give a tokenizer.json{_older(path.parent)}"
        )
    return HubTokenizer(spec, data.decode("utf-8-sig"), _end_beside(path))


class HubTokenizer(Tokenizer):
    """A tokenizer.json, encoded by Hugging Face's library: ordinary text only, nothing cut, padded or added.

    Special tokens in a text are ordinary characters, as with every other tokenizer here. `byte_lengths` is known for
    byte-level BPE that loses nothing (GPT-2's kind, Llama 3's); others (SentencePiece's, WordPiece) change white
    space or case, and bits per byte have no meaning for them.
    """

    def __init__(self, name: str, text: str, separator: Sequence[int] | str | None = None) -> None:
        """**Arguments:** `name`; `text` of the file; `separator`: the end of a text, as ids or as a special token."""
        # A file may say that texts are cut after 512 tokens.
        self._told = told = json.loads(text) | {"truncation": None, "padding": None}
        if isinstance(told["model"], dict) and told["model"].get("dropout"):  # the same text, other ids each time
            told["model"] = told["model"] | {"dropout": None}
        self.name, self._inner = name, _opened(name, json.dumps(told))
        inner = self._inner
        inner.encode_special_tokens = True
        vocabulary = inner.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError(f"the tokenizer {name} has no tokens")
        self.vocab_size = max(vocabulary.values()) + 1
        self._known = np.zeros(self.vocab_size, bool)
        self._known[list(vocabulary.values())] = True
        added = {token["id"]: token for token in told.get("added_tokens") or ()}
        if moved := [each for i, each in added.items() if vocabulary.get(each.get("content")) != i]:
            content = moved[0].get("content")
            raise UserError(
                f"the tokenizer {name} has {content!r} at id {moved[0]['id']}, which Hugging Face's library reads as "
                f"{vocabulary.get(content)}: its added tokens must follow the others without a gap"
            )
        self._special = {i for i, token in added.items() if token.get("special")}
        self.separator = self._separator(separator, vocabulary, added)
        self._table = _byte_table(told, vocabulary, added, self.vocab_size)
        if self._table is not None and b"".join(self._table[i] for i in self.encode(SAMPLE)) != SAMPLE.encode():
            self._table = None  # what a file may say besides, such as a suffix of words
        self.byte_lengths = None
        if self._table is not None:
            lengths = [0 if i in self._special else len(token) for i, token in enumerate(self._table)]
            self.byte_lengths = np.array(lengths, np.int32)
        # Of what the file says, not of how a version of the library would write it; spaces in it do not matter.
        self.hash = json_hash([told, list(self.separator)])

    def _separator(self, given: Sequence[int] | str | None, vocabulary: dict[str, int], added: dict[int, Any]) -> Any:
        if given is not None and not isinstance(given, str):
            return tuple(given)
        if given in vocabulary:
            return (vocabulary[given],)
        ends = [vocabulary[end] for end in ENDS if vocabulary.get(end) in added]
        return (ends[0],) if ends else tuple(self.encode("\n").tolist())

    def encode(self, text: str) -> np.ndarray:
        try:
            return np.asarray(self._inner.encode_batch_fast([text], add_special_tokens=False)[0].ids, np.int32)
        except BaseException as error:
            raise refusal(error, f"{self.name} cannot encode the text") from None

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        parts: list[list[int]] = [[]]
        for i in id_list(ids):
            if 0 <= i < self.vocab_size and self._known[i]:
                parts[-1].append(i)
            else:
                parts.append([])
        if self._table is not None:
            table = self._table
            found = [b"".join(table[i] for i in part).decode("utf-8", "replace") for part in parts]
        else:
            found = [self._inner.decode(part, skip_special_tokens=False) if part else "" for part in parts]
        return REPLACEMENT.join(found)

    def token_bytes(self) -> list[bytes]:
        return self._table or [self.decode([i]).encode() if self._known[i] else b"" for i in range(self.vocab_size)]

    def spell(self, pieces: int = 256) -> list[list[int]]:
        if self._table is None:
            return super().spell(pieces)
        return spelled(self.name, self._table, self._special, pieces)

    def content(self) -> dict[str, Any]:
        return {"kind": "hub", "json": json.dumps(self._told), "separator": list(self.separator)}


def _older(folder: Path) -> str:
    """What to do where a folder has a tokenizer of transformers in files that the library alone does not read."""
    for name in ("merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer_config.json"):
        if (folder / name).is_file():
            at = repr(str(folder))
            return f" (of {name}, transformers makes one: AutoTokenizer.from_pretrained({at}).save_pretrained({at}))"
    return ""


def _opened(name: str, text: str) -> Any:
    from tokenizers import Tokenizer as Inner

    try:
        return Inner.from_str(text)
    except BaseException as error:
        raise refusal(error, f"{name} is no tokenizer that Hugging Face's library reads") from None


def _byte_table(told: Any, vocabulary: dict[str, int], added: dict[int, Any], size: int) -> list[bytes] | None:
    """The bytes of every id of byte-level BPE that loses none; None of any other tokenizer."""
    parts = [told.get("pre_tokenizer") or {}]
    parts = parts[0].get("pretokenizers") or parts
    levels = [part for part in parts if part.get("type") == "ByteLevel"]
    lossless = (
        (told.get("model") or {}).get("type") == "BPE"
        and told.get("normalizer") is None
        and len(levels) == 1
        and not levels[0].get("add_prefix_space")
        and all(part.get("type") in ("ByteLevel", "Split", "Digits") for part in parts)
        and all(part.get("behavior") != "Removed" for part in parts)
        and (told.get("decoder") or {}).get("type") == "ByteLevel"
        and not any(token.get("lstrip") or token.get("rstrip") for token in added.values() if not token.get("special"))
    )
    byte_of = bytes_of_characters()
    if not lossless or not vocabulary.keys() >= byte_of.keys():  # a byte without an id would be lost
        return None
    table = [b""] * size
    try:
        for token, i in vocabulary.items():
            table[i] = token.encode("utf-8") if i in added else bytes(byte_of[character] for character in token)
    except KeyError:
        return None
    return table


def _end_beside(path: Path) -> str | None:
    """The end of a text that tokenizer_config.json in the same folder names."""
    with contextlib.suppress(UserError):
        told = read_json(path.with_name("tokenizer_config.json"))
        end = told.get("eos_token") if isinstance(told, dict) else None
        return end.get("content") if isinstance(end, dict) else end if isinstance(end, str) else None
    return None


def _of_ranks(path: Path, data: bytes) -> TiktokenTokenizer:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError:
            raise UserError(
                f"{path}, line {number}: not a token in base 64 and its rank, as tiktoken's files have them; of a "
                f"SentencePiece model, give the tokenizer.json that transformers writes of it{_older(path.parent)}"
            ) from None
    missing = [i for i in range(256) if bytes([i]) not in ranks]
    if missing or len(set(ranks.values())) < len(ranks) or min(ranks.values()) < 0:
        what = f"has no rank for the byte {missing[0]}" if missing else "gives two tokens one rank, or one below 0"
        raise UserError(f"{path} {what}: it is no whole vocabulary of tiktoken")
    if cut := [f"{RANKS[name]:,} of {name}" for name in RANKS if name in path.name and len(ranks) < RANKS[name]]:
        raise UserError(
            f"{path} has {len(ranks):,} ranks, not the {cut[0]}: get it again, or give it a name of its own"
        )
    size = max(ranks.values()) + 2
    pattern = next(pattern for part, pattern in PATTERNS.items() if part in path.name)
    return make(str(path), ranks, label=pattern, pattern=pattern, special={END_OF_TEXT: size - 1}, size=size)
