"""The spline basis: the paper's formula, at most three knots, and derivatives that exist up to the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqx_slm import bspline_basis

KNOTS = (3, 4, 16, 33)
basis_of = jax.jit(bspline_basis, static_argnums=1)


def formula(u, knots):
    """Weights as the paper writes them, piece by piece: `u` of shape (n,), the result (n, knots)."""
    distance = np.abs(u[:, None] - np.linspace(0, 1, knots)) * (knots - 1)
    near = 0.75 - distance**2
    far = 0.5 * (1.5 - distance) ** 2
    weights = np.where(distance < 0.5, near, np.where(distance < 1.5, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


@st.composite
def points(draw):
    """(knots, 12 positions in [0, 1]): the ends, positions at and half-way between knots, and any others."""
    knots = draw(st.sampled_from(KNOTS))
    joints = st.integers(0, 2 * (knots - 1)).map(lambda j: j / (2 * (knots - 1)))
    anywhere = st.one_of(joints, st.floats(0, 1, allow_subnormal=False))
    return knots, np.array([0.0, 1.0, *draw(st.lists(anywhere, min_size=10, max_size=10))])


@given(points())
def test_equals_the_published_formula(case):
    knots, u = case
    with jax.enable_x64(True):
        basis = basis_of(jnp.asarray(u), knots)
        assert basis.dtype == np.float64
    np.testing.assert_allclose(basis, formula(u, knots), rtol=1e-12, atol=1e-13)


@given(points())
def test_float32_partition_of_unity_over_at_most_three_knots(case):
    knots, u = case
    basis = np.asarray(basis_of(jnp.asarray(u.astype(np.float32)), knots))
    assert basis.dtype == np.float32
    assert (basis >= 0).all()
    assert ((basis > 0).sum(axis=-1) <= 3).all()
    np.testing.assert_allclose(basis.sum(axis=-1), 1, rtol=3e-7)
    # Away from the ends the pieces sum to one by themselves; at them, half a knot spacing deep, one is missing.
    np.testing.assert_allclose(basis, formula(u, knots), atol=3e-6)


def test_by_hand():
    # Three knots at 0, 1/2, 1. On the middle one: 1/8, 3/4, 1/8. At the end 3/4 and 1/8 of a sum of 7/8.
    basis = basis_of(jnp.array([0.5, 0.0, 0.25]), 3)
    np.testing.assert_allclose(basis, [[1 / 8, 3 / 4, 1 / 8], [6 / 7, 1 / 7, 0], [1 / 2, 1 / 2, 0]], rtol=1e-6)


def test_any_shape():
    u = np.linspace(0, 1, 6, dtype=np.float32)
    basis = np.asarray(basis_of(jnp.asarray(u), 4))
    np.testing.assert_allclose(basis_of(jnp.asarray(u.reshape(2, 3)), 4), basis.reshape(2, 3, 4), rtol=1e-6)
    np.testing.assert_allclose(basis_of(jnp.asarray(u[1]), 4), basis[1], rtol=1e-6)


@pytest.mark.parametrize("knots", [2, 1, 0, -4])
def test_fewer_than_three_knots_are_refused(knots):
    with pytest.raises(ValueError, match=f"knots={knots}.*at least 3"):
        bspline_basis(jnp.zeros(1), knots)


@pytest.mark.parametrize("knots", [3, 16])
def test_derivative(knots):
    # The ends and every joint of the pieces (the curve is C1 there, so both sides agree), and points between.
    u = np.linspace(0, 1, 4 * (knots - 1) + 1)
    with jax.enable_x64(True):
        both = jax.jit(
            lambda u: [jax.vmap(jac(lambda v: bspline_basis(v, knots)))(u) for jac in (jax.jacrev, jax.jacfwd)]
        )
        reverse, forward = map(np.asarray, both(jnp.asarray(u)))
    assert np.isfinite(reverse).all()
    np.testing.assert_allclose(reverse, forward, atol=1e-12)
    step = 1e-6
    slope = (formula(u[1:-1] + step, knots) - formula(u[1:-1] - step, knots)) / (2 * step)
    np.testing.assert_allclose(reverse[1:-1], slope, atol=2e-6 * (knots - 1) ** 2)
    assert np.abs(reverse).max() > 1  # it is not all zero
