"""The generator's fast path against the module: chunks, tokens kept, products at zero, all heads at once."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled
from hypothesis import example, given
from hypothesis import strategies as st

from eqx_slm import LeviathanEmbedding
from eqx_slm.nn import separable

VOCAB, WIDTH, WANTED = 43, 5, 39  # three chunks of 16, the last not full
HEADS, COORDINATES, RANK = 2, 3, 2
# Offsets that make a factor zero, so small that its product underflows, and negative.
ZERO, TINY, NEGATIVE = -1.0, -1 + 1e-200, -2.5


def generator(seed, factors):
    """Float64 numbers from a seed; each of `factors` is (head, coordinate, mode, offset), the same at every knot."""
    e = filled(
        lambda key: LeviathanEmbedding(VOCAB, WIDTH, seed_size=COORDINATES, n_heads=HEADS, knots=3, rank=RANK, key=key),
        dtype=np.float64,
        seed=seed,
    )
    offset = np.array(e.spline_offset)
    for head, coordinate, mode, value in factors:
        offset[head, coordinate, :, mode] = value
    return eqx.tree_at(lambda e: e.spline_offset, e, jnp.asarray(offset))


@functools.cache
def compiled(at_once, kept):
    """Values and gradient by the fast path and by the module, as one program of parameters, ids, count and weights."""
    static = eqx.partition(generator(0, ()), eqx.is_inexact_array)[1]

    def both(params, ids, count, weights):
        def loss(p, form):
            rows = form(eqx.combine(p, static))
            return (rows * weights).sum(), rows

        forms = (lambda e: e.rows(ids, count), lambda e: e(ids))
        return [jax.value_and_grad(lambda p, f=f: loss(p, f), has_aux=True)(params) for f in forms]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separable, "_at_once", lambda heads: at_once)
        patch.setattr(separable, "_kept", lambda n, heads: kept)
        numbers = jax.ShapeDtypeStruct((WANTED,), "int32"), jax.ShapeDtypeStruct((), "int32")
        params = eqx.filter(generator(0, ()), eqx.is_inexact_array)
        return jax.jit(both).lower(params, *numbers, jax.ShapeDtypeStruct((WANTED, WIDTH), "float64")).compile()


FACTORS = st.tuples(
    st.integers(0, HEADS - 1),
    st.integers(0, COORDINATES - 1),
    st.integers(0, RANK - 1),
    st.sampled_from([ZERO, TINY, NEGATIVE]),
)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("kept", [0, 16, WANTED])
@given(seed=st.integers(0, 2**31), count=st.integers(1, WANTED), factors=st.lists(FACTORS, max_size=3))
@example(seed=0, count=WANTED, factors=[(1, 2, 0, ZERO)])
@example(seed=0, count=WANTED, factors=[(1, 2, 0, ZERO), (1, 0, 0, ZERO)])
@example(seed=0, count=WANTED, factors=[(1, 2, 0, TINY)])
@example(seed=0, count=16, factors=[])
@example(seed=0, count=17, factors=[])
def test_equals_the_module(at_once, kept, seed, count, factors):
    """Any seeds, any number of tokens wanted, any of the factors zero: values, and gradients of every parameter."""
    with jax.enable_x64(True):
        e, rng = generator(seed, factors), np.random.default_rng(seed)
        ids = rng.permutation(VOCAB)[:WANTED].astype(np.int32)
        weights = rng.normal(size=(WANTED, WIDTH)) * (np.arange(WANTED) < count)[:, None]
        params = eqx.filter(e, eqx.is_inexact_array)
        fast, plain = as_numpy(compiled(at_once, kept)(params, ids, np.int32(count), weights))
        ((_, rows), gradient), ((_, expected), wanted) = fast, plain
        np.testing.assert_allclose(rows[:count], expected[:count], rtol=1e-9, atol=1e-10 * np.abs(expected).max())
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10 * max(np.abs(b).max(), 1e-9))


@pytest.mark.parametrize("value", [ZERO, TINY])
def test_a_zero_factor_has_a_gradient(value):
    """It is the product of the others: a logarithm of the factors would have none."""
    with jax.enable_x64(True):
        params = eqx.filter(generator(0, [(1, 2, 0, value)]), eqx.is_inexact_array)
        arguments = np.arange(WANTED, dtype=np.int32), np.int32(WANTED), np.ones((WANTED, WIDTH))
        for _, gradient in compiled(1, 0)(params, *arguments):
            assert np.abs(gradient.spline_offset[1, 2, :, 0]).max() > 0


def test_only_few_tokens_of_small_heads_are_kept():
    def kept(n, h, s, g, r):
        shapes = separable.Heads(*(jnp.zeros(x) for x in ((h, s, s), (h, s), (h, s), (h, s, g, r), (h, r, 1))))
        return separable._kept(n, shapes)

    assert kept(100, 2, 8, 4, 4) == 100
    assert kept(1024, 2, 8, 4, 4) == 432  # close to 42%, an odd multiple of 16
    assert kept(1024, 8, 64, 32, 64) == kept(32_768, 2, 8, 16, 64) == 0  # 2 ** 24 numbers and more


@pytest.mark.parametrize(("factor", "divides"), [(1.0, True), (0.0, False), (1e-31, False)])
def test_the_way_out_is_taken_only_where_a_product_is_near_zero(factor, divides, monkeypatch):
    """Both ways give a gradient; which was taken shows in what stands in for the product of the other factors."""
    raw = jnp.asarray(np.random.default_rng(0).normal(1, 0.3, (3, 2, 4)), jnp.float32).at[0].multiply(factor)
    monkeypatch.setattr(separable, "product", lambda raw: 2 * raw.prod(axis=0))  # the way out: twice the gradient
    modes, ones = raw.prod(axis=0), jnp.ones((2, 4))
    gradient = separable._product_backward(raw, jnp.ones((1, 4)), modes, ones)
    np.testing.assert_allclose(gradient[0], (1 if divides else 2) * raw[1:].prod(axis=0), rtol=1e-5)
