"""Training tokens a second and peak memory at 108.7M parameters, against transformers' Llama in PyTorch.

    python -m benchmarks step_60m

6 layers x 256, V = 200,019, untied, 8 x 512 tokens, float32 (see `step_small`). Peak memory is what two steps in a
fresh process add to its resident size after imports: parameters, optimizer and temporaries, and for ours the compiler.
"""

from eqx_slm.build import ModelConfig
from eqx_slm.nn import AttentionConfig

from .harness import Row, fresh, need, parser, resident_peak, show
from .llama import llama_stepper
from .step_small import SMALL, compare
from .training import stepper, zipf_batches

CONFIG = ModelConfig(vocab_size=200_019, d_model=256, depth=6, context=512, mixer=AttentionConfig(n_heads=4))
ROWS, ROUNDS, STEPS = 8, 3, 2


def peak(side: str, config: ModelConfig, rows: int) -> int:
    """Bytes that building a model and two steps add to this process' peak."""
    batches = zipf_batches(config.vocab_size, rows, config.context, 1)
    if side == "ours":
        import jax

        jax.devices()
    else:
        import torch  # noqa: F401
        from transformers import LlamaForCausalLM  # noqa: F401
    before = resident_peak()
    step, _ = stepper(config, batches) if side == "ours" else llama_stepper(config, batches)
    for _ in range(STEPS):
        step()
    return resident_peak() - before


def main() -> None:
    """Prints both ratios; with `--side`, one side's bytes, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--side", choices=["ours", "llama"])
    options.add_argument("--only", choices=["time", "memory"], help="one of the two questions")
    arguments = options.parse_args()
    need("torch", "transformers")
    small = ["--small"] if arguments.small else []
    config, rows, rounds = (SMALL, 4, 2) if small else (CONFIG, ROWS, ROUNDS)
    if arguments.side:
        print(peak(arguments.side, config, rows))
        return
    found = []
    if arguments.only != "time":  # first, while this process holds no model
        bytes_ = {side: int(fresh("step_60m", "--side", side, *small).split()[-1]) for side in ("ours", "llama")}
        sides = ", ".join(f"{side} {size / 2**30:.2f} GiB" for side, size in bytes_.items())
        found.append(Row("step-memory", bytes_["ours"] / bytes_["llama"], "<= 0.5", "x the peak", sides))
    if arguments.only != "memory":
        found.insert(0, compare("step-60m", config, rows, steps=1, rounds=rounds, target=">= 3.0"))
    show(*found, small=arguments.small)


if __name__ == "__main__":
    main()
