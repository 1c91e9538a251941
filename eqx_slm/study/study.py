"""One idea for all studies: arms x seeds x learning rates -> rows -> analyses -> blocks -> a report."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from ..account.facts import Facts, facts
from ..configs import to_dict
from ..data import Stream
from ..data.vocabulary import save_tokenizer
from ..errors import UserError
from ..files import sealed, write_json_atomic
from ..model import ModelConfig
from ..train.host import keep_freed_memory
from ..train.loop import RunConfig
from ..train.processes import same
from ..train.step import share_of
from .beginnings import KEPT, FirstWeights, Shorter, can_go_on
from .blocks import Block
from .compare import Control, paired
from .config import StreamConfig, check_arms, check_design, check_until, run_of, several
from .folder import SharedFolder
from .grids import Grid
from .machine import cores_of, machine
from .presets import QUICK
from .progress import Event
from .report import PAIR
from .results import ArmResult, Comparison, Results, Row, Run, best_rate
from .runner import Arms, MakeModel, Runner, distinct_share
from .saved import write_report
from .text import COUNTS, VOCABULARY

Analysis = Callable[[Mapping[str, ArmResult]], list[Comparison]]
Section = Callable[[Results], list[Block]]


@dataclass(frozen=True)
class Study:
    """A study, as plain as it can be said: what is compared, how it is trained, what is asked, what is reported.

    **Arguments:**

    - `name`: of the study and its folder.
    - `arms`: a grid over fields of `model`; or by name, configs or functions `make(key) -> LanguageModel`. The first
      is the reference of the report's ratios.
    - `seeds`: how many, 0, 1, ..., or which; a seed sets initial values and data order.
    - `until`: the most seeds, where seeds are added until every comparison is resolved; then `seeds` are those to begin
      with, and intervals and verdicts are those of `anytime.py`, which such a rule does not bias.
    - `rates`: peak learning rates; with several, every arm runs all of them and is judged at its own best.
    - `analyses`: from the arms' results to comparisons (`paired`, `Control`).
    - `report`: sections, from `Results` to blocks.
    - `model`: what a grid's points change; its vocabulary and context are the stream's.
    - `stream`, `run`: the data, and how every run is trained.
    - `notes`: a sentence an arm for the report.
    - `replay`: the command that runs it again, `{config}` in the place of its config.json.
    - `config`: what config.json holds, where that is not the study's own data.
    """

    name: str
    arms: Grid | Mapping[str, MakeModel | ModelConfig]
    seeds: int | Sequence[int] = 5
    rates: Sequence[float] = (3e-3,)
    analyses: Sequence[Analysis] = ()
    report: Sequence[Section] = PAIR
    model: ModelConfig = QUICK.model
    stream: StreamConfig = QUICK.stream
    run: RunConfig = run_of(QUICK)
    notes: Mapping[str, str] = field(default_factory=dict)
    replay: str = ""
    config: Any = None
    until: int | None = None

    def __post_init__(self):
        if not isinstance(self.arms, Grid):
            check_arms(self.arms)
        several(rates=self.rates, analyses=self.analyses, report=self.report)
        arms = self.arms.points if isinstance(self.arms, Grid) else self.arms
        check_design(self.name, arms, self.seeds, self.rates, self.run.seeds_at_once)
        check_until(self.seeds, self.until)
        share_of(self.stream.batch_size, self.run.accumulate)

    @property
    def which(self) -> Sequence[int]:
        """The seeds."""
        return self.seeds if isinstance(self.seeds, Sequence) else range(self.seeds)

    def resolve(self, vocab_size: int, context: int, padding: int = 0) -> tuple[Arms, dict[str, dict[str, str]]]:
        """The arms at a stream's sizes, and the levels of each, by name; `UserError` for what cannot be."""
        arms: dict[str, Any] = {}
        levels: dict[str, dict[str, str]] = {}
        if isinstance(self.arms, Grid):
            sizes = {"vocab_size": vocab_size, "context": context, "padding_ids": padding}
            for name, config, own in self.arms.arms(dataclasses.replace(self.model, **sizes)):
                arms[name], levels[name] = config, own
        else:
            arms, levels = dict(self.arms), {name: {"arm": name} for name in self.arms}
        for analysis in self.analyses:
            if isinstance(analysis, paired):
                analysis.pairs(levels)
        return arms, levels

    def document(self) -> Any:
        """What config.json holds: `config`, or all of the study that is data."""
        if self.config is not None:
            return self.config
        arms = self.resolve(self.model.vocab_size, self.model.context)[0].items()
        return {
            "name": self.name,
            "arms": {name: to_dict(arm) if dataclasses.is_dataclass(arm) else "a function" for name, arm in arms},
            "seeds": list(self.which),
            "learning_rates": list(self.rates),
            "stream": to_dict(self.stream),
            "run": to_dict(self.run),
            **({} if self.until is None else {"until": self.until}),
            "analyses": [to_dict(each) for each in self.analyses if dataclasses.is_dataclass(each)],
        }


