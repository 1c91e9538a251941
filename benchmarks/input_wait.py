"""Which share of a run's time is spent waiting for the next batch?

    python -m benchmarks input_wait

The loop of the default pair's dense arm, its own text and stream: time inside `next` over the time of the loop. Steps
are dispatched ahead, so part of it passes while the device computes; the same loop over batches made beforehand is
measured too, in turns.
"""

import statistics
import time
from collections.abc import Iterator

import jax
import numpy as np

from eqx_slm.build import build
from eqx_slm.study.config import QUICK
from eqx_slm.study.run import open_stream
from eqx_slm.train import Program, TrainState, keep_freed_memory, make_program
from eqx_slm.train.step import compile_step

from .harness import Row, parser, show

STEPS, WARM, ROUNDS = 240, 10, 7


def loop(program: Program, state: TrainState, batches: Iterator[np.ndarray], steps: int) -> tuple[float, float]:
    """Seconds inside `next`, and of the whole loop, a step."""
    for _ in range(WARM):
        state, _ = program.step(state, next(batches), np.float32(1e-3))
    jax.block_until_ready(state)
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, _ = program.step(state, batch, np.float32(1e-3))
    jax.block_until_ready(state)
    return waited / steps, (time.perf_counter() - started) / steps


def main() -> None:
    """Prints the share."""
    small = parser(__doc__).parse_args().small
    steps, rounds = (20, 1) if small else (STEPS, ROUNDS)
    keep_freed_memory()
    stream = open_stream(QUICK)
    model = build(QUICK.resolve(stream.vocab_size)["dense"].config, key=jax.random.key(0))
    program = compile_step(make_program(model, QUICK.optimizer), model, stream.batch(0, 0)).program
    shares, waits, totals, bare = [], [], [], []
    for seed in range(rounds):
        waited, total = loop(program, program.start(model), stream.batches(seed), steps)
        made = [stream.batch(seed, index) for index in range(WARM + steps)]
        _, without = loop(program, program.start(model), iter(made), steps)
        shares.append(waited / total)
        waits.append(waited)
        totals.append(total)
        bare.append(without)
    waited, total, without = (statistics.median(found) for found in (waits, totals, bare))
    sides = (
        f"{1e6 * waited:.0f} us of {1e3 * total:.2f} ms a step, median of {rounds} runs of {steps} steps; "
        f"{1e3 * without:.2f} ms a step with batches made beforehand"
    )
    show(Row("input-wait", statistics.median(shares), "<= 0.01", "of the time", sides), small=small)


if __name__ == "__main__":
    main()
