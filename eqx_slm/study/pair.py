"""The matched pair: arms trained on the same tokens with the same seeds, compared with an interval."""

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..account import counted_flops, flops, memory, parameter_ledger
from ..build import ModelConfig, build
from ..data.stream import TokenStream
from ..errors import UserError
from ..files import json_ready
from ..infer.generate import generate
from ..nn.coordinates import cooccurrence_order, frequency_order
from ..nn.initial import subkey
from ..train.loop import Progress, RunRecord, eval_steps, train_run
from ..train.optimizer import OptimizerConfig
from ..train.step import ComputeDtype, Program, compile_step, make_program
from .codec import differences
from .compare import compare, control_comparisons
from .summary import summary_text

MakeModel = Callable[[PRNGKeyArray], Any]


@dataclass(frozen=True)
class Event:
    """Something that happened in a study: "compiled", "progress", "run" (with the final model) or "sample"."""

    kind: Literal["compiled", "progress", "run", "sample"]
    arm: str
    seed: int = 0
    learning_rate: float = 0.0
    progress: Progress | None = None
    seconds: float = 0.0
    model: Any = None
    text: str = ""


@dataclass(frozen=True)
class PairResult:
    """The result of a study. `data` is what result.json holds; the rest reads it."""

    data: dict[str, Any]

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """Every arm against the first: differences, intervals, verdict, curve."""
        return self.data["comparisons"]

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of every arm but the first, by name."""
        return {comparison["arm"]: comparison["verdict"] for comparison in self.comparisons}

    def __str__(self) -> str:
        return summary_text(self.data)


def pair(
    arms: Mapping[str, MakeModel | ModelConfig],
    stream: TokenStream,
    *,
    seeds: int | Sequence[int] = 3,
    steps: int = 160,
    learning_rates: Sequence[float] = (3e-3,),
    optimizer: OptimizerConfig | None = None,
    margin: float = 0.01,
    confidence: float = 0.95,
    pairing: Literal["full", "data-only"] = "full",
    compute_dtype: ComputeDtype = "float32",
    evaluations: int = 12,
    sample_tokens: int = 0,
    notes: Mapping[str, str] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> PairResult:
    """Trains every arm on the same tokens in the same order, seed by seed, and compares each with the first.

    **Arguments:**

    - `arms`: by name, a `ModelConfig` or a function `make(key) -> LanguageModel`; the first is the reference. Configs
      bring their FLOPs and differences into the report; the same function or config twice is an identical arm.
    - `stream`: see `eqx_slm.data.make_stream`; its sequence length is the context.
    - `seeds`: how many (0, 1, ...), or which. A seed sets initial values and data order; three or more give an interval
      worth having.
    - `steps`: training steps of every run, each of `stream.batch_size * stream.sequence_length` tokens.
    - `learning_rates`: with several, every arm runs all of them and is judged at its own best (by mean final loss).
    - `optimizer`: betas, decay, clipping, schedule.
    - `margin`: nats a token below which a difference does not matter; decided before the run.
    - `confidence`: of the family of intervals.
    - `pairing`: "full" starts leaves of equal path and shape equal in all arms; "data-only" gives every arm initial
      values of its own (for null studies).
    - `compute_dtype`: "float32" or "bfloat16".
    - `evaluations`: how many log-spaced token counts are evaluated.
    - `sample_tokens`: length of a generated sample per arm; 0 for none.
    - `notes`: a sentence an arm for the report.
    - `on_event`: told of everything that happens.

    **Returns:** a `PairResult`; `print(result)` shows the verdict.

    **Raises:** `UserError` where the arms do not fit the stream; `RuntimeError` if two arms saw different tokens.
    """
    if not arms:
        raise UserError("no arms: give at least one, the first is the reference")
    study = _Study(
        arms=dict(arms),
        stream=stream,
        seeds=tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds),
        steps=steps,
        learning_rates=tuple(learning_rates),
        optimizer=OptimizerConfig() if optimizer is None else optimizer,
        pairing=pairing,
        compute_dtype=compute_dtype,
        evaluate_at=eval_steps(steps, evaluations),
        tell=on_event or (lambda event: None),
    )
    if not study.seeds or steps < 1 or not study.learning_rates:
        raise UserError(f"seeds={seeds}, steps={steps}, learning_rates={list(learning_rates)}: at least one of each")
    started = time.perf_counter()
    study.check()
    study.run()
    entries = {name: study.entry(name, sample_tokens, (notes or {}).get(name)) for name in arms}
    reference = next(iter(arms))
    differ = {name: config_differences(arms[reference], arms[name]) for name in arms if name != reference}
    swept = len(study.learning_rates) > 1
    data = {
        "format": 1,
        "name": "pair",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - started,
        "stream": {**stream.info, "stream_hash": {str(seed): digest for seed, digest in study.hashes.items()}},
        "machine": machine(),
        "settings": {
            "seeds": list(study.seeds),
            "steps": steps,
            "batch_size": stream.batch_size,
            "sequence_length": stream.sequence_length,
            "tokens": steps * stream.batch_size * stream.sequence_length,
            "eval_tokens": sum(batch[:, 1:].size for batch in stream.eval_batches()),
            "margin": margin,
            "confidence": confidence,
            "pairing": pairing,
            "compute_dtype": compute_dtype,
            "learning_rates": list(study.learning_rates),
            "swept": swept,
            "optimizer": dataclasses.asdict(study.optimizer),
        },
        "reference": reference,
        "arms": entries,
        "comparisons": compare(entries, reference, margin=margin, confidence=confidence, config_differences=differ),
        "controls": control_comparisons(entries, reference, margin=margin, confidence=confidence),
    }
    return PairResult(json_ready(data))


def config_differences(reference: Any, other: Any) -> list[list[str]] | None:
    """The fields in which two arms differ; empty for the same function; None where nobody can know."""
    if isinstance(reference, ModelConfig) and isinstance(other, ModelConfig):
        return [list(entry) for entry in differences(reference, other)]
    return [] if reference is other else None


def order_for(config: ModelConfig, stream: TokenStream) -> np.ndarray | None:
    """The coordinate order that a config asks for, from the stream's training split; None where it needs none."""
    kind = getattr(config.embedding, "order", "tokenizer")
    if kind == "frequency":
        return frequency_order(stream.token_counts())
    if kind == "co-occurrence":
        return cooccurrence_order(stream.train, config.vocab_size, k=getattr(config.embedding, "coordinates", 3))
    return None


