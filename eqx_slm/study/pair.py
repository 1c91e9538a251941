"""The matched pair: arms trained on the same tokens with the same seeds, compared with an interval."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import jax

from ..build import ModelConfig
from ..data.stream import Stream
from ..errors import UserError
from ..files import json_ready
from ..train.host import keep_freed_memory
from ..train.loop import eval_steps
from ..train.optimizer import OptimizerConfig
from ..train.stack import Loop, Remat
from ..train.step import ComputeDtype
from .codec import differences
from .compare import compare, control_comparisons
from .config import check_at_once, check_settings
from .summary import summary_text
from .trials import Event, MakeModel, Trials


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
    stream: Stream,
    *,
    seeds: int | Sequence[int] = 3,
    steps: int = 160,
    learning_rates: Sequence[float] = (3e-3,),
    optimizer: OptimizerConfig | None = None,
    margin: float = 0.01,
    confidence: float = 0.95,
    pairing: Literal["full", "data-only"] = "full",
    compute_dtype: ComputeDtype = "float32",
    loop: Loop = "unrolled",
    remat: Remat = "none",
    seeds_at_once: int = 1,
    evaluations: int = 12,
    sample_tokens: int = 0,
    notes: Mapping[str, str] | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> PairResult:
    """Trains every arm on the same tokens in the same order, seed by seed, and compares each with the first.

    **Arguments:**

    - `arms`: by name, a `ModelConfig` or a function `make(key) -> LanguageModel`; the first is the reference. Configs
      bring their FLOPs and differences into the report; the same function or config twice is an identical arm.
    - `stream`: see `eqx_slm.data.open_data`; its sequence length is the context.
    - `seeds`: how many (0, 1, ...), or which. A seed sets initial values and data order; three or more give an interval
      worth having.
    - `steps`: training steps of every run, each of `stream.batch_size * stream.sequence_length` tokens.
    - `learning_rates`: with several, every arm runs all of them and is judged at its own best (by mean final loss).
    - `optimizer`: betas, decay, clipping, schedule.
    - `margin`: nats a token below which a difference does not matter; decided before the run.
    - `confidence`: of one interval; with several arms, of the family of tests (Holm).
    - `pairing`: "full" starts leaves of equal path and shape equal in all arms; "data-only" gives every arm initial
      values of its own (for null studies).
    - `compute_dtype`: "float32" or "bfloat16".
    - `loop`, `remat`: how blocks run and what their backward pass keeps, the same for all arms (see `stack_blocks`).
    - `seeds_at_once`: how many seeds of an arm one program trains, by `vmap`: the same numbers but for the order of
      sums. On a CPU it gains nothing (benchmarks/README.md).
    - `evaluations`: how many log-spaced token counts are evaluated.
    - `sample_tokens`: length of a generated sample per arm; 0 for none.
    - `notes`: a sentence an arm for the report.
    - `on_event`: told of everything that happens.

    **Returns:** a `PairResult`; `print(result)` shows the verdict.

    **Raises:** `UserError` where the arms do not fit the stream; `RuntimeError` if two arms saw different tokens.
    """
    keep_freed_memory()
    if not arms:
        raise UserError("no arms: give at least one, the first is the reference")
    which = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    check_settings(which, steps, learning_rates, margin, confidence)
    check_at_once(seeds_at_once)
    trials = Trials(
        arms=dict(arms),
        stream=stream,
        seeds=which,
        steps=steps,
        learning_rates=tuple(learning_rates),
        optimizer=OptimizerConfig() if optimizer is None else optimizer,
        pairing=pairing,
        compute_dtype=compute_dtype,
        loop=loop,
        remat=remat,
        seeds_at_once=seeds_at_once,
        evaluate_at=eval_steps(steps, evaluations),
        tell=on_event or (lambda event: None),
    )
    started = time.perf_counter()
    trials.check()
    trials.run()
    entries = {name: trials.entry(name, sample_tokens, (notes or {}).get(name)) for name in arms}
    reference = next(iter(arms))
    differ = {name: config_differences(arms[reference], arms[name]) for name in arms if name != reference}
    swept = len(trials.learning_rates) > 1
    data = {
        "format": 1,
        "name": "pair",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - started,
        "stream": {**stream.info, "stream_hash": {str(seed): digest for seed, digest in trials.hashes.items()}},
        "machine": machine(),
        "settings": {
            "seeds": list(trials.seeds),
            "steps": steps,
            "batch_size": stream.batch_size,
            "sequence_length": stream.sequence_length,
            "tokens": steps * stream.batch_size * stream.sequence_length,
            "eval_tokens": sum(batch[:, 1:].size for batch in stream.eval_batches()),
            "margin": margin,
            "confidence": confidence,
            "pairing": pairing,
            "compute_dtype": compute_dtype,
            "loop": loop,
            "remat": remat,
            "seeds_at_once": seeds_at_once,
            "learning_rates": list(trials.learning_rates),
            "swept": swept,
            "optimizer": dataclasses.asdict(trials.optimizer),
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


def machine() -> dict[str, Any]:
    """Versions and device, as a result carries them."""
    packages = ("jax", "jaxlib", "equinox", "optax", "grain", "tiktoken", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
