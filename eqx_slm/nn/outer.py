"""Sums over rows of outer products: the gradient of every matmul with respect to its matrix."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def outer(
    x: Float[Array, "*n c i"], y: Float[Array, "*n c o"], *, preferred_element_type: Any = None
) -> Float[Array, "*n i o"]:
    """sum_c x_ci y_co, of each of n.

    On a CPU by a transposed copy of x, which is the one to be small: XLA is slower there at matmuls whose left side is
    contracted over its rows, and without the barrier would fold the transposition back into the matmul.
    """
    left = jax.lax.optimization_barrier(x.mT) if jax.default_backend() == "cpu" else x.mT
    return jnp.matmul(left, y, preferred_element_type=preferred_element_type)
