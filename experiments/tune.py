"""Which scales, and which multipliers of the learning rate, does each kind of arm want? The sweeps behind the presets.

    python experiments/tune.py table        # std and rate of a token table, rate of an untied head
    python experiments/tune.py tied         # scale of the logits and rate of a table at both ends
    python experiments/tune.py generator    # start of codebooks and W_in, rates of splines and of W_out
    python experiments/tune.py table --lr 2e-3 4e-3 8e-3 --seeds 3

The quick preset's shape, two seeds: enough to avoid a bad default, not to rank arms. Every level stands against the one
that the presets take; experiments/LOG.md keeps the tables.
"""

import sys

from eqx_slm.study import Study, forest, grid, losses, origin, paired, preset, scope, study_main, verdicts
from eqx_slm.study.arms import make_arm

QUICK = preset("quick")


def study(name, arm, points):
    """The levels of a grid over a named arm, against the arm as the presets have it (its first point)."""
    model = make_arm(arm, QUICK.model, QUICK.tuned).config
    asked = (paired(next(points.arms(model))[0], margin=QUICK.margin),)
    report = (verdicts, forest(), losses, scope, origin)
    return Study(f"tune-{name}", points, 2, QUICK.learning_rates, asked, report, model=model, stream=QUICK.stream)


def rates(**levels):
    """A grid of multipliers by label."""
    return grid("lr_multipliers", levels)


STUDIES = {
    "table": study(
        "table",
        "dense",
        grid("embedding.std", (1.0, 0.3))
        * rates(t13h4="embedding=13, head=4", t13h2="embedding=13, head=2", t26h2="embedding=26, head=2")
        + grid("embedding.std", {"std=0.3": 0.3}) * rates(t1h1="", t4h1="embedding=4", t4h2="embedding=4, head=2"),
    ),
    "tied": study(
        "tied",
        "dense-tied-deep",
        grid("head.scale", (0.25, 0.1, 0.4, 1.0))
        * rates(t18="embedding=18", t6="embedding=6", t1="", t36="embedding=36"),
    ),
    "generator": study(
        "generator",
        "leviathan-deep",
        grid("embedding.codebook_std", {"c0.2": 0.2, "c0.02": 0.02, "c0.6": 0.6})
        * grid("embedding.input_std", {"w0.14": 0.14, "w0.02": 0.02})
        * rates(o0_3="head=4, embedding.w_out=0.3", o1="head=4", s0_3="head=4, embedding.spline_offset=0.3"),
    ),
}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
