"""What does a training step of each mixer cost beside the Transformer? Interleaved, medians, in one process.

    python -m benchmarks.mixers [NAME ...]

One shape (context 512, d = 256, 2 layers, MLP width 1,024) for all, batches of 4, float32, the compiled step of
`experiments/pair.py`. Parameters are not matched: the numbers beside the ratio say what a mixer adds.
"""

import dataclasses
import statistics
import time

import jax
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
from eqx_slm.train import OptimizerConfig, keep_freed_memory, make_program
from eqx_slm.train.step import compile_step

from .harness import Row, parser, show

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
TARGETS = {"titans-16": ">= 0.25", "titans-64": ">= 0.25"}


def main() -> None:
    """Prints tokens a second of every mixer, and its ratio to the Transformer's."""
    options = parser(__doc__)
    others = [name for name in MIXERS if name != "transformer"]
    options.add_argument("names", nargs="*", choices=[[], *others], help="which mixers (default: all)")
    given = options.parse_args()
    keep_freed_memory()
    base = dataclasses.replace(BASE, context=64) if given.small else BASE
    names = ["transformer", *(given.names or others)]
    configs = {name: dataclasses.replace(base, **MIXERS[name]) for name in names}
    batch = np.random.default_rng(0).integers(0, base.vocab_size, (ROWS, base.context + 1)).astype(np.int32)
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
    medians = {name: statistics.median(entry[2]) for name, entry in running.items()}
    rows = []
    for name, config in configs.items():
        work = flops(config).total / flops(base).total
        memory = running[name][3]
        side = (
            f"{ROWS * base.context / medians[name]:,.0f} tokens/s; {count_parameters(config):,} parameters, "
            f"{work:.2f} of the Transformer's FLOPs"
            + ("" if memory is None else f", {memory / 2**20:,.0f} MiB of temporaries")
        )
        ratio = medians["transformer"] / medians[name]
        if name != "transformer":
            rows.append(Row(f"mixer-{name}", ratio, TARGETS.get(name, ""), "x the Transformer's tokens/s", side))
    show(*rows, small=given.small)


if __name__ == "__main__":
    main()
