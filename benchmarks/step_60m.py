"""Training tokens a second and peak memory at 108.7M parameters, against transformers' Llama in PyTorch.

    python -m benchmarks step_60m

6 layers x 256, V = 200,019, untied, 8 x 512 tokens, float32 (see `step_small`). Peak memory is what building the model
and the steps add to a process' resident size after its imports: parameters, optimizer, temporaries, our compiler.
"""

from eqx_slm.model import ModelConfig
from eqx_slm.nn import AttentionConfig

from .harness import Row, need, parser, show
from .step_small import SMALL, compare, serve_side

CONFIG = ModelConfig(vocab_size=200_019, d_model=256, depth=6, context=512, mixer=AttentionConfig(n_heads=4))
ROWS, ROUNDS, STEPS = 8, 3, 1


def main() -> None:
    """Prints both ratios; with `--side`, one side, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--side", choices=["ours", "llama"])
    arguments = options.parse_args()
    need("torch", "transformers")
    small = arguments.small
    config, rows, rounds = (SMALL, 4, 2) if small else (CONFIG, ROWS, ROUNDS)
    if arguments.side:
        serve_side(arguments.side, config, rows, steps=STEPS)
        return
    row, peaks = compare("step_60m", "step-60m", config, rows, rounds=rounds, steps=STEPS, target=">= 3.0", small=small)
    sides = ", ".join(f"{side} {size / 2**30:.2f} GiB" for side, size in peaks.items())
    show(row, Row("step-memory", peaks["ours"] / peaks["llama"], "<= 0.5", "x the peak", sides), small=small)


if __name__ == "__main__":
    main()
