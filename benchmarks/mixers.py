"""What does a training step of each mixer cost beside the Transformer? Interleaved, medians, in one process.

    python benchmarks/mixers.py [NAME ...]

One shape (context 512, d = 256, 2 layers, MLP width 1,024) for all, batches of 4, float32, the compiled step of
`experiments/pair.py`. Parameters are not matched: the numbers beside the ratio say what a mixer adds. The last lines
time generation, 448 tokens after a prompt of 64, from the decode state against the whole window for every token.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqx_slm import (
    AttentionConfig,
    ContinuumConfig,
    GatedAttentionConfig,
    ModelConfig,
    TitansConfig,
    TitansMACConfig,
    TitansMAGConfig,
    build,
    count_parameters,
    flops,
)
from eqx_slm.infer.generate import _decode, _slide
from eqx_slm.study.pair import machine
from eqx_slm.train.optimizer import OptimizerConfig
from eqx_slm.train.step import compile_step, make_program

BASE = ModelConfig(vocab_size=2048, d_model=256, depth=2, context=512, mixer=AttentionConfig(n_heads=4))
MIXERS = {
    "transformer": {},
    "window-64": dict(mixer=AttentionConfig(n_heads=4, window=64)),
    "gated": dict(mixer=GatedAttentionConfig(n_heads=4)),
    "gated-headwise": dict(mixer=GatedAttentionConfig(n_heads=4, gate="headwise")),
    "hope-2": dict(channel=ContinuumConfig(periods=(1, 4))),
    "hope-4": dict(channel=ContinuumConfig(periods=(1, 1, 2, 4))),
    "titans-16": dict(mixer=TitansConfig(n_heads=4, chunk=16)),
    "titans-64": dict(mixer=TitansConfig(n_heads=4, chunk=64)),
    "titans-mag-64": dict(mixer=TitansMAGConfig(memory=TitansConfig(n_heads=4, chunk=64), window=64)),
    "titans-mac-64": dict(mixer=TitansMACConfig(memory=TitansConfig(n_heads=4, chunk=64))),
}
ROWS, STEPS, WARM = 4, 12, 3


def main(names: list[str]) -> None:
    """Prints tokens a second of every mixer, and its ratio to the Transformer's."""
    unknown = [name for name in names if name not in MIXERS]
    if unknown:
        sys.exit(f"error: no mixer {unknown[0]!r}; allowed: {', '.join(MIXERS)}")
    configs = {
        name: dataclasses.replace(BASE, **MIXERS[name])
        for name in ["transformer", *(names or [name for name in MIXERS if name != "transformer"])]
    }
    batch = np.random.default_rng(0).integers(0, BASE.vocab_size, (ROWS, BASE.context + 1)).astype(np.int32)
    running = {}
    for name, config in configs.items():
        model = build(config, key=jax.random.key(0))
        program = make_program(model, OptimizerConfig())
        compiled = compile_step(program, model, batch)
        running[name] = [compiled.program, program.start(model), [], compiled.report.temporary_bytes]
    rate = np.float32(1e-3)
    for index in range(WARM + STEPS):
        for entry in running.values():
            started = time.perf_counter()
            entry[1], metrics = entry[0].step(entry[1], batch, rate)
            jax.block_until_ready(metrics)
            if index >= WARM:
                entry[2].append(time.perf_counter() - started)
    print(machine())
    medians = {name: statistics.median(entry[2]) for name, entry in running.items()}
    for name, config in configs.items():
        ratio = medians["transformer"] / medians[name]
        work = flops(config).total / flops(BASE).total
        memory = running[name][3]
        print(
            f"{name:16s} {ROWS * BASE.context / medians[name]:8,.0f} tokens/s, {ratio:.2f} of the transformer; "
            f"{count_parameters(config):,} parameters, {work:.2f} of its FLOPs"
            + ("" if memory is None else f", {memory / 2**20:,.0f} MiB temporary")
        )
    for name in ("transformer", *(name for name in ("gated", "window-64") if name in configs)):
        print(f"{name:16s} generates {generation(configs[name])}")


def generation(config: ModelConfig) -> str:
    """Tokens a second from the decode state and over the window, and their ratio."""
    model, keys = build(config, key=jax.random.key(0)), jax.random.split(jax.random.key(1), 448)
    prompt = jnp.arange(64, dtype=jnp.int32)
    window = jnp.zeros(config.context, jnp.int32).at[:64].set(prompt)

    def seconds(run: Callable[[], Any], times: int) -> float:
        jax.block_until_ready(run())
        spent = []
        for _ in range(times):
            started = time.perf_counter()
            jax.block_until_ready(run())
            spent.append(time.perf_counter() - started)
        return statistics.median(spent)

    fast = seconds(lambda: _decode(model, prompt, config.context, keys, 1.0), 7)
    slow = seconds(lambda: _slide(model, window, jnp.asarray(64), keys, 1.0), 3)
    return f"{448 / fast:,.0f} tokens/s, {slow / fast:.1f} times as fast as running the window for every token"


if __name__ == "__main__":
    main(sys.argv[1:])
