"""What does bfloat16 compute cost in loss? The default pair's arms, one seed each, float32 against bfloat16.

    python -m benchmarks precision

Masters, moments and sums are float32 in both. The row is the largest difference of final validation losses, in nats a
token.
"""

from eqx_slm import pair
from eqx_slm.study.arms import make_arm
from eqx_slm.study.config import QUICK

from .harness import Row, parser, show


def main() -> None:
    """Prints the row."""
    small = parser(__doc__).parse_args().small
    stream = QUICK.stream.open()
    arms = {name: make_arm(name, QUICK.model, QUICK.tuned).config for name in QUICK.arms}
    ends = {}
    for dtype in ("float32", "bfloat16"):
        result = pair(
            arms,
            stream,
            seeds=1,
            steps=20 if small else QUICK.steps,
            learning_rates=QUICK.learning_rates,
            optimizer=QUICK.optimizer,
            compute_dtype=dtype,
        )
        ends[dtype] = {name: arm.runs[0].evals[-1].nll for name, arm in result.results.arms.items()}
    gaps = {name: ends["bfloat16"][name] - ends["float32"][name] for name in arms}
    sides = ", ".join(f"{name} {gap:+.4f} (float32 {ends['float32'][name]:.4f})" for name, gap in gaps.items())
    show(Row("bfloat16-loss", max(map(abs, gaps.values())), "<= 0.02", "nat", sides), small=small)


if __name__ == "__main__":
    main()
