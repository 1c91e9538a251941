"""Training tokens a second of dense models against transformers' Llama in PyTorch, on the same cores; and peak memory.

    python -m benchmarks step_small
    python -m benchmarks.step_small --shape step-60m    # one of the two shapes

step-small is 2 layers x 128, V = 8,192, 32 x 128 tokens; step-60m 6 layers x 256, V = 200,019, untied, 8 x 512 tokens,
108.7M parameters. Both sides have float32, the same shapes, batches, AdamW and clipping; transformers computes its own
loss and attends by PyTorch's fused `sdpa`. Each side has a process of its own, and they take turns: ours changes how
its process keeps freed memory, which would change PyTorch's speed too. Peak memory (step-memory, of step-60m) is what
building the model and the steps add to a process' resident size after its imports: parameters, optimizer, temporaries,
our compiler.
"""

from typing import NamedTuple

from eqx_slm.account import parameter_ledger
from eqx_slm.model import ModelConfig
from eqx_slm.nn import AttentionConfig
from eqx_slm.train import keep_freed_memory

from .harness import Row, Worker, interleave, need, parser, resident_peak, serve, show
from .llama import llama_stepper
from .training import stepper, zipf_batches


class Shape(NamedTuple):
    """What is trained: `rows` sequences a step, `steps` of them a turn."""

    config: ModelConfig
    rows: int
    steps: int
    rounds: int
    target: str


CONFIG = ModelConfig(vocab_size=8192, d_model=128, depth=2, context=128, mixer=AttentionConfig(n_heads=2))
LARGE = ModelConfig(vocab_size=200_019, d_model=256, depth=6, context=512, mixer=AttentionConfig(n_heads=4))
SHAPES = {
    "step-small": Shape(CONFIG, rows=32, steps=5, rounds=8, target=">= 2.0"),
    "step-60m": Shape(LARGE, rows=8, steps=1, rounds=3, target=">= 3.0"),
}
SMALL = ModelConfig(vocab_size=512, d_model=64, depth=1, context=32, mixer=AttentionConfig(n_heads=1))


def compare(name: str, shape: Shape, *, small: bool) -> tuple[Row, dict[str, int]]:
    """Tokens a second over those of Llama, and both sides' peak bytes; each has a process, which take turns."""
    extra = ["--small"] if small else []
    workers = {side: Worker("step_small", "--shape", name, "--side", side, *extra) for side in ("ours", "llama")}
    counted = {side: worker.ready["parameters"] for side, worker in workers.items()}
    if counted["ours"] != counted["llama"]:
        raise SystemExit(f"parameters differ, so the shapes do: {counted}")
    peaks: dict[str, int] = {}

    def turn(side: str) -> None:
        peaks[side] = workers[side].turn()

    seconds = interleave({side: lambda side=side: turn(side) for side in workers}, rounds=shape.rounds)
    for worker in workers.values():
        worker.close()
    tokens = shape.steps * shape.rows * shape.config.context
    speeds = {side: tokens / value for side, value in seconds.items()}
    sides = ", ".join(f"{side} {speed:,.0f} tokens/s" for side, speed in speeds.items())
    sides += f"; {counted['ours']:,} parameters each"
    return Row(name, speeds["ours"] / speeds["llama"], shape.target, "x tokens/s", sides), peaks


def serve_side(side: str, shape: Shape) -> None:
    """One side in this process: every turn trains the shape's steps and says how much memory it has taken at most.

    The peak is counted from after the imports.
    """
    config = shape.config
    batches = zipf_batches(config.vocab_size, shape.rows, config.context, 4)
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
        for _ in range(shape.steps):
            step()
        return resident_peak() - before

    serve({"parameters": parameters}, turn)


def main() -> None:
    """Prints the ratios; with `--side`, one side of a shape, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--shape", choices=[*SHAPES], help="one of the shapes (default: both)")
    options.add_argument("--side", choices=["ours", "llama"])
    arguments = options.parse_args()
    need("torch", "transformers")
    for name in [arguments.shape] if arguments.shape else SHAPES:
        shape = SHAPES[name]._replace(config=SMALL, rows=4, rounds=2) if arguments.small else SHAPES[name]
        if arguments.side:
            serve_side(arguments.side, shape)
            return
        row, peaks = compare(name, shape, small=arguments.small)
        show(row, small=arguments.small)
        if name == "step-60m":
            sides = ", ".join(f"{side} {size / 2**30:.2f} GiB" for side, size in peaks.items())
            memory = Row("step-memory", peaks["ours"] / peaks["llama"], "<= 0.5", "x the peak", sides)
            show(memory, small=arguments.small)


if __name__ == "__main__":
    main()
