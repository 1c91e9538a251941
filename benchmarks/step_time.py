"""What does a training step of each quick arm cost beside dense? Interleaved, medians, in one process.

    python benchmarks/step_time.py

Same shapes, batches and compiled step as `experiments/pair.py`. `leviathan` has the same body as dense: its ratio is
the price of the generator alone (the paper reports 0.49 to 0.77 of the throughput at its sizes).
"""

import statistics
import time

import jax
import numpy as np

from eqx_slm.build import build
from eqx_slm.study.arms import make_arm
from eqx_slm.study.config import QUICK
from eqx_slm.study.pair import machine
from eqx_slm.study.run import open_stream
from eqx_slm.train.step import compile_step, make_program

ARMS = ("dense", "leviathan", "leviathan-deep", "dense-tied-deep")
STEPS = 60


def main() -> None:
    """Prints milliseconds a step and tokens a second, and the ratio of throughputs to dense."""
    stream = open_stream(QUICK)
    rate = np.float32(1e-3)
    running = {}
    for name in ARMS:
        model = build(make_arm(name, QUICK.model, QUICK.tuned).config, key=jax.random.key(0))
        program = make_program(model, QUICK.optimizer)
        running[name] = [compile_step(program, model, stream.batch(0, 0)).program, program.start(model), []]
    for index in range(STEPS + 3):
        batch = stream.batch(0, index)
        for entry in running.values():
            program, state, times = entry
            started = time.perf_counter()
            entry[1], metrics = program.step(state, batch, rate)
            jax.block_until_ready(metrics)
            if index >= 3:
                times.append(time.perf_counter() - started)
    tokens = stream.batch_size * stream.sequence_length
    medians = {name: statistics.median(entry[2]) for name, entry in running.items()}
    print(machine())
    for name, median in medians.items():
        ratio = medians["dense"] / median
        print(f"{name:16s} {1e3 * median:6.1f} ms a step, {tokens / median:8,.0f} tokens/s, {ratio:.2f} of dense")


if __name__ == "__main__":
    main()
