"""Which share of a run's time is spent waiting for the next batch?

    python -m benchmarks input_wait

The default pair's dense arm, its own text and stream, dispatched ahead as a run does: the share is what the same loop
saves over batches made beforehand, in turns. Beside it stands the time inside `next` where every batch is asked for
once the step before has ended and nothing hides it (2 to 3% of this small step), and inside `next` of the run, which
holds the time that the step's own threads keep the host's thread from a core.
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

STEPS, WARM, ROUNDS = 120, 10, 9


def loop(
    program: Program, state: TrainState, batches: Iterator[np.ndarray], steps: int, *, ahead: bool
) -> tuple[float, float]:
    """Seconds inside `next`, and of the whole loop, a step; `ahead` asks for a batch while the last step runs."""
    for _ in range(WARM):
        state, _ = program.step(state, next(batches), np.float32(1e-3))
    jax.block_until_ready(state)
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, _ = program.step(state, batch, np.float32(1e-3))
        if not ahead:
            jax.block_until_ready(state)
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
    found: dict[str, list[tuple[float, float]]] = {"apart": [], "ahead": [], "made": []}
    for seed in range(rounds):
        made = [stream.batch(seed, index) for index in range(WARM + steps)]
        found["apart"].append(loop(program, program.start(model), stream.batches(seed), steps, ahead=False))
        found["ahead"].append(loop(program, program.start(model), stream.batches(seed), steps, ahead=True))
        found["made"].append(loop(program, program.start(model), iter(made), steps, ahead=True))
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in found.items()
    }
    (waited, total), (inside, ahead), (_, without) = medians["apart"], medians["ahead"], medians["made"]
    sides = (
        f"{1e3 * ahead:.2f} ms a step dispatched ahead, {1e6 * inside:.0f} us of it inside next; {1e3 * without:.2f} "
        f"ms with batches made beforehand; {1e6 * waited:.0f} us of {1e3 * total:.2f} ms with nothing to hide it; "
        f"medians of {rounds} runs of {steps} steps"
    )
    show(Row("input-wait", 1 - without / ahead, "<= 0.01", "of the time", sides), small=small)


if __name__ == "__main__":
    main()
