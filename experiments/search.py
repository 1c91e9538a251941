"""Which allocation of a small model's parameters wins? Candidates with the parameters of the dense arm, round by round.

    python experiments/search.py rates                 # multipliers and scales of the table, the tied table, the generator
    python experiments/search.py inputs                # what stands between an id and the model, savings spent on layers
    python experiments/search.py bigrams               # the same savings spent on hashed bigrams, which cost no FLOPs
    python experiments/search.py tapers --dry-run      # falling, rising and crown widths together with the best of these

Exploration, on the default corpus with two seeds: its verdicts choose what is confirmed on other seeds and another text,
and are no result themselves. All arms have the parameters of dense, 1.57M, to 0.3%. LOG.md has every round's table.
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


def with_bigrams(change, rank=32, rate=4.0):
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


def tied(scale=0.25, std=0.3, rate=18.0, deeper=False):
    """A tied table of its own scales and rate."""
    values = (f"head.scale={scale}", f"embedding.std={std}")
    return multiplied(made("dense-tied-deep" if deeper else "dense-tied", *values), embedding=rate)


def layers(change, depth):
    """A change at another depth."""
    return lambda base: dataclasses.replace(change(base), depth=depth)


def tapered(change, schedule="cosine", start=1.5, end: float | None = 0.5):
    """A change with widths that run over depth."""
    taper = TaperConfig(schedule, start=start, end=end)
    return lambda base: dataclasses.replace(change(base), taper=taper)


def plain(base: ModelConfig) -> ModelConfig:
    """The base itself."""
    return base


INPUTS = ("low-rank", "compositional", "leviathan", "binary", "binary-free", "spelled", "composed", "hybrid")
ROUNDS = {
    "rates": arms(
        dense=plain,
        head_2=multiplied(plain, head=2),
        head_8=multiplied(plain, head=8),
        table_6=multiplied(plain, embedding=6),
        table_26=multiplied(plain, embedding=26),
        tied=tied(deeper=True),
        tied_6=tied(rate=6, deeper=True),
        tied_36=tied(rate=36, deeper=True),
        tied_s1=tied(1.0, 0.1, 6, deeper=True),
        tied_s1_fast=tied(1.0, 0.3, 18, deeper=True),
        tied_s05=tied(0.5, 0.15, 9, deeper=True),
        tied_small=tied(1.0, 0.02, 2, deeper=True),
        leviathan=made("leviathan-deep"),
        leviathan_out_1=multiplied(made("leviathan-deep"), embedding__w_out=1),
        leviathan_slow=multiplied(made("leviathan-deep"), embedding=0.5, embedding__w_out=0.3),
        leviathan_fast=multiplied(made("leviathan-deep"), embedding=2, embedding__w_out=0.6),
        leviathan_k3=made("leviathan-deep", "embedding.coordinates=3"),
        leviathan_order=made("leviathan-deep", "embedding.order=co-occurrence"),
        leviathan_skip=made("leviathan-deep", "embedding.skip=linear"),
    ),
    "inputs": arms(
        dense=plain,
        tied_wide=lambda base: match_parameters(tied()(base), base, "d_model").config,
        **{name.replace("-", "_"): deep(made(name)) for name in INPUTS},
        bigrams=made("bigrams"),
    ),
    "bigrams": arms(
        dense=plain,
        tied_full=with_bigrams(tied(), None),
        tied_64=with_bigrams(tied(), 64),
        tied_32=with_bigrams(tied(), 32),
        tied_32_fast=with_bigrams(tied(), 32, 13),
        tied_32_slow=with_bigrams(tied(), 32, 1),
        tied_16=with_bigrams(tied(), 16),
        tied_8=with_bigrams(tied(), 8),
        tied_3_layers=with_bigrams(layers(tied(), 3), 32),
        dense_narrow=multiplied(made("bigrams"), bigrams=4),
        **{name.replace("-", "_"): with_bigrams(made(name), 32) for name in INPUTS},
    ),
    "tapers": arms(
        dense=plain,
        dense_falling=tapered(plain),
        dense_rising=tapered(plain, start=0.5, end=1.5),
        tied_falling=tapered(tied(deeper=True)),
        tied_rising=tapered(tied(deeper=True), start=0.5, end=1.5),
        tied_crown=tapered(tied(deeper=True), "crown", 1.5, None),
        bigrams_falling=tapered(with_bigrams(tied(), 32)),
        bigrams_rising=tapered(with_bigrams(tied(), 32), start=0.5, end=1.5),
    ),
}


def study(name, grid):
    """A round: every candidate against dense, each at its own best rate."""
    return Study(
        f"search-{name}",
        arms=grid,
        seeds=2,
        rates=SMALL.learning_rates,
        analyses=(paired("dense", margin=SMALL.margin),),
        report=(verdicts, forest(), losses, budgets, scope, origin),
        model=SMALL.model,
        stream=SMALL.stream,
        run=dataclasses.replace(Study.run, steps=SMALL.steps, seeds_at_once=2, evaluations=4),
    )


STUDIES = {name: study(name, grid) for name, grid in ROUNDS.items()}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