def run_study(
    study: Study,
    stream: Stream | None = None,
    *,
    out: str | Path | None = None,
    runs: Path | None = Path("runs"),
    on_event: Callable[[Event], None] | None = None,
    on_folder: Callable[[Path], None] | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
    keep_checkpoints: bool = False,
    go_on_from: str | Path | None = None,
    init_from: str | Path | None = None,
    other_cores: bool = False,
) -> tuple[Path | None, Results]:
    """Runs what is missing of a study, analyses its rows and writes its folder.

    **Arguments:**

    - `stream`: the study's stream where the caller has it already.
    - `out`: the folder; None makes `runs/<name>-<config hash>-<n>`, and nothing where `runs` is None.
    - `on_event`: told of everything that happens; `on_folder`: told the folder before training.
    - `checkpoint_seconds`: how often a run on its way is saved in the folder, from where the same call goes on.
    - `stop`: asked after every step whether to save the run and to end, by `eqx_slm.train.Stopped`.
    - `keep_checkpoints`: keeps of every run the last checkpoint at the peak rate, in `kept/`, for a longer run.
    - `go_on_from`: the folder of a study of fewer steps that kept them: its runs go on from there.
    - `init_from`: the folder of a finished study of the same models: each run begins with the weights of its arm and
      seed there, and with nothing else of it.
    - `other_cores`: whether runs may go on on another number of CPU cores than they were begun on: by other sums.

    **Returns:** the folder, which holds what docs/studies.md lists, and the results.

    **Raises:** `UserError` before anything is written where arms, data or folder do not fit, and where the folder can
    no longer be written.
    """
    if not isinstance(study, Study):
        raise UserError(f"run_study of a {type(study).__name__}: give a Study")
    check_compiling()
    keep_freed_memory()
    stream, started = study.stream.open() if stream is None else stream, time.perf_counter()
    arms, levels = study.resolve(stream.vocab_size, stream.sequence_length, stream.padding)
    tell = on_event or (lambda event: None)
    runner = Runner(arms, stream, study.run, tell, stop)
    runner.other_cores = other_cores
    most = range(study.until) if study.until else study.which
    if init_from is not None:
        if go_on_from is not None:
            raise UserError("--go-on-from and --init-from: a run begins with one of them; give one")
        begins = [(name, seed) for name in arms for seed in most]
        runner.weights = FirstWeights(init_from, begins, runner.initial, stream.tokenizer)
    if go_on_from is not None:
        trunks = runner.keys(study.which, study.rates, trunk=True).values()
        runner.shorter = Shorter(go_on_from, study.run, set(trunks))
    if keep_checkpoints:
        can_go_on(study.run)
    keys = runner.keys(most, study.rates)
    same(" ".join(keys.values()))
    if out is None and runs is None:
        return None, _grown(study, runner, keys, (), levels, started)
    with SharedFolder(out, study.document(), name=study.name, runs=runs or Path("runs")) as folder:
        study, there = begun(study, folder.rows, arms), folder.rows
        folder.write(lambda own: own.begin(keys, runner.data))
        if (tokenizer := stream.tokenizer) is not None:
            folder.write(lambda own: save_tokenizer(own.path / VOCABULARY, tokenizer))
        if (counts := runner.counts) is not None:
            folder.write(lambda own: write_json_atomic(own.path / COUNTS, sealed({"counts": counts.tolist()})))
        if on_folder:
            on_folder(folder.path)
        if others := sorted({row.seed for row in folder.rows if row.arm in arms} - set(study.which)):
            text = f"the folder has seeds {', '.join(map(str, others))} too, which the report will leave out"
            tell(Event("said", "", text=text))

        def note(event: Event) -> None:
            folder.note(event, arms.get(event.arm))
            tell(event)

        runner.tell, runner.checkpoints, runner.every = note, folder.checkpoints, checkpoint_seconds
        runner.keep = folder.path / KEPT if keep_checkpoints else None
        results = _grown(study, runner, keys, there, levels, started)
        if runner.shorter is not None:
            begun_with = {"folder": str(go_on_from), "step": runner.shorter.step}
            results = dataclasses.replace(results, settings={**results.settings, "go_on_from": begun_with})
        if runner.weights is not None:
            results = dataclasses.replace(results, settings={**results.settings, "init_from": str(init_from)})
        replay = study.replay.replace("{config}", shlex.quote(str(folder.path / "config.json")))
        results = dataclasses.replace(results, config=to_dict(study.document()), replay=replay)
        folder.write(lambda own: write_results(own.path, results, study.report))
    return folder.path, results


def write_results(folder: Path, results: Results, report: Sequence[Section]) -> None:
    """The results of a study, and its report."""
    write_json_atomic(folder / "result.json", results.to_json())
    write_report([block for section in report for block in section(results)], folder)


