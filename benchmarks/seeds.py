"""Do four seeds train faster in one program, by `vmap`, than one after another?

    python -m benchmarks seeds

Tokens a second over all seeds, the quick preset's dense and leviathan arms with their own text.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_slm.model import ModelConfig, build
from eqx_slm.study.presets import QUICK
from eqx_slm.train import Program, TrainState, keep_freed_memory, make_program

from .harness import Row, interleave, parser, show

SEEDS, ROUNDS, STEPS = 4, 30, 4
RATE = np.float32(1e-3)
Batches = list[list[np.ndarray]]


def together(program: Program, states: list[TrainState]) -> Callable[[Batches], Any]:
    """Steps of all seeds, one dispatch a step; `batches[i][seed]` is what step i reads. Returns the last losses."""
    step = jax.jit(jax.vmap(program.step, in_axes=(0, 0, None)), donate_argnums=0)
    state = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)]

    def run(batches: Batches) -> Any:
        metrics = None
        for batch in batches:
            state[0], metrics = step(state[0], np.stack(batch), RATE)
        return jax.block_until_ready(metrics.loss) if metrics else None

    return run


def apart(program: Program, states: list[TrainState]) -> Callable[[Batches], Any]:
    """The same, all steps of a seed before the next seed's: independent steps would run at the same time."""
    states = list(states)

    def run(batches: Batches) -> Any:
        losses = []
        for seed in range(len(states)):
            metrics = None
            for batch in batches:
                states[seed], metrics = program.step(states[seed], batch[seed], RATE)
            losses.append(jax.block_until_ready(metrics.loss) if metrics else None)
        return losses

    return run


def compare(name: str, config: ModelConfig, stream: Any, *, seeds: int, rounds: int) -> Row:
    """The ratio of an arm; both sides' first losses must agree."""
    models = [build(config, key=jax.random.key(seed)) for seed in range(seeds)]
    program = make_program(models[0], QUICK.optimizer)

    def states() -> list[TrainState]:
        return [program.start(eqx.filter(model, eqx.is_inexact_array)) for model in models]

    sides = {"vmap": together(program, states()), "one at a time": apart(program, states())}
    first = [[stream.batch(seed, 0) for seed in range(seeds)]]
    np.testing.assert_allclose(sides["vmap"](first), sides["one at a time"](first), rtol=1e-4)
    later = [[stream.batch(seed, index) for seed in range(seeds)] for index in range(1, 1 + STEPS)]
    seconds = interleave({name: lambda run=run: run(later) for name, run in sides.items()}, rounds=rounds, warm=3)
    tokens = STEPS * seeds * stream.batch_size * stream.sequence_length
    speeds = ", ".join(f"{side} {tokens / value:,.0f} tokens/s" for side, value in seconds.items())
    return Row(name, seconds["one at a time"] / seconds["vmap"], "", "x tokens/s", f"{seeds} seeds, {speeds}")


def main() -> None:
    """Prints the ratio of both arms."""
    small = parser(__doc__).parse_args().small
    seeds, rounds = (2, 2) if small else (SEEDS, ROUNDS)
    keep_freed_memory()
    stream = QUICK.stream.open()
    base = QUICK.resolve(stream.vocab_size)["dense"].config
    leviathan = dataclasses.replace(base, embedding=QUICK.tuned.generator)
    show(
        compare("seeds", base, stream, seeds=seeds, rounds=rounds),
        compare("seeds-leviathan", leviathan, stream, seeds=seeds, rounds=rounds),
        small=small,
    )


if __name__ == "__main__":
    main()
