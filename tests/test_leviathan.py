"""Leviathan's generator against the paper's formula, written out in NumPy."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled

from eqx_slm import LeviathanConfig, LeviathanEmbedding, count_parameters, random_order
from eqx_slm.nn.leviathan import EPS
from eqx_slm.nn.spline import product as by_halves

lookup = eqx.filter_jit(lambda e, ids: e(ids))


def transcription(e: LeviathanEmbedding, token: int) -> np.ndarray:
    """The embedding of one token: the paper's steps 1 to 7, one number after the other, in float64."""
    wide = {name: np.asarray(leaf, np.float64) for name, leaf in vars(e).items() if eqx.is_inexact_array(leaf)}
    knot = np.linspace(0, 1, e.knots)
    position = token if e.order is None else int(e.order[token])
    digits = [position // e.base ** (e.coordinates - 1 - r) % e.base for r in range(e.coordinates)]
    z = sum(wide["codebooks"][r, digit] for r, digit in enumerate(digits))
    out = np.zeros(e.d_model)
    for head in range(e.n_heads):
        y = wide["w_in"][head].T @ z
        y = (y - y.mean()) / np.sqrt(y.var() + EPS) * wide["norm_weight"][head] + wide["norm_bias"][head]
        u = 1 / (1 + np.exp(-y / 2))
        modes = np.ones(e.rank)
        for d in range(e.seed_size):
            distance = np.abs(u[d] - knot) * (e.knots - 1)
            basis = np.where(distance < 0.5, 0.75 - distance**2, 0.5 * np.maximum(1.5 - distance, 0) ** 2)
            modes *= (basis / basis.sum()) @ (1 + wide["spline_offset"][head, d])
        out += modes @ wide["w_out"][head]
    return out if e.w_skip is None else out + z @ wide["w_skip"]


@pytest.mark.parametrize(
    ("vocab", "skip", "order", "sizes"),
    [
        (27, "none", "tokenizer", dict(coordinates=3, seed_size=4, n_heads=2, knots=4, rank=3)),  # a perfect power
        (29, "linear", "random", dict(coordinates=2, seed_size=5, n_heads=1, knots=3, rank=1)),  # a prime, fewest knots
        (11, "none", "random", dict(coordinates=1, seed_size=7, n_heads=3, knots=16, rank=2)),  # a codebook row a token
        (10, "linear", "tokenizer", dict(coordinates=4, seed_size=1, n_heads=2, knots=5, rank=2)),  # norm of one number
        (1, "none", "random", dict(coordinates=3, seed_size=3, n_heads=1, knots=3, rank=2)),
    ],
)
def test_equals_the_formula_in_float64(vocab, skip, order, sizes):
    order = random_order(vocab, seed=1) if order == "random" else None
    with jax.enable_x64(True):
        make = functools.partial(LeviathanEmbedding, vocab, 6, skip=skip, **sizes)
        e = filled(lambda key: make(key=key), dtype=np.float64, order=order)
        vectors = lookup(e, jnp.arange(vocab))
        assert vectors.dtype == np.float64
    expected = np.stack([transcription(e, token) for token in range(vocab)])
    np.testing.assert_allclose(vectors, expected, rtol=1e-11, atol=1e-12 * np.abs(expected).max())


def test_initial_values(getkey):
    """The published recipe: splines N(1, 0.1), W_out N(0, 0.02 / sqrt(heads)), the rest N(0, 0.02), norms 1 and 0."""
    key, sizes = getkey(), dict(seed_size=32, n_heads=4, knots=8, rank=16)
    e = as_numpy(LeviathanEmbedding(999, 64, **sizes, key=key))
    for leaf, std in [(e.codebooks, 0.02), (e.w_in, 0.02), (e.spline_offset, 0.1), (e.w_out, 0.01)]:
        assert abs(leaf.mean()) < 5 * std / leaf.size**0.5
        assert leaf.std() == pytest.approx(std, rel=5 * (2 * leaf.size) ** -0.5)
    assert (e.norm_weight == 1).all() and (e.norm_bias == 0).all()
    # output_std is the std of W_out's entries: the same draw at another scale.
    scaled = as_numpy(LeviathanEmbedding(999, 64, **sizes, output_std=0.5, key=key))
    np.testing.assert_allclose(scaled.w_out, 50 * e.w_out, rtol=1e-6)
    np.testing.assert_array_equal(scaled.spline_offset, e.spline_offset)


@pytest.mark.parametrize("d_model", [256, 512, 2048])
@pytest.mark.parametrize("vocab", [200_019, 200_376])
def test_published_parameter_count(d_model, vocab):
    published = 1_204_352 + 512 * d_model
    assert LeviathanConfig().parameters(vocab, d_model) == published
    model = eqx.filter_eval_shape(lambda key: LeviathanEmbedding(vocab, d_model, key=key), jax.random.key(0))
    assert count_parameters(model) == published
    with_skip = eqx.filter_eval_shape(
        lambda key: LeviathanEmbedding(vocab, d_model, skip="linear", key=key), jax.random.key(0)
    )
    assert count_parameters(with_skip) == published + 128 * d_model
    assert LeviathanConfig(skip="linear").parameters(vocab, d_model) == published + 128 * d_model


def small(**changes):
    sizes = dict(seed_size=5, n_heads=2, knots=4, rank=3, skip="linear")
    dtype = changes.pop("dtype", np.float32)
    make = functools.partial(LeviathanEmbedding, 30, 6, **(sizes | changes))
    return filled(lambda key: make(key=key), dtype=dtype, order=random_order(30))


def test_ids_of_any_shape_and_the_materialized_table():
    with jax.enable_x64(True):
        e = small(dtype=np.float64)
        table = np.asarray(lookup(e, jnp.arange(30)))
        assert lookup(e, jnp.int32(7)).shape == (6,)
        np.testing.assert_allclose(lookup(e, jnp.int32(7)), table[7], rtol=1e-12)
        in_a_grid = lookup(e, jnp.asarray(np.arange(30).reshape(2, 3, 5)))
        np.testing.assert_allclose(in_a_grid, table.reshape(2, 3, 5, 6), rtol=1e-12)
        materialized = eqx.filter_jit(lambda e: e.materialize())(e)
        assert materialized.shape == (30, 6)
        np.testing.assert_allclose(materialized, table, rtol=1e-12)


def test_forward_mode_agrees_with_reverse_mode():
    with jax.enable_x64(True):
        params, rest = eqx.partition(small(dtype=np.float64), eqx.is_inexact_array)
        rng = np.random.default_rng(1)
        tangent = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
        cotangent = jnp.asarray(rng.normal(size=(4, 6)))

        def vectors(params):
            return eqx.combine(params, rest)(jnp.array([3, 3, 29, 0]))

        @jax.jit
        def derivatives(params):
            return jax.jvp(vectors, (params,), (tangent,))[1], jax.vjp(vectors, params)[1](cotangent)[0]

        pushed, pulled = as_numpy(derivatives(params))
        inner = jax.tree.map(lambda a, b: np.vdot(a, b), pulled, as_numpy(tangent))
        assert np.vdot(cotangent, pushed) == pytest.approx(sum(jax.tree.leaves(inner)), rel=1e-10)
        step = 1e-6
        moved = [jax.tree.map(lambda p, t, s=s: p + s * t, as_numpy(params), as_numpy(tangent)) for s in (step, -step)]
        ahead, behind = (np.asarray(jax.jit(vectors)(jax.tree.map(jnp.asarray, p))) for p in moved)
        np.testing.assert_allclose(pushed, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-5 * np.abs(pushed).max())


@pytest.mark.parametrize("size", [1, 5, 8])
def test_products_are_exact_at_zeros_and_signs(size):
    """And their derivative is the product of the others: logarithms, or a division, would give nan at a zero."""
    rng = np.random.default_rng(size)
    values = rng.integers(-2, 3, (size, 40)).astype(np.float32)  # products of these are exact in float32
    values[0, :5] = 0
    both = jax.jit(lambda x: (by_halves(x), jax.grad(lambda x: by_halves(x).sum())(x)))
    product, gradient = map(np.asarray, both(jnp.asarray(values)))
    np.testing.assert_array_equal(product, values.prod(axis=0))
    others = [np.delete(values, d, axis=0).prod(axis=0) for d in range(size)]
    np.testing.assert_array_equal(gradient, others)


def test_a_zero_factor_leaves_nothing_but_its_own_gradient():
    """With offset -1 at all knots of one coordinate its factor is 0: no mode is left, and the gradient is finite."""
    e = small(skip="none")
    offset = np.asarray(e.spline_offset).copy()
    offset[:, 2] = -1
    e = eqx.tree_at(lambda e: e.spline_offset, e, jnp.asarray(offset))

    @eqx.filter_jit
    def vectors_and_gradient(e):
        return e(jnp.arange(30)), eqx.filter_grad(lambda e: e(jnp.arange(30)).sum())(e)

    vectors, gradient = as_numpy(vectors_and_gradient(e))
    np.testing.assert_allclose(vectors, 0, atol=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient.spline_offset[:, 2]).max() > 0.1
    np.testing.assert_allclose(np.delete(gradient.spline_offset, 2, axis=1), 0, atol=1e-3)


def test_bfloat16_rounds_only_what_goes_in_and_out():
    e = small(dtype=jnp.bfloat16)
    vectors = lookup(e, jnp.arange(30))
    assert vectors.dtype == jnp.bfloat16
    expected = np.stack([transcription(e, token) for token in range(30)])
    # Half a unit in the last of 8 bits, and what float32 loses inside: sums in bfloat16 would miss this many times.
    allowed = 2**-8 * np.abs(expected) + 2e-5 * np.abs(expected).max()
    assert (np.abs(np.asarray(vectors, np.float64) - expected) <= allowed).all()


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        (dict(knots=2), "knots=2"),
        (dict(rank=0), "rank=0"),
        (dict(seed_size=0), "seed_size=0"),
        (dict(n_heads=0), "n_heads=0"),
        (dict(coordinates=0), "coordinates=0"),
        (dict(vocab_size=0), "vocab_size=0"),
    ],
)
def test_sizes_that_are_refused(sizes, named, getkey):
    sizes = dict(vocab_size=10, d_model=4) | sizes
    with pytest.raises(ValueError, match=named) as caught:
        LeviathanEmbedding(**sizes, key=getkey())
    assert "\n" not in str(caught.value)
