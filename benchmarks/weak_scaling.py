"""Does a second CPU device train twice the tokens in the same time? Weak scaling: as many rows a device on both sides.

    python -m benchmarks weak_scaling

Dense at 128x2 (V = 4,096), 8 rows of 128 tokens a device, AdamW. One device in a process that may use one core;
two devices, `data=2` and `fsdp=2`, in a process that may use two. 1 is perfect, 0.5 is no gain.
"""

import os

import jax
import numpy as np

from eqx_slm.model import ModelConfig, build
from eqx_slm.nn import AttentionConfig
from eqx_slm.train import OptimizerConfig, make_program
from eqx_slm.train.mesh import place_on
from eqx_slm.train.step import compile_step

from .harness import Row, Worker, interleave, parser, serve, show
from .training import zipf_batches

CONFIG = ModelConfig(vocab_size=4096, d_model=128, depth=2, context=128, mixer=AttentionConfig(n_heads=2))
ROWS, STEPS, ROUNDS = 8, 5, 12
SIDES = {"one": "", "data": "data=2", "fsdp": "fsdp=2"}


def serve_side(side: str, steps: int) -> None:
    """One side in this process; every turn trains `steps` steps and says the last loss."""
    mesh = SIDES[side]
    count = 2 if mesh else 1
    batches = zipf_batches(CONFIG.vocab_size, ROWS * count, CONFIG.context, 4)
    model = build(CONFIG, key=jax.random.key(0))
    program = make_program(model, OptimizerConfig(), placed=place_on(mesh))
    program = compile_step(program, model, batches[0]).program
    state, rate, done = program.start(model), np.float32(1e-3), 0

    def turn() -> float:
        nonlocal state, done
        loss = None
        for _ in range(steps):
            state, metrics = program.step(state, program.batch(batches[done % len(batches)]), rate)
            done, loss = done + 1, metrics.loss
        return float(np.asarray(loss))

    serve({}, turn)


def main() -> None:
    """Prints a ratio a mesh; with `--side`, one side, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--side", choices=list(SIDES))
    arguments = options.parse_args()
    steps, rounds = (1, 2) if arguments.small else (STEPS, ROUNDS)
    if arguments.side:
        serve_side(arguments.side, steps)
        return
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise SystemExit("weak scaling needs two cores")
    workers, flags = {}, os.environ.get("XLA_FLAGS", "")
    for side, mesh in SIDES.items():  # a process inherits both: cores, and how many devices it sees
        count = 2 if mesh else 1
        os.sched_setaffinity(0, usable[:count])
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
        workers[side] = Worker("weak_scaling", "--side", side, *(["--small"] if arguments.small else []))
    os.sched_setaffinity(0, usable)
    seconds = interleave({side: worker.turn for side, worker in workers.items()}, rounds=rounds, warm=2)
    for worker in workers.values():
        worker.close()
    tokens = {side: (2 if mesh else 1) * ROWS * CONFIG.context * steps for side, mesh in SIDES.items()}
    speeds = {side: tokens[side] / value for side, value in seconds.items()}
    rows = [
        Row(
            f"weak-scaling-{side}",
            speeds[side] / speeds["one"] / 2,
            "",
            "of perfect",
            f"two devices {speeds[side]:,.0f} tokens/s, one {speeds['one']:,.0f}",
        )
        for side in ("data", "fsdp")
    ]
    show(*rows, small=arguments.small)


if __name__ == "__main__":
    main()
