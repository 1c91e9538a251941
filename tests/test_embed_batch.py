"""embed_batch is the embedding itself, in values and gradients, at the cost of the distinct tokens."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled
from hypothesis import example, given
from hypothesis import strategies as st

from eqx_slm import (
    CompositionalEmbedding,
    HybridConfig,
    LeviathanConfig,
    LeviathanEmbedding,
    LowRankEmbedding,
    SpelledConfig,
    TableEmbedding,
    TokenEmbedding,
    embed_batch,
    random_order,
)
from eqx_slm.nn import Distinct, distinct_tokens

VOCAB, WIDTH = 43, 5  # chunks of 16 tokens, the fewest there are: 43 tokens need three, the last of them not full
KINDS = {
    "table": TableEmbedding,
    "low-rank": functools.partial(LowRankEmbedding, rank=3),
    "compositional": CompositionalEmbedding,
    "leviathan": functools.partial(LeviathanEmbedding, seed_size=3, n_heads=2, knots=3, rank=2, skip="linear"),
}
KINDS["spelled"] = SpelledConfig(code="fourier", size=4, longest=3, spelling="ids").build
KINDS["hybrid"] = HybridConfig(
    rows=13, generator=LeviathanConfig(seed_size=3, n_heads=2, knots=3, rank=2, skip="linear")
).build
LENGTH = 45
REPEATED = [3, 3, 7, 0, 42] * 9
NEARLY_ALL = [*range(VOCAB)[::-1], 1, 2]


def make(kind, **changes):
    order = random_order(VOCAB) if kind in ("compositional", "leviathan") else None
    return filled(lambda key: KINDS[kind](VOCAB, WIDTH, key=key), order=order, **changes)


def values_and_gradient(embed, embedding, tokens):
    """Vectors, and the gradient of their product with fixed random numbers."""
    weights = jnp.asarray(np.random.default_rng(7).normal(size=(*tokens.shape, WIDTH)))

    def loss(embedding):
        vectors = embed(embedding, tokens)
        return jnp.sum(vectors * weights), vectors

    (_, vectors), gradient = eqx.filter_value_and_grad(loss, has_aux=True)(embedding)
    return vectors, gradient


def assert_same(first, second, *, rtol=1e-11):
    pairs = list(zip(jax.tree.leaves(as_numpy(first)), jax.tree.leaves(as_numpy(second)), strict=True))
    assert pairs
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * max(np.abs(b).max(), 1e-9))


@functools.cache
def plain_and_batched(kind, shape=(LENGTH,)):
    """Vectors and gradients by the module and by `embed_batch`, as one program of parameters and tokens."""
    module = make(kind, dtype=np.float64)
    static = eqx.partition(module, eqx.is_inexact_array)[1]

    def both(params, tokens):
        e = eqx.combine(params, static)
        return values_and_gradient(lambda e, ids: e(ids), e, tokens), values_and_gradient(embed_batch, e, tokens)

    params = eqx.filter(module, eqx.is_inexact_array)
    return jax.jit(both).lower(params, jax.ShapeDtypeStruct(shape, "int32")).compile()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), tokens=st.lists(st.integers(0, VOCAB - 1), min_size=LENGTH, max_size=LENGTH))
@example(seed=0, tokens=REPEATED)
@example(seed=0, tokens=[5] * LENGTH)
@example(seed=0, tokens=NEARLY_ALL)
def test_equals_the_module(kind, seed, tokens):
    """Values, and gradients of every parameter, at every number of distinct tokens."""
    with jax.enable_x64(True):
        params = eqx.filter(make(kind, dtype=np.float64, seed=seed), eqx.is_inexact_array)
        plain, batched = plain_and_batched(kind)(params, np.array(tokens, np.int32))
        assert_same(batched, plain, rtol=1e-9)


@pytest.mark.parametrize("tokens", [[17], [[3, 4, 3], [0, 3, 42]]], ids=["one", "two axes"])
def test_tokens_of_any_shape(tokens):
    with jax.enable_x64(True):
        params = eqx.filter(make("leviathan", dtype=np.float64), eqx.is_inexact_array)
        plain, batched = plain_and_batched("leviathan", np.shape(tokens))(params, np.array(tokens, np.int32))
        assert batched[0].shape == (*np.shape(tokens), WIDTH)
        assert_same(batched, plain)


def test_distinct_tokens_from_the_caller():
    with jax.enable_x64(True):
        e, tokens = make("leviathan", dtype=np.float64), jnp.array(REPEATED)
        ids, inverse = np.unique(tokens, return_inverse=True)
        pad = 3  # padding may be any id: it is not computed
        ids = np.concatenate([ids, np.full(pad, 39)]).astype(np.int32)
        distinct = Distinct(
            jnp.asarray(ids), jnp.asarray(inverse.reshape(-1).astype(np.int32)), jnp.int32(len(ids) - pad)
        )
        given_them = functools.partial(embed_batch, distinct=distinct)
        found, given_ = eqx.filter_jit(
            lambda e: [values_and_gradient(f, e, tokens) for f in (embed_batch, given_them)]
        )(e)
        assert_same(given_, found, rtol=1e-12)


def test_under_vmap_over_parameters():
    """Two arms of a learning-rate sweep: parameters with a leading axis, tokens shared."""
    with jax.enable_x64(True):
        tokens = jnp.array(NEARLY_ALL)
        arms = [make("leviathan", dtype=np.float64, seed=seed) for seed in (0, 1)]
        halves = [eqx.partition(arm, eqx.is_inexact_array) for arm in arms]
        stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *(params for params, _ in halves))

        @jax.jit
        def both(stacked):
            vmapped = jax.vmap(lambda p: values_and_gradient(embed_batch, eqx.combine(p, halves[0][1]), tokens))(
                stacked
            )
            return vmapped, [values_and_gradient(lambda e, ids: e(ids), arm, tokens) for arm in arms]

        batched, plain = both(stacked)
        for i, expected in enumerate(plain):
            assert_same(jax.tree.map(lambda x, i=i: np.asarray(x)[i], batched), expected)


class Counted(TokenEmbedding):
    """A generator that tells how many tokens it is called on."""

    table: jax.Array
    calls: list = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    distinct_pays = True

    def __call__(self, ids):
        jax.debug.callback(lambda: self.calls.append(ids.shape[0]))
        return self.table[ids]


@pytest.mark.parametrize(("number", "chunks"), [(1, 1), (16, 1), (17, 2), (33, 3)])
def test_the_cost_follows_the_distinct_tokens(number, chunks):
    calls = []
    e = Counted(jnp.ones((VOCAB, WIDTH)), calls, VOCAB, WIDTH)
    tokens = jnp.asarray(np.arange(200, dtype=np.int32) % number)
    jax.block_until_ready(jax.jit(lambda table: embed_batch(eqx.tree_at(lambda e: e.table, e, table), tokens))(e.table))
    jax.effects_barrier()
    assert calls == [16] * chunks


@given(st.lists(st.integers(0, 9), min_size=6, max_size=6), st.sampled_from([10, 4]))
def test_distinct_tokens(ids, vocab_size):
    ids = [i % vocab_size for i in ids]
    found = as_numpy(jax.jit(distinct_tokens, static_argnums=1)(jnp.array(ids), vocab_size))
    number = int(found.number)
    assert found.ids[:number].tolist() == sorted(set(ids))
    assert found.ids[found.inverse].tolist() == ids
    assert found.ids.shape == (min(6, vocab_size),)


def test_ids_outside_the_vocabulary_are_none_of_the_distinct():
    found = distinct_tokens(jnp.array([3, -1, 2, 7]), 4)
    assert found.inverse.tolist() == [1, 4, 0, 4] and found.ids[:2].tolist() == [2, 3] and int(found.number) == 2


def test_a_generated_head_differentiates():
    """`read_out` of a generator is its whole table, with the gradient of evaluating the module at every id."""
    with jax.enable_x64(True):
        e = make("leviathan", dtype=np.float64)
        x = jnp.asarray(np.random.default_rng(2).normal(size=(3, WIDTH)))
        target = jnp.array([0, 39, 11])

        def loss(logits):
            return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(3), target])

        @eqx.filter_jit
        def both(e):
            read_out = eqx.filter_value_and_grad(lambda e: loss(e.read_out().logits(x)))(e)
            return read_out, eqx.filter_value_and_grad(lambda e: loss(x @ e(jnp.arange(VOCAB)).T))(e)

        assert_same(*both(e), rtol=1e-10)
