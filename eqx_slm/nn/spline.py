"""The quadratic B-spline basis on [0, 1] with uniform knots."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def bspline_basis(u: Float[Array, "*shape"], knots: int) -> Float[Array, "*shape {knots}"]:
    r"""Weights of a quadratic B-spline at every knot.

    With $d_g = |u - g / (\kappa - 1)| (\kappa - 1)$ the weight of knot $g$ is $0.75 - d^2$ for $d < 0.5$,
    $0.5 (1.5 - d)^2$ for $d < 1.5$ and 0 beyond, normalised to sum to one. At most three knots are active; the
    normalisation matters only within half a knot spacing of the two ends, where one of the three is missing.

    **Arguments:**

    - `u`: positions in [0, 1], any shape.
    - `knots`: number of knots $\kappa$, at least 3.

    **Returns:** an array with one more axis, of size `knots`; non-negative, summing to one over that axis.

    **Raises:** `ValueError` for fewer than 3 knots.

    From Leviathan (arXiv 2601.22040).
    """
    if knots < 3:
        raise ValueError(f"knots={knots}: a quadratic B-spline needs at least 3 knots")
    place = u * (knots - 1)
    distance = jnp.abs(place[..., None] - jnp.arange(knots, dtype=u.dtype).reshape((1,) * u.ndim + (-1,)))
    # Both pieces without a branch: 0.5 (1.5 - d)^2 overshoots the middle piece by 1.5 (0.5 - d)^2.
    basis = 0.5 * jnp.square(jnp.maximum(1.5 - distance, 0)) - 1.5 * jnp.square(jnp.maximum(0.5 - distance, 0))
    # The weights sum to one but for the knot that is missing beyond either end: known without adding them up.
    beyond = jnp.square(jnp.maximum(0.5 - place, 0)) + jnp.square(jnp.maximum(place - (knots - 1.5), 0))
    return basis / (1 - 0.5 * beyond)[..., None]