def begun(study: Study, rows: Sequence[Row], arms: Arms) -> Study:
    """A study that grows, with the seeds that are done in its folder; `UserError` where those are more than its cap."""
    if study.until is None:
        return study
    done = {(row.arm, row.learning_rate, row.seed) for row in rows if row.arm in arms}
    most = max((seed for _, _, seed in done), default=-1) + 1
    if most > study.until:
        raise UserError(f"--max-seeds {study.until}: {most} seeds are done in the folder; give at least {most}")
    whole = [all((a, rate, seed) in done for a in arms for rate in study.rates) for seed in range(study.until)]
    return dataclasses.replace(study, seeds=max(len(study.which), [*whole, False].index(False)))


def _grown(
    study: Study,
    runner: Runner,
    keys: Mapping[Run, str],
    there: Sequence[Row],
    levels: Mapping[str, Any],
    started: float,
) -> Results:
    """The results of a study; with `until`, of as many seeds as its comparisons took."""
    rows, seeds = [], list(study.which)
    while True:
        wanted = {run: key for run, key in keys.items() if run[1] in seeds}
        rows += runner.run(seeds, wanted, there)
        results = _results(study, runner, rows, levels, started)
        done = len(study.which)
        open_ones = [each for each in results.comparisons if each.verdict == "not resolved" and each.mean is not None]
        if study.until is None or done >= study.until or not open_ones:
            return results
        seeds = list(range(done, min(done + study.run.seeds_at_once, study.until)))
        study = dataclasses.replace(study, seeds=done + len(seeds))
        more = len(seeds) * len(runner.arms) * len(study.rates)
        runner.tell(Event("growing", "", seeds[0], runs=more))


def check_compiling() -> None:
    """Raises `UserError` where JAX is told not to compile."""
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise UserError("JAX_DISABLE_JIT is set: a study trains compiled programs only; unset it")


def _results(study: Study, runner: Runner, rows: Sequence[Row], levels: Mapping[str, Any], started: float) -> Results:
    """The rows of a study with what is known of its arms, and what its analyses say."""
    stream = runner.stream
    share = distinct_share(stream)
    arms = {}
    for name, arm in runner.arms.items():
        own = tuple(row for row in rows if row.arm == name)
        rate = best_rate(own, study.rates)
        runs = tuple(row for row in own if row.learning_rate == rate)
        in_parts = len(study.rates) > 1 and all(each.halves for row in own for each in row.evals)
        known = arm if isinstance(arm, ModelConfig) else runner.initial(name, study.which[0])
        arms[name] = ArmResult(
            name=name,
            facts=facts_of(study.run, known, stream, share=share, extra=runs[0].temporary_bytes),
            learning_rate=rate,
            runs=runs,
            all_runs=own if len(study.rates) > 1 else (),
            levels=levels[name],
            match=study.notes.get(name),
            made_of=arm,
            judged="judging" if in_parts else "all",
        )
    found = [(isinstance(analysis, Control), _analysis(study, analysis)(arms)) for analysis in study.analyses]
    from ..version import __version__

    return Results(
        name=study.name,
        arms=arms,
        settings=settings_of(study, stream.batch_size, stream.sequence_length)
        | {"eval_tokens": sum(batch[:, 1:].size for batch in stream.eval_batches())},
        stream={**stream.info, "stream_hash": {str(seed): digest for seed, digest in runner.hashes.items()}},
        machine=machine() | cores_of(rows),
        comparisons=tuple(each for control, said in found for each in said if not control),
        controls=tuple(each for control, said in found for each in said if control),
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
    )


def facts_of(run: RunConfig, model: Any, sizes: Any, *, share: float | None, extra: int | None = None) -> Facts:
    """What the accounts say of an arm as it is trained; `sizes` has `batch_size` and `sequence_length`."""
    how: dict[str, Any] = {"width": run.activation_bytes, "accumulate": run.accumulate, "remat": run.remat}
    how["scanned"] = isinstance(model, ModelConfig) and run.scans(model.widths)
    return facts(model, batch_size=sizes.batch_size, context=sizes.sequence_length, share=share, extra=extra, **how)


def _analysis(study: Study, analysis: Analysis) -> Analysis:
    """An analysis; of a study that grows until it says something, with intervals that allow for that."""
    if study.until is None or not isinstance(analysis, paired | Control):
        return analysis
    return dataclasses.replace(analysis, anytime=True)


def settings_of(study: Study, batch_size: int, sequence_length: int) -> dict[str, Any]:
    """What results say of how their runs were made; margin and confidence are the first paired analysis'."""
    asked = next((each for each in study.analyses if isinstance(each, paired)), None)
    return {
        **to_dict(study.run),
        "seeds": list(study.which),
        "until": study.until,
        "learning_rates": list(study.rates),
        "swept": len(study.rates) > 1,
        "margin": asked.margin if asked else None,
        "confidence": asked.confidence if asked else 0.95,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "tokens": study.run.steps * batch_size * sequence_length,
        "sections": [getattr(section, "__name__", "a section") for section in study.report],
    }
