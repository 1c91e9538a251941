"""The quadratic B-spline basis on [0, 1] with uniform knots, splines in it, and products that stay exact at zeros."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..errors import UserError


def bspline_basis(u: Float[Array, "*shape"], knots: int, *, axis: int = -1) -> Float[Array, "..."]:
    r"""Weights of a quadratic B-spline at every knot.

    With $d_g = |u - g / (\kappa - 1)| (\kappa - 1)$ the weight of knot $g$ is $0.75 - d^2$ for $d < 0.5$,
    $0.5 (1.5 - d)^2$ for $d < 1.5$ and 0 beyond, normalised to sum to one. At most three knots are active; the
    normalisation matters only within half a knot spacing of the two ends, where one of the three is missing.

    **Arguments:**

    - `u`: positions in [0, 1], any shape.
    - `knots`: number of knots $\kappa$, at least 3.
    - `axis`: where the knots' axis comes in the result.

    **Returns:** an array with one more axis, of size `knots`; non-negative, summing to one over that axis.

    **Raises:** `UserError` (a `ValueError`) for fewer than 3 knots.

    From Leviathan (arXiv 2601.22040).
    """
    check_knots(knots)
    place, low, high = places(u, knots)
    axis %= u.ndim + 1
    grid = jnp.arange(knots, dtype=u.dtype).reshape([knots if i == axis else 1 for i in range(u.ndim + 1)])
    distance = jnp.abs(jnp.expand_dims(place, axis) - grid)
    # Both pieces without a branch: 0.5 (1.5 - d)^2 overshoots the middle piece by 1.5 (0.5 - d)^2.
    basis = 0.5 * jnp.square(jnp.maximum(1.5 - distance, 0)) - 1.5 * jnp.square(jnp.maximum(0.5 - distance, 0))
    # One division a position and not one a knot.
    return basis * jnp.expand_dims(1 / missing_knot(low, high), axis)


def check_knots(knots: int) -> None:
    """Raises `UserError` unless a quadratic spline can have so many knots."""
    if isinstance(knots, bool) or not hasattr(knots, "__index__") or knots < 3:
        raise UserError(f"knots={knots!r}: a quadratic B-spline needs a whole number of knots, at least 3")


def places(u: Float[Array, "*n"], knots: int) -> tuple[Array, Array, Array]:
    """u in units of the knots' spacing, and how far it is within half a knot of the low end and of the high end."""
    place = u * (knots - 1)
    return place, jnp.maximum(0.5 - place, 0), jnp.maximum(place - (knots - 1.5), 0)


def missing_knot(low: Float[Array, "*n"], high: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """What the weights sum to without the knot beyond either end: known without adding them up."""
    return 1 - 0.5 * (jnp.square(low) + jnp.square(high))


def product(x: Float[Array, "s *n"]) -> Float[Array, "*n"]:
    """The product over the first axis, by halves.

    Exact at zeros and signs (no logarithm), in log2(s) steps; its automatic derivative multiplies the other half and
    never divides.
    """
    while x.shape[0] > 1:
        half, odd = divmod(x.shape[0], 2)
        rest = x[2 * half :]
        x = x[:half] * x[half : 2 * half]
        x = jnp.concatenate([x, rest]) if odd else x
    return x[0]
