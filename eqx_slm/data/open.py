"""One door to every stream: text in memory, prepared folders, streaming, and mixtures of the last two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..errors import UserError
from .documents import OnError
from .formats import Fields
from .shards import VOCABULARY, Manifest, is_prepared
from .sources import load_corpus, open_source
from .splits import SPLITS, split_rule
from .stream import Stream, TokenStream, check_vocabulary
from .tokenizer import padded_vocab
from .vocabulary import load_tokenizer, make_tokenizer, tokenizer_for


def make_stream(
    data: str = "stdlib",
    tokenizer: str = "bpe:8192",
    *,
    data_root: str | Path | None = None,
    text_field: str | None = None,
    vocab_size: int | None = None,
    pad_vocab_to: int = 1,
    sequence_length: int = 128,
    batch_size: int = 16,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> TokenStream:
    """Read a corpus, make its tokenizer, and encode its splits, in memory.

    **Arguments:**

    - `data`, `data_root`: see `load_corpus`. `text_field`: the field of records that is the text, by default "text".
    - `tokenizer`, `cache_dir`: see `make_tokenizer`.
    - `vocab_size`: the model's vocabulary; by default the tokenizer's own. `pad_vocab_to`: padded to a multiple of it.
    - `sequence_length`, `batch_size` and `options` (`eval_tokens`, `process_index`, `process_count`): see `Stream`.

    **Returns:** a `TokenStream` whose `info` names the corpus, the tokenizer, and the size of every split.

    Raises `UserError` as those do, and if `vocab_size` is smaller than the tokenizer's.
    """
    _check_name(data)
    corpus = load_corpus(data, data_root=data_root, fields=None if text_field is None else Fields(text=text_field))
    made = make_tokenizer(tokenizer, corpus, cache_dir=cache_dir)
    size = padded_vocab(made.vocab_size if vocab_size is None else vocab_size, pad_vocab_to)
    check_vocabulary(size, made)
    documents = {split: getattr(corpus, split) for split in SPLITS}
    info = {
        "corpus": corpus.name,
        "corpus_hash": corpus.hash,
        "corpus_note": corpus.note,
        "split_rule": corpus.split_rule,
        "tokenizer": made.name,
        "tokenizer_hash": made.hash,
        "documents": {split: len(texts) for split, texts in documents.items()},
        "bytes": {split: sum(len(text.encode("utf-8")) for text in texts) for split, texts in documents.items()},
    }
    ids = {split: made.encode_documents(texts) for split, texts in documents.items()}
    sizes = {"vocab_size": size, "sequence_length": sequence_length, "batch_size": batch_size}
    return TokenStream.from_tokens(**ids, **sizes, info=info, tokenizer=made, **options)


def open_prepared(
    folders: str | Path | Sequence[str | Path],
    *,
    sequence_length: int = 128,
    batch_size: int = 16,
    vocab_size: int | None = None,
    weights: Sequence[float | int | str] | None = None,
    verify: Literal["hash", "size"] = "hash",
    **options: Any,
) -> TokenStream:
    """Opens what `prepare` wrote, mapped into memory: the same windows in the same order as of text in memory.

    **Arguments:**

    - `folders`: one, or several of one tokenizer. `weights`: how many sequences of each; equal by default.
    - `vocab_size`: the model's; by default the tokenizer's.
    - `verify`: "hash" reads every shard once and compares its sha256 (about a second a gigabyte), "size" looks at
        sizes only.
    - `sequence_length`, `batch_size` and `options` (`eval_tokens`, `process_index`, `process_count`): see `Stream`.

    **Raises:** `UserError` for a folder that is not prepared, a shard that is not what its manifest says, an id that is
    not below `vocab_size` (naming shard and byte), tokenizers that differ, or too little text for a batch.
    """
    where = [Path(path).expanduser() for path in ([folders] if isinstance(folders, str | Path) else folders)]
    if not where:
        raise UserError("no prepared folder: give at least one")
    if verify not in ("hash", "size"):
        raise UserError(f"verify={verify!r}: allowed is 'hash' or 'size'")
    manifests = [Manifest.read(folder) for folder in where]
    known = manifests[0].tokenizer
    for folder, manifest in zip(where, manifests, strict=True):
        if manifest.tokenizer["hash"] != known["hash"]:
            raise UserError(
                f"{folder} was prepared with {manifest.tokenizer['name']}, {where[0]} with {known['name']}: "
                "a mixture needs one tokenizer"
            )
    size = known["vocab_size"] if vocab_size is None else vocab_size
    hashes = verify == "hash"
    tokens = [manifest.tokens(folder, size, hashes=hashes) for folder, manifest in zip(where, manifests, strict=True)]
    tokenizer = load_tokenizer(where[0] / VOCABULARY)
    if tokenizer.hash != known["hash"]:
        raise UserError(f"{where[0] / VOCABULARY} is not the tokenizer of its manifest: prepare again")

    def total(name: str) -> dict[str, int]:
        return {split: sum(getattr(m.counts[split], name) for m in manifests) for split in SPLITS}

    stream = TokenStream(
        tokens,
        weights=weights,
        hashes=[manifest.hash for manifest in manifests],
        vocab_size=size,
        sequence_length=sequence_length,
        batch_size=batch_size,
        tokenizer=tokenizer,
        **options,
    )
    mixed = ", ".join(f"{f.name} {q}" for f, q in zip(where, stream.mixture.quotas, strict=True))
    note = f"prepared, mixed by sequences: {mixed} of {stream.mixture.period}" if len(where) > 1 else "prepared"
    stream.info = {
        "corpus": " + ".join(folder.resolve().name for folder in where),
        "corpus_hash": manifests[0].hash if len(manifests) == 1 else [m.hash for m in manifests],
        "corpus_note": note,
        "split_rule": "; ".join(sorted({m.split_rule for m in manifests})),
        "tokenizer": known["name"],
        "tokenizer_hash": known["hash"],
        "documents": total("documents"),
        "bytes": total("bytes"),
        **stream.info,
    }
    return stream


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
    _check_name(data)
    names, _ = parse_mix(data)
    if data.startswith("stream:") or not is_prepared(names[0]):
        return None
    return Manifest.read(names[0]).tokenizer["name"]


def open_data(
    data: str = "stdlib",
    tokenizer: str | None = None,
    *,
    data_root: str | Path | None = None,
    text_field: str | None = None,
    vocab_size: int | None = None,
    pad_vocab_to: int = 1,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    on_error: OnError = "stop",
    sequence_length: int = 128,
    batch_size: int = 16,
    **options: Any,
) -> Stream:
    """Opens the stream that `data` names.

    **Arguments:**

    - `data`: what `make_stream` takes (text in memory); a folder that `prepare` wrote; `stream:SOURCE` for documents
        tokenized on the fly (see `open_source`); `mix:0.7=A,0.3=B` for several prepared folders.
    - `tokenizer`: by default `bpe:8192`; a prepared folder brings its own, and another one is refused.
    - `text_field`: the field of records that is the text, by default "text"; prepared text has none any more.
    - `vocab_size`: the model's; by default the tokenizer's. `pad_vocab_to`: it is padded to a multiple of this.
    - `workers`: threads that tokenize a streamed source.
    - the rest: see `make_stream`, `open_prepared` and `StreamingStream`.

    **Raises:** `UserError` as those do.
    """
    sizes = {"sequence_length": sequence_length, "batch_size": batch_size, **options}
    own = prepared_tokenizer(data)
    if own is not None:
        if tokenizer not in (None, own):
            raise UserError(f"{data} was prepared with {own}, not {tokenizer}: give {own}, or prepare it again")
        if text_field is not None:
            raise UserError(f"{data} is prepared, so that --text-field {text_field} can choose nothing: leave it out")
        names, weights = parse_mix(data)
        known = Manifest.read(names[0]).tokenizer["vocab_size"]
        size = padded_vocab(known if vocab_size is None else vocab_size, pad_vocab_to)
        return open_prepared(names, weights=weights, vocab_size=size, **sizes)
    spec = tokenizer or "bpe:8192"
    if data.startswith("stream:"):
        from .streaming import StreamingStream

        name = data.removeprefix("stream:")
        if name.startswith("mix:"):
            raise UserError(f"{data!r}: streamed sources are not mixed; prepare them, and mix the prepared folders")
        fields = None if text_field is None else Fields(text=text_field)
        source = open_source(name, data_root=data_root, fields=fields)
        rule = split_rule(source)
        made = tokenizer_for(spec, source, rule, on_error=on_error, cache_dir=cache_dir)
        size = padded_vocab(made.vocab_size if vocab_size is None else vocab_size, pad_vocab_to)
        how: dict[str, Any] = {"rule": rule, "workers": workers, "on_error": on_error}
        return StreamingStream(source, made, vocab_size=size, **how, **sizes)
    if data.startswith("mix:"):
        raise UserError(f"{data!r} names a folder that is not prepared: prepare it first")
    padding = {"vocab_size": vocab_size, "pad_vocab_to": pad_vocab_to}
    where = {"data_root": data_root, "text_field": text_field, "cache_dir": cache_dir}
    return make_stream(data, spec, **where, **padding, **sizes)


def _check_name(data: str) -> None:
    """An empty name would be the working directory."""
    if not data.removeprefix("stream:").strip():
        raise UserError(f"data {data!r} names nothing: give a corpus, a file, a folder or a glob")
