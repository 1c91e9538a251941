"""A coarse sweep of learning rate and initial scale for the quick shape's arms, the same grid for every arm.

    python experiments/tune.py

Three learning rates x three scales, one seed, 150 steps: enough to avoid a bad default, not to rank arms. The presets
take the best common choice; experiments/LOG.md keeps the table.
"""

import dataclasses

from rich.console import Console
from rich.table import Table

from eqx_slm.configs import set_field
from eqx_slm.study.arms import make_arm
from eqx_slm.study.config import QUICK
from eqx_slm.study.pair import pair
from eqx_slm.study.runner import Event

SCALES = (1.0, 5.0, 15.0)
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
STEPS = 150


def main() -> None:
    """Runs the grid and prints final validation losses in nats a token."""
    stream = QUICK.stream.open()
    base = dataclasses.replace(QUICK.model, vocab_size=stream.vocab_size)
    heads = QUICK.tuned.generator.n_heads
    arms = {}
    for name in ("dense", "dense-tied-deep", "leviathan-deep"):
        config = make_arm(name, base, QUICK.tuned).config
        for scale in SCALES:
            # The scale multiplies the published std of 0.02; the generator's is 0.02 / sqrt(n_heads).
            std = 0.02 * scale
            field = "embedding.std" if config.embedding.tieable else "embedding.output_std"
            value = std if config.embedding.tieable else std * heads**-0.5
            arms[f"{name} x{scale:g}"] = set_field(config, field, str(value))
    console = Console(width=100)

    def tell(event: Event) -> None:
        if event.kind == "run":
            console.print(f"{event.arm}, lr {event.learning_rate:g}: {event.seconds:.0f} s", highlight=False)

    result = pair(
        arms,
        stream,
        seeds=1,
        steps=STEPS,
        learning_rates=LEARNING_RATES,
        optimizer=QUICK.optimizer,
        evaluations=2,
        on_event=tell,
    )
    table = Table("arm, scale", *(f"lr {rate:g}" for rate in LEARNING_RATES))
    for name, entry in result.data["arms"].items():
        losses = {run["learning_rate"]: run["final_nll"] for run in entry["all_runs"]}
        table.add_row(name, *(f"{losses[rate]:.3f}" if losses[rate] is not None else "-" for rate in LEARNING_RATES))
    console.print(table)


if __name__ == "__main__":
    main()
