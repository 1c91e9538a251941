"""The matched pair: arms trained on the same tokens with the same seeds, each compared with the first."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checks import meant
from ..data import Stream
from ..errors import UserError
from ..model import ModelConfig
from ..train.loop import RunConfig
from .arms import Arm
from .compare import CONTROLS, paired
from .config import PairConfig, check_arms, run_of
from .progress import Event
from .report import summary
from .results import Results
from .runner import MakeModel
from .study import Analysis, Study, run_study
from .terminal import plain_text


@dataclass(frozen=True)
class PairResult:
    """The result of a study: `results`, typed, and its `folder` where it has one."""

    results: Results
    folder: Path | None = None

    @cached_property
    def data(self) -> dict[str, Any]:
        """What result.json holds."""
        return self.results.to_json()

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """Every arm against the first: differences, intervals, verdict, curve."""
        return self.data["comparisons"]

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of every arm but the first, by name."""
        return {comparison.arm: comparison.verdict for comparison in self.results.comparisons}

    def __str__(self) -> str:
        return plain_text(summary(self.results))


def pair(
    arms: Mapping[str, MakeModel | ModelConfig],
    stream: Stream,
    *,
    seeds: int | Sequence[int] = 5,
    learning_rates: Sequence[float] = (3e-3,),
    margin: float = 0.01,
    confidence: float = 0.95,
    until: int | None = None,
    notes: Mapping[str, str] | None = None,
    out: str | Path | None = None,
    on_event: Callable[[Event], None] | None = None,
    **run: Any,
) -> PairResult:
    """Trains every arm on the same tokens in the same order, seed by seed, and compares each with the first.

    **Arguments:**

    - `arms`, `seeds`, `learning_rates` (its `rates`), `until`, `notes`: as in `Study`. Configs bring their FLOPs and
      differences into the report; the same function or config twice is an identical arm.
    - `stream`: see `eqx_slm.data.open_data`; its sequence length is the context.
    - `margin`, `confidence`: as in `paired`.
    - `out`: a folder for all that the command writes; what is there already of the same study is not run again.
    - `on_event`: told of everything that happens.
    - `run`: the fields of `RunConfig`, such as `steps`, `optimizer`, `compute_dtype`, `seeds_at_once`.

    **Returns:** a `PairResult`; `print(result)` shows the verdict.

    **Raises:** `UserError` where the arms do not fit the stream; `RuntimeError` if two arms saw different tokens.
    """
    if not arms:
        raise UserError("no arms: give at least one, the first is the reference")
    check_arms(arms)
    fields = [field.name for field in dataclasses.fields(RunConfig)]
    if unknown := [name for name in run if name not in fields]:
        raise UserError(
            f"pair() has no argument {unknown[0]!r}{meant(unknown[0], ('seeds', 'learning_rates', *fields))}"
        )
    if not hasattr(stream, "eval_batches"):
        raise UserError(
            f"stream is a {type(stream).__name__}: give what make_stream(text, tokenizer) or open_data returns"
        )
    study = Study(
        "pair",
        arms,
        seeds,
        learning_rates,
        analyses=_analyses(next(iter(arms)), margin, confidence),
        run=RunConfig(**{name: value for name, value in run.items() if value is not None}),
        notes=notes or {},
        until=until,
    )
    # A stream that was given is not described by a config.
    study = dataclasses.replace(study, config={**study.document(), "stream": stream.info})
    folder, results = run_study(study, stream, out=out, runs=None, on_event=on_event)
    return PairResult(results, folder)


def run_pair(
    config: PairConfig, *, stream: Stream | None = None, out: str | Path | None = None, **options: Any
) -> tuple[Path, PairResult]:
    """Runs the study of a config and writes its folder; what is there of it is not run again.

    **Arguments:** `config`: what to run; the rest: see `run_study`. **Returns:** the folder and the result.

    **Raises:** `UserError` before anything is written where config, data or folder do not fit.
    """
    stream = config.stream.open() if stream is None else stream
    study = study_of(config, config.resolve(stream.vocab_size, stream.padding))
    folder, results = run_study(study, stream, out=out, **options)
    assert folder is not None
    return folder, PairResult(results, folder)


def study_of(config: PairConfig, arms: Mapping[str, Arm]) -> Study:
    """The study that a config describes, its arms resolved."""
    return Study(
        config.name,
        {name: arm.config for name, arm in arms.items()},
        config.seeds,
        config.learning_rates,
        analyses=_analyses(next(iter(arms)), config.margin, config.confidence),
        stream=config.stream,
        run=run_of(config),
        notes={name: arm.match_note for name, arm in arms.items() if arm.match_note},
        replay="python experiments/pair.py --config {config}",
        config=config,
        until=config.until,
    )


def _analyses(reference: str, margin: float, confidence: float) -> list[Analysis]:
    controls = [dataclasses.replace(each, margin=margin, confidence=confidence) for each in CONTROLS]
    return [paired(reference, margin=margin, confidence=confidence), *controls]
