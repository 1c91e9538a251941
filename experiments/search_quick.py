"""What the search left out, at the quick preset's size: tied factors, value embeddings, tapered mixers.

    python experiments/search_quick.py inputs     # against dense: factors at both ends, values, bigrams; two layers
    python experiments/search_quick.py mixers     # heads and MLP widths that run over depth, alone and together; four

Exploration on the default corpus, two seeds, 0.29M tokens, every arm at the better of two rates and at the parameters
of its reference. It chooses what claims.py confirms on other seeds and another text, and is no result itself.
LOG.md has the tables.
"""

import dataclasses
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from claims import INPUTS as NAMED
from claims import paid
from jaxtyping import Array, Float, Int
from search import deep, layers, plain, tapered, with_bigrams

from eqx_slm import ModelConfig, build
from eqx_slm.account.ledger import total_parameters
from eqx_slm.nn import AttentionConfig, Block, HeadConfig, LowRankConfig, TokenEmbedding
from eqx_slm.nn.dot_product import causal_attention
from eqx_slm.nn.embedding import row_of
from eqx_slm.study import Study, budgets, forest, losses, origin, paired, preset, scope, study_main, verdicts
from eqx_slm.study.arms import with_multipliers
from eqx_slm.study.config import run_of

QUICK = preset("quick")


class WithValues(TokenEmbedding):
    """An embedding, and behind its channels a row of `values` for every token, which the blocks carry along."""

    embedding: TokenEmbedding
    values: Float[Array, "v r"]
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)

    def __init__(self, embedding, values):
        self.embedding, self.values = embedding, values
        self.vocab_size, self.d_model = len(values), embedding.d_model + values.shape[1]

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t d"]:
        return jnp.concatenate([self.embedding(ids), row_of(self.values, ids)], axis=-1)

    def read_out(self):
        """The embedding's own."""
        return self.embedding.read_out()


class ValueBlock(eqx.Module):
    """A pre-norm block whose attention adds to every value a map of the token's own row."""

    block: Block
    w_values: Float[Array, "r d"]
    last: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, "t dr"]) -> Float[Array, "t _"]:
        block = self.block
        mixer: Any = block.mixer  # attention
        x, rows = x[:, : mixer.d_model], x[:, mixer.d_model :]
        normed = block.mixer_norm(x)
        q, k, v = mixer.project(normed, 0)
        v = v + (rows @ self.w_values).reshape(v.shape)
        x = x + mixer.output(normed, causal_attention(q, k, v))
        x = x + block.channel(block.channel_norm(x))
        return x if self.last else jnp.concatenate([x, rows], axis=-1)


def narrowed(config: ModelConfig, numbers: int) -> ModelConfig:
    """The config with MLPs narrower by so many parameters, rounded up to a whole width."""
    channel: Any = config.channel
    width = channel.width(config.d_model) - -(-numbers // (3 * config.d_model * config.depth))
    return dataclasses.replace(config, channel=dataclasses.replace(channel, d_ff=width))


def valued(change, rank, rate=4.0):
    """A change with value embeddings of a rank; MLPs pay for what the parameters of the base do not leave."""

    def make(base):
        config = with_multipliers(change(base), f"embedding.values={rate:g}")
        numbers = rank * (config.vocab_size + config.depth * config.d_model)
        config = narrowed(config, max(0, total_parameters(config) + numbers - total_parameters(base)))

        def arm(key):
            model = build(config, key=key)
            rows, maps = (jax.random.fold_in(key, place) for place in (1, 2))  # no leaf of the model's own is drawn so
            values = jax.random.normal(rows, (config.vocab_size, rank))
            maps = jax.random.normal(maps, (config.depth, rank, config.d_model)) * rank**-0.5
            blocks = [ValueBlock(each, maps[i], i == config.depth - 1) for i, each in enumerate(model.blocks)]
            both = WithValues(model.embedding, values), tuple(blocks)
            return eqx.tree_at(lambda m: (m.embedding, m.blocks), model, both)

        return arm

    return make


def headed(change, heads):
    """A change with so many heads of 16 channels in each layer: the mixers' widths run over depth."""

    def make(base):
        config = change(base)
        each = [dataclasses.replace(config, mixer=AttentionConfig(n_heads=n, d_head=16)) for n in heads]

        def arm(key):
            models = [build(own, key=key) for own in each]
            return eqx.tree_at(lambda m: m.blocks, models[0], tuple(m.blocks[i] for i, m in enumerate(models)))

        return arm

    return make


def tied_factors(rank, std=0.3, scale=0.25, rate=18.0):
    """Factors of a table at both ends, same body."""

    def make(base):
        embedding, head = LowRankConfig(rank=rank, std=std), HeadConfig("tied", scale=scale)
        config = dataclasses.replace(base, embedding=embedding, head=head)
        return with_multipliers(config, f"embedding={rate:g}, embedding.columns=1")

    return make


INPUTS = {
    "dense": plain,
    "tied-deep": NAMED["dense-tied-deep"],
    "bigrams": NAMED["bigrams"],
    "bigrams-16": paid(plain, 4096, 16),
    "tied-bigrams": with_bigrams(NAMED["dense-tied"]),
    "tied-deep-bigrams": paid(NAMED["dense-tied-deep"], 4096, 8),
    "factors-32-deep": deep(tied_factors(32)),
    "factors-48-deep": deep(tied_factors(48)),
    "factors-32-bigrams": with_bigrams(tied_factors(32)),
    "factors-48-bigrams": with_bigrams(tied_factors(48)),
    "values-8": valued(plain, 8),
    "values-8-fast": valued(plain, 8, rate=13),
    "values-16": valued(plain, 16),
    "tied-values-62": valued(NAMED["dense-tied"], 62),
}
FOUR = layers(plain, 4)
MIXERS = {
    "uniform": headed(FOUR, (4, 4, 4, 4)),
    "heads-falling": headed(FOUR, (6, 5, 3, 2)),
    "heads-rising": headed(FOUR, (2, 3, 5, 6)),
    "widths-falling": headed(tapered(FOUR), (4, 4, 4, 4)),
    "both-falling": headed(tapered(FOUR), (6, 5, 3, 2)),
    "crossed": headed(tapered(FOUR), (2, 3, 5, 6)),
}


def study(name, changes, seeds=2):
    """A round: its candidates against the first of them, each at its own best rate."""
    base = QUICK.model if name != "mixers" else layers(plain, 4)(QUICK.model)
    return Study(
        f"search-quick-{name}",
        arms={label: change(base) for label, change in changes.items()},
        seeds=seeds,
        rates=(3.5e-3, 7e-3),
        analyses=(paired(next(iter(changes)), margin=QUICK.margin),),
        report=(verdicts, forest(), losses, budgets, scope, origin),
        model=base,
        stream=QUICK.stream,
        run=dataclasses.replace(run_of(QUICK), evaluations=4, sample_tokens=0),
    )


STUDIES = {"inputs": study("inputs", INPUTS), "mixers": study("mixers", MIXERS)}

if __name__ == "__main__":
    sys.exit(study_main(STUDIES))
