"""What does a warm compilation cache save of the time from `import` to the end of the first training step?

    python -m benchmarks warm_start

Fresh interpreters, alternating: one with a new cache folder, one with a folder that the same program has filled. The
model is the quick preset's `leviathan-deep`, the batch random ids of its shape.
"""

import statistics
import tempfile

from .harness import Row, fresh, parser, show

ROUNDS = 3


def environment(folder: str) -> dict[str, str]:
    """Keeps every compiled program in `folder`."""
    return {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def first_step() -> float:
    """Seconds of imports, building, compiling and one step, in this process."""
    import time

    started = time.perf_counter()
    import jax
    import numpy as np

    from eqx_slm.model import build
    from eqx_slm.study.arms import make_arm
    from eqx_slm.study.presets import QUICK
    from eqx_slm.train import make_program

    config = make_arm("leviathan-deep", QUICK.model, QUICK.tuned).config
    model = build(config, key=jax.random.key(0))
    program = make_program(model, QUICK.optimizer)
    shape = (QUICK.stream.batch_size, QUICK.stream.sequence_length + 1)
    batch = np.random.default_rng(0).integers(0, config.vocab_size, shape).astype(np.int32)
    _, metrics = program.step(program.start(model), batch, np.float32(1e-3))
    float(metrics.loss)
    return time.perf_counter() - started


def main() -> None:
    """Prints the ratio; with `--inside`, one start's seconds, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--inside", action="store_true")
    arguments = options.parse_args()
    if arguments.inside:
        print(first_step())
        return
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as filled:
        _seconds(filled)
        for _ in range(1 if arguments.small else ROUNDS):
            with tempfile.TemporaryDirectory() as empty:
                times["cold"].append(_seconds(empty))
            times["warm"].append(_seconds(filled))
    medians = {name: statistics.median(found) for name, found in times.items()}
    sides = ", ".join(f"{name} {median:.2f} s" for name, median in medians.items())
    show(Row("warm-start", medians["warm"] / medians["cold"], "<= 0.4", "x the time", sides), small=arguments.small)


def _seconds(folder: str) -> float:
    return float(fresh("warm_start", "--inside", environment=environment(folder)).split()[-1])


if __name__ == "__main__":
    main()
