"""What does depth cost the compiler? 52 layers as runs of equal blocks against 6 layers written out.

    python -m benchmarks compile_depth

Seconds of trace, lowering and compilation of the training step (`loop="runs"`; the peer is 6 layers `"unrolled"`), at
D = 128, mean d_ff 1,024, V = 512: uniform widths (one run), widths on a cosine in multiples of 128 (9 runs), and in
multiples of 16 (nearly every layer its own run), which is reported, from one compilation.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from eqx_slm.model import ModelConfig, TaperConfig, build
from eqx_slm.nn import AttentionConfig, MLPConfig
from eqx_slm.train import OptimizerConfig, make_program
from eqx_slm.train.step import compile_step

from .harness import Row, interleave, parser, show

DEPTH, PEER_DEPTH, ROUNDS = 52, 6, 3
SMALL = 16, 3, 1


def configs(depth: int, peer_depth: int) -> dict[str, tuple[ModelConfig, str]]:
    """Every model and its loop."""

    def model(layers: int, taper: TaperConfig) -> ModelConfig:
        return ModelConfig(
            vocab_size=512,
            d_model=128,
            depth=layers,
            context=64,
            mixer=AttentionConfig(n_heads=2),
            channel=MLPConfig(d_ff=1024),
            taper=taper,
        )

    return {
        "peer": (model(peer_depth, TaperConfig()), "unrolled"),
        "uniform": (model(depth, TaperConfig()), "runs"),
        "tapered": (model(depth, TaperConfig("cosine", multiple=128)), "runs"),
        "tapered-16": (model(depth, TaperConfig("cosine", multiple=16)), "runs"),
    }


def compiler(config: ModelConfig, loop: str) -> Callable[[], Any]:
    """Compiles the step of a model anew at every call."""
    model = build(config, key=jax.random.key(0))
    batch = np.zeros((4, config.context + 1), np.int32)
    options: dict[str, Any] = {"loop": loop}
    return lambda: compile_step(make_program(model, OptimizerConfig(), **options), model, batch)


def runs(config: ModelConfig) -> int:
    """Runs of equal neighbouring widths."""
    widths = config.widths
    return 1 + sum(a != b for a, b in zip(widths, widths[1:], strict=False))


def main() -> None:
    """Prints the three ratios."""
    small = parser(__doc__).parse_args().small
    depth, peer_depth, rounds = SMALL if small else (DEPTH, PEER_DEPTH, ROUNDS)
    jax.config.update("jax_enable_compilation_cache", False)
    found = configs(depth, peer_depth)
    compilers = {name: compiler(*side) for name, side in found.items()}
    compilers["peer"]()  # fills jax's caches of small functions
    last = {"tapered-16": compilers.pop("tapered-16")}
    seconds = interleave(compilers, rounds=rounds, warm=0) | interleave(last, rounds=1, warm=0)

    def row(name: str, side: str, target: str) -> Row:
        ours = f"{depth} layers in {runs(found[side][0])} runs {seconds[side]:.2f} s"
        sides = f"{ours}, {peer_depth} layers unrolled {seconds['peer']:.2f} s"
        return Row(name, seconds[side] / seconds["peer"], target, "x the time", sides)

    show(
        row(f"compile-{DEPTH}", "uniform", "<= 2"),
        row(f"compile-{DEPTH}-tapered", "tapered", "<= 5"),
        row(f"compile-{DEPTH}-tapered-16", "tapered-16", ""),
        small=small,
    )


if __name__ == "__main__":
    main()
