"""How does loss fall with size and with tokens, and what do passes over a text change? Tables, a generator, bigrams.

    python experiments/scaling.py --dry-run            # every study's ledger, FLOPs and time
    python experiments/scaling.py --out runs/scaling   # the same again goes on where it stopped; more --seeds extend it
    python experiments/scaling.py steps --out runs/scaling    # the lengths alone; also passes, steps-960 and so on

Four arms at four widths, trained on four lengths of fresh text (each length is a run of its own, its rate to the end
of its schedule), and at two widths on 1, 2, 4 and 8 passes over as many tokens in all. docs/scaling.md says what the
tables and multipliers mean.
"""

import dataclasses
import sys

from eqx_slm.study import (
    Study,
    budgets,
    by_frequency,
    grid,
    laws,
    losses,
    named_arms,
    origin,
    paired,
    passes,
    preset,
    scope,
    series_main,
    verdicts,
)

QUICK = preset("quick")
ARMS = named_arms(("dense", "dense-tied", "leviathan", "bigrams-wide"), QUICK.tuned)
WIDTHS = (32, 48, 64, 96)
LENGTHS = (960, 1920, 3840, 7680)  # steps of 256 tokens: 0.25M to 2M
PASSES = (1, 2, 4, 8)

BASE = Study(
    "scaling",
    arms=grid("d_model", WIDTHS) * ARMS,
    seeds=3,
    rates=QUICK.learning_rates,
    analyses=(paired(against={"arm": "dense"}, within="d_model", margin=0.01),),
    report=(verdicts, losses, by_frequency, budgets, scope, origin),
    model=QUICK.model,
    stream=dataclasses.replace(QUICK.stream, eval_tokens=32768),
)


def study(steps: int, **stream: int) -> Study:
    """The base at a length."""
    run = dataclasses.replace(BASE.run, steps=steps, evaluations=4, sample_tokens=0, frequency=10)
    return dataclasses.replace(BASE, run=run, stream=dataclasses.replace(BASE.stream, **stream))


STUDIES = {f"steps-{steps}": study(steps) for steps in LENGTHS}
TOKENS = LENGTHS[-1] * BASE.stream.batch_size * BASE.stream.sequence_length
for count in PASSES:
    part = study(LENGTHS[-1], train_tokens=TOKENS // count)
    STUDIES[f"passes-{count}"] = dataclasses.replace(part, arms=grid("d_model", WIDTHS[::2]) * ARMS)

if __name__ == "__main__":
    sys.exit(series_main("scaling", STUDIES, (laws(), passes)))
