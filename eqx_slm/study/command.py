"""The command behind `python experiments/pair.py`: options, the dry run, exit codes."""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from ..errors import UserError, parse
from ..train.stack import Loop, Remat

if TYPE_CHECKING:  # the command answers --help without loading jax
    from .config import PairConfig


@dataclass(frozen=True)
class Options:
    """Train a matched pair on real text and get a verdict with an interval.

    Every option left out comes from the preset; a run is replayed exactly with --config and the config.json it wrote.
    """

    preset: str = "quick"
    """quick (five minutes on two cores), cpu, or d_model x depth such as 256x6 or 768x12 (bfloat16, for a GPU)."""
    arms: tuple[str, ...] | None = None
    """Named arms; the first is the reference: dense, dense-tied, dense-tied-deep, low-rank, low-rank-deep,
    compositional, leviathan, leviathan-deep, leviathan-flop, tapered, rising, gated, gated-wide, hope, titans,
    titans-wide."""
    set: tuple[str, ...] = ()
    """Fields of arms, ARM.FIELD=VALUE, such as leviathan-deep.embedding.rank=32; all.FIELD changes the
    base model that every arm is made from."""
    data: str | None = None
    """stdlib, tiny_shakespeare, ptb, wikitext-2, a text file, a folder of text files, a folder that
    `python -m eqx_slm.data prepare` wrote, stream:FILES to tokenize on the fly, mix:0.7=A,0.3=B of prepared folders."""
    data_root: str | None = None
    """The folder that holds the named corpora."""
    tokenizer: str | None = None
    """bpe:N, char, byte, word (word:eos=none), o200k_base, r50k_base."""
    vocab_size: int | None = None
    """The model's vocabulary, at least the tokenizer's."""
    pad_vocab_to: int | None = None
    """Pads the vocabulary to a multiple; the ledger shows what that costs."""
    sequence_length: int | None = None
    """Tokens a sequence."""
    batch_size: int | None = None
    """Sequences a batch."""
    seeds: int | None = None
    """How many paired seeds."""
    steps: int | None = None
    """Training steps of every run."""
    tokens: int | None = None
    """Training tokens of every run, rounded up to whole steps; instead of --steps."""
    lr: tuple[float, ...] | None = None
    """Peak learning rate; several are swept for every arm."""
    margin: float | None = None
    """Nats a token below which a difference does not matter."""
    pairing: Literal["full", "data-only"] | None = None
    """full: equal leaves start equal; data-only: every arm has initial values of its own."""
    schedule: Literal["cosine", "wsd", "constant"] | None = None
    """Learning-rate schedule after warm-up."""
    loop: Loop | None = None
    """unrolled, or runs: scan runs of equal layers (deep models compile faster), the same for all arms."""
    remat: Remat | None = None
    """What the backward pass keeps of a layer: none (everything), dots (results of matmuls), full (its input)."""
    seeds_at_once: int | None = None
    """How many seeds of an arm one program trains; one without it."""
    name: str | None = None
    """Name of the run folder."""
    out: Path | None = None
    """The run folder itself; it must be new or empty."""
    config: Path | None = None
    """Replay a config.json; other options change it."""
    dry_run: Annotated[bool, "flag"] = field(default=False)
    """Print ledger, FLOPs, memory and a rough time per arm; train nothing."""