def machine() -> dict[str, Any]:
    """Versions and device, as a result carries them."""
    import os
    from importlib.metadata import version

    packages = ("jax", "jaxlib", "equinox", "optax", "grain", "tiktoken", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def distinct_share(stream: TokenStream, *, batches: int = 16) -> float:
    """Mean number of distinct input tokens of a batch over its tokens, from the first batches of seed 0."""
    shares = [np.unique(b[:, :-1]).size / b[:, :-1].size for b in (stream.batch(0, i) for i in range(batches))]
    return math.fsum(shares) / len(shares)


@dataclass
class _Study:
    """The runs of a study while they are made."""

    arms: dict[str, MakeModel | ModelConfig]
    stream: TokenStream
    seeds: tuple[int, ...]
    steps: int
    learning_rates: tuple[float, ...]
    optimizer: OptimizerConfig
    pairing: str
    compute_dtype: ComputeDtype
    evaluate_at: tuple[int, ...]
    tell: Callable[[Event], None]

    def __post_init__(self) -> None:
        self.makers = {name: self._maker(arm) for name, arm in self.arms.items()}
        self.programs: dict[Any, tuple[Program, dict[str, Any]]] = {}
        self.records: dict[str, list[RunRecord]] = {name: [] for name in self.arms}
        self.models: dict[str, Any] = {}
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
        """All runs, seed by seed, so that an interrupted study holds whole pairs."""
        for seed in self.seeds:
            for name in self.arms:
                for rate in self.learning_rates:
                    self._run(name, seed, rate)

    def initial(self, name: str, seed: int) -> Any:
        """The model before training."""
        key = jax.random.key(seed)
        return self.makers[name](subkey(key, name) if self.pairing == "data-only" else key)

    def program(self, name: str, model: Any) -> tuple[Program, dict[str, Any]]:
        """The compiled step of an arm; equal configs share one."""
        arm = self.arms[name]
        known = arm if isinstance(arm, ModelConfig) else id(arm)
        if known not in self.programs:
            program = make_program(model, self.optimizer, compute_dtype=self.compute_dtype)
            compiled = compile_step(program, model, self.stream.batch(self.seeds[0], 0))
            self.programs[known] = compiled.program, dataclasses.asdict(compiled.report)
            self.tell(Event("compiled", name, seconds=compiled.report.seconds))
        return self.programs[known]

    def _run(self, name: str, seed: int, rate: float) -> None:
        model = self.initial(name, seed)
        vocab = getattr(getattr(model, "embedding", None), "vocab_size", self.stream.vocab_size)
        if vocab < self.stream.vocab_size:
            raise UserError(f"arm {name} embeds {vocab} ids, the stream has {self.stream.vocab_size}")
        program, _ = self.program(name, model)
        record = train_run(
            program,
            model,
            self.stream,
            seed=seed,
            steps=self.steps,
            learning_rate=rate,
            optimizer=self.optimizer,
            evaluate_at=self.evaluate_at,
            on_progress=lambda p: self.tell(Event("progress", name, seed, rate, progress=p)),
        )
        if self.hashes.setdefault(seed, record.stream_hash) != record.stream_hash:
            raise RuntimeError(f"arm {name}, seed {seed}: its tokens differ from those of the arm before it")
        trained = program.model(record.params)
        record.params = None
        self.records[name].append(record)
        if seed == self.seeds[0] and (name not in self.models or rate == self.best_rate(name)):
            self.models[name] = trained
        self.tell(Event("run", name, seed, rate, seconds=record.train_seconds, model=trained))

    def best_rate(self, name: str) -> float:
        """The rate with the lowest mean final loss over the seeds done so far; diverged runs count as infinite."""

        def loss(rate: float) -> float:
            finals = [r.evals[-1].nll for r in self.records[name] if r.learning_rate == rate]
            return sum(f if math.isfinite(f) else math.inf for f in finals) / max(len(finals), 1)

        return min(self.learning_rates, key=loss)

    def entry(self, name: str, sample_tokens: int, note: str | None) -> dict[str, Any]:
        """The arm's part of the result."""
        arm = self.arms[name]
        model = self.models[name]
        ledger = parameter_ledger(arm if isinstance(arm, ModelConfig) else model)
        _, compiled = self.programs[arm if isinstance(arm, ModelConfig) else id(arm)]
        rate = self.best_rate(name)
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
            "compile_seconds": compiled["seconds"],
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

    def _memory(self, arm: MakeModel | ModelConfig, parameters: int, compiled: dict[str, Any]) -> dict[str, Any]:
        estimate = None
        if isinstance(arm, ModelConfig):
            width = 2 if self.compute_dtype == "bfloat16" else 4
            estimate = memory(
                arm, batch_size=self.stream.batch_size, context=self.stream.sequence_length, activation_bytes=width
            )
        return {
            "parameters": 4 * parameters,
            "gradients": 4 * parameters,
            "optimizer": 8 * parameters,
            "activations": None if estimate is None else estimate.activations,
            "temporary": compiled["temporary_bytes"],
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
