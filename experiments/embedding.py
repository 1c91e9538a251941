"""What should stand between an id and a model? Every embedding against the table, and the generator's own sizes.

    python experiments/embedding.py arms           # every embedding in the same body; Leviathan at equal budgets too
    python experiments/embedding.py deep           # the parameters that each one saves, spent on depth
    python experiments/embedding.py coordinates    # of the generator; also knots, rank, heads, seed, skip, scale, order
    python experiments/embedding.py rows           # of the hybrid; also pieces (composed), waves (spelled), bigrams

The quick shape and three seeds; --steps and --seeds make it longer, --lr sweeps the rate for every arm.
"""

import dataclasses
import sys

from eqx_slm import BigramConfig, HybridConfig, TableConfig
from eqx_slm.study import PAIR, Study, forest, grid, named_arms, paired, preset, study_main

QUICK = preset("quick")
TUNED = QUICK.tuned
TABLE, REPORT = TableConfig(std=0.3), (PAIR[0], forest(), *PAIR[1:])
CODES = ("binary", "binary-free", "spelled", "composed", "hybrid")
TABLES = ("dense", "dense-tied", "low-rank", "compositional")
LEVIATHAN = ("leviathan", "leviathan-deep", "leviathan-flop")  # iso-body, iso-parameter, iso-FLOP
SAME = (*TABLES, *LEVIATHAN, *CODES, "bigrams", "bigrams-wide")
DEEP = ("dense", *(f"{name}-deep" for name in ("dense-tied", "low-rank", "leviathan", *CODES)))


def study(name, arms, against, embedding=TABLE):
    """The arms of a grid against one of them."""
    model = dataclasses.replace(QUICK.model, embedding=embedding)
    return Study(f"embedding-{name}", arms, 3, (1e-2,), (paired(against, margin=0.01),), REPORT, model)


def of(part, name, field, levels):
    """The levels of one field of an embedding, each against the first."""
    points = grid(f"embedding.{field}", levels)
    return study(name, points, next(points.arms(dataclasses.replace(QUICK.model, embedding=part)))[0], part)


GENERATOR = TUNED.generator
HYBRID = HybridConfig(rows=0, generator=GENERATOR, std=TUNED.hybrid_std)
BIGRAMS = {"none": BigramConfig(), **{f"rows={n}": BigramConfig(n, rank=8) for n in (1024, 4096, 16384)}}
STUDIES = {
    "arms": study("arms", named_arms(SAME, TUNED), "dense"),
    "deep": study("deep", named_arms(DEEP, TUNED), "dense"),
    "coordinates": of(GENERATOR, "coordinates", "coordinates", (3, 1, 2, 4)),
    "knots": of(GENERATOR, "knots", "knots", (16, 4, 8, 32)),
    "rank": of(GENERATOR, "rank", "rank", (16, 4, 8, 32, 64)),
    "heads": of(GENERATOR, "heads", "n_heads", (4, 1, 2, 8)),
    "seed": of(GENERATOR, "seed", "seed_size", (48, 12, 24, 96)),
    "skip": of(GENERATOR, "skip", "skip", {"none": "none", "linear": "linear"}),
    "scale": of(GENERATOR, "scale", "output_std", (0.15, 0.01, 0.05, 0.45)),
    "order": of(GENERATOR, "order", "order", ("tokenizer", "random", "frequency", "co-occurrence")),
    "rows": of(HYBRID, "rows", "rows", (0, 64, 256, 1024, 2048)),
    "pieces": of(TUNED.composed, "pieces", "pieces", (512, 256, 1024)),
    "waves": of(TUNED.spelled, "waves", "size", (128, 32, 512)),
    "bigrams": study("bigrams", grid("bigrams", BIGRAMS), "none"),
}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
