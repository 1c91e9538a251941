"""The command behind `python -m eqx_slm.data`: describe, prepare, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from tyro.conf import Positional

from ..commandline import STOPPED, raising_on_signals, subcommands
from ..errors import UserError


@dataclass(frozen=True)
class Text:
    """What is read, and how it falls into documents, splits and tokens."""

    data: Positional[tuple[str, ...]]
    """stdlib, a corpus below the data root, files, folders, globs, fsspec addresses of text, .jsonl (.gz, .zst) or
    parquet, or hf:NAME; several are read one after another."""
    data_root: str | None = None
    """The folder that holds the named corpora."""
    tokenizer: str = "o200k_base"
    """bpe:N (trained here), char, byte, word (word:eos=none), a tiktoken name, or a file (tokenizer.json)."""
    text_field: str = "text"
    """The field of JSON lines, or the column of parquet, that is the text."""
    group_field: str = "meta.pile_set_name"
    """The field with the name of a document's set; counts are kept by set."""
    unit: Literal["file", "line"] = "file"
    """What a document of a text file is."""
    split: Literal["auto", "official", "content", "path"] = "auto"
    """auto: official splits where files are named so, else by the hash of the path (text files) or of the content."""
    valid_share: float = 0.05
    """Share of documents that the hash puts into valid."""
    test_share: float = 0.05
    """Share of documents that the hash puts into test."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with a broken record: stop at it, or skip and count it."""
    workers: int | None = None
    """Tokenizing threads beside the one that reads, 0 for none; one a core without it."""
    pad_vocab_to: int = 1
    """Show the vocabulary padded to a multiple."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Describe(Text):
    """Print splits, documents, characters, bytes, tokens, vocabulary and bytes a token; of a prepared folder too."""

    examples: ClassVar = (
        "eqx-slm data describe stdlib --tokenizer bpe:2048",
        "eqx-slm data describe books/*.jsonl.gz --text-field content --json",
    )


@dataclass(frozen=True)
class Prepare(Text):
    """Tokenize once, in parallel, into shards with a manifest; give the command again after an interruption."""

    examples: ClassVar = (
        "eqx-slm data prepare books/ --tokenizer bpe:8192 --out prepared",
        "eqx-slm data prepare '~/pile/*.jsonl.zst' --tokenizer o200k_base --on-error skip --out ~/prepared/pile",
    )

    out: Path = field(default=Path("prepared"), kw_only=True)
    """The folder to write: new, empty, or of an unfinished run."""
    on_leak: Literal["stop", "keep"] = field(default="stop", kw_only=True)
    """What to do where one document is in two splits."""
    shard_tokens: int = field(default=1 << 26, kw_only=True)
    """Tokens a shard."""


@dataclass(frozen=True)
class Export:
    """Write a tokenizer as Hugging Face's tokenizer.json."""

    examples: ClassVar = (
        "eqx-slm data export tokenizer.json --data prepared",
        "eqx-slm data export tokenizer.json --tokenizer bpe:8192 --data books/",
    )

    out: Positional[Path]
    """The file to write."""
    tokenizer: str = "bpe:8192"
    """bpe:N, a tiktoken name, or a file."""
    data: str = "stdlib"
    """What bpe:N is trained on; or a prepared folder, whose tokenizer is then taken."""
    data_root: str | None = None
    """The folder that holds the named corpora."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    **Returns:** the exit code: 0; 2 for what the user can mend, 75 where `prepare` was stopped and can go on, these
    with one line on standard error.
    """
    stopped = []

    def show(table: dict[str, Any], o: Text) -> None:
        print(json.dumps(table, indent=1, ensure_ascii=False) if o.json else _lines(table))

    def prepare(o: Prepare) -> None:
        try:
            with raising_on_signals():
                show(_prepare(o), o)
        except KeyboardInterrupt:
            print("stopped; give the same command again to go on", file=sys.stderr)
            stopped.append(STOPPED)

    known = {
        "describe": (Describe, lambda o: show(_describe(o), o)),
        "prepare": (Prepare, prepare),
        "export": (Export, lambda o: print(_export(o))),
    }
    code = subcommands(known, arguments, "eqx-slm data", "Text to documents, tokens and shards (docs/data.md).")
    return code or sum(stopped)


