"""Tokenizers as files: our own JSON, tiktoken's ranks, and Hugging Face's tokenizer.json."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_bytes_atomic, write_json_atomic
from .tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

FORMAT = 1


def tokenizer_to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Everything that decides a tokenizer's ids, as JSON; no other file and no network is needed to make it again.

    **Raises:** `ValueError` for a class of tokenizer that is not one of this library's.
    """
    head = {"format": FORMAT, "name": tokenizer.name, "hash": tokenizer.hash}
    if isinstance(tokenizer, ByteTokenizer):
        return {**head, "kind": "byte"}
    if isinstance(tokenizer, CharTokenizer):
        lossless = tokenizer.byte_lengths is not None
        return {**head, "kind": "char", "characters": "".join(tokenizer.characters), "unknown": not lossless}
    if isinstance(tokenizer, WordTokenizer):
        return {**head, "kind": "word", "eos": tokenizer.eos, "words": tokenizer.words}
    from .bpe import TiktokenTokenizer

    if isinstance(tokenizer, TiktokenTokenizer):
        encoding: Any = tokenizer.encoding
        ranks = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
        return {
            **head,
            "kind": "tiktoken",
            "label": tokenizer.label,
            "pattern": encoding._pat_str,
            "special": encoding._special_tokens,
            "size": encoding.n_vocab,
            "ids": [rank for _, rank in ranks],
            "tokens": [base64.b64encode(token).decode("ascii") for token, _ in ranks],
        }
    raise ValueError(f"a {type(tokenizer).__name__} cannot be written: give a byte, char, word or tiktoken tokenizer")


def tokenizer_from_json(data: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `tokenizer_to_json` described.

    **Raises:** `UserError` where the data is not what it wrote, or makes another tokenizer than it says.
    """
    try:
        tokenizer = _make(data)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"not a tokenizer's description ({type(error).__name__}: {error})") from None
    if tokenizer.hash != data["hash"]:
        raise UserError(f"the description of the tokenizer {data['name']} is damaged: its hash is another")
    return tokenizer


def _make(data: dict[str, Any]) -> Tokenizer:
    if data["format"] != FORMAT:
        raise UserError(f"a tokenizer of format {data['format']}; this version reads {FORMAT}")
    if data["kind"] == "byte":
        return ByteTokenizer()
    if data["kind"] == "char":
        return CharTokenizer.of_characters(data["characters"], unknown=data["unknown"])
    if data["kind"] == "word":
        return WordTokenizer.of_words(data["words"], eos=data["eos"])
    if data["kind"] != "tiktoken":
        raise UserError(f"a tokenizer of kind {data['kind']!r}; allowed is byte, char, word or tiktoken")
    import tiktoken

    from .bpe import TiktokenTokenizer

    tokens = map(base64.b64decode, data["tokens"])
    special = {str(text): int(token) for text, token in data["special"].items()}
    ranks = dict(zip(tokens, data["ids"], strict=True))
    whole = len(ranks) + len(special) == data["size"]
    encoding = tiktoken.Encoding(
        name=data["name"],
        pat_str=data["pattern"],
        mergeable_ranks=ranks,
        special_tokens=special,
        explicit_n_vocab=data["size"] if whole else None,  # published vocabularies have gaps
    )
    return TiktokenTokenizer(encoding, pattern=data["label"])


def save_tokenizer(path: str | Path, tokenizer: Tokenizer) -> Path:
    """Writes `tokenizer_to_json`; the file appears whole or not at all."""
    return write_bytes_atomic(path, json.dumps(tokenizer_to_json(tokenizer)).encode("ascii"))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads what `save_tokenizer` wrote.

    **Raises:** `UserError` where the file is missing or damaged.
    """
    try:
        return tokenizer_from_json(json.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def save_ranks(path: str | Path, tokenizer: Tokenizer) -> Path:
    """Writes a BPE tokenizer's ranks as tiktoken does: a line a token, its bytes in base64 and its rank.

    `tiktoken.load.load_tiktoken_bpe(path)` reads them; pattern and special tokens go into `<path>.json` beside it.
    """
    data = _bpe(tokenizer, "tiktoken's ranks")
    lines = (f"{token} {rank}\n" for token, rank in zip(data["tokens"], data["ids"], strict=True))
    write_json_atomic(f"{path}.json", {"pattern": data["pattern"], "special": data["special"], "name": data["name"]})
    return write_bytes_atomic(path, "".join(lines).encode("ascii"))


def export_tokenizer_json(path: str | Path, tokenizer: Tokenizer) -> Path:
    """Writes a BPE tokenizer as Hugging Face's tokenizer.json, which gives the same ids.

    tiktoken merges whatever pair makes a token of the lowest rank; the Hub's format lists pairs. Every way of cutting
    a token into two tokens is listed under the token's rank, so that both do the same.
    """
    data = _bpe(tokenizer, "a tokenizer.json")
    from .bpe import _bytes_of_characters

    character = {byte: text for text, byte in _bytes_of_characters().items()}
    tokens = [base64.b64decode(token) for token in data["tokens"]]
    known = set(tokens)
    written = {token: "".join(character[byte] for byte in token) for token in tokens}
    merges = [
        [written[token[:cut]], written[token[cut:]]]
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    special = sorted(data["special"].items(), key=lambda item: item[1])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": data["pattern"]}, "behavior": "Isolated", "invert": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": token, "content": text, **flags} for text, token in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {written[token]: rank for token, rank in zip(tokens, data["ids"], strict=True)}
            | {text: token for text, token in special},
            "merges": merges,
        },
    }
    return write_bytes_atomic(path, json.dumps(content, ensure_ascii=False).encode("utf-8"))


def _bpe(tokenizer: Tokenizer, what: str) -> dict[str, Any]:
    data = tokenizer_to_json(tokenizer)
    if data["kind"] != "tiktoken":
        raise UserError(
            f"the tokenizer {tokenizer.name} has no merges to write as {what}; give bpe:N or a tiktoken name"
        )
    return data
