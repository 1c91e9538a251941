"""The commands of studies: `python experiments/pair.py`, and `main` for a study's own script."""

import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..commandline import STOPPED, complain, listing, parse, patient_streams
from ..errors import UserError
from ..visible import visible
from .defaults import of_preset, of_study
from .options import Options, StudyOptions
from .stopping import Stopping

if TYPE_CHECKING:  # the command answers --help without loading jax
    from .config import PairConfig, StreamConfig
    from .progress import Event
    from .study import Study


MOST_SEEDS = 20
DIVERGED = 3  # the exit code where a run ended without a finite loss
Again = Callable[[Path], str]  # the command that goes on in a folder


def resolve(options: Options) -> "PairConfig":
    """The full config of a command line; raises `UserError` for options that do not fit."""
    from .arms import RECIPES
    from .config import read_config, replaced_settings
    from .own_arms import own_arms
    from .presets import preset

    if options.config is not None and not options.config.strip():
        raise UserError("--config is empty: name a config.json, or leave it out")
    if options.config and options.preset != "quick":
        raise UserError(f"--config and --preset {options.preset} are given: a config replaces the preset")
    if options.steps is not None and options.tokens is not None:
        raise UserError("--steps and --tokens are both given: they say the same thing, give one")
    config = preset(options.preset) if options.config is None else read_config(Path(options.config))
    given = {name: value for name, value in vars(options).items() if value is not None}
    values = {field.name: given[field.name] for field in dataclasses.fields(config) if field.name in given}
    values["stream"] = changed = _stream(config.stream, given)
    if changed.data.startswith("stream:"):  # it is not read ahead, so no frequencies are known
        values.setdefault("frequency", 0)
    if options.tokens is not None:
        if options.tokens < 1:
            raise UserError(f"--tokens {options.tokens}: it must be at least 1")
        values["steps"] = -(-options.tokens // (changed.batch_size * changed.sequence_length))
    if options.lr is not None:
        values["learning_rates"] = options.lr
    if (until := _until(options, config.until)) is not None:
        values["until"] = until
    settings = options.set
    if options.arm:
        own, fields = own_arms(options.arm, tuple(RECIPES))
        # Alone with the reference, unless the arms that they join are named.
        values["arms"] = (*(options.arms or config.arms[:1]), *own)
        settings = (*fields, *settings)
    if settings:
        values["settings"] = replaced_settings(config.settings, settings)
    changes = {"schedule": options.schedule, "kind": options.optimizer}
    values["optimizer"] = dataclasses.replace(config.optimizer, **{k: v for k, v in changes.items() if v is not None})
    return dataclasses.replace(config, **values)


def _until(options: StudyOptions, known: int | None) -> int | None:
    """The most seeds of a study that grows, None of one that does not."""
    if options.max_seeds is not None and not options.until_resolved and known is None:
        raise UserError(f"--max-seeds {options.max_seeds} without --until-resolved: seeds are added only with it")
    if not options.until_resolved and options.max_seeds is None:
        return known
    return max(MOST_SEEDS, options.seeds or 0) if options.max_seeds is None else options.max_seeds


def _stream(stream: "StreamConfig", given: dict[str, Any]) -> "StreamConfig":
    """The data with the options that were given."""
    from ..data.open import prepared_tokenizer

    values = {field.name: given[field.name] for field in dataclasses.fields(stream) if field.name in given}
    changed = dataclasses.replace(stream, **values)
    if "data" in given and "tokenizer" not in given and (own := prepared_tokenizer(changed.data)) is not None:
        values["tokenizer"] = own  # prepared data brings its tokenizer, and with it the vocabulary
    if "tokenizer" in values and "vocab_size" not in given:
        values["vocab_size"] = None
    return dataclasses.replace(stream, **values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a matched pair.

    **Returns:** the exit code: 0; 2 for what the user can mend, 3 where a run diverged, 75 where it was stopped and
    can go on, these with one line on standard error.
    """

    def run(stopping: Stopping) -> int:
        script = "pair.py" if arguments is not None else Path(sys.argv[0]).name
        return _run_pair(parse(Options, arguments, script, of_preset), stopping, again(arguments))

    return guarded(run)


def study_main(study: "Study | Mapping[str, Study]", arguments: Sequence[str] | None = None) -> int:
    """Runs a study's own script, with the options of `StudyOptions`; returns the exit code, as `main` does.

    Of several studies by name the first argument says which.
    """
    script, command = Path(sys.argv[0]).name, again(arguments)

    def run(stopping: Stopping) -> int:
        if not isinstance(study, Mapping):
            return run_with(study, parse(StudyOptions, arguments, script, of_study(study)), stopping, command)
        given = list(sys.argv[1:] if arguments is None else arguments)
        if given and given[0] in ("-h", "--help"):
            lines = {name: f"{len(each.which)} seeds, {each.run.steps:,} steps a run" for name, each in study.items()}
            print(listing(script, f"usage: {script} STUDY [OPTIONS]\n\nRun a study.", lines, "STUDY"))
            return 0
        if not given or given[0] not in study:
            what = f"no study {given[0]!r}" if given else "no study is named"
            raise UserError(f"{what}: write {script} STUDY [options], STUDY being one of {', '.join(study)}")
        options = parse(StudyOptions, given[1:], f"{script} {given[0]}", of_study(study[given[0]]))
        return run_with(study[given[0]], options, stopping, command)

    return guarded(run)


def guarded(run: Callable[[Stopping], int]) -> int:
    """The exit code of a command that listens to signals and says what the user can mend in one line."""
    stopping = Stopping()
    with patient_streams(), stopping.signals():
        try:
            return run(stopping)
        except UserError as error:
            complain(error)
            return 2
        except RuntimeError as error:
            from ..train.processes import lost

            if not lost(error):
                raise
            complain(f"another process has ended, or cannot be reached: {str(error).splitlines()[0][:200]}")
            return 2
        except KeyboardInterrupt:
            print("stopped before the first run: the same command begins it", file=sys.stderr)
            return STOPPED


def _run_pair(options: Options, stopping: Stopping, command: Again) -> int:
    from ..data.tokenizer import padded_vocab
    from ..train.processes import join, same
    from .pair import study_of

    join(options.processes)
    same(str(dataclasses.replace(options, processes=None)))
    config = resolve(options)
    size = config.stream.vocab_size
    known = padded_vocab(size or config.model.vocab_size, config.stream.pad_vocab_to)
    # Unknown arms and fields fail before any data is read.
    study = study_of(config, config.resolve(known, known - size if size else 0))
    if options.dry_run and size:
        _check(study, options)
        return _show_plan(study, known, known - size, None)

    def at(stream: Any) -> "Study":
        return study_of(config, config.resolve(stream.vocab_size, stream.padding))

    return _run(study, at, options, stopping, command)


def run_with(study: "Study", options: StudyOptions, stopping: Stopping, command: Again) -> int:
    """Runs a study as its options change it; returns the exit code."""
    from ..train.processes import join, same

    join(options.processes)
    same(str(dataclasses.replace(options, processes=None)))
    given = {name: value for name, value in vars(options).items() if value is not None}
    run = {field.name: given[field.name] for field in dataclasses.fields(study.run) if field.name in given}
    own = {name: given[option] for name, option in (("seeds", "seeds"), ("rates", "lr")) if option in given}
    own |= {"run": dataclasses.replace(study.run, **run), "stream": _stream(study.stream, given)}
    study = dataclasses.replace(study, **own, until=_until(options, study.until))
    return _run(study, lambda stream: study, options, stopping, command)


def _run(
    study: "Study", at: Callable[[Any], "Study"], options: StudyOptions, stopping: Stopping, command: Again
) -> int:
    """Opens the data, makes the study at its vocabulary, and runs or only plans it, until it is told to stop."""
    from ..train.host import keep_freed_memory, use_compile_cache
    from ..train.mesh import place_on
    from ..train.processes import leads, together
    from ..train.resume import Stopped
    from . import terminal
    from .noise import outlook
    from .progress import Progress
    from .report import summary
    from .runner import distinct_share
    from .study import check_compiling, run_study
    from .trackers import Tracker

    out, dry_run = options.out, options.dry_run
    _check(study, options)
    stopping.after(options.stop_after)
    check_compiling()
    keep_freed_memory()
    use_compile_cache()
    console, started = terminal.console(quiet=not leads()), time.perf_counter()
    if not dry_run:
        place_on(study.run.mesh)  # before anything is read
    _say(console, f"reading {study.stream.data}, tokenizer {study.stream.tokenizer} ...")
    with stopping.at_once():
        stream = together(study.stream.open)
    info, took = stream.info, time.perf_counter() - started
    tokens = info.get("tokens")  # a streamed source is not read ahead
    counts = f"{tokens['train']:,} training tokens, {tokens['valid']:,} validation, " if tokens else ""
    note = info.get("corpus_note", "")
    _say(console, f"{info['corpus']}: {counts}vocabulary {stream.vocab_size:,} ({took:.1f} s). {note}")
    study = at(stream)
    if dry_run:
        return _show_plan(study, stream.vocab_size, stream.padding, distinct_share(stream))
    arms = len(study.resolve(stream.vocab_size, stream.sequence_length, stream.padding)[0])
    terminal.print_blocks(
        outlook(study, stream.vocab_size, stream.sequence_length, stream.batch_size, stream.padding), console
    )
    folders: list[Path] = []
    trackers: list[Tracker] = []

    def on_folder(folder: Path) -> None:
        folders.append(folder)
        _say(console, f"run folder {folder}")
        if options.track and leads():
            trackers.append(Tracker(options.track, folder, study.document(), lambda line: _say(console, line)))

    def on_event(event: "Event") -> None:
        for each in (progress, *trackers):
            each(event)

    try:
        with Progress(arms, arms * len(study.which) * len(study.rates), study.run.steps, console) as progress:
            try:
                how = {"out": out, "on_event": on_event, "on_folder": on_folder, "stop": stopping}
                longer = {"keep_checkpoints": options.keep_checkpoints, "go_on_from": options.go_on_from}
                longer |= {"init_from": options.init_from, "other_cores": options.other_cores}
                folder, results = run_study(study, stream, **how, **longer)
            finally:
                for tracker in trackers:
                    tracker.close()
    except (KeyboardInterrupt, Stopped):
        if not folders:
            raise KeyboardInterrupt from None
        print(f"stopped; go on with: {command(folders[0])}", file=sys.stderr)
        return STOPPED
    terminal.print_blocks(summary(results), console)
    _say(console, f"{folder}/report.md, report.html  ({time.perf_counter() - started:.0f} s)")
    if ended := [f"{arm.name}, seed {run.seed}" for arm in results.arms.values() for run in arm.runs if run.diverged]:
        complain(f"diverged: {'; '.join(ended)}: no verdict is drawn from these; take a lower --lr")
        return DIVERGED
    return 0


def _check(study: "Study", options: StudyOptions) -> None:
    """Raises `UserError` for what would end the study before its first run, a planned one too."""
    from ..files import folder_with
    from ..train.processes import from_first
    from .beginnings import can_go_on
    from .folder import check_folder
    from .trackers import check_tracker

    if options.track:
        check_tracker(options.track)
    if (out := options.out) is not None:
        if not out.strip():
            raise UserError("--out is empty: name a folder, or leave it out")
        from_first(lambda: check_folder(Path(out), study.document()))
    for option, other in (("--go-on-from", options.go_on_from), ("--init-from", options.init_from)):
        if other is not None:
            folder_with("runs.jsonl", option, other)
    if options.go_on_from is not None:
        can_go_on(study.run)


def again(typed: Sequence[str] | None) -> Callable[[Path], str]:
    """The command that was typed (this process' own where it is None) with a folder, as a shell reads it."""

    def command(folder: Path) -> str:
        own = sys.orig_argv if typed is None else sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
        words = [*own, *(typed or ())]
        if not any(word == "--out" or word.startswith("--out=") for word in words):
            words += ["--out", str(folder)]
        return visible(shlex.join(words))

    return command


def _show_plan(study: "Study", vocab_size: int, padding: int, share: float | None) -> int:
    from .dry_run import plan
    from .terminal import console, print_blocks

    print_blocks(plan(study, vocab_size, padding, share), console())
    return 0


def _say(console: Any, line: str) -> None:
    console.print(visible(line), highlight=False, markup=False, soft_wrap=True)
