"""Table, low-rank and compositional embeddings: rows, read-outs, orders."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled

from eqx_slm import (
    CompositionalConfig,
    CompositionalEmbedding,
    Head,
    LeviathanConfig,
    LowRankConfig,
    LowRankEmbedding,
    TableConfig,
    TableEmbedding,
    coordinate_base,
    count_parameters,
    parameter_ledger,
    random_order,
)

VOCAB, WIDTH = 29, 6
KINDS = {
    "table": TableEmbedding,
    "low-rank": functools.partial(LowRankEmbedding, rank=3),
    "compositional": CompositionalEmbedding,
    "compositional, one coordinate": functools.partial(CompositionalEmbedding, coordinates=1),
    "compositional, in random order": CompositionalEmbedding,
}
CONFIGS = [
    TableConfig(),
    LowRankConfig(rank=3),
    CompositionalConfig(coordinates=2, order="random"),
    LeviathanConfig(seed_size=3, n_heads=2, knots=3, rank=2, order="random"),
]


def make(kind):
    order = random_order(VOCAB, seed=3) if "order" in kind else None
    return filled(lambda key: KINDS[kind](VOCAB, WIDTH, key=key), order=order)


def rows(e):
    """Every row of the table that the embedding stands for, in float64."""
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in vars(e).items() if eqx.is_inexact_array(leaf)}
    if isinstance(e, TableEmbedding):
        return wide["table"]
    if isinstance(e, LowRankEmbedding):
        return wide["rows"] @ wide["columns"]
    position = np.arange(VOCAB) if e.order is None else np.asarray(e.order)
    out = np.zeros((VOCAB, WIDTH))
    for token in range(VOCAB):
        rest = int(position[token])
        for r in reversed(range(e.coordinates)):
            rest, digit = divmod(rest, e.base)
            out[token] += wide["codebooks"][r, digit]
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_in_every_form(kind):
    e = make(kind)
    features = np.random.default_rng(5).normal(size=(2, WIDTH)).astype(np.float32)

    @jax.jit
    def forms(features):
        return e(jnp.arange(VOCAB)), e(jnp.int32(7)), e.materialize(), e.read_out().logits(features)

    called, one, table, logits = forms(jnp.asarray(features))
    expected = rows(e)
    np.testing.assert_allclose(called, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one, expected[7], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, features @ expected.T, rtol=1e-4, atol=1e-4)


def test_a_tied_low_rank_read_out_keeps_its_factors():
    """Its logits cost (D + V) r a token only as long as nobody multiplies the factors first."""
    e = make("low-rank")
    read_out = e.read_out()
    assert read_out.weight is e.rows
    assert read_out.projection.shape == (WIDTH, 3)


def test_read_outs_accumulate_in_float32():
    e = filled(lambda key: TableEmbedding(4, 2000, key=key), dtype=jnp.bfloat16)
    features = np.ones((1, 2000), jnp.bfloat16)
    logits = jax.jit(lambda x: e.read_out().logits(x))(jnp.asarray(features))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, np.asarray(e.table, np.float64).sum(axis=1)[None], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rank", [None, 3])
def test_heads_of_their_own(rank):
    head = filled(lambda key: Head(VOCAB, WIDTH, rank=rank, key=key))
    x = np.random.default_rng(5).normal(size=(2, WIDTH)).astype(np.float32)
    through = x if rank is None else x @ np.asarray(head.projection)
    logits = jax.jit(lambda x: head.read_out().logits(x))(jnp.asarray(x))
    np.testing.assert_allclose(logits, through @ np.asarray(head.weight).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_orders_are_buffers_and_not_parameters(config):
    order = jnp.asarray(random_order(VOCAB))
    with_order, without = (
        eqx.filter_eval_shape(
            lambda key, given=given: config.build(VOCAB, WIDTH, order=given, key=key), jax.random.key(0)
        )
        for given in (order, None)
    )
    assert count_parameters(with_order) == count_parameters(without) == config.parameters(VOCAB, WIDTH)
    held = getattr(with_order, "order", None)
    assert parameter_ledger(without).buffer_bytes == 0
    assert parameter_ledger(with_order).buffer_bytes == config.buffer_bytes(VOCAB)
    if isinstance(config, CompositionalConfig | LeviathanConfig):
        assert held.dtype == jnp.int32 and held.shape == (VOCAB,)
        assert not jnp.issubdtype(held.dtype, jnp.inexact)
        assert config.buffer_bytes(VOCAB) == 4 * VOCAB
    else:
        assert held is None and config.buffer_bytes(VOCAB) == 0


@pytest.mark.parametrize("kind", ["compositional", "leviathan"])
def test_an_order_only_permutes_the_rows(kind, getkey):
    config = next(config for config in CONFIGS if config.kind == kind)
    order = random_order(VOCAB, seed=3)
    assert sorted(order.tolist()) == list(range(VOCAB)) and order.tolist() != list(range(VOCAB))
    make = filled(lambda key: config.build(VOCAB, WIDTH, key=key))
    ordered = filled(lambda key: config.build(VOCAB, WIDTH, key=key), order=order)
    lookup = eqx.filter_jit(lambda e: e(jnp.arange(VOCAB)))
    np.testing.assert_allclose(lookup(ordered), np.asarray(lookup(make))[order], rtol=1e-5, atol=1e-5)


def test_initial_entries_have_the_std_that_the_config_names(getkey):
    """The std of the product or the sum, so that arms start at the same scale."""

    @jax.jit
    def tables(key):
        return [
            config.build(1000, 64, key=key).materialize()
            for config in (TableConfig(std=0.5), LowRankConfig(rank=32, std=0.5), CompositionalConfig(std=0.5))
        ]

    for table in tables(getkey()):
        assert np.asarray(table).std() == pytest.approx(0.5, rel=0.1)


def test_parameter_counts_by_hand():
    assert TableConfig().parameters(1000, 7) == 7000
    assert LowRankConfig(rank=5).parameters(1000, 7) == 5 * 1007
    assert LowRankConfig(rank=5).table_parameters(1000, 7) == 5000
    assert CompositionalConfig(coordinates=3).parameters(1000, 7) == 3 * 10 * 7
    assert CompositionalConfig(coordinates=3).table_parameters(1000, 7) == 0
    # With one coordinate every token has a row of its own: a table by another name.
    assert coordinate_base(1000, 1) == 1000
    assert CompositionalConfig(coordinates=1).table_parameters(1000, 7) == 7000


@pytest.mark.parametrize(("sizes", "named"), [(dict(rank=0), "rank=0"), (dict(vocab_size=0), "vocab_size=0")])
def test_sizes_that_are_refused(sizes, named, getkey):
    with pytest.raises(ValueError, match=named):
        LowRankEmbedding(**(dict(vocab_size=3, d_model=4, rank=2) | sizes), key=getkey())
