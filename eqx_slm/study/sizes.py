"""`python -m eqx_slm budget` and `ledger`: what fits into a number of parameters, and where a config's own go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import Positional

from ..checks import whole
from ..commandline import command
from ..errors import UserError

if TYPE_CHECKING:  # --help is answered without loading jax
    from rich.text import Text

    from ..account.budget import Fit
    from ..model import ModelConfig
    from .config import PairConfig
    from .results import Results

# Of every kind of part a letter, so that a bar reads without colours as well.
BAR = {
    "token_embedding": "E",
    "bigrams": "B",
    "positions": "P",
    "mixers": "m",
    "channels": "c",
    "head": "H",
}
STYLES = {"E": "black on blue", "H": "black on red", "m": "black on green", "c": "black on yellow"}
WIDTH = 40


@dataclass(frozen=True)
class Budget:
    """What fits: width and depth of every arm for a number of parameters, and which share goes where."""

    examples: ClassVar = (
        "eqx-slm budget 30M --vocab 50257",
        "eqx-slm budget 1e6 --vocab 2048 --multiple 16 --arms dense dense-tied low-rank --png budget.png",
    )

    parameters: Positional[str]
    """How many parameters, such as 30M, 1.5e6 or 400k."""
    vocab: int = 50257
    """Ids of the vocabulary."""
    arms: tuple[str, ...] = ("dense", "dense-tied", "leviathan", "low-rank")
    """Named arms; each is given the shape that spends the same budget."""
    context: int = 512
    """Tokens a sequence, at which FLOPs are counted."""
    multiple: int = 64
    """Widths are multiples of this; it is the width of an attention head."""
    aspect: float = 64.0
    """The wanted d_model / depth."""
    png: Path | None = None
    """Also draw the shares into this picture."""


@dataclass(frozen=True)
class Ledger:
    """Every parameter of a config by component, with FLOPs a token and the memory of a step."""

    examples: ClassVar = (
        "eqx-slm ledger quick",
        "eqx-slm ledger 768x12 --arms dense leviathan-deep",
        "eqx-slm ledger runs/quick-1/config.json",
    )

    config: Positional[str]
    """quick, cpu, small, a shape such as 256x6, a run's config.json, or the model.json of a saved model."""
    arms: tuple[str, ...] | None = None
    """Named arms instead of the study's own."""


def budget_main(arguments: Sequence[str] | None = None) -> int:
    """`budget`; returns the exit code."""
    return command(Budget, arguments, "eqx-slm budget", _budget)


def ledger_main(arguments: Sequence[str] | None = None) -> int:
    """`ledger`; returns the exit code."""
    return command(Ledger, arguments, "eqx-slm ledger", _ledger)


