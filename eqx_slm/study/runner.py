"""The runs of a study: every arm, seed and learning rate trained on the same tokens, one row each."""

import hashlib
import inspect
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..checks import shown
from ..configs import to_dict
from ..cores import check_cores
from ..data import Stream
from ..errors import UserError
from ..infer.generate import generate
from ..model import ModelConfig, build, side_for
from ..nn.init import subkey
from ..nn.probe import channel_cosines
from ..train.checkpoint import named_arrays
from ..train.loop import RunConfig, eval_steps, train_runs
from ..train.mesh import check_processes, place_on
from ..train.processes import any_of, from_first
from ..train.resume import Checkpoints, Stopped, cpu_cores
from ..train.stack import stack_blocks
from ..train.step import CompileReport, Program, compile_step, make_program
from .beginnings import LENGTH, FirstWeights, Shorter, alike, model_hash
from .frequency import ByFrequency
from .progress import Event
from .results import Row, Run
from .sentences import plural

MakeModel = Callable[[PRNGKeyArray], Any]
Arms = Mapping[str, MakeModel | ModelConfig]


class Runner:
    """Trains what is missing of a study.

    `checkpoints`: the folder in which runs on their way are saved, every `every` seconds; None for none. `keep`: the
    folder for those that a longer run can begin with. `shorter`: what the runs begin with, of a study of fewer steps;
    `weights`: the same, of a finished study, weights alone. `other_cores`: whether runs may be made on another number
    of CPU cores than those that are there.
    """

    checkpoints: Path | None = None
    every: float = 60.0
    keep: Path | None = None
    shorter: Shorter | None = None
    weights: FirstWeights | None = None
    other_cores: bool = False

    def __init__(
        self,
        arms: Arms,
        stream: Stream,
        config: RunConfig,
        tell: Callable[[Event], None],
        stop: Callable[[], bool] = lambda: False,
    ):
        """**Arguments:** `arms` by name, the `stream`, how every run is trained, who is told of events, and who is
        asked whether to `stop`, by `Stopped`.

        **Raises:** `UserError` where an arm does not fit the stream, or losses are split by frequencies unknown to it.
        """
        self.arms, self.stream, self.config, self.tell, self.stop = arms, stream, config, tell, stop
        self.data = _fingerprint(stream)
        self.placed = place_on(config.mesh)
        check_processes(stream, self.placed)
        self.sides: dict[str, dict[str, Any]] = {}
        self.programs: dict[Any, list[tuple[Program, CompileReport]]] = {}
        self.probes: dict[Any, Callable[[Any, Any], Any]] = {}
        self.hashes: dict[int, str] = {}
        self.first: int | None = None  # the seed whose models write samples
        self.counts: np.ndarray | None = None  # of the training text's ids
        self.split: ByFrequency | None = None
        if config.frequency:
            self.counts = stream.token_counts()
            self.split = ByFrequency(self.counts, stream.eval_batches(), config.frequency)
        for name, arm in arms.items():
            if not isinstance(arm, ModelConfig):
                continue
            if arm.vocab_size < stream.vocab_size:
                raise UserError(
                    f"arm {name} has a vocabulary of {arm.vocab_size}, the stream has ids up to "
                    f"{stream.vocab_size - 1}: raise the model's vocab_size to at least {stream.vocab_size}"
                )
            self.sides[name] = _side_of(name, arm, stream)

    def run(self, seeds: Sequence[int], keys: Mapping[Run, str], there: Sequence[Row] = ()) -> list[Row]:
        """All runs but those that are `there`, a group of seeds after the other: a study that stops has whole pairs.

        **Returns:** the rows of all of them. **Raises:** `RuntimeError` if two arms saw different tokens; `UserError`
        where something is missing, and what is there was made on another number of cores.
        """
        rows = {row.run: row for row in there if row.key in keys.values()}
        now = from_first(cpu_cores)
        for row in rows.values():
            self._check_tokens(row.arm, row.seed, row.stream_hash)
            if len(rows) < len(keys):
                check_cores(row.cores, now, self.other_cores, "the folder's runs were made")
            self.tell(Event("kept", row.arm, row.seed, row.learning_rate, row=row))
        at_once = self.config.seeds_at_once
        self.first = seeds[0] if self.first is None else self.first
        for start in range(0, len(seeds), at_once):
            for name, rate in dict.fromkeys((name, rate) for name, _, rate in keys):
                group = [seed for seed in seeds[start : start + at_once] if (name, seed, rate) not in rows]
                for row in self._train(name, group, rate, keys, self.first) if group else ():
                    rows[name, row.seed, rate] = row
        return [rows[run] for run in keys]

    def keys(self, seeds: Sequence[int], rates: Sequence[float], *, trunk: bool = False) -> dict[Run, str]:
        """For every run the hash of what decides it: the arm, how it is trained, its seed and rate, the data.

        `trunk`: without what decides its length and what is told of it, the same for a run and a longer one.
        """
        from ..version import __version__

        how = {name: value for name, value in to_dict(self.config).items() if not (trunk and name in LENGTH)}
        begun = [] if trunk or self.shorter is None else [{"after": self.shorter.step}]
        keys = {}
        for name, arm in self.arms.items():
            for seed in seeds:
                what = to_dict(arm) if isinstance(arm, ModelConfig) else _print_of(arm, self.initial(name, seed))
                if self.weights is not None:
                    what = [what, {"weights": self.weights.hashes[name, seed]}]
                for rate in rates:
                    all_of_it = [name, what, how, seed, rate, self.data, __version__, *begun]
                    text = json.dumps(all_of_it, sort_keys=True, default=str)
                    keys[name, seed, rate] = hashlib.sha256(text.encode()).hexdigest()[:16]
        return keys

    def initial(self, name: str, seed: int) -> Any:
        """The model before training."""
        arm, key = self.arms[name], jax.random.key(seed)
        if self.config.pairing == "data-only":
            key = subkey(key, name)
        model = build(arm, key=key, **self.sides[name]) if isinstance(arm, ModelConfig) else arm(key)
        if not isinstance(arm, ModelConfig) and not hasattr(model, "batch_features"):
            raise UserError(
                f"arm {name}: its function gave {shown(model)} for a key: a model has batch_features and read_out"
            )
        vocab = getattr(getattr(model, "embedding", None), "vocab_size", self.stream.vocab_size)
        if vocab < self.stream.vocab_size:
            raise UserError(f"arm {name} embeds {vocab} ids, the stream has {self.stream.vocab_size}")
        return model

    def _train(self, name: str, seeds: list[int], rate: float, keys: Mapping[Run, str], first: int) -> list[Row]:
        """The seeds of a group, at once where one program fits them all."""
        if any_of(self.stop()):
            raise Stopped
        first_model = self.initial if self.weights is None else self.weights.model
        models = [first_model(name, seed) for seed in seeds]
        if not all(alike(models[0], other) for other in models[1:]):
            return [row for seed in seeds for row in self._train(name, [seed], rate, keys, first)]
        program, compiled = self._program(name, models[0], len(seeds))
        checkpoints = self._checkpoints(name, seeds, rate, keys)
        records = train_runs(
            program,
            models,
            self.stream,
            seeds=seeds,
            steps=self.config.steps,
            learning_rate=rate,
            # A longer run is past its warm-up.
            optimizer=replace(self.config.optimizer, warmup=0.0) if self.shorter else self.config.optimizer,
            evaluate_at=eval_steps(self.config.steps, self.config.evaluations),
            average=self.config.average,
            patience=self.config.patience,
            probe=self._probe(program) if self.config.probe == "cosines" else None,
            on_progress=lambda seed, p: self.tell(Event("progress", name, seed, rate, progress=p, runs=len(seeds))),
            checkpoints=checkpoints,
        )
        rows = []
        for record in records:
            self._check_tokens(name, record.seed, record.stream_hash)
            model, record.params = program.model(record.params), None
            told = (
                "seed",
                "learning_rate",
                "stream_hash",
                "train_seconds",
                "tokens_per_second",
                "sequences",
                "averaged_nll",
                "skipped",
            )
            row = Row(
                key=keys[name, record.seed, rate],
                arm=name,
                data=self.data,
                evals=tuple(record.evals),
                **{each: getattr(record, each) for each in told},
                compile_seconds=compiled.seconds,
                temporary_bytes=compiled.temporary_bytes,
                seeds_at_once=len(seeds),
                cores=cpu_cores(),
                by_frequency=self.split.means(record.losses) if self.split and record.losses is not None else {},
                sample=self._sample(name, model, rate, first) if record.seed == first else "",
            )
            rows.append(row)
            if row.skipped:
                end = ", and ended there" if record.evals[-1].step < self.config.steps else ""
                text = f"{plural(row.skipped, 'step')} without a finite gradient changed nothing{end}"
                self.tell(Event("said", name, record.seed, rate, text=text))
            self.tell(Event("run", name, record.seed, rate, seconds=record.train_seconds, model=model, row=row))
        if checkpoints is not None:
            checkpoints.clear()
        return rows

    def _checkpoints(self, name: str, seeds: list[int], rate: float, keys: Mapping[Run, str]) -> Checkpoints | None:
        """Those of the seeds of a group: of another group's they are no use."""
        if self.checkpoints is None:
            return None
        alike = {"arm": name, "learning_rate": rate, "data": self.data}
        runs = [{**alike, "seed": seed, "key": keys[name, seed, rate]} for seed in seeds]
        own = hashlib.sha256(" ".join(run["key"] for run in runs).encode()).hexdigest()[:16]

        def say(line: str) -> None:
            self.tell(Event("said", name, seeds[0], rate, text=line, runs=len(seeds)))

        how: dict[str, Any] = {"seconds": self.every, "stop": self.stop, "say": say, "other_cores": self.other_cores}
        if self.keep is not None or self.shorter is not None:
            trunks = self.keys(seeds, [rate], trunk=True)
            for run in runs:
                run["trunk"] = trunks[name, run["seed"], rate]
        if self.keep is not None:
            how |= {"keep": self.keep / own, "keep_at": self.config.optimizer.branch(self.config.steps)}
        if self.shorter is not None:
            how["origin"] = self.shorter.file([run["trunk"] for run in runs])
        return Checkpoints(self.checkpoints / own, runs, **how)

    def _probe(self, program: Program) -> Callable[[Any, Any], Any]:
        """The compiled `channel_cosines` of a program's states; kept as long as the program."""

        def probe(params: Any, batch: Any) -> Any:
            return channel_cosines(program.model(params), batch[:, :-1])

        if program.step not in self.probes:
            made = jax.vmap(probe, in_axes=(0, None)) if program.replicates > 1 else probe
            made = made if self.placed is None else self.placed.everywhere(made)
            self.probes[program.step] = jax.jit(made)
        return self.probes[program.step]

    def _check_tokens(self, name: str, seed: int, digest: str) -> None:
        if self.hashes.setdefault(seed, digest) != digest:
            raise RuntimeError(f"arm {name}, seed {seed}: its tokens differ from those of the arm before it")

    def _program(self, name: str, model: Any, replicates: int) -> tuple[Program, CompileReport]:
        """The compiled step of an arm; equal configs share one, and so do models that differ in parameters only.

        A user's function may give every seed buffers of its own (a coordinate order, say): those are part of a program.
        """
        arm, config = self.arms[name], self.config
        known = self.programs.setdefault(arm if isinstance(arm, ModelConfig) else id(arm), [])
        for program, report in known:
            stacked = stack_blocks(model, loop=program.loop, remat=config.remat)
            static = eqx.filter(stacked, eqx.is_inexact_array, inverse=True)
            if program.replicates == replicates and eqx.tree_equal(program.static, static):
                return program, report
        how: dict[str, Any] = {"compute_dtype": config.compute_dtype, "loop": config.loop, "remat": config.remat}
        how |= {"accumulate": config.accumulate, "placed": self.placed}
        if self.placed is not None:
            shapes = {path: leaf.shape for path, leaf in named_arrays(model).items()}
            self.placed.layout.check(shapes, self.stream.batch_size // config.accumulate)
        program = make_program(model, config.optimizer, **how, replicates=replicates)
        compiled = compile_step(program, model, self.stream.eval_batches()[0])
        known.append((compiled.program, compiled.report))
        self.tell(Event("compiled", name, seconds=compiled.report.seconds))
        return known[-1]

    def _sample(self, name: str, model: Any, rate: float, seed: int) -> str:
        tokens, prompt = self.config.sample_tokens, self.stream.eval_batches()[0][0, :16]
        if not tokens:
            return ""
        self.tell(Event("sampling", name, seed, rate))
        start, size = jax.numpy.asarray(prompt), self.stream.sequence_length
        how: dict[str, Any] = {"temperature": 0.8, "vocab_size": self.stream.vocab_size - self.stream.padding}
        ids = generate(model, start, tokens=tokens, context=size, **how, key=jax.random.key(0))
        return f"{self.stream.decode(prompt)}⟦…⟧{self.stream.decode(np.asarray(ids))}"


def _side_of(name: str, arm: ModelConfig, stream: Stream) -> dict[str, Any]:
    try:
        return side_for(arm, stream)
    except UserError as error:
        raise UserError(f"arm {name}: {error}") from None


def distinct_share(stream: Stream) -> float:
    """Mean number of distinct input tokens of a batch over its tokens, from the first 16 batches of seed 0."""
    inputs = (batch[:, :-1] for batch in itertools.islice(stream.batches(0), 16))
    return float(np.mean([np.unique(part).size / part.size for part in inputs]))


def _fingerprint(stream: Stream) -> str:
    """A hash of the first training batch, the validation batches, and what the stream says of its corpus."""
    digest = hashlib.sha256(f"{stream.vocab_size} {stream.info.get('corpus_hash')}".encode())
    for batch in (next(iter(stream.batches(0))), *stream.eval_batches()):
        digest.update(f"{batch.shape}".encode() + np.ascontiguousarray(batch).tobytes())
    return digest.hexdigest()


def _print_of(make: MakeModel, model: Any) -> str:
    """The hash of a function's arm: its source where there is one, and the initial model that it gives."""
    try:
        source = inspect.getsource(make)
    except (OSError, TypeError):
        source = ""
    structure = re.sub(" at 0x[0-9a-f]+", "", str(jax.tree.structure(model)))  # functions lie elsewhere next time
    return model_hash(model, f"{source} {structure}")
