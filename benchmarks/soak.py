"""Does a run that is saved every 50 steps leak, and what does saving cost? The default arms' own step.

    python -m benchmarks soak

2,000 steps of the quick preset's Leviathan arm with a checkpoint every 50: resident memory from step 500 on, open
descriptors and threads at the end against those at step 100. Then runs of 200 steps with and without checkpoints in
turns, their seconds without evaluation. Then how much memory one more `pair()` of two such arms leaves in a process.
"""

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax

from eqx_slm import pair
from eqx_slm.model import build
from eqx_slm.study.arms import make_arm
from eqx_slm.study.presets import QUICK
from eqx_slm.train import Checkpoints, make_program, train_runs
from eqx_slm.train.step import compile_step

from .harness import Row, parser, show

EVERY = 50


class EveryFew(Checkpoints):
    """Checkpoints by number of steps, which also note what the process holds."""

    held: list[tuple[int, int, int, int]] = []

    def due(self, step: int) -> bool:
        """Every 50 steps."""
        return step % EVERY == 0

    def save(self, *given: Any, **named: Any) -> None:
        """Saves, and notes bytes in memory, descriptors, threads."""
        super().save(*given, **named)
        self.held.append((named["step"], resident(), descriptors(), threading.active_count()))


def resident() -> int:
    """Bytes of this process in memory now."""
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])


def descriptors() -> int:
    """Open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def main() -> None:
    """Prints a row a question."""
    small = parser(__doc__).parse_args().small
    steps, rounds, short, pairs = (150, 1, 60, 3) if small else (2000, 5, 200, 50)
    stream = QUICK.stream.open()
    config = make_arm("leviathan", QUICK.model, QUICK.tuned).config
    model = build(config, key=jax.random.key(0))
    program = compile_step(make_program(model, QUICK.optimizer), model, stream.batch(0, 0)).program

    def run(count: int, checkpoints: Checkpoints | None) -> float:
        started = time.perf_counter()
        how: dict[str, Any] = {"seeds": [0], "learning_rate": 1e-3, "optimizer": QUICK.optimizer}
        train_runs(program, [model], stream, steps=count, evaluate_at=(count,), checkpoints=checkpoints, **how)
        return time.perf_counter() - started

    with tempfile.TemporaryDirectory(dir=".") as folder:

        def saved() -> EveryFew:
            return EveryFew(Path(folder) / "checkpoints" / "one", [{"seed": 0, "learning_rate": 1e-3, "key": "soak"}])

        EveryFew.held = []
        run(steps, saved())
        held = list(EveryFew.held)
        saved().clear()  # or the next run would go on from there
        warm = [each for each in held if each[0] >= steps // 4]
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for saves in times:
                checkpoints = saved() if saves else None
                times[saves].append(run(short, checkpoints))
                if checkpoints is not None:
                    checkpoints.clear()
    without, with_saves = (statistics.median(times[saves]) for saves in (False, True))
    growth = max(each[1] for each in warm) / warm[0][1]
    sides = f"{warm[0][1] / 1e6:.0f} MB after step {warm[0][0]}, {held[-1][1] / 1e6:.0f} MB after step {held[-1][0]}"
    more = max(b - a for a, b in zip(held[1][2:], held[-1][2:], strict=True))
    left = []
    for _ in range(pairs):
        pair({"one": config, "two": make_arm("dense", QUICK.model, QUICK.tuned).config}, stream, seeds=1, steps=4)
        left.append(resident())
    warmed = len(left) // 3
    per_arm = (left[-1] - left[warmed]) / (len(left) - 1 - warmed) / 2 / 1e6
    show(
        Row("soak-memory", growth, "<= 1.02", "x resident", sides),
        Row("soak-handles", more, "<= 0", "more", f"descriptors and threads {held[1][2:]}, then {held[-1][2:]}"),
        Row("checkpoint-cost", with_saves / without, "<= 1.02", "x seconds", f"{with_saves:.2f} s, {without:.2f} s"),
        Row("pair-leftover", per_arm, "<= 5", "MB an arm", f"{left[warmed] / 1e6:.0f} MB, then {left[-1] / 1e6:.0f}"),
        small=small,
    )


if __name__ == "__main__":
    main()
