"""What a source holds: documents, characters, bytes and tokens of each split; and the tokenizer made for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UserError
from .corpora import SPLITS, Corpus
from .documents import MemorySource, OnError, Problem, Skipped, Source
from .manifest import Manifest, SplitCounts
from .sources import spec_hash
from .splits import SplitRule
from .tokenizer import Tokenizer, make_tokenizer, padded_vocab
from .workers import TokenizingPool, chunks

TRAINING_BYTES = 64 << 20  # of text that merges are learned from; a corpus in memory is used whole
WHOLE_BYTES = 256 << 20  # of text that a vocabulary of characters or words may be read from


def tokenizer_for(
    spec: str, source: Source, rule: SplitRule, *, on_error: OnError = "stop", cache_dir: str | Path | None = None
) -> Tokenizer:
    """The tokenizer of a specification (see `make_tokenizer`), trained on a source's training split.

    Merges (`bpe:N`) are learned from the first 64 MiB of training documents of files; `char` and `word` need all of
    the text, so they are for sources up to 256 MiB.

    **Raises:** `UserError` as `make_tokenizer` does, and where the text is larger than that.
    """
    if isinstance(source, MemorySource):
        train, valid, test = (source.splits.get(split, ()) for split in SPLITS)
        corpus = Corpus(source.name, train, valid, test, split_rule="", hash=source.digest)
        return make_tokenizer(spec, corpus, cache_dir=cache_dir)
    if spec == "byte" or not spec.startswith(("char", "word", "bpe:")):
        return make_tokenizer(spec, Corpus(source.name, (), (), (), split_rule="", hash=""), cache_dir=cache_dir)
    merges = spec.startswith("bpe:")
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    size, skipped = 0, Skipped(on_error)
    for item in source.items():
        if isinstance(item, Problem):
            skipped.see(item)
            continue
        split = rule(item)
        if merges and split != "train":
            continue
        size += len(item.data)
        if not merges and size > WHOLE_BYTES:
            raise UserError(
                f"{source.name} has more than {WHOLE_BYTES >> 20} MiB of text, too much for the vocabulary of {spec}; "
                "give bpe:N, byte or a tiktoken name"
            )
        texts[split].append(item.text)
        if merges and size >= TRAINING_BYTES:
            break
    identity = {"source": source.spec, "rule": str(rule), "bytes": TRAINING_BYTES, "on_error": on_error}
    train, valid, test = (tuple(texts[split]) for split in SPLITS)
    corpus = Corpus(source.name, train, valid, test, split_rule="", hash=spec_hash(identity))
    return make_tokenizer(spec, corpus, cache_dir=cache_dir)


def describe(
    source: Source,
    tokenizer: Tokenizer,
    rule: SplitRule,
    *,
    workers: int | None = 0,
    on_error: OnError = "stop",
    pad_vocab_to: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Counts a source.

    **Arguments:** as in `prepare`; `pad_vocab_to`: the multiple that a model's vocabulary would be padded to;
    `on_progress` is told the bytes so far.

    **Returns:** JSON: name, split rule, tokenizer, vocabulary, and for each split documents, characters, bytes, tokens
    (without separators between documents) and bytes a token.
    """
    counts = {split: SplitCounts() for split in SPLITS}
    skipped = Skipped(on_error)
    done = 0
    with TokenizingPool(tokenizer, workers) as pool:
        for chunk, ids in pool.map(chunks(source.items()), lambda chunk: chunk.documents):
            tokens = iter(ids)
            for item in chunk.items:
                if isinstance(item, Problem):
                    skipped.see(item)
                else:
                    counts[rule(item)].add(len(item.text), len(item.data), len(next(tokens)), item.group)
            done += chunk.size
            if on_progress:
                on_progress(done)
    return _table(source.name, str(rule), tokenizer.name, tokenizer.vocab_size, pad_vocab_to, counts, skipped.state())


def describe_prepared(folder: Path, *, pad_vocab_to: int = 1) -> dict[str, Any]:
    """The same of a prepared folder, from its manifest; tokens are with separators."""
    manifest = Manifest.read(folder)
    name, size = manifest.tokenizer["name"], manifest.tokenizer["vocab_size"]
    table = _table(folder.name, manifest.split_rule, name, size, pad_vocab_to, manifest.counts, manifest.skipped)
    return {**table, "prepared": manifest.hash, "leaks": manifest.leaks}


def _table(
    name: str,
    rule: str,
    tokenizer: str,
    size: int,
    multiple: int,
    counts: dict[str, SplitCounts],
    skipped: dict[str, Any],
) -> dict[str, Any]:
    rows = {}
    for split, count in counts.items():
        row: dict[str, Any] = {
            "documents": count.documents,
            "characters": count.characters,
            "bytes": count.bytes,
            "tokens": count.tokens,
            "bytes_per_token": round(count.bytes / count.tokens, 4) if count.tokens else None,
        }
        if count.sets:
            row["sets"] = dict(sorted(count.sets.items()))
        rows[split] = row
    padded = padded_vocab(size, multiple)
    vocabulary = {"vocab_size": size, "padded_vocab_size": padded, "padding": padded - size}
    return {"name": name, "split_rule": rule, "tokenizer": tokenizer, **vocabulary, "splits": rows, "skipped": skipped}
