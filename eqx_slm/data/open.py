"""One door to every stream: text in memory, prepared folders and mixtures of them, streaming."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checks import shown
from ..errors import UserError
from .corpora import Corpus
from .documents import OnError
from .order import Mixture
from .records import Fields
from .shards import VOCABULARY, Manifest, is_prepared, refuse_prepared
from .sources import load_corpus, open_source
from .splits import SPLITS, split_rule
from .stream import Stream, TokenStream
from .tokenizer import Tokenizer, check_lost, padded_vocab
from .vocabulary import is_file_spec, load_tokenizer, make_tokenizer, tokenizer_file, tokenizer_for


def make_stream(
    data: str | os.PathLike[str] = "stdlib",
    tokenizer: str | os.PathLike[str] = "bpe:8192",
    *,
    data_root: str | Path | None = None,
    text_field: str | None = None,
    cache_dir: str | Path | None = None,
    vocab_size: int | None = None,
    pad_vocab_to: int = 1,
    **options: Any,
) -> TokenStream:
    """Read a corpus, make its tokenizer, and encode its splits, in memory.

    **Arguments:**

    - `data`, `data_root`: see `load_corpus`. `text_field`: the field of records that is the text, by default "text".
    - `tokenizer`, `cache_dir`: see `make_tokenizer`.
    - `vocab_size`: the model's; by default the tokenizer's own. `pad_vocab_to`: it is padded to a multiple of this.
    - `options` (`sequence_length`, `batch_size`, ...): see `Stream`.

    **Returns:** a `TokenStream` whose `info` names the corpus, the tokenizer, and the size of every split.

    Raises `UserError` as those do, and if `vocab_size` is smaller than the tokenizer's.
    """
    data, tokenizer = _name(data, "data"), _name(tokenizer, "tokenizer")
    corpus = load_corpus(data, data_root=data_root, fields=None if text_field is None else Fields(text=text_field))
    made = make_tokenizer(tokenizer, corpus, cache_dir=cache_dir)
    size = padded_vocab(made.vocab_size if vocab_size is None else vocab_size, pad_vocab_to)
    lost = _lost(made, corpus) if is_file_spec(tokenizer) else ""
    ids = {split: made.encode_documents(texts) for split, texts in corpus.splits.items()}
    info = {
        "corpus": corpus.name,
        "corpus_hash": corpus.hash,
        "corpus_note": " ".join(filter(None, (corpus.note, lost))),
        "split_rule": corpus.split_rule,
        "documents": {split: len(texts) for split, texts in corpus.splits.items()},
        "bytes": {split: sum(len(text.encode("utf-8")) for text in texts) for split, texts in corpus.splits.items()},
    }
    return TokenStream.from_tokens(**ids, vocab_size=size, info=info, tokenizer=made, **options)


def _lost(tokenizer: Tokenizer, corpus: Corpus) -> str:
    """What is to be said of characters that a tokenizer has no ids for: nothing, mostly."""
    share = check_lost(tokenizer, corpus.name, (itertools.chain.from_iterable(each) for each in corpus.splits.values()))
    return f"The tokenizer loses {share:.1%} of the characters: losses are of what is left." if share > 1e-3 else ""


def open_prepared(
    folders: str | Path | Sequence[str | Path],
    *,
    weights: Sequence[float | int | str] | None = None,
    vocab_size: int | None = None,
    pad_vocab_to: int = 1,
    **options: Any,
) -> TokenStream:
    """Opens what `prepare` wrote, mapped into memory: the same windows in the same order as of text in memory.

    Every shard is read once and its sha256 compared, about a second a gigabyte.

    **Arguments:** `folders`: one, or several of one tokenizer. `weights`: how many sequences of each; equal by default.
    The rest: see `make_stream`.

    **Raises:** `UserError` for a folder that is not prepared, a shard that is not what its manifest says, an id that is
    not below `vocab_size` (naming shard and byte), tokenizers that differ, or too little text for a batch.
    """
    where = [Path(path).expanduser() for path in ([folders] if isinstance(folders, str | Path) else folders)]
    if not where:
        raise UserError("no prepared folder: give at least one")
    for folder in where:
        refuse_prepared(folder, finished=False)
    manifests = [Manifest.read(folder) for folder in where]
    tokenizer = load_tokenizer(where[0] / VOCABULARY)
    for folder, manifest in zip(where, manifests, strict=True):
        if manifest.tokenizer["hash"] != tokenizer.hash:
            raise UserError(
                f"{folder} was prepared with {manifest.tokenizer['name']}, but {where[0] / VOCABULARY} is another "
                f"tokenizer, {tokenizer.name}: a mixture needs one; prepare again"
            )
    mixture = Mixture([1] * len(where) if weights is None else weights)
    mixed = ", ".join(f"{f.name} {q}" for f, q in zip(where, mixture.quotas, strict=False))
    size = padded_vocab(tokenizer.vocab_size if vocab_size is None else vocab_size, pad_vocab_to)
    info = {
        "corpus": " + ".join(folder.resolve().name for folder in where),
        "corpus_hash": manifests[0].hash if len(manifests) == 1 else [m.hash for m in manifests],
        "corpus_note": "prepared" + f", mixed by sequences: {mixed} of {mixture.period}" * (len(where) > 1),
        "split_rule": "; ".join(sorted({m.split_rule for m in manifests})),
        "documents": {split: sum(m.counts[split].documents for m in manifests) for split in SPLITS},
        "bytes": {split: sum(m.counts[split].bytes for m in manifests) for split in SPLITS},
    }
    tokens = [manifest.tokens(folder, size) for folder, manifest in zip(where, manifests, strict=True)]
    hashes = [manifest.hash for manifest in manifests]
    known: dict[str, Any] = {"hashes": hashes, "vocab_size": size, "tokenizer": tokenizer, "info": info}
    return TokenStream(tokens, mixture=mixture, **known, **options)


def parse_mix(data: str) -> tuple[list[str], list[str] | None]:
    """The sources of `mix:0.7=A,0.3=B` and their weights; of anything else itself, and None."""
    if not data.startswith("mix:"):
        return [data], None
    names, weights = [], []
    for part in data.removeprefix("mix:").split(","):
        weight, mark, name = part.partition("=")
        if not mark or not name.strip() or not weight.strip():
            raise UserError(f"{data!r}: write mix:WEIGHT=SOURCE,WEIGHT=SOURCE, such as mix:0.7=books,0.3=code")
        names.append(name.strip())
        weights.append(weight.strip())
    return names, weights


def prepared_tokenizer(data: str) -> str | None:
    """The name of the tokenizer that prepared data comes with; None for data that is not prepared."""
    data = _name(data, "data")
    names, _ = parse_mix(data)
    if data.startswith("stream:") or not is_prepared(names[0]):
        return None
    return Manifest.read(names[0]).tokenizer["name"]


def open_data(
    data: str | os.PathLike[str] = "stdlib",
    tokenizer: str | os.PathLike[str] | None = None,
    *,
    data_root: str | Path | None = None,
    text_field: str | None = None,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    on_error: OnError = "stop",
    **options: Any,
) -> Stream:
    """Opens the stream that `data` names.

    **Arguments:**

    - `data`: what `make_stream` takes (text in memory); a folder that `prepare` wrote; `mix:0.7=A,0.3=B` for several
        of those; or `stream:SOURCE` for documents tokenized on the fly (see `open_source`).
    - `tokenizer`: by default `bpe:8192`; a prepared folder brings its own, and another one is refused.
    - `text_field`: the field of records that is the text, by default "text"; prepared text has none any more.
    - `workers`, `on_error`: of a streamed source, see `StreamingStream`.
    - `data_root`, `cache_dir`, `options` (`vocab_size`, `pad_vocab_to`, `sequence_length`, `batch_size`, ...): see
        `make_stream`.

    **Raises:** `UserError` as those do.
    """
    data, tokenizer = _name(data, "data"), None if tokenizer is None else _name(tokenizer, "tokenizer")
    own = prepared_tokenizer(data)
    if own is not None:
        if tokenizer not in (None, own) and not (is_file_spec(tokenizer) and _is_of(data, tokenizer)):
            raise UserError(f"{data} was prepared with {own}, not {tokenizer}: give {own}, or prepare it again")
        if text_field is not None:
            raise UserError(f"{data} is prepared, so that --text-field {text_field} can choose nothing: leave it out")
        names, weights = parse_mix(data)
        return open_prepared(names, weights=weights, **options)
    if (mix := data.removeprefix("stream:")).startswith("mix:"):
        for name in parse_mix(mix)[0]:
            refuse_prepared(name, finished=False)
        raise UserError(f"{data!r}: only prepared folders are mixed; prepare each source, and mix those")
    spec = tokenizer or "bpe:8192"
    if data.startswith("stream:"):
        from .streaming import StreamingStream

        fields = None if text_field is None else Fields(text=text_field)
        source = open_source(data.removeprefix("stream:"), data_root=data_root, fields=fields)
        rule = split_rule(source)
        made = tokenizer_for(spec, source, rule, on_error=on_error, cache_dir=cache_dir)
        return StreamingStream(source, made, rule=rule, workers=workers, on_error=on_error, **options)
    return make_stream(data, spec, data_root=data_root, text_field=text_field, cache_dir=cache_dir, **options)


def _is_of(data: str, spec: str) -> bool:
    """Whether prepared data is of the tokenizer in a file."""
    return Manifest.read(parse_mix(data)[0][0]).tokenizer["hash"] == tokenizer_file(spec).hash


def _name(given: Any, what: str) -> str:
    """A name or a path as text; `UserError` for what is none, and for an empty one, the working directory."""
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(name, str) or not name.removeprefix("stream:").strip():
        allowed = "a corpus, a file, a folder or a glob" if what == "data" else "a name such as bpe:4096, or a file"
        raise UserError(f"{what} {shown(given)} names nothing: give {allowed}")
    return name
