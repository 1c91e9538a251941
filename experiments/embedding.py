"""What should stand between an id and a model? Every embedding against the table, and the generator's own sizes.

    python experiments/embedding.py arms           # every embedding in the same body; Leviathan at equal budgets too
    python experiments/embedding.py deep           # the parameters that each one saves, spent on depth
    python experiments/embedding.py coordinates    # of the generator; also knots, rank, heads, seed, skip, scale, order
    python experiments/embedding.py rows           # of the hybrid; also pieces (composed), waves (spelled), bigrams

The quick preset's shape, rate and seeds; every level of a grid against the tuned one. --steps and --seeds make it
longer, --lr sweeps the rate for every arm.
"""

import sys

from eqx_slm import BigramConfig
from eqx_slm.study import Study, grid, named_arms, paired, preset, study_main
from eqx_slm.study.arms import make_arm

QUICK = preset("quick")
TUNED = QUICK.tuned
CODES = ("binary", "binary-free", "spelled", "composed", "hybrid")
TABLES = ("dense", "dense-tied", "low-rank", "compositional")
LEVIATHAN = ("leviathan", "leviathan-deep", "leviathan-flop")  # iso-body, iso-parameter, iso-FLOP
SAME = (*TABLES, *LEVIATHAN, *CODES, "bigrams", "bigrams-wide")
DEEP = ("dense", *(f"{name}-deep" for name in ("dense-tied", "low-rank", "leviathan", *CODES)))


def study(name, arms, against, model=QUICK.model):
    """The arms of a grid against one of them."""
    asked = (paired(against, margin=QUICK.margin),)
    return Study(f"embedding-{name}", arms, QUICK.seeds, QUICK.learning_rates, asked, model=model)


def of(arm, name, field, levels):
    """The levels of one field of a named arm's embedding, each against the arm as it is."""
    model = make_arm(arm, QUICK.model, TUNED).config
    points = grid(f"embedding.{field}", [*dict.fromkeys((getattr(model.embedding, field), *levels))])
    return study(name, points, next(points.arms(model))[0], model)


BIGRAMS = {"none": BigramConfig(), **{f"rows={n}": BigramConfig(n, rank=8) for n in (1024, 4096, 16384)}}
STUDIES = {
    "arms": study("arms", named_arms(SAME, TUNED), "dense"),
    "deep": study("deep", named_arms(DEEP, TUNED), "dense"),
    "coordinates": of("leviathan", "coordinates", "coordinates", (1, 2, 3, 4)),
    "knots": of("leviathan", "knots", "knots", (4, 8, 16, 32)),
    "rank": of("leviathan", "rank", "rank", (4, 8, 16, 32, 64)),
    "heads": of("leviathan", "heads", "n_heads", (1, 2, 4, 8)),
    "seed": of("leviathan", "seed", "seed_size", (12, 24, 96)),
    "skip": of("leviathan", "skip", "skip", ("none", "linear")),
    "scale": of("leviathan", "scale", "output_std", (0.01, 0.05, 0.15, 0.45)),
    "order": of("leviathan", "order", "order", ("tokenizer", "random", "frequency", "co-occurrence")),
    "rows": of("hybrid", "rows", "rows", (0, 64, 256, 1024, 2048)),
    "pieces": of("composed", "pieces", "pieces", (256, 512, 1024)),
    "waves": of("spelled", "waves", "size", (32, 128, 512)),
    "bigrams": study("bigrams", grid("bigrams", BIGRAMS), "none"),
}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
