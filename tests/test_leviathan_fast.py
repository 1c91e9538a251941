"""The generator's fast path against the module: chunks, products at zero and beyond, all heads at once."""

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
from eqx_slm.nn import leviathan
from eqx_slm.nn.leviathan_fast import divisible, fast_spline_product, spline_product

FORMS = fast_spline_product, spline_product
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
def compiled(at_once):
    """Values and gradient by the fast path and by the module, as one program of parameters, ids, count and weights."""
    static = eqx.partition(generator(0, ()), eqx.is_inexact_array)[1]

    def both(params, ids, count, weights):
        def loss(p, form):
            rows = form(eqx.combine(p, static))
            return (rows * weights).sum(), rows

        forms = (lambda e: e.first_rows(ids, count), lambda e: e(ids))
        return [jax.value_and_grad(lambda p, f=f: loss(p, f), has_aux=True)(params) for f in forms]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leviathan, "heads_at_once", lambda n_heads: at_once)
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
@given(seed=st.integers(0, 2**31), count=st.integers(1, WANTED), factors=st.lists(FACTORS, max_size=3))
@example(seed=0, count=WANTED, factors=[(1, 2, 0, ZERO)])
@example(seed=0, count=WANTED, factors=[(1, 2, 0, ZERO), (1, 0, 0, ZERO)])
@example(seed=0, count=WANTED, factors=[(1, 2, 0, TINY)])
@example(seed=0, count=16, factors=[])
@example(seed=0, count=17, factors=[])
def test_equals_the_module(at_once, seed, count, factors):
    """Any seeds, any number of tokens wanted, any of the factors zero: values, and gradients of every parameter."""
    with jax.enable_x64(True):
        e, rng = generator(seed, factors), np.random.default_rng(seed)
        ids = rng.permutation(VOCAB)[:WANTED].astype(np.int32)
        weights = rng.normal(size=(WANTED, WIDTH)) * (np.arange(WANTED) < count)[:, None]
        params = eqx.filter(e, eqx.is_inexact_array)
        fast, plain = as_numpy(compiled(at_once)(params, ids, np.int32(count), weights))
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
        for _, gradient in compiled(1)(params, *arguments):
            assert np.abs(gradient.spline_offset[1, 2, :, 0]).max() > 0


def scales(at_least, at_most):
    return st.integers(2 * at_least, 2 * at_most).map(lambda power: 10 ** (power / 2))


LONG = dict(seed_size=1024, n_heads=1, knots=3, rank=2)
LEAVES = ("codebooks", "w_in", "norm_weight", "norm_bias", "spline_offset", "w_out")


@functools.cache
def long_products(dtype):
    """As `compiled`, of products of 1,024 factors, and its parameters at a scale of one."""
    e = filled(lambda key: LeviathanEmbedding(20, 3, **LONG, key=key), dtype=dtype)
    params, static = eqx.partition(e, eqx.is_inexact_array)
    ids = jnp.arange(20)

    @jax.jit
    def both(params):
        def loss(params, form):
            rows = form(eqx.combine(params, static))
            return rows.astype(jnp.float32).sum(), rows

        forms = (lambda e: e.first_rows(ids, 20), lambda e: e(ids))
        return [jax.value_and_grad(lambda p, f=f: loss(p, f), has_aux=True)(params) for f in forms]

    return params, both


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@given(
    codebooks=scales(-6, 6),
    w_in=scales(-6, 6),
    norm_weight=scales(-6, 6),
    norm_bias=scales(-6, 3),
    spline_offset=scales(-4, 1),
    w_out=scales(-6, 6),
)
@example(codebooks=1, w_in=1, norm_weight=100, norm_bias=1, spline_offset=0.01, w_out=1)  # u at an end: 0.875 ** 1024
@example(codebooks=1, w_in=1, norm_weight=1e6, norm_bias=1, spline_offset=0.01, w_out=1)
@example(codebooks=1, w_in=1, norm_weight=1, norm_bias=1e3, spline_offset=0.01, w_out=1)
@example(codebooks=1e6, w_in=1e6, norm_weight=1, norm_bias=1, spline_offset=0.1, w_out=1)
@example(codebooks=1, w_in=1, norm_weight=1, norm_bias=1, spline_offset=10, w_out=1)  # beyond the largest float
@example(codebooks=1, w_in=1, norm_weight=1, norm_bias=1, spline_offset=0.3, w_out=1)
@example(codebooks=0, w_in=0, norm_weight=0, norm_bias=0, spline_offset=0, w_out=0)
def test_finite_wherever_the_module_is(dtype, **factors):
    """Values and gradients at drawn scales of every leaf, most of them far from any that training would visit."""
    params, both = long_products(dtype)
    scaled = [(getattr(params, name) * factor).astype(dtype) for name, factor in factors.items()]
    params = eqx.tree_at(lambda p: [getattr(p, name) for name in factors], params, scaled)
    fast, plain = as_numpy(both(params))
    rows, expected = fast[0][1], plain[0][1]
    for a, b in [(rows, expected), *zip(jax.tree.leaves(fast[1]), jax.tree.leaves(plain[1]), strict=True)]:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        finite = np.isfinite(b)
        assert np.isfinite(a[finite]).all()
        if finite.any():
            np.testing.assert_allclose(a[finite], b[finite], rtol=0.05, atol=0.02 * np.abs(b[finite]).max() + 1e-36)


def test_long_products_at_the_ends_of_the_splines_are_not_zero():
    """What the example above is about: 1,024 places at an end of [0, 1], and values of the usual size."""
    params, both = long_products(np.float32)
    params = eqx.tree_at(
        lambda p: (p.norm_weight, p.spline_offset), params, (100 * params.norm_weight, params.spline_offset / 100)
    )
    (rows, _), _ = as_numpy(both(params))[1]
    assert np.isfinite(rows).all() and np.abs(as_numpy(both(params))[0][0][1]).max() > 0.1


@pytest.mark.parametrize(
    ("factors", "divides"),
    [
        ([1.0, -2.0, 3.0], True),
        ([1.0, 0.0, 3.0], False),
        ([1e-31, 1.0, 1.0], False),
        ([1e-20, 1e20, 1e-20], False),  # a part of it underflows, the whole does not
        ([1e20, 1e-20, 1e20], False),
        ([1e39, 1.0, 1.0], False),
        ([np.nan, 1.0, 1.0], False),
    ],
)
def test_divides_only_where_no_part_of_a_product_is_near_zero_or_infinity(factors, divides):
    many = np.ones((3, 2, 4), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        many[:, 1, 2] = np.array(factors, np.float32)
        modes = many.prod(axis=0)
    assert bool(divisible(jnp.asarray(many), jnp.asarray(modes))) == divides


@pytest.mark.parametrize("factors", [(1e-20, 1e20, 1e-20), (1e15, 1e-31, 1e15), (0.0, 0.0, 3.0), (1e-35, 1e-3, 1e3)])
def test_the_gradient_of_a_product_out_of_bounds_is_the_modules(factors):
    u, grad = jnp.full((3, 4), 0.5), jnp.ones((2, 4))
    spline = jnp.broadcast_to(jnp.asarray(factors, jnp.float32)[:, None, None], (3, 3, 2))
    fast, plain = (jax.jit(lambda s, f=f: jax.vjp(f, u, s)[1](grad))(spline) for f in FORMS)
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(b).max())
