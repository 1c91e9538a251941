"""Where should MLP width go, and does the answer depend on the mixer? Widths over depth, each arm against uniform.

    python experiments/taper.py mixers                        # falling and rising under two mixers, five seeds
    python experiments/taper.py grid --dry-run                # three schedules at five strengths, under four mixers
    python experiments/taper.py profiles --out runs/profiles  # crown, frame, bowtie, steps; the same again goes on

The base is eight layers (four for "mixers"), so that a profile has room. Every arm of a mixer has the same parameters:
the sum of widths is exact. Evaluations keep the cosine between each layer's MLP and its residual stream.
"""

import dataclasses
import sys

from eqx_slm.model import TaperConfig
from eqx_slm.study import (
    Study,
    alignment,
    budgets,
    curves,
    forest,
    grid,
    losses,
    named_arms,
    origin,
    paired,
    preset,
    scope,
    study_main,
    verdicts,
)

QUICK = preset("quick")
MIXERS = named_arms(("dense", "gated-wide", "hope", "titans-wide"), QUICK.tuned)  # attention, a gate, levels, a memory
UNIFORM, FALLING = {"uniform": TaperConfig()}, {"falling": TaperConfig("cosine", start=1.5, end=0.5)}
RISING = {"rising": TaperConfig("cosine", start=0.5, end=1.5)}
STRENGTHS = (1.25, 1.375, 1.5, 1.625, 1.75)  # of arXiv 2606.23670, with its three schedules
GRID = {
    f"{schedule}-{start}": TaperConfig(schedule, start=start, end=2 - start)
    for schedule in ("cosine", "linear", "sigmoid")
    for start in STRENGTHS
}
SHAPES = ("crown", "frame", "bowtie", "step-early", "step-middle", "step-late")
PROFILES = FALLING | RISING | {shape: TaperConfig(shape, start=1.5) for shape in SHAPES}


def study(name, arms, depth=8, **changes):
    """A study of profiles: every arm against the uniform one of its mixer."""
    return Study(
        f"taper-{name}",
        arms=arms,
        seeds=5,
        rates=(2e-3, 4e-3),
        analyses=(paired(against={"taper": "uniform"}, within="arm", margin=0.01),),
        report=(verdicts, forest(by="arm"), curves, losses, alignment(by="arm"), budgets, scope, origin),
        model=dataclasses.replace(QUICK.model, depth=depth),
        run=dataclasses.replace(Study.run, probe="cosines"),
        **changes,
    )


TWO = named_arms(("dense", "gated-wide"), QUICK.tuned)
STUDIES = {
    "mixers": study("mixers", TWO * grid("taper", UNIFORM | FALLING | RISING), depth=4),
    "grid": study("grid", MIXERS * grid("taper", UNIFORM | GRID)),
    "profiles": study("profiles", MIXERS * grid("taper", UNIFORM | PROFILES)),
}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
