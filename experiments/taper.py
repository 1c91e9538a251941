"""Where should MLP width go, and does the answer depend on the mixer? Tapers under two mixers, each against uniform.

    python experiments/taper.py                    # the quick shape, five seeds, two learning rates
    python experiments/taper.py --dry-run          # what it would cost
    python experiments/taper.py --out runs/taper   # the same again goes on where it stopped; more --seeds extend it

The base is four layers, so that a taper has room; every arm has the same parameters but for the gated ones' gates.
"""

import dataclasses
import sys

from eqx_slm.model import TaperConfig
from eqx_slm.study import (
    Study,
    budgets,
    curves,
    forest,
    grid,
    losses,
    origin,
    paired,
    preset,
    scope,
    study_main,
    verdicts,
)

QUICK = preset("quick")
MIXERS = {"attention": "attention", "gated": "gated-attention"}
TAPERS = {
    "uniform": TaperConfig("uniform"),
    "falling": TaperConfig("cosine", start=1.5, end=0.5),
    "rising": TaperConfig("cosine", start=0.5, end=1.5),
}

STUDY = Study(
    "taper",
    arms=grid("mixer.kind", MIXERS) * grid("taper", TAPERS),
    seeds=5,
    rates=(3e-3, 1e-2),
    analyses=(paired(against={"taper": "uniform"}, within="mixer", margin=0.01),),
    report=(verdicts, forest(by="mixer"), curves, losses, budgets, scope, origin),
    model=dataclasses.replace(QUICK.model, depth=4),
)

if __name__ == "__main__":
    sys.exit(study_main(STUDY))
