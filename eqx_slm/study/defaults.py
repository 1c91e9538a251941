"""What holds where an option is left out, in words for the help of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:  # jax is loaded for the help of a preset, not for every command line
    from ..train.loop import RunConfig
    from .config import StreamConfig
    from .study import Study


def of_preset(given: Sequence[str]) -> Mapping[str, str]:
    """Of the preset that is among the words of a command line, by option."""
    from .presets import preset

    asked = [after for word, after in zip(given, [*given[1:], ""], strict=True) if word == "--preset"]
    asked += [word.partition("=")[2] for word in given if word.startswith("--preset=")]
    try:
        config = preset(asked[-1] if asked else "quick")
    except UserError:
        return {}
    own = {"arms": config.arms, "seeds": config.seeds, "lr": config.learning_rates, "margin": config.margin}
    return _told(config.name, {**_of(config, config.stream), **own, "tokens": config.tokens})


def of_study(study: Study) -> Callable[[Sequence[str]], Mapping[str, str]]:
    """Of a study's own script, whatever the command line."""
    return lambda given: _told(
        study.name, {**_of(study.run, study.stream), "seeds": len(study.which), "lr": study.rates}
    )


def _of(run: RunConfig, stream: StreamConfig) -> dict[str, Any]:
    names = ("steps", "pairing", "accumulate", "compute_dtype", "loop", "remat", "seeds_at_once", "frequency", "mesh")
    data = ("data", "tokenizer", "text_field", "sequence_length", "batch_size", "vocab_size", "pad_vocab_to")
    optimizer = {"schedule": run.optimizer.schedule, "optimizer": run.optimizer.kind}
    return {name: getattr(run, name) for name in names} | {name: getattr(stream, name) for name in data} | optimizer


def _told(name: str, values: dict[str, Any]) -> dict[str, str]:
    return {option: f"{name}: {_shown(value)}" for option, value in values.items() if value not in (None, (), "")}


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
