"""One door to every stream: text in memory, prepared folders, streaming, and mixtures of the last two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from .base import Stream
from .describe import tokenizer_for
from .documents import OnError
from .manifest import Manifest, is_prepared
from .sources import open_source
from .splits import split_rule
from .tokenizer import padded_vocab


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
    if data.startswith("stream:"):
        return None
    names, _ = parse_mix(data)
    return Manifest.read(Path(names[0]).expanduser()).tokenizer["name"] if is_prepared(names[0]) else None


def open_data(
    data: str = "stdlib",
    tokenizer: str | None = None,
    *,
    data_root: str | Path | None = None,
    vocab_size: int | None = None,
    pad_vocab_to: int = 1,
    sequence_length: int = 128,
    batch_size: int = 16,
    eval_tokens: int = 16384,
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    on_error: OnError = "stop",
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """Opens the stream that `data` names.

    **Arguments:**

    - `data`: what `make_stream` takes (text in memory); a folder that `prepare` wrote; `stream:SOURCE` for documents
        tokenized on the fly (see `open_source`); `mix:0.7=A,0.3=B` for several prepared folders, or
        `stream:mix:0.7=A,0.3=B` for several sources.
    - `tokenizer`: by default `bpe:8192`; a prepared folder brings its own, and another one is refused.
    - `vocab_size`: the model's; by default the tokenizer's. `pad_vocab_to`: it is padded to a multiple of this.
    - `workers`: processes that tokenize a streamed source.
    - the rest: see `make_stream`, `open_prepared` and `StreamingStream`.

    **Raises:** `UserError` as those do.
    """
    sizes: dict[str, Any] = {
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "eval_tokens": eval_tokens,
        "process_index": process_index,
        "process_count": process_count,
    }
    own = prepared_tokenizer(data)
    if own is not None:
        from .prepared import open_prepared

        if tokenizer not in (None, own):
            raise UserError(f"{data} was prepared with {own}, not {tokenizer}: give {own}, or prepare it again")
        names, weights = parse_mix(data)
        known = Manifest.read(Path(names[0]).expanduser()).tokenizer["vocab_size"]
        size = padded_vocab(known if vocab_size is None else vocab_size, pad_vocab_to)
        return open_prepared(names, weights=weights, vocab_size=size, **sizes)
    if data.startswith("stream:"):
        from .streaming import StreamingStream

        names, weights = parse_mix(data.removeprefix("stream:"))
        sources = [open_source(name, data_root=data_root) for name in names]
        rules = [split_rule(source) for source in sources]
        made = tokenizer_for(tokenizer or "bpe:8192", sources[0], rules[0], on_error=on_error, cache_dir=cache_dir)
        size = padded_vocab(made.vocab_size if vocab_size is None else vocab_size, pad_vocab_to)
        return StreamingStream(
            sources, made, rules=rules, weights=weights, vocab_size=size, workers=workers, on_error=on_error, **sizes
        )
    if data.startswith("mix:"):
        raise UserError(f"{data!r} names a folder that is not prepared: prepare it, or write stream:{data}")
    from .stream import make_stream

    return make_stream(
        data,
        tokenizer or "bpe:8192",
        data_root=data_root,
        vocab_size=vocab_size,
        pad_vocab_to=pad_vocab_to,
        cache_dir=cache_dir,
        **sizes,
    )
