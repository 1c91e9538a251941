"""The trials of a study: every arm, seed and learning rate trained on the same tokens, and what each arm leaves."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..account import counted_flops, flops, memory, parameter_ledger
from ..build import ModelConfig, build
from ..data.base import Stream
from ..errors import UserError
from ..infer.generate import generate
from ..nn.init import subkey
from ..nn.orders import cooccurrence_order, frequency_order
from ..train.loop import Progress, RunRecord, train_runs
from ..train.optimizer import OptimizerConfig
from ..train.stack import Loop, Remat, stack_blocks
from ..train.step import CompileReport, ComputeDtype, Program, compile_step, make_program

MakeModel = Callable[[PRNGKeyArray], Any]


@dataclass(frozen=True)
class Event:
    """Something that happened in a study: "compiled" (with its report), "progress", "run" (with the model) or "sample".

    `runs`: how many runs, one a seed, are at the step that "progress" tells of.
    """

    kind: Literal["compiled", "progress", "run", "sample"]
    arm: str
    seed: int = 0
    learning_rate: float = 0.0
    progress: Progress | None = None
    report: CompileReport | None = None
    seconds: float = 0.0
    model: Any = None
    text: str = ""
    runs: int = 1


def order_for(config: ModelConfig, stream: Stream) -> np.ndarray | None:
    """The coordinate order that a config asks for, from the stream's training split; None where it needs none."""
    kind = getattr(config.embedding, "order", "tokenizer")
    if kind == "frequency":
        return frequency_order(np.pad(stream.token_counts(), (0, config.vocab_size - stream.vocab_size)))
    if kind == "co-occurrence":
        coordinates = getattr(config.embedding, "coordinates", 3)
        return cooccurrence_order(stream.training_tokens(), config.vocab_size, k=coordinates)
    return None


def distinct_share(stream: Stream, *, batches: int = 16) -> float:
    """Mean number of distinct input tokens of a batch over its tokens, from the first batches of seed 0."""
    inputs = (batch[:, :-1] for _, batch in zip(range(batches), stream.batches(0), strict=False))
    shares = [np.unique(part).size / part.size for part in inputs]
    return math.fsum(shares) / len(shares)


