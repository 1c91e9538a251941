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

from eqx_slm.build import ModelConfig, build
from eqx_slm.study.config import QUICK
from eqx_slm.study.run import open_stream
from eqx_slm.train import Program, TrainState, keep_freed_memory, make_program

from .harness import Row, interleave, parser, show

SEEDS, ROUNDS = 4, 60
RATE = np.float32(1e-3)


def together(program: Program, states: list[TrainState]) -> Callable[[list[np.ndarray]], Any]:
    """One step of all seeds in one dispatch, on one batch a seed."""
    step = jax.jit(jax.vmap(program.step, in_axes=(0, 0, None)), donate_argnums=0)
    state = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)]

    def run(batches: list[np.ndarray]) -> Any:
        state[0], metrics = step(state[0], np.stack(batches), RATE)
        return metrics.loss

    return run


def apart(program: Program, states: list[TrainState]) -> Callable[[list[np.ndarray]], Any]:
    """The same, one seed after another."""
    states = list(states)

    def run(batches: list[np.ndarray]) -> Any:
        losses = []
        for i, batch in enumerate(batches):
            states[i], metrics = program.step(states[i], batch, RATE)
            losses.append(metrics.loss)
        return jnp.stack(losses)

    return run


def compare(name: str, config: ModelConfig, stream: Any, *, seeds: int, rounds: int) -> Row:
    """The ratio of an arm; both sides' first losses must agree."""
    models = [build(config, key=jax.random.key(seed)) for seed in range(seeds)]
    program = make_program(models[0], QUICK.optimizer)

    def states() -> list[TrainState]:
        return [program.start(eqx.filter(model, eqx.is_inexact_array)) for model in models]

    sides = {"vmap": together(program, states()), "one at a time": apart(program, states())}
    first = [stream.batch(seed, 0) for seed in range(seeds)]
    np.testing.assert_allclose(sides["vmap"](first), sides["one at a time"](first), rtol=1e-4)
    later = [[stream.batch(seed, index) for seed in range(seeds)] for index in range(1, 9)]
    turns = dict.fromkeys(sides, 0)

    def turn(side: str) -> None:
        turns[side] += 1
        jax.block_until_ready(sides[side](later[turns[side] % len(later)]))

    seconds = interleave({side: lambda side=side: turn(side) for side in sides}, rounds=rounds, warm=3)
    tokens = seeds * stream.batch_size * stream.sequence_length
    speeds = ", ".join(f"{side} {tokens / value:,.0f} tokens/s" for side, value in seconds.items())
    return Row(name, seconds["one at a time"] / seconds["vmap"], "", "x tokens/s", f"{seeds} seeds, {speeds}")


def main() -> None:
    """Prints the ratio of both arms."""
    small = parser(__doc__).parse_args().small
    seeds, rounds = (2, 2) if small else (SEEDS, ROUNDS)
    keep_freed_memory()
    stream = open_stream(QUICK)
    base = QUICK.resolve(stream.vocab_size)["dense"].config
    leviathan = dataclasses.replace(base, embedding=QUICK.tuned.generator)
    show(
        compare("seeds", base, stream, seeds=seeds, rounds=rounds),
        compare("seeds-leviathan", leviathan, stream, seeds=seeds, rounds=rounds),
        small=small,
    )


if __name__ == "__main__":
    main()
