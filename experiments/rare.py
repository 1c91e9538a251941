"""Are losses on rare tokens the embedding's doing, or the optimizer's? Losses by frequency under three Adams and Muon.

    python experiments/rare.py --dry-run          # every study's ledger, FLOPs and time
    python experiments/rare.py --out runs/rare    # the same again goes on where it stopped; more --seeds extend it

Adam alone biases rare rows of a table (arXiv 2609.37535), so a gain on rare tokens says nothing of an embedding until
it stands beside other betas: a study a beta2, and one whose hidden matrices
are updated by Muon, every arm at the same rates, losses by decile of the tokens' frequency.
"""

import dataclasses
import sys
from typing import Any

from eqx_slm.study import (
    Study,
    by_frequency,
    losses,
    named_arms,
    origin,
    paired,
    preset,
    scope,
    series_main,
    verdicts,
)

QUICK = preset("quick")
ARMS = ("dense", "dense-tied", "leviathan", "binary", "hybrid")
BETAS = (0.95, 0.99, 0.999)


def study(**changes: Any) -> Study:
    """The arms under one optimizer."""
    optimizer = dataclasses.replace(QUICK.optimizer, **changes)
    return Study(
        "rare",
        arms=named_arms(ARMS, QUICK.tuned),
        seeds=5,
        rates=(2e-3, 4e-3),
        analyses=(paired(against={"arm": "dense"}, margin=0.01),),
        report=(verdicts, by_frequency, losses, scope, origin),
        model=QUICK.model,
        stream=QUICK.stream,
        run=dataclasses.replace(Study.run, optimizer=optimizer, frequency=10),
    )


if __name__ == "__main__":
    studies = {f"beta2-{beta2}": study(beta2=beta2) for beta2 in BETAS} | {"muon": study(kind="muon")}
    sys.exit(series_main("rare", studies, ()))