@dataclass
class Trials:
    """The runs of a study while they are made."""

    arms: dict[str, MakeModel | ModelConfig]
    stream: Stream
    seeds: tuple[int, ...]
    steps: int
    learning_rates: tuple[float, ...]
    optimizer: OptimizerConfig
    pairing: str
    compute_dtype: ComputeDtype
    loop: Loop
    remat: Remat
    seeds_at_once: int
    evaluate_at: tuple[int, ...]
    tell: Callable[[Event], None]

    def __post_init__(self) -> None:
        self.makers = {name: self._maker(arm) for name, arm in self.arms.items()}
        self.programs: dict[Any, list[tuple[Program, CompileReport]]] = {}
        self.records: dict[str, list[RunRecord]] = {name: [] for name in self.arms}
        self.models: dict[tuple[str, float], Any] = {}  # the first seed's, for samples and ledgers
        self.hashes: dict[int, str] = {}

    def _maker(self, arm: MakeModel | ModelConfig) -> MakeModel:
        if not isinstance(arm, ModelConfig):
            return arm
        order = order_for(arm, self.stream)
        return lambda key: build(arm, order=order, key=key)

    def check(self) -> None:
        """Fails before anything is trained."""
        for name, arm in self.arms.items():
            if isinstance(arm, ModelConfig) and arm.vocab_size < self.stream.vocab_size:
                raise UserError(
                    f"arm {name} has a vocabulary of {arm.vocab_size}, the stream has ids up to "
                    f"{self.stream.vocab_size - 1}: raise the model's vocab_size to at least {self.stream.vocab_size}"
                )

    def run(self) -> None:
        """All runs, a group of seeds after the other, so that an interrupted study holds whole pairs."""
        for start in range(0, len(self.seeds), self.seeds_at_once):
            for name in self.arms:
                for rate in self.learning_rates:
                    self._runs(name, self.seeds[start : start + self.seeds_at_once], rate)

    def initial(self, name: str, seed: int) -> Any:
        """The model before training."""
        key = jax.random.key(seed)
        return self.makers[name](subkey(key, name) if self.pairing == "data-only" else key)

    def program(self, name: str, model: Any, replicates: int = 1) -> tuple[Program, CompileReport]:
        """The compiled step of an arm; equal configs share one, and so do models that differ in parameters only.

        A user's function may give every seed buffers of its own (a coordinate order, say): those are part of a program.
        """
        known = self.programs.setdefault(self._identity(name), [])
        stacked = stack_blocks(model, loop=self.loop, remat=self.remat)
        static = eqx.partition(stacked, eqx.is_inexact_array)[1]
        for program, report in known:
            if program.replicates == replicates and eqx.tree_equal(program.static, static):
                return program, report
        program = make_program(
            model,
            self.optimizer,
            compute_dtype=self.compute_dtype,
            loop=self.loop,
            remat=self.remat,
            replicates=replicates,
        )
        compiled = compile_step(program, model, self.stream.eval_batches()[0])
        known.append((compiled.program, compiled.report))
        self.tell(Event("compiled", name, seconds=compiled.report.seconds, report=compiled.report))
        return known[-1]

    def _identity(self, name: str) -> Any:
        """What two arms share when they are the same arm: an equal config, or the very function."""
        arm = self.arms[name]
        return arm if isinstance(arm, ModelConfig) else id(arm)

    def _runs(self, name: str, seeds: tuple[int, ...], rate: float) -> None:
        """The seeds of a group, at once where one program fits them all."""
        models = [self.initial(name, seed) for seed in seeds]
        for model in models:
            vocab = getattr(getattr(model, "embedding", None), "vocab_size", self.stream.vocab_size)
            if vocab < self.stream.vocab_size:
                raise UserError(f"arm {name} embeds {vocab} ids, the stream has {self.stream.vocab_size}")
        if len(seeds) > 1 and not _one_structure(models):
            for seed in seeds:
                self._runs(name, (seed,), rate)
            return
        program, _ = self.program(name, models[0], len(seeds))
        records = train_runs(
            program,
            models,
            self.stream,
            seeds=seeds,
            steps=self.steps,
            learning_rate=rate,
            optimizer=self.optimizer,
            evaluate_at=self.evaluate_at,
            on_progress=lambda seed, p: self.tell(Event("progress", name, seed, rate, progress=p, runs=len(seeds))),
        )
        for record in records:
            if self.hashes.setdefault(record.seed, record.stream_hash) != record.stream_hash:
                raise RuntimeError(f"arm {name}, seed {record.seed}: its tokens differ from those of the arm before it")
            trained = program.model(record.params)
            record.params = None
            self.records[name].append(record)
            if record.seed == self.seeds[0]:
                self.models[name, rate] = trained
            self.tell(Event("run", name, record.seed, rate, seconds=record.train_seconds, model=trained))

    def best_rate(self, name: str) -> float:
        """The rate with the lowest mean final loss over the seeds; diverged runs count as infinite."""

        def loss(rate: float) -> float:
            finals = [r.evals[-1].nll for r in self.records[name] if r.learning_rate == rate]
            return sum(f if math.isfinite(f) else math.inf for f in finals) / max(len(finals), 1)

        return min(self.learning_rates, key=loss)

    def entry(self, name: str, sample_tokens: int, note: str | None) -> dict[str, Any]:
        """The arm's part of the result."""
        arm = self.arms[name]
        rate = self.best_rate(name)
        model = self.models[name, rate]
        ledger = parameter_ledger(arm if isinstance(arm, ModelConfig) else model)
        program, compiled = self.programs[self._identity(name)][0]
        sample = self._sample(name, model, sample_tokens) if sample_tokens else ""
        runs = [_run_entry(r, sample if r.seed == self.seeds[0] else "") for r in self.records[name]]
        return {
            "parameters": ledger.summary(),
            "ledger": [list(entry) for entry in ledger.entries],
            "embedding_tax": ledger.embedding_tax,
            "buffers_bytes": ledger.buffer_bytes,
            "flops_per_token": self._flops(arm, model),
            "memory_bytes": self._memory(arm, ledger.total, compiled),
            "learning_rate": rate,
            "seeds_at_once": program.replicates,
            "compile_seconds": compiled.seconds,
            "match": note,
            "note": "",
            "config": None if not isinstance(arm, ModelConfig) else dataclasses.asdict(arm),
            "runs": [run for run in runs if run["learning_rate"] == rate],
            "all_runs": runs if len(self.learning_rates) > 1 else [],
        }

    def _flops(self, arm: MakeModel | ModelConfig, model: Any) -> dict[str, Any] | None:
        if isinstance(arm, ModelConfig):
            count = flops(arm, context=self.stream.sequence_length, distinct_share=distinct_share(self.stream))
            return {
                "total": count.total,
                "embedding": count.embedding,
                "blocks": sum(count.blocks),
                "head": count.head,
                "total_distinct": count.total_distinct,
            }
        total = counted_flops(model, context=self.stream.sequence_length)
        return None if total is None else {"total": total, "counted_by": "XLA"}

    def _memory(self, arm: MakeModel | ModelConfig, parameters: int, compiled: CompileReport) -> dict[str, Any]:
        estimate = None
        if isinstance(arm, ModelConfig):
            width = 2 if self.compute_dtype == "bfloat16" else 4
            estimate = memory(
                arm, batch_size=self.stream.batch_size, context=self.stream.sequence_length, activation_bytes=width
            )
        return {
            "parameters": 4 * parameters,
            "gradients": 4 * parameters,
            "optimizer": 8 * parameters if estimate is None else estimate.optimizer,
            "activations": None if estimate is None else estimate.activations,
            "temporary": compiled.temporary_bytes,
        }

    def _sample(self, name: str, model: Any, tokens: int) -> str:
        prompt = self.stream.eval_batches()[0][0, :16]
        ids = generate(
            model,
            jax.numpy.asarray(prompt),
            tokens=tokens,
            context=self.stream.sequence_length,
            temperature=0.8,
            key=jax.random.key(0),
        )
        text = f"{self.stream.decode(prompt)}⟦…⟧{self.stream.decode(np.asarray(ids))}"
        self.tell(Event("sample", name, text=text))
        return text


def _one_structure(models: list[Any]) -> bool:
    """Whether models differ in parameters only."""
    first, *others = (eqx.filter(model, eqx.is_inexact_array, inverse=True) for model in models)
    return all(bool(eqx.tree_equal(first, other)) for other in others)


def _run_entry(record: RunRecord, sample: str) -> dict[str, Any]:
    last = record.evals[-1]
    return {
        "seed": record.seed,
        "learning_rate": record.learning_rate,
        "evals": [dataclasses.asdict(evaluation) for evaluation in record.evals],
        "final_nll": last.nll,
        "final_bits_per_byte": last.bits_per_byte,
        "train_seconds": record.train_seconds,
        "tokens_per_second": record.tokens_per_second,
        "diverged": record.diverged,
        "sample": sample,
    }
