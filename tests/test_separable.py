"""The generator's fast path against the module: chunks, tokens kept, products at zero, all heads at once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled

from eqx_slm import LeviathanEmbedding
from eqx_slm.nn import separable

VOCAB, WIDTH = 43, 5
IDS = np.random.default_rng(3).permutation(VOCAB)[:39].astype(np.int32)  # three chunks of 16, the last not full
CASES = {"plain": None, "a zero factor": -1.0, "a product that underflows": -1 + 1e-200}


def generator(spline):
    e = filled(lambda key: LeviathanEmbedding(VOCAB, WIDTH, seed_size=3, n_heads=2, knots=3, rank=2, key=key))
    e = jax.tree.map(lambda x: x.astype(np.float64) if eqx.is_inexact_array(x) or isinstance(x, np.ndarray) else x, e)
    if spline is None:
        return e
    # One coordinate of one mode of one head is the same at every knot: so are its spline, and the mode's products.
    offset = np.array(e.spline_offset)
    offset[1, 2, :, 0] = spline
    return eqx.tree_at(lambda e: e.spline_offset, e, offset)


def compare(e, count=IDS.size):
    params, static = eqx.partition(jax.tree.map(jnp.asarray, e), eqx.is_inexact_array)
    weights = jnp.asarray(
        np.random.default_rng(7).normal(size=(IDS.size, WIDTH)) * (np.arange(IDS.size) < count)[:, None]
    )
    forms = (lambda e: e.rows(jnp.asarray(IDS), jnp.int32(count)), lambda e: e(jnp.asarray(IDS)))

    @jax.jit
    def both(params):
        return [
            jax.value_and_grad(
                lambda p, f=f: (lambda y: ((y * weights).sum(), y[:count]))(f(eqx.combine(p, static))), has_aux=True
            )(params)
            for f in forms
        ]

    fast, plain = as_numpy(both(params))
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11 * max(np.abs(b).max(), 1e-9))
    return plain


@pytest.mark.parametrize("spline", CASES.values(), ids=CASES)
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("kept", [0, 16, IDS.size])
def test_equals_the_module(spline, at_once, kept, monkeypatch):
    monkeypatch.setattr(separable, "_at_once", lambda heads: at_once)
    monkeypatch.setattr(separable, "_kept", lambda n, heads: kept)
    with jax.enable_x64(True):
        e = generator(spline)
        (_, rows), gradient = compare(e)
        assert np.isfinite(rows).all()
        if spline is not None:  # the factor's own gradient is the product of the others, and not zero
            assert np.abs(gradient.spline_offset[1, 2, :, 0]).max() > 0


@pytest.mark.parametrize("count", [1, 15, 16, 17, 38])
def test_kept_tokens_may_be_more_or_fewer_than_wanted(count, monkeypatch):
    monkeypatch.setattr(separable, "_kept", lambda n, heads: 16)
    with jax.enable_x64(True):
        compare(generator(None), count)


def test_only_few_tokens_of_small_heads_are_kept():
    def kept(n, h, s, g, r):
        shapes = separable.Heads(*(jnp.zeros(x) for x in ((h, s, s), (h, s), (h, s), (h, s, g, r), (h, r, 1))))
        return separable._kept(n, shapes)

    assert kept(100, 2, 8, 4, 4) == 100
    assert kept(1024, 2, 8, 4, 4) == 464  # close to 45%, an odd multiple of 16
    assert kept(1024, 8, 64, 32, 64) == kept(32_768, 2, 8, 16, 64) == 0  # 2 ** 24 numbers and more


def test_the_way_out_is_taken_only_where_a_product_is_near_zero():
    phi = jnp.asarray(np.random.default_rng(0).normal(1, 0.3, (3, 2, 4)), jnp.float32)
    for factor, exact in ((1.0, True), (0.0, False), (1e-31, False)):
        modes = separable.product(phi.at[0].multiply(factor))
        size = jnp.abs(modes)
        assert bool(separable._all((size > separable.SMALLEST) & (size < separable.LARGEST))) == exact
