"""Is streamed text ever what a run waits for?

    python -m benchmarks data_streaming

Tokens a second of a stream with a full shuffle buffer against the training speed of the default pair's dense arm, in
interleaved rounds; seconds to the first batch, and until the next batch after a state is restored.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from eqx_slm.data import StreamState, open_data

from .data_set import made_set, options
from .harness import Row, show


def streaming_speed(folder: Path, name: str, seconds: float) -> tuple[float, float, float, int]:
    """Tokens a second once the buffer is full; seconds to the first batch; seconds to restore; bytes of state."""
    stream = open_data(f"stream:{folder}", name, sequence_length=512, batch_size=16)
    started = time.perf_counter()
    iterator = stream.batches(0)
    next(iterator)
    first = time.perf_counter() - started
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += next(iterator)[:, 1:].size
    speed = count / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as place:
        iterator.state().save(place)
        expected = next(iterator)
        del iterator  # ends its threads
        size = sum(path.stat().st_size for path in Path(place).iterdir())
        started = time.perf_counter()
        resumed = stream.resume(StreamState.load(place))
        batch = next(resumed)
        restored = time.perf_counter() - started
    assert np.array_equal(batch, expected)
    return speed, first, restored, size


def training_speed(steps: int) -> float:
    """Tokens a second of the default pair's dense arm."""
    from eqx_slm.model import build
    from eqx_slm.study.arms import make_arm
    from eqx_slm.study.presets import QUICK
    from eqx_slm.train.step import compile_step, make_program

    stream = QUICK.stream.open()
    model = build(make_arm("dense", QUICK.model, QUICK.tuned).config, key=jax.random.key(0))
    program = make_program(model, QUICK.optimizer)
    program = compile_step(program, model, stream.batch(0, 0)).program
    state, times = program.start(model), []
    for batch in itertools.islice(stream.batches(0), steps + 3):
        started = time.perf_counter()
        state, metrics = program.step(state, batch, np.float32(1e-3))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - started)
    return stream.batch_size * stream.sequence_length / statistics.median(times[3:])


def main() -> None:
    """Prints the ratio."""
    chosen = options(__doc__)
    length, steps = (0.5, 5) if chosen.small else (4.0, 60)
    with made_set(chosen) as folder:
        rounds = [
            (*streaming_speed(folder, chosen.tokenizer, length), training_speed(steps)) for _ in range(chosen.rounds)
        ]
    speed, first, restored, size, train = (statistics.median(values) for values in zip(*rounds, strict=True))
    sides = f"streaming {speed:,.0f} tokens/s, training {train:,.0f} tokens/s; first batch after {first:.2f} s, "
    sides += f"restored in {restored:.2f} s from {size / 1e6:.1f} MB"
    show(Row("streaming", speed / train, ">= 5", "x the training's tokens/s", sides), small=chosen.small)


if __name__ == "__main__":
    main()
