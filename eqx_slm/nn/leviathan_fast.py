"""The product of splines with a gradient by hand: the part of the generator in which nearly all of its time goes.

JAX's own gradient of the same lines takes 2.6 times the time on a CPU (see experiments/LOG.md). Three things make
the difference: tokens are the last axis of every array, so that loops run along it and no matmul needs a transposed
copy; a factor's gradient divides the product by that factor, where JAX multiplies the others; and the slope of a
quadratic spline is a difference of hats, a third of the work of the derivative of its pieces.

Axes: s seed size, q knots, r rank, t tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .spline import bspline_basis, missing_knot, places, product

# A product all of whose parts lie within these bounds has lost no factor to underflow: its gradient may divide.
SMALLEST, LARGEST = 1e-30, 1e30


def spline_product(u: Float[Array, "s t"], spline: Float[Array, "s q r"]) -> Float[Array, "r t"]:
    r"""$\prod_d \sum_g B_g(u_d) S_{dgr}$ for every token and mode: the plain form, in forward and reverse mode."""
    return product(_factors(u, spline))


def _factors(u: Float[Array, "s t"], spline: Float[Array, "s q r"]) -> Float[Array, "s r t"]:
    return jnp.einsum("sqr,sqt->srt", spline, bspline_basis(u, spline.shape[1], axis=1))


@jax.custom_vjp
def fast_spline_product(u: Float[Array, "s t"], spline: Float[Array, "s q r"]) -> Float[Array, "r t"]:
    """`spline_product`, faster. Reverse mode only."""
    return _forward(u, spline)[0]


def _forward(u: Array, spline: Array) -> tuple[Array, Any]:
    """Keeps the factors and their product, but not the basis: that is as large and cheaper made again."""
    # XLA's matmul of a transposed left side takes 10 times as long; the barrier keeps it from merging the two.
    rows_srq = jax.lax.optimization_barrier(spline.transpose(0, 2, 1))
    factors = jnp.einsum("srq,sqt->srt", rows_srq, bspline_basis(u, spline.shape[1], axis=1))
    modes = product(factors)
    return modes, (u, spline, factors, modes)


def _backward(residuals: Any, grad_modes: Float[Array, "r t"]) -> tuple[Float[Array, "s t"], Float[Array, "s q r"]]:
    u, spline, factors, modes = residuals
    knots = spline.shape[1]
    grad_factors = _factors_gradient(factors, modes, grad_modes)
    grad_spline = jnp.einsum("sqt,srt->sqr", bspline_basis(u, knots, axis=1), grad_factors)
    # The slope of knot g's piece is hat g - 1/2 less hat g + 1/2: a sum by parts leaves one hat a gap between knots.
    gaps_sgr = jnp.diff(spline, axis=1, prepend=0, append=0)
    grad_gaps = jnp.einsum("sgr,srt->sgt", gaps_sgr, grad_factors)
    place, low, high = places(u, knots)

    def add_gap(gap: Array | int, slope: Array | float) -> Array:
        grad = jax.lax.dynamic_index_in_dim(grad_gaps, gap, axis=1, keepdims=False)
        hat = jnp.maximum(1 - jnp.abs(place - (jnp.asarray(gap, place.dtype) - 0.5)), 0)
        return slope + grad * hat

    # A loop on a CPU, as fast there as its steps written out and shorter to read for XLA; a sum over an axis takes six
    # times as long. An accelerator, which would start a kernel a step, has them written out.
    unroll = 1 if jax.default_backend() == "cpu" else knots
    slope = jax.lax.fori_loop(1, knots + 1, add_gap, add_gap(0, 0.0), unroll=unroll)
    # Near an end the basis is divided by what its weights sum to. That divides every factor, so its slope multiplies
    # sum_r grad_factor * factor, which is sum_r grad_mode * mode, the same for all coordinates. The division comes
    # last: what ends cheaply XLA computes again for each of its uses.
    through_sum = (grad_modes * modes).sum(axis=0, keepdims=True)
    return (knots - 1) * (slope + through_sum * (high - low)) / missing_knot(low, high), grad_spline


fast_spline_product.defvjp(_forward, _backward)


def _factors_gradient(
    factors: Float[Array, "s r t"], modes: Float[Array, "r t"], grad_modes: Float[Array, "r t"]
) -> Float[Array, "s r t"]:
    """The product of the other factors, times the gradient: by a division where no part of any product is near zero or
    infinity, else (a factor of zero, or hundreds of small ones) as the module does: finite wherever that is, which
    products from both ends are not."""
    return jax.lax.cond(
        divisible(factors, modes),
        lambda: modes[None] / factors * grad_modes[None],
        lambda: jax.vjp(product, factors)[1](grad_modes)[0],
    )


def divisible(factors: Float[Array, "s r t"], modes: Float[Array, "r t"]) -> Bool[Array, ""]:
    """Whether no product of any subset of the factors leaves the bounds.

    The least of them is that of all factors below one; the largest is the product of all divided by it.
    """
    least = product(jnp.minimum(jnp.abs(factors), 1))
    return _all((least > SMALLEST) & (jnp.abs(modes) < LARGEST * least))


@jax.custom_batching.custom_vmap
def _all(x: Bool[Array, "*n"]) -> Bool[Array, ""]:
    """`all`, over a `vmap`'s axis too: the branch it decides on is then taken once and not computed both ways."""
    return jnp.all(x)


@_all.def_vmap
def _all_batched(size: int, batched: list[bool], x: Bool[Array, "*n"]) -> tuple[Bool[Array, ""], bool]:
    return _all(x), False
