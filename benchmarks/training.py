"""Steps of several models on the same batches, interleaved: what the training benchmarks share."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from eqx_slm.model import ModelConfig, build
from eqx_slm.train import OptimizerConfig, keep_freed_memory, make_program
from eqx_slm.train.step import compile_step


def stepper(
    config: ModelConfig, batches: list[np.ndarray], *, optimizer: OptimizerConfig | None = None, **options: Any
) -> tuple[Callable[[], Any], int]:
    """A function that trains one step on the next batch and waits for it, and the step's temporary bytes.

    `options` go to `make_program`.
    """
    keep_freed_memory()
    model = build(config, key=jax.random.key(0))
    compiled = compile_step(make_program(model, optimizer or OptimizerConfig(), **options), model, batches[0])
    program = compiled.program
    state = [program.start(model)]
    turn = [0]

    def step() -> float:
        state[0], metrics = program.step(state[0], batches[turn[0] % len(batches)], np.float32(1e-3))
        turn[0] += 1
        return float(metrics.loss)

    return step, compiled.report.temporary_bytes or 0


def temporaries(compiled: Any) -> int:
    """XLA's bytes of temporaries of a compiled function."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise SystemExit("this backend does not tell a program's memory")
    return analysis.temp_size_in_bytes


def zipf_batches(vocab_size: int, rows: int, tokens: int, count: int, *, seed: int = 0) -> list[np.ndarray]:
    """Batches `(rows, tokens + 1)` of ids whose frequencies fall as 1 / rank, as those of words do."""
    share = 1 / np.arange(1, vocab_size + 1)
    random = np.random.default_rng(seed)
    ids = random.permutation(vocab_size)  # frequent tokens have ids anywhere
    drawn = random.choice(vocab_size, size=(count, rows, tokens + 1), p=share / share.sum())
    return list(ids[drawn].astype(np.int32))
