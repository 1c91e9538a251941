"""Which share of a run's time is spent waiting for the next batch?

    python -m benchmarks input_wait

The default pair's dense arm, its own text and stream, dispatched ahead as a run does: the share is what the same loop
saves over batches made beforehand, in short turns and of every round, median. Beside it stands the time inside `next`
where every batch is asked for once the step before has ended and nothing hides it, and inside `next` of the run, which
holds the time that the step's own threads keep the host's thread from a core.
"""

import itertools
import statistics
import time
from collections.abc import Iterator

import jax
import numpy as np

from eqx_slm.model import build
from eqx_slm.study.presets import QUICK
from eqx_slm.train import Program, TrainState, keep_freed_memory, make_program
from eqx_slm.train.step import compile_step

from .harness import Row, parser, show

STEPS, ROUNDS = 30, 40
SOURCES = ("ahead", "made", "apart")


def turn(
    program: Program, state: TrainState, batches: Iterator[np.ndarray], steps: int, *, ahead: bool
) -> tuple[TrainState, float, float]:
    """The state after `steps` steps, and seconds a step: inside `next`, and of the whole loop.

    `ahead` asks for a batch while the last step runs.
    """
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        state, _ = program.step(state, batch, np.float32(1e-3))
        if not ahead:
            jax.block_until_ready(state)
    jax.block_until_ready(state)
    return state, waited / steps, (time.perf_counter() - started) / steps


def main() -> None:
    """Prints the share."""
    small = parser(__doc__).parse_args().small
    steps, rounds = (10, 2) if small else (STEPS, ROUNDS)
    keep_freed_memory()
    stream = QUICK.stream.open()
    model = build(QUICK.resolve(stream.vocab_size)["dense"].config, key=jax.random.key(0))
    program = compile_step(make_program(model, QUICK.optimizer), model, stream.batch(0, 0)).program
    made = itertools.cycle([stream.batch(0, index) for index in range(4 * steps)])
    batches = {"ahead": stream.batches(0), "made": made, "apart": stream.batches(1)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SOURCES}
    state, *_ = turn(program, program.start(model), made, steps, ahead=True)
    for index in range(rounds):
        first = index % len(SOURCES)
        for name in SOURCES[first:] + SOURCES[:first]:
            state, *seconds = turn(program, state, batches[name], steps, ahead=name != "apart")
            found[name].append((seconds[0], seconds[1]))
    shares = [1 - without / ahead for (_, ahead), (_, without) in zip(found["ahead"], found["made"], strict=True)]
    error = statistics.stdev(shares) / len(shares) ** 0.5
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in found.items()
    }
    (waited, total), (inside, ahead), (_, without) = medians["apart"], medians["ahead"], medians["made"]
    sides = (
        f"{1e3 * ahead:.2f} ms a step dispatched ahead, {1e6 * inside:.0f} us of it inside next; {1e3 * without:.2f} "
        f"ms with batches made beforehand; {1e6 * waited:.0f} us of {1e3 * total:.2f} ms with nothing to hide it; "
        f"medians of {rounds} turns of {steps} steps, standard error {error:.3f}"
    )
    show(Row("input-wait", statistics.median(shares), "<= 0.01", "of the time", sides), small=small)


if __name__ == "__main__":
    main()
