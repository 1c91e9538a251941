"""Table, low-rank and compositional embeddings: rows, read-outs, orders."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm import (
    BinaryConfig,
    ComposedConfig,
    CompositionalConfig,
    CompositionalEmbedding,
    Head,
    HybridConfig,
    LeviathanConfig,
    LeviathanEmbedding,
    LowRankConfig,
    LowRankEmbedding,
    SpelledConfig,
    TableConfig,
    TableEmbedding,
    UserError,
    coordinate_base,
    count_parameters,
    embed_batch,
    parameter_ledger,
    random_order,
)
from eqx_slm.pytree import Fixed, is_fixed

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


OUTSIDE = [-1, VOCAB, -(2**31), 2**31 - 1, -VOCAB, VOCAB + 1]  # the last has digits that no token uses
ANY = [
    *CONFIGS[:3],
    CompositionalConfig(coordinates=2),
    CONFIGS[3],
    LeviathanConfig(seed_size=3, n_heads=2, knots=3, rank=2),
]
CODES = [
    BinaryConfig(),
    BinaryConfig(map="none"),
    SpelledConfig(longest=3, spelling="ids"),
    SpelledConfig(code="fourier", size=4, longest=3, spelling="ids"),
    ComposedConfig(pieces=4, longest=3, spelling="ids"),
    HybridConfig(rows=11, generator=CONFIGS[3]),
    HybridConfig(rows=0, ranking="tokenizer", generator=CONFIGS[3]),
    HybridConfig(rows=VOCAB, generator=CONFIGS[3]),
]


@pytest.mark.parametrize("config", [*ANY, *CODES], ids=lambda config: f"{config.kind} {getattr(config, 'order', '')}")
def test_an_id_outside_the_vocabulary_is_nan_however_it_is_asked(config):
    """Neither the last row, nor one counted from the end, nor a row of another token."""
    order = random_order(VOCAB) if getattr(config, "order", "") == "random" and config not in CODES else None
    e = filled(lambda key: config.build(VOCAB, WIDTH, key=key), order=order)
    params, static = eqx.partition(e, eqx.is_inexact_array)
    ids = np.array([*OUTSIDE, 7, 0, VOCAB - 1], np.int32)
    inside = np.arange(len(ids)) >= len(OUTSIDE)

    @jax.jit
    def forms(params, ids):
        e = eqx.combine(params, static)

        called = e(ids), jax.vmap(e)(ids), embed_batch(e, ids), embed_batch(e, ids.reshape(3, 3)).reshape(9, WIDTH)
        return called, e(ids[0]), e.materialize()

    called, scalar, table = forms(params, ids)
    assert np.isnan(scalar).all() and np.isfinite(table).all()
    for vectors in called:
        assert np.isnan(vectors[~inside]).all()
        np.testing.assert_allclose(vectors[inside], np.asarray(table)[ids[inside]], rtol=1e-4, atol=1e-5)


def test_an_id_outside_the_vocabulary_has_no_gradient():
    """No row of a table gets one from it."""
    e = filled(lambda key: TableEmbedding(VOCAB, WIDTH, key=key))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda e, ids: embed_batch(e, ids).sum()))(e, jnp.array([*OUTSIDE, 7]))
    assert np.asarray(gradient.table).sum(axis=1).tolist() == [WIDTH * (row == 7) for row in range(VOCAB)]


def test_ids_wider_than_int32_do_not_wrap():
    with jax.enable_x64(True):
        ids = jnp.asarray([2**32 + 3, -(2**32) + 3, 2**62, 3])
        for config in (ANY[0], ANY[-1], CODES[0], CODES[2], CODES[4], CODES[5]):
            e = filled(lambda key, config=config: config.build(VOCAB, WIDTH, key=key))
            for vectors in eqx.filter_jit(lambda e: (e(ids), embed_batch(e, ids)))(e):
                assert np.isnan(vectors).all(axis=1).tolist() == [True, True, True, False]


@pytest.mark.parametrize("ids", [np.zeros(3, np.float32), np.ones(3, bool), np.ones(3, np.complex64)])
def test_ids_that_are_no_integers_are_refused(ids, unchecked):
    for config in (ANY[0], ANY[1], ANY[3], ANY[-1], *CODES):
        e = filled(lambda key, config=config: config.build(VOCAB, WIDTH, key=key))
        for call in (lambda e=e: e(jnp.asarray(ids)), lambda e=e: embed_batch(e, jnp.asarray(ids))):
            with pytest.raises(UserError, match="must be integers"):
                call()


GOOD = list(range(VOCAB))[::-1]
WRONG_ORDERS = {
    "twice": [*GOOD[:-1], 5],
    "negative": [*GOOD[:-1], -1],
    "beyond": [*GOOD[:-1], VOCAB],
    "wraps in int32": np.array([*GOOD[:-1], 2**32], np.int64),
    "beyond int64": [*GOOD[:-1], 2**70],
    "short": GOOD[1:],
    "long": [*GOOD, VOCAB],
    "empty": [],
    "two axes": [GOOD],
    "floats": np.array(GOOD, np.float32),
    "booleans": np.ones(VOCAB, bool),
    "ragged": [[1], [2, 3]],
    "text": "random",
}


@pytest.mark.parametrize("order", WRONG_ORDERS.values(), ids=WRONG_ORDERS)
@pytest.mark.parametrize("config", [ANY[3], ANY[5]], ids=lambda config: config.kind)
def test_orders_that_are_no_permutation_are_refused(config, order, getkey, unchecked):
    with refuses("order"):
        config.build(VOCAB, WIDTH, order=order, key=getkey())


@pytest.mark.parametrize("order", [GOOD, np.array(GOOD, np.int64), np.array(GOOD, np.uint8), jnp.array(GOOD)])
def test_permutations_of_any_integers_are_taken(order, getkey, unchecked):
    held = ANY[3].build(VOCAB, WIDTH, order=order, key=getkey()).order
    assert held.dtype == jnp.int32 and held.array.tolist() == GOOD


BUFFERS = [
    ANY[2],
    ANY[4],
    HybridConfig(rows=4, generator=ANY[4]),
    SpelledConfig(longest=4),
    ComposedConfig(pieces=256, longest=4),
]


@pytest.mark.parametrize("config", BUFFERS, ids=lambda config: config.kind)
def test_integers_are_no_leaves_of_a_differentiated_tree(config):
    def total(e):
        return embed_batch(e, jnp.array([3, 3, 28])).sum()

    side = {"order": random_order(VOCAB)} if hasattr(config, "order") else {}
    side |= {"ranking": random_order(VOCAB, seed=1)} if hasattr(config, "ranking") else {}
    e = config.build(VOCAB, WIDTH, key=jax.random.key(0), **side)
    assert all(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(e))
    assert any(is_fixed(leaf) for leaf in jax.tree.leaves(e, is_leaf=is_fixed))
    plain, filtered = jax.jit(jax.grad(total))(e), eqx.filter_jit(eqx.filter_grad(total))(e)
    assert eqx.tree_equal(plain, filtered) and jax.tree.structure(plain) == jax.tree.structure(e)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.tree.map(lambda p, g: p - g, e, plain)))
    within = jax.jit(lambda key, side: config.build(VOCAB, WIDTH, key=key, **side))(jax.random.key(0), side)
    ids = jnp.arange(VOCAB)  # built where a transformation hides an order it is a leaf, of the same function
    np.testing.assert_allclose(within(ids), e(ids), rtol=1e-5, atol=1e-6)


@given(st.lists(st.integers(-5, 5), max_size=4), st.lists(st.integers(-5, 5), max_size=4))
def test_fixed_integers_are_equal_where_their_values_are(one, other):
    a, b = Fixed(np.array(one, np.int32)), Fixed(np.array(other, np.int32))
    assert (a == b) == (one == other) and (a != b or hash(a) == hash(b)) and len(a) == len(one)
    assert (jax.tree.structure(a) == jax.tree.structure(b)) == (one == other) and not jax.tree.leaves(a)
    assert np.asarray(a).tolist() == list(a) == one and (9 in a) is False and a != Fixed(np.array(one, np.int64))
    with pytest.raises(ValueError, match="read-only"):
        a.array[:] = 0


SIZES = [
    (TableEmbedding, ("vocab_size", "d_model")),
    (LowRankEmbedding, ("vocab_size", "d_model", "rank")),
    (CompositionalEmbedding, ("vocab_size", "d_model", "coordinates")),
    (LeviathanEmbedding, ("vocab_size", "d_model", "coordinates", "seed_size", "n_heads", "knots", "rank")),
    (LowRankConfig, ("rank",)),
    (CompositionalConfig, ("coordinates",)),
    (LeviathanConfig, ("coordinates", "seed_size", "n_heads", "knots", "rank")),
    (BinaryConfig().build, ("vocab_size", "d_model")),
    (SpelledConfig, ("size", "longest")),
    (ComposedConfig, ("pieces", "longest")),
]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 64.0, True, "8", None, math.nan, np.float32(8), np.bool_(True)])
@pytest.mark.parametrize(("make", "names"), SIZES, ids=lambda x: getattr(x, "__name__", ""))
def test_sizes_that_are_refused(make, names, wrong, getkey, unchecked):
    rest = {"vocab_size": 10, "d_model": 4, "key": getkey()} if "vocab_size" in names else {}
    for name in names:
        with refuses(f"{name}="):
            make(**(rest | {name: wrong}))


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf, "0.02", True])
def test_scales_that_are_refused(wrong, getkey, unchecked):
    for config in (SpelledConfig, ComposedConfig, HybridConfig):
        with pytest.raises(UserError, match="std="):
            config(std=wrong)
    for make in (TableConfig, LowRankConfig, CompositionalConfig, BinaryConfig):
        with pytest.raises(UserError, match="std="):
            make(std=wrong)
        with pytest.raises(UserError, match="std="):
            make().build(3, 4, key=getkey()).__class__(3, 4, std=wrong, key=getkey())
    with pytest.raises(UserError, match="output_std="):
        LeviathanConfig(output_std=wrong)


def test_sizes_of_numpy_are_taken(getkey, unchecked):
    e = LowRankEmbedding(np.int64(7), np.int32(4), rank=np.uint8(2), key=getkey())
    assert e(jnp.arange(7)).shape == (7, 4)