def resolve(options: Options) -> "PairConfig":
    """The full config of a command line.

    **Raises:** `UserError` for options that do not fit.
    """
    from ..data.open import prepared_tokenizer
    from .config import PairConfig, preset
    from .run import read_config

    if options.config and options.preset != "quick":
        raise UserError(f"--config and --preset {options.preset} are given: a config replaces the preset")
    config: PairConfig = read_config(options.config) if options.config else preset(options.preset)
    stream = {name: getattr(options, name) for name in ("data", "data_root", "tokenizer", "vocab_size", "pad_vocab_to")}
    stream |= {"sequence_length": options.sequence_length, "batch_size": options.batch_size}
    if options.tokenizer is not None and options.vocab_size is None:
        config = dataclasses.replace(config, stream=dataclasses.replace(config.stream, vocab_size=None))
    if options.data is not None and options.tokenizer is None:
        own = prepared_tokenizer(options.data)
        if own is not None:  # prepared data brings its tokenizer, and with it the vocabulary
            stream["tokenizer"] = own
            config = dataclasses.replace(config, stream=dataclasses.replace(config.stream, vocab_size=None))
    changed = dataclasses.replace(config.stream, **{k: v for k, v in stream.items() if v is not None})
    for name in ("sequence_length", "batch_size"):
        if getattr(changed, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(changed, name)}: it must be at least 1")
    if changed.pad_vocab_to < 1:
        raise UserError(f"--pad-vocab-to {changed.pad_vocab_to}: it must be at least 1")
    if changed.vocab_size is not None and changed.vocab_size < 1:
        raise UserError(f"--vocab-size {changed.vocab_size}: it must be at least 1")
    if options.steps is not None and options.tokens is not None:
        raise UserError("--steps and --tokens are both given: they say the same thing, give one")
    steps = options.steps
    if options.tokens is not None:
        if options.tokens < 1:
            raise UserError(f"--tokens {options.tokens}: it must be at least 1")
        steps = -(-options.tokens // (changed.batch_size * changed.sequence_length))
    values = {
        "arms": options.arms,
        "settings": (config.settings + options.set) if options.set else None,
        "seeds": options.seeds,
        "steps": steps,
        "learning_rates": options.lr,
        "margin": options.margin,
        "pairing": options.pairing,
        "loop": options.loop,
        "remat": options.remat,
        "seeds_at_once": options.seeds_at_once,
        "name": options.name,
    }
    if options.schedule:
        try:
            values["optimizer"] = dataclasses.replace(config.optimizer, schedule=options.schedule)
        except ValueError as error:
            raise UserError(f"--schedule {options.schedule}: {error}") from None
    return dataclasses.replace(config, stream=changed, **{k: v for k, v in values.items() if v is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 for what the user can mend (one line on standard error)."""
    options = parse(Options, arguments, "pair.py")
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was done so far is in the run folder", file=sys.stderr)
        return 130


def _run(options: Options) -> int:
    from rich.console import Console

    from ..data.tokenizer import padded_vocab
    from ..train.host import keep_freed_memory, use_compile_cache
    from .dry_run import plan, print_plan
    from .progress import Progress
    from .run import open_stream, run_folder, run_pair
    from .summary import print_summary
    from .trials import distinct_share

    keep_freed_memory()
    use_compile_cache()
    console = Console(width=None if sys.stdout.isatty() else 120)
    config = resolve(options)
    # Unknown arms and fields fail before any data is read.
    config.resolve(config.stream.vocab_size or config.model.vocab_size)
    if not options.dry_run:
        run_folder(config, options.out, Path("runs"))
    if options.dry_run and config.stream.vocab_size is not None:
        size = padded_vocab(config.stream.vocab_size, config.stream.pad_vocab_to)
        print_plan(config, plan(config, size, padding=size - config.stream.vocab_size), console)  # no data is needed
        return 0
    started = time.perf_counter()
    console.print(f"reading {config.stream.data}, tokenizer {config.stream.tokenizer} ...", highlight=False)
    stream = open_stream(config)
    info = stream.info
    tokens = info.get("tokens")  # a streamed source is not read ahead
    counts = f"{tokens['train']:,} training tokens, {tokens['valid']:,} validation, " if tokens else ""
    console.print(
        f"{info['corpus']}: {counts}vocabulary {stream.vocab_size:,} ({time.perf_counter() - started:.1f} s). "
        f"{info.get('corpus_note', '')}",
        highlight=False,
    )
    if options.dry_run:
        share = distinct_share(stream)
        print_plan(config, plan(config, stream.vocab_size, share=share, padding=stream.padding), console)
        return 0
    with Progress(config, console) as progress:
        folder, result = run_pair(
            config,
            out=options.out,
            stream=stream,
            on_event=progress,
            on_folder=lambda folder: console.print(f"run folder {folder}", highlight=False),
        )
    print_summary(result.data, console)
    console.print(f"{folder / 'report.md'}  ({time.perf_counter() - started:.0f} s)", highlight=False)
    return 0