def _open(options: Text) -> tuple[Any, Any, Any]:
    from .formats import Fields
    from .sources import open_source
    from .splits import split_rule
    from .vocabulary import tokenizer_for

    if not options.data:
        raise UserError("no data: name a corpus, a file, a folder or a glob")
    fields = Fields(options.text_field, options.group_field, options.unit)
    source = open_source(options.data, data_root=options.data_root, fields=fields)
    rule = split_rule(source, options.split, valid=options.valid_share, test=options.test_share)
    return source, tokenizer_for(options.tokenizer, source, rule, on_error=options.on_error), rule


def _describe(options: Describe) -> dict[str, Any]:
    from .preparing import describe, describe_prepared
    from .shards import is_prepared

    if len(options.data) == 1 and is_prepared(options.data[0]):
        return describe_prepared(Path(options.data[0]).expanduser(), pad_vocab_to=options.pad_vocab_to)
    common: dict[str, Any] = {"workers": options.workers, "on_error": options.on_error}
    return describe(*_open(options), pad_vocab_to=options.pad_vocab_to, **common)


def _prepare(options: Prepare) -> dict[str, Any]:
    from rich import progress
    from rich.console import Console

    from .preparing import Progress, describe_prepared, prepare

    source, tokenizer, rule = _open(options)
    # Packed files and records: nobody knows how much text is in them, so the bar only moves.
    plain = source.whole_files and not any(file.packing for file in source.files)
    console = Console(stderr=True)
    figures = progress.TextColumn("{task.fields[read]:,.0f} MB, {task.fields[rate]:,.0f} tokens/s")
    columns = (progress.TextColumn("tokenizing"), progress.BarColumn(20), figures, progress.TimeElapsedColumn())
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=source.size if plain else None, rate=0.0, read=0.0)

        def tell(told: Progress) -> None:
            rate = told.own_tokens / max(told.seconds, 1e-9)
            bar.update(task, completed=told.bytes, rate=rate, read=told.bytes / 1e6)

        names = ("workers", "on_error", "on_leak", "shard_tokens")
        common: dict[str, Any] = {name: getattr(options, name) for name in names}
        prepare(source, tokenizer, options.out, rule=rule, on_progress=tell, **common)
    return describe_prepared(options.out.expanduser(), pad_vocab_to=options.pad_vocab_to)


def _export(options: Export) -> Path:
    from .shards import VOCABULARY, is_prepared
    from .sources import open_source
    from .splits import split_rule
    from .vocabulary import export_tokenizer, load_tokenizer, tokenizer_for

    if is_prepared(options.data):
        tokenizer = load_tokenizer(Path(options.data).expanduser() / VOCABULARY)
    else:
        source = open_source(options.data, data_root=options.data_root)
        tokenizer = tokenizer_for(options.tokenizer, source, split_rule(source))
    try:
        return export_tokenizer(options.out, tokenizer)
    except OSError as error:
        raise UserError(f"cannot write {options.out}: {error.strerror}") from None


def _lines(table: dict[str, Any]) -> str:
    padding = f", padded to {table['padded_vocab_size']:,} (+{table['padding']:,})" if table["padding"] else ""
    names = ("documents", "characters", "bytes", "tokens", "bytes_per_token")
    lines = [f"{table['name']}: tokenizer {table['tokenizer']}, vocabulary {table['vocab_size']:,}{padding}"]
    lines += [f"splits: {table['split_rule']}"]
    lines += ["split" + "".join(f"{name.replace('_per_', ' a '):>15s}" for name in names)]
    for split, row in table["splits"].items():
        cells = ["-" if row[name] is None else f"{row[name]:,}" for name in names]
        lines.append(f"{split:5s}" + "".join(f"{cell:>15s}" for cell in cells))
    if counts := table["skipped"]["counts"]:
        lines.append("left out: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
        lines += [f"  {message}" for message in table["skipped"]["first"]]
    return "\n".join(lines)
