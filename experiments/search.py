"""Which allocation of a small model's parameters wins? Candidates with the parameters of the dense arm, round by round.

    python experiments/search.py rates       # multipliers and scales: the table, the tied table, the generator
    python experiments/search.py inputs      # what stands between an id and the model, savings spent on layers
    python experiments/search.py bigrams     # the same savings spent on hashed bigrams, which cost no FLOPs
    python experiments/search.py tapers      # falling and rising widths together with the best of these

Exploration on the default corpus, two seeds, 1.2M tokens: it chooses what experiments/claims.py confirms on other seeds
and another text, and is no result itself. All arms have the parameters of dense, 1.57M, to 2%, but for composed (8%
fewer) and hybrid (4% more), since whole layers match no closer. LOG.md has the tables.
"""

import dataclasses
import sys

from eqx_slm import BigramConfig, ModelConfig, TaperConfig, match_parameters
from eqx_slm.account.ledger import total_parameters
from eqx_slm.study import (
    Study,
    budgets,
    forest,
    losses,
    made_arms,
    origin,
    paired,
    preset,
    scope,
    study_main,
    verdicts,
)
from eqx_slm.study.arms import make_arm, with_multipliers

SMALL = preset("small")
TUNED = SMALL.tuned
# What the search began with: the multipliers of the quick preset. The preset has since what was found.
BASE = dataclasses.replace(SMALL.model, lr_multipliers="embedding=13, head=4")


def made(name, *settings):
    """A named arm, with settings as after `--set`."""
    return lambda base: make_arm(name, base, TUNED, settings).config


def multiplied(change, multipliers):
    """A change with learning-rate multipliers of its own besides."""
    return lambda base: with_multipliers(change(base), multipliers)


def with_bigrams(change, rank: int | None = 16, rate=4.0):
    """A change whose savings against the base are spent on hashed bigrams: rows of `rank` (None: of d_model)."""

    def make(base):
        config = change(base)
        left = total_parameters(base) - total_parameters(config)
        rows = left // base.d_model if rank is None else (left - rank * base.d_model) // rank
        return dataclasses.replace(config, bigrams=BigramConfig(rows=rows, rank=rank))

    return multiplied(make, f"bigrams={rate:g}")


def deep(change):
    """A change whose savings are spent on layers."""
    return lambda base: match_parameters(change(base), base, "depth").config


def tied(scale=1.0, std=0.1, rate=6.0, deeper=True):
    """A tied table of its own scales and rate."""
    values = (f"head.scale={scale}", f"embedding.std={std}")
    return multiplied(made("dense-tied-deep" if deeper else "dense-tied", *values), f"embedding={rate:g}")


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
    "rates": {
        "dense": plain,
        "head-2": multiplied(plain, "head=2"),
        "head-8": multiplied(plain, "head=8"),
        "table-6": multiplied(plain, "embedding=6"),
        "table-26": multiplied(plain, "embedding=26"),
        "tied-slow-start": tied(0.25, 0.3, 18),
        "tied": tied(),
        "tied-12": tied(rate=12),
        "tied-3": tied(rate=3),
        "tied-std-05": tied(std=0.05),
        "tied-std-05-3": tied(std=0.05, rate=3),
        "tied-std-2": tied(std=0.2, rate=12),
        "leviathan": made("leviathan-deep"),
        "leviathan-out-1": multiplied(made("leviathan-deep"), "embedding.w_out=1"),
        "leviathan-fast": multiplied(made("leviathan-deep"), "embedding=2, embedding.w_out=0.6"),
        "leviathan-order": made("leviathan-deep", "embedding.order=co-occurrence"),
    },
    "inputs": {
        "tied-wide": lambda base: match_parameters(tied(deeper=False)(base), base, "d_model").config,
        **{name: deep(made(name)) for name in INPUTS if name != "leviathan"},
    },
    "bigrams": {
        "tied-full": with_bigrams(tied(deeper=False), None),
        "tied-32": with_bigrams(tied(deeper=False), 32),
        "tied-16": with_bigrams(tied(deeper=False)),
        "tied-16-fast": with_bigrams(tied(deeper=False), rate=10),
        "tied-16-slow": with_bigrams(tied(deeper=False), rate=2),
        "tied-8": with_bigrams(tied(deeper=False), 8),
        "tied-3-layers": with_bigrams(layers(tied(deeper=False), 3)),
        "dense-narrow": multiplied(made("bigrams"), "bigrams=4"),
        **{name: with_bigrams(made(name)) for name in ("low-rank", "spelled", "composed")},
    },
    "tapers": {
        "dense-falling": tapered(plain),
        "dense-rising": tapered(plain, start=0.5, end=1.5),
        "tied-falling": tapered(tied()),
        "tied-rising": tapered(tied(), start=0.5, end=1.5),
        "bigrams-falling": tapered(with_bigrams(tied(deeper=False))),
        "bigrams-rising": tapered(with_bigrams(tied(deeper=False)), start=0.5, end=1.5),
    },
}


def study(name, changes):
    """A round: its candidates against the first of them, each at its own best rate."""
    return Study(
        f"search-{name}",
        arms=made_arms(changes.items()),
        seeds=2,
        rates=(4e-3, 8e-3),
        analyses=(paired(next(iter(changes)), margin=SMALL.margin),),
        report=(verdicts, forest(), losses, budgets, scope, origin),
        model=BASE,
        stream=SMALL.stream,
        run=dataclasses.replace(Study.run, steps=600, seeds_at_once=2, evaluations=4),
    )


STUDIES = {name: study(name, changes) for name, changes in ROUNDS.items()}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
