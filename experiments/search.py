"""Which allocation of a small model's parameters wins? Candidates with the parameters of the dense arm, round by round.

    python experiments/search.py rates       # multipliers and scales: the table, the tied table, the generator
    python experiments/search.py inputs      # what stands between an id and the model, savings spent on layers
    python experiments/search.py bigrams     # the same savings spent on hashed bigrams, which cost no FLOPs
    python experiments/search.py tapers      # falling and rising widths together with the best of these

Exploration on the default corpus, two seeds, 1.2M tokens: it chooses what experiments/claims.py confirms on other seeds
and another text, and is no result itself. All arms have the parameters of dense, 1.57M, to 2%. LOG.md has the tables.
"""

import dataclasses
import sys

from eqx_slm import BigramConfig, ModelConfig, TaperConfig, match_parameters
from eqx_slm.account.ledger import total_parameters
from eqx_slm.checks import lr_factors
from eqx_slm.study import (
    Study,
    budgets,
    forest,
    losses,
    origin,
    paired,
    preset,
    scope,
    study_main,
    verdicts,
)
from eqx_slm.study.arms import make_arm
from eqx_slm.study.grids import Change, Grid

SMALL = preset("small")
TUNED = SMALL.tuned


def arms(**changes):
    """A grid of one factor, "arm": functions from the base to a config, by name (a dash for an underscore)."""
    points = ((("arm", name.replace("_", "-"), "", Change(change)),) for name, change in changes.items())
    return Grid(tuple(points))


def made(name, *settings):
    """A named arm, with settings as after `--set`."""
    return lambda base: make_arm(name, base, TUNED, settings).config


def multiplied(change, **factors):
    """A change with learning-rate multipliers of its own besides."""

    def make(base):
        config = change(base)
        own = lr_factors(config.lr_multipliers) | {path.replace("__", "."): each for path, each in factors.items()}
        return dataclasses.replace(config, lr_multipliers=", ".join(f"{path}={each:g}" for path, each in own.items()))

    return make


def with_bigrams(change, rank: int | None = 16, rate=4.0):
    """A change whose savings against the base are spent on hashed bigrams: rows of `rank` (None: of d_model)."""

    def make(base):
        config = change(base)
        left = total_parameters(base) - total_parameters(config)
        rows = left // base.d_model if rank is None else (left - rank * base.d_model) // rank
        return dataclasses.replace(config, bigrams=BigramConfig(rows=rows, rank=rank))

    return multiplied(make, bigrams=rate)


def deep(change):
    """A change whose savings are spent on layers."""
    return lambda base: match_parameters(change(base), base, "depth").config


def tied(scale=1.0, std=0.1, rate=6.0, deeper=True):
    """A tied table of its own scales and rate."""
    values = (f"head.scale={scale}", f"embedding.std={std}")
    return multiplied(made("dense-tied-deep" if deeper else "dense-tied", *values), embedding=rate)


def layers(change, depth):
    """A change at another depth."""
    return lambda base: dataclasses.replace(change(base), depth=depth)


def tapered(change, start=1.5, end=0.5, multiple=16):
    """A change with widths that run over depth."""
    taper = TaperConfig("cosine", start=start, end=end, multiple=multiple)
    return lambda base: dataclasses.replace(change(base), taper=taper)


def plain(base: ModelConfig) -> ModelConfig:
    """The base itself."""
    return base


INPUTS = ("low-rank", "compositional", "leviathan", "binary", "spelled", "composed", "hybrid")
ROUNDS = {
    "rates": arms(
        dense=plain,
        head_2=multiplied(plain, head=2),
        head_8=multiplied(plain, head=8),
        table_6=multiplied(plain, embedding=6),
        table_26=multiplied(plain, embedding=26),
        tied_slow_start=tied(0.25, 0.3, 18),
        tied=tied(),
        tied_12=tied(rate=12),
        tied_3=tied(rate=3),
        tied_std_05=tied(std=0.05),
        tied_std_05_3=tied(std=0.05, rate=3),
        tied_std_2=tied(std=0.2, rate=12),
        leviathan=made("leviathan-deep"),
        leviathan_out_1=multiplied(made("leviathan-deep"), embedding__w_out=1),
        leviathan_fast=multiplied(made("leviathan-deep"), embedding=2, embedding__w_out=0.6),
        leviathan_order=made("leviathan-deep", "embedding.order=co-occurrence"),
    ),
    "inputs": arms(
        tied_wide=lambda base: match_parameters(tied(deeper=False)(base), base, "d_model").config,
        **{name.replace("-", "_"): deep(made(name)) for name in INPUTS if name != "leviathan"},
    ),
    "bigrams": arms(
        tied_full=with_bigrams(tied(deeper=False), None),
        tied_32=with_bigrams(tied(deeper=False), 32),
        tied_16=with_bigrams(tied(deeper=False)),
        tied_16_fast=with_bigrams(tied(deeper=False), rate=10),
        tied_16_slow=with_bigrams(tied(deeper=False), rate=2),
        tied_8=with_bigrams(tied(deeper=False), 8),
        tied_3_layers=with_bigrams(layers(tied(deeper=False), 3)),
        dense_narrow=multiplied(made("bigrams"), bigrams=4),
        **{name.replace("-", "_"): with_bigrams(made(name)) for name in ("low-rank", "spelled", "composed")},
    ),
    "tapers": arms(
        dense_falling=tapered(plain),
        dense_rising=tapered(plain, start=0.5, end=1.5),
        tied_falling=tapered(tied()),
        tied_rising=tapered(tied(), start=0.5, end=1.5),
        bigrams_falling=tapered(with_bigrams(tied(deeper=False))),
        bigrams_rising=tapered(with_bigrams(tied(deeper=False)), start=0.5, end=1.5),
    ),
}


def study(name, grid):
    """A round: every candidate against dense, each at its own best rate."""
    return Study(
        f"search-{name}",
        arms=grid,
        seeds=2,
        rates=(4e-3, 8e-3),
        analyses=(paired(next(grid.arms(SMALL.model))[0], margin=SMALL.margin),),
        report=(verdicts, forest(), losses, budgets, scope, origin),
        model=SMALL.model,
        stream=SMALL.stream,
        run=dataclasses.replace(Study.run, steps=600, seeds_at_once=2, evaluations=4),
    )


STUDIES = {name: study(name, grid) for name, grid in ROUNDS.items()}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
