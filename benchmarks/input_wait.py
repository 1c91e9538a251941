"""Which share of a run's time is spent waiting for the next batch?

    python -m benchmarks input_wait

The loop of the default pair's dense arm, its own text and stream; time inside `next` over the time of the loop.
"""

import statistics
import time

import jax
import numpy as np

from eqx_slm.build import build
from eqx_slm.study.config import QUICK
from eqx_slm.study.run import open_stream
from eqx_slm.train import keep_freed_memory, make_program
from eqx_slm.train.step import compile_step

from .harness import Row, parser, show

STEPS, WARM, ROUNDS = 240, 10, 5


def main() -> None:
    """Prints the share."""
    small = parser(__doc__).parse_args().small
    steps, rounds = (20, 1) if small else (STEPS, ROUNDS)
    keep_freed_memory()
    stream = open_stream(QUICK)
    model = build(QUICK.resolve(stream.vocab_size)["dense"].config, key=jax.random.key(0))
    program = compile_step(make_program(model, QUICK.optimizer), model, stream.batch(0, 0)).program
    shares, spent = [], []
    for seed in range(rounds):
        state, batches = program.start(model), stream.batches(seed)
        for _ in range(WARM):
            state, metrics = program.step(state, next(batches), np.float32(1e-3))
        jax.block_until_ready(state)
        waited, started = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            state, metrics = program.step(state, batch, np.float32(1e-3))
        jax.block_until_ready((state, metrics))
        total = time.perf_counter() - started
        shares.append(waited / total)
        spent.append((waited / steps, total / steps))
    waited, total = (statistics.median(found) for found in zip(*spent, strict=True))
    sides = f"{1e6 * waited:.0f} us of {1e3 * total:.2f} ms a step, median of {rounds} runs of {steps} steps"
    show(Row("input-wait", statistics.median(shares), "<= 0.01", "of the time", sides), small=small)


if __name__ == "__main__":
    main()