def fits(options: Budget) -> dict[str, Fit]:
    """Every arm's shape for the budget."""
    from ..account.budget import fit_shape
    from ..commandline import count_of
    from .arms import Tuned, changed, make_arm

    target, vocab = count_of("parameters", options.parameters), options.vocab
    whole("parameters", target, most=10**13)
    if options.multiple % 2:
        raise UserError(f"--multiple {options.multiple}: heads have this width, and rotary positions need an even one")
    if not options.arms:
        raise UserError("--arms is empty: name one or more, or leave it out")

    def shape(arm: str, d_model: int, depth: int) -> ModelConfig:
        from ..model import ModelConfig
        from ..nn.attention import AttentionConfig

        mixer = AttentionConfig(n_heads=d_model // options.multiple)
        sizes: dict[str, Any] = {"vocab_size": vocab, "d_model": d_model, "depth": depth, "context": options.context}
        return changed(arm, ModelConfig(mixer=mixer, **sizes), Tuned())

    found = {}
    for arm in options.arms:
        how = {"multiple": options.multiple, "aspect": options.aspect}
        found[arm] = fit_shape(lambda d_model, depth, arm=arm: shape(arm, d_model, depth), target, **how)
        make_arm("dense", found[arm].config, Tuned())  # what only building would refuse
    return found


def _budget(options: Budget) -> None:
    from ..account import flops
    from .blocks import Paragraph, Table
    from .pictures import draw_ledger
    from .plot import render
    from .sentences import human
    from .terminal import console, print_blocks

    found = fits(options)
    planned = _planned({arm: fit.config for arm, fit in found.items()}, options.context)
    out = console()
    rows = []
    for arm, fit in found.items():
        config, total = fit.config, planned.arms[arm].facts.parameters["total"]
        tax = planned.arms[arm].facts.embedding_tax
        rows.append(
            [
                arm,
                f"{config.d_model}",
                f"{config.depth}",
                f"{config.widths[0]}",
                f"{total:,}",
                f"{fit.residual:+.2%}",
                "-" if tax is None else f"{tax:.1%}",
                human(flops(config).total),
            ]
        )
    header = ["arm", "d_model", "layers", "d_ff", "parameters", "off by", "in token tables", "FLOPs/token"]
    print_blocks([Table(header, rows)], out)
    for line in _bars(planned):
        out.print(line)
    note = f"SwiGLU, d_ff about 4 d_model, heads of {options.multiple}; the generator's sizes are the published ones"
    print_blocks([Paragraph(note)], out)
    if options.png is not None:
        try:
            options.png.write_bytes(render(draw_ledger, planned)["png"])
        except OSError as error:
            raise UserError(f"--png {options.png} cannot be written: {error.strerror}") from None
        print_blocks([Paragraph(f"{options.png}")], out)


def _bars(planned: Results) -> list[Text]:
    """A bar an arm, a letter a fortieth of its parameters, and a legend."""
    from rich.text import Text

    longest, used = max(map(len, planned.arms)), dict[str, str]()
    lines = []
    for name, arm in planned.arms.items():
        parts = {part: count for part, count in arm.facts.parameters.items() if part in BAR and count}
        total, line, before, done = sum(parts.values()), Text(f"{name:{longest}} "), 0.0, 0
        for part, count in parts.items():
            before += count
            cells = round(WIDTH * before / total) - done
            done += cells
            if cells:
                used[BAR[part]] = part.replace("_", " ")
                line.append(BAR[part] * cells, STYLES.get(BAR[part], "reverse"))
        lines.append(line)
    legend = ", ".join(f"{letter} {part}" for letter, part in used.items())
    return [*lines, Text(f"{'':{longest}} {legend}")]


def _ledger(options: Ledger) -> None:
    from ..account import parameter_ledger
    from .blocks import Heading
    from .report import budgets
    from .terminal import console, print_blocks

    arms, context, batch = _configs(options)
    out = console()
    for name, config in arms.items():
        print_blocks([Heading(name)], out)
        out.print(str(parameter_ledger(config)), highlight=False, markup=False)
        out.print("")
    print_blocks(budgets(_planned(arms, context, batch))[2:], out)


def _configs(options: Ledger) -> tuple[dict[str, ModelConfig], int, int]:
    """Configs by arm, the context, and sequences a batch."""
    from ..configs import from_dict, read_json
    from ..model import ModelConfig
    from .config import read_config
    from .presets import preset

    path = Path(options.config)
    if not (path.suffix == ".json" or path.exists()):
        return _arms(preset(options.config), options)
    path = path / "config.json" if path.is_dir() else path
    data = read_json(path)
    if isinstance(data, dict) and {"d_model", "mixer"} <= data.keys():
        if options.arms is not None:
            raise UserError(f"--arms: {path} is one model's config, not a study's")
        config = from_dict(ModelConfig, data)
        return {path.parent.name or path.stem: config}, config.context, 1
    return _arms(read_config(path), options)


def _arms(study: PairConfig, options: Ledger) -> tuple[dict[str, ModelConfig], int, int]:
    from ..data.tokenizer import padded_vocab

    if options.arms is not None:
        study = dataclasses.replace(study, arms=options.arms, settings=())
    size = study.stream.vocab_size or study.model.vocab_size
    arms = study.resolve(padded_vocab(size, study.stream.pad_vocab_to))
    configs = {name: arm.config for name, arm in arms.items()}
    return configs, study.stream.sequence_length, study.stream.batch_size


def _planned(configs: dict[str, ModelConfig], context: int, batch_size: int = 1) -> Results:
    """Results of nothing trained: what the report's own tables and pictures read."""
    from ..account.facts import facts
    from .results import ArmResult, Results

    sizes: dict[str, Any] = {"batch_size": batch_size, "context": context}
    arms = {name: ArmResult(name, facts(config, **sizes), 0.0, made_of=config) for name, config in configs.items()}
    return Results("budget", arms, {"steps": 0, "batch_size": batch_size, "sequence_length": context, "tokens": 0})
