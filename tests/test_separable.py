"""The generator's fast path against the module: several chunks, products at zero, all heads at once, under vmap."""

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


def compare(e):
    params, static = eqx.partition(jax.tree.map(jnp.asarray, e), eqx.is_inexact_array)
    weights = jnp.asarray(np.random.default_rng(7).normal(size=(IDS.size, WIDTH)))
    forms = (lambda e: e.rows(jnp.asarray(IDS), jnp.int32(IDS.size)), lambda e: e(jnp.asarray(IDS)))

    @jax.jit
    def both(params):
        return [
            jax.value_and_grad(
                lambda p, f=f: (lambda y: ((y * weights).sum(), y))(f(eqx.combine(p, static))), has_aux=True
            )(params)
            for f in forms
        ]

    fast, plain = as_numpy(both(params))
    for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11 * max(np.abs(b).max(), 1e-9))
    return plain


@pytest.mark.parametrize("spline", CASES.values(), ids=CASES)
@pytest.mark.parametrize("at_once", [1, 2])
def test_equals_the_module(spline, at_once, monkeypatch):
    monkeypatch.setattr(separable, "_at_once", lambda heads: at_once)
    with jax.enable_x64(True):
        e = generator(spline)
        (_, rows), gradient = compare(e)
        assert np.isfinite(rows).all()
        if spline is not None:  # the factor's own gradient is the product of the others, and not zero
            assert np.abs(gradient.spline_offset[1, 2, :, 0]).max() > 0


def test_the_way_out_is_taken_only_where_a_product_is_near_zero():
    phi = jnp.asarray(np.random.default_rng(0).normal(1, 0.3, (3, 2, 4)), jnp.float32)
    for factor, exact in ((1.0, True), (0.0, False), (1e-31, False)):
        modes = separable.product(phi.at[0].multiply(factor))
        size = jnp.abs(modes)
        assert bool(separable._all((size > separable.SMALLEST) & (size < separable.LARGEST))) == exact
