"""A finished run put to use on the command line: `eqx-slm generate` and `eqx-slm eval`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tyro.conf import Positional

from ..commandline import command


@dataclass(frozen=True)
class Which:
    """Which model of a run folder."""

    run: Positional[Path]
    """The run folder of a finished study, or a folder in it that holds one model."""
    arm: str | None = field(default=None, kw_only=True)
    """The arm; the first one without it."""
    seed: int | None = field(default=None, kw_only=True)
    """The seed that the model was trained with; 0 without it."""
    rate: float | None = field(default=None, kw_only=True)
    """The learning rate; the one that the study chose without it."""


@dataclass(frozen=True)
class Generate(Which):
    """Continue a prompt with a trained model."""

    examples: ClassVar = (
        'eqx-slm generate runs/quick-1 "def read(" --tokens 64',
        'eqx-slm generate runs/quick-1 "import " --arm leviathan-deep --temperature 0.7 --top-p 0.9',
        'eqx-slm generate runs/quick-1 "def f(x):" --temperature 0 --stop "\\ndef" "\\nclass"',
    )

    prompt: Positional[str] = "\n"
    """What to continue."""
    tokens: int = 128
    """How many tokens."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens whose probabilities reach p."""
    min_p: float = 0.0
    """Only tokens at least so many times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens less likely that were there before."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these; write a line feed as \\n."""
    sample: int = 0
    """Another number, another text: the seed of the sampling."""


@dataclass(frozen=True)
class Evaluate(Which):
    """The loss of a trained model on a text file: nats a token, perplexity, bits a byte."""

    examples: ClassVar = (
        "eqx-slm eval runs/quick-1 book.txt",
        "eqx-slm eval runs/quick-1 book.txt --arm dense --stride 32",
        "eqx-slm eval runs/quick-1 book.txt --frequency 10           # rare tokens apart from frequent ones",
    )

    file: Positional[Path]
    """A text file in UTF-8, JSON lines or parquet, a folder or a glob of them; read as training reads it."""
    text_field: str = "text"
    """The field of a record that holds its text, where files hold records."""
    stride: int | None = None
    """Windows begin every so many tokens; the model's context, so that none overlap, without it."""
    frequency: int = 0
    """Also split by how often tokens occur in the training text, into so many classes."""


def generate_main(arguments: Sequence[str] | None = None) -> int:
    """`generate`; returns the exit code."""

    def run(o: Generate) -> None:
        from .text import open_run

        found = open_run(o.run, arm=o.arm, seed=o.seed, rate=o.rate)
        names = ("tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        how = {name: getattr(o, name) for name in names}
        stop = [each.replace("\\n", "\n").replace("\\t", "\t") for each in o.stop]
        pieces = found.stream(o.prompt, seed=o.sample, stop=stop, **how)
        first = next(pieces, "")  # what cannot be is refused before anything is printed
        for piece in itertools.chain((o.prompt, first), pieces):
            print(_shown(piece), end="", flush=True)
        print()

    return command(Generate, arguments, "eqx-slm generate", run)


def evaluate_main(arguments: Sequence[str] | None = None) -> int:
    """`eval`; returns the exit code."""

    def run(o: Evaluate) -> None:
        from .frequency import frequency_table
        from .terminal import plain_text
        from .text import open_run
        from .text_loss import read_text, text_by_frequency, text_loss

        text = read_text(o.file, o.text_field)
        opened = open_run(o.run, arm=o.arm, seed=o.seed, rate=o.rate)
        split = text_by_frequency(opened, text, classes=o.frequency, stride=o.stride) if o.frequency else None
        found = text_loss(opened, text, stride=o.stride)
        bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits a byte"
        if found.lost > 1e-3:
            bits += f"; the tokenizer has no ids for {found.lost:.1%} of the characters, which are left out"
        print(f"{found.nll:.4f} nats a token over {found.tokens:,} tokens, perplexity {found.perplexity:.2f}{bits}")
        if split is not None:
            print(plain_text([frequency_table(split)]), end="")

    return command(Evaluate, arguments, "eqx-slm eval", run)


def _shown(text: str) -> str:
    from ..visible import visible

    return visible(text, keep="\n\t")
