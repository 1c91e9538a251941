"""Training tokens a second of a small dense model against transformers' Llama in PyTorch, on the same cores.

    python -m benchmarks step_small

2 layers x 128, V = 8,192, 32 x 128 tokens, float32, the same shapes, batches, AdamW and clipping; transformers computes
its own loss and attends by PyTorch's fused `sdpa`. Each side has a process of its own, and they take turns: ours
changes how its process keeps freed memory, which would change PyTorch's speed too. `step_60m` is the same at 108.7M
parameters.
"""

from eqx_slm.account import parameter_ledger
from eqx_slm.model import ModelConfig
from eqx_slm.nn import AttentionConfig
from eqx_slm.train import keep_freed_memory

from .harness import Row, Worker, interleave, need, parser, resident_peak, serve, show
from .llama import llama_stepper
from .training import stepper, zipf_batches

CONFIG = ModelConfig(vocab_size=8192, d_model=128, depth=2, context=128, mixer=AttentionConfig(n_heads=2))
ROWS, STEPS, ROUNDS = 32, 5, 8
SMALL = ModelConfig(vocab_size=512, d_model=64, depth=1, context=32, mixer=AttentionConfig(n_heads=1))


def compare(
    script: str, name: str, config: ModelConfig, rows: int, *, rounds: int, steps: int, target: str, small: bool
) -> tuple[Row, dict[str, int]]:
    """Tokens a second over those of Llama, and both sides' peak bytes; each has a process, which take turns."""
    workers = {side: Worker(script, "--side", side, *(["--small"] if small else [])) for side in ("ours", "llama")}
    counted = {side: worker.ready["parameters"] for side, worker in workers.items()}
    if counted["ours"] != counted["llama"]:
        raise SystemExit(f"parameters differ, so the shapes do: {counted}")
    peaks: dict[str, int] = {}

    def turn(side: str) -> None:
        peaks[side] = workers[side].turn()

    seconds = interleave({side: lambda side=side: turn(side) for side in workers}, rounds=rounds)
    for worker in workers.values():
        worker.close()
    speeds = {side: steps * rows * config.context / value for side, value in seconds.items()}
    sides = ", ".join(f"{side} {speed:,.0f} tokens/s" for side, speed in speeds.items())
    sides += f"; {counted['ours']:,} parameters each"
    return Row(name, speeds["ours"] / speeds["llama"], target, "x tokens/s", sides), peaks


def serve_side(side: str, config: ModelConfig, rows: int, *, steps: int) -> None:
    """One side in this process: every turn trains `steps` steps and says how much memory it has taken at most.

    The peak is counted from after the imports.
    """
    batches = zipf_batches(config.vocab_size, rows, config.context, 4)
    if side == "ours":
        import jax

        keep_freed_memory()
        jax.devices()
    else:
        import torch  # noqa: F401
        from transformers import LlamaForCausalLM  # noqa: F401
    before = resident_peak()
    if side == "ours":
        step, _ = stepper(config, batches)
        parameters = parameter_ledger(config).total
    else:
        step, parameters = llama_stepper(config, batches)

    def turn() -> int:
        for _ in range(steps):
            step()
        return resident_peak() - before

    serve({"parameters": parameters}, turn)


def main() -> None:
    """Prints the ratio; with `--side`, one side, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--side", choices=["ours", "llama"])
    arguments = options.parse_args()
    need("torch", "transformers")
    small = arguments.small
    config, rows, rounds = (SMALL, 4, 2) if small else (CONFIG, ROWS, ROUNDS)
    if arguments.side:
        serve_side(arguments.side, config, rows, steps=STEPS)
        return
    row, _ = compare("step_small", "step-small", config, rows, rounds=rounds, steps=STEPS, target=">= 2.0", small=small)
    show(row, small=small)


if __name__ == "__main__":
    main()
