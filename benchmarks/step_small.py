"""Training tokens a second of a small dense model against transformers' Llama in PyTorch, on the same cores.

    python -m benchmarks step_small

2 layers x 128, V = 8,192, 32 x 128 tokens, float32, the same shapes, batches, AdamW and clipping; transformers computes
its own loss and attends by PyTorch's fused `sdpa`. `step_60m` is the same at 108.7M parameters.
"""

from collections.abc import Callable

from eqx_slm.account import parameter_ledger
from eqx_slm.build import ModelConfig
from eqx_slm.nn import AttentionConfig

from .harness import Row, interleave, need, parser, show
from .llama import llama_stepper
from .training import stepper, zipf_batches

CONFIG = ModelConfig(vocab_size=8192, d_model=128, depth=2, context=128, mixer=AttentionConfig(n_heads=2))
ROWS, STEPS, ROUNDS = 32, 5, 15
SMALL = ModelConfig(vocab_size=512, d_model=64, depth=1, context=32, mixer=AttentionConfig(n_heads=1))


def compare(name: str, config: ModelConfig, rows: int, *, steps: int, rounds: int, target: str) -> Row:
    """Tokens a second over those of Llama; `steps` steps a turn, then the other side's turn."""
    batches = zipf_batches(config.vocab_size, rows, config.context, 4)
    theirs, parameters = llama_stepper(config, batches)
    ours, _ = stepper(config, batches)
    counted = parameter_ledger(config).total
    if counted != parameters:
        raise SystemExit(f"Llama has {parameters:,} parameters, ours {counted:,}: not the same shapes")
    seconds = interleave({"ours": _times(steps, ours), "Llama": _times(steps, theirs)}, rounds=rounds)
    speeds = {side: steps * rows * config.context / value for side, value in seconds.items()}
    sides = ", ".join(f"{side} {speed:,.0f} tokens/s" for side, speed in speeds.items())
    return Row(name, speeds["ours"] / speeds["Llama"], target, "x tokens/s", f"{sides}; {counted:,} parameters each")


def _times(count: int, step: Callable[[], float]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            step()

    return run


def main() -> None:
    """Prints the ratio."""
    small = parser(__doc__).parse_args().small
    need("torch", "transformers")
    config, rows, rounds = (SMALL, 4, 2) if small else (CONFIG, ROWS, ROUNDS)
    show(compare("step-small", config, rows, steps=STEPS, rounds=rounds, target=">= 2.0"), small=small)


if __name__ == "__main__":
    main()
