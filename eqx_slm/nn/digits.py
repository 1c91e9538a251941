"""Token ids as digits in base b: exact integers, most significant digit first."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer

from ..checks import whole
from ..errors import UserError


def coordinate_base(vocab_size: int, k: int) -> int:
    """The smallest b with `b**k >= vocab_size`: k digits in base b tell all the ids apart.

    In integers throughout: a floating-point root is wrong for perfect powers.

    **Arguments:**

    - `vocab_size`: number of ids, at least 1.
    - `k`: number of digits, at least 1.

    **Returns:** b, at least 1 (one id needs no digit).

    **Raises:** `UserError` (a `ValueError`) for what is no whole number of at least 1.
    """
    vocab_size, k = whole("vocab_size", vocab_size), whole("k", k)
    # Bisection between a base that is too small and one that is not, in Python's integers: no size overflows them.
    small, enough = 0, 1 << -(-vocab_size.bit_length() // k)
    while enough - small > 1:
        middle = (small + enough) // 2
        small, enough = (small, middle) if middle**k >= vocab_size else (middle, enough)
    return enough


def to_coordinates(
    ids: Integer[np.ndarray | Array, "*n"] | np.integer | int, base: int, k: int
) -> Int[np.ndarray | Array, "*n k"]:
    r"""The k digits of each id in base b, most significant first: $i = \sum_r i_r b^{k - 1 - r}$.

    Exact in the dtype of `ids`, with no power of the base: int32 serves every vocabulary below $2^{31}$.

    **Arguments:**

    - `ids`: integers in [0, b^k), of any shape. Only NumPy and Python integers are checked for the range.
    - `base`: b, at least 1; for a whole vocabulary `coordinate_base(vocab_size, k)`.
    - `k`: number of digits, at least 1.

    **Returns:** digits in [0, b): a JAX array for a JAX array, else a NumPy array; types under 32 bits are widened.

    **Raises:** `UserError` (a `ValueError`) for a base or k below 1, and for ids that are out of range.
    """
    base, k = whole("base", base), whole("k", k)
    rest = _widened(ids)
    if isinstance(rest, np.ndarray) and rest.size and not (0 <= rest.min() and int(rest.max()) < base**k):
        raise UserError(f"ids from {rest.min()} to {rest.max()}: {k} digits in base {base} hold 0 to {base**k - 1}")
    digits = []
    for _ in range(k):
        digits.append(rest % base)
        rest = rest // base
    return _xp(rest).stack(digits[::-1], axis=-1)


def from_coordinates(digits: Integer[np.ndarray | Array, "*n k"], base: int) -> Int[np.ndarray | Array, "*n"]:
    r"""The ids that have these digits, $\sum_r i_r b^{k - 1 - r}$: the inverse of `to_coordinates`.

    By Horner's rule, so that no intermediate value exceeds the id itself.

    **Arguments:**

    - `digits`: integers in [0, b), most significant first along the last axis.
    - `base`: b.

    **Returns:** ids, of the same kind of array.

    **Raises:** `UserError` (a `ValueError`) for a base below 1.
    """
    base = whole("base", base)
    digits = _widened(digits)
    ids = _xp(digits).zeros_like(digits[..., 0])
    for r in range(digits.shape[-1]):
        ids = ids * base + digits[..., r]
    return ids if isinstance(ids, jax.Array) else np.asarray(ids)  # NumPy turns results of no axes into scalars


def _widened(x: Any) -> Any:
    """An array whose integers are signed and at least 32 bits wide, so that no base overflows them."""
    if isinstance(x, jax.Array):
        return x if jnp.iinfo(x.dtype).bits >= 32 else x.astype(jnp.int32)
    x = np.asarray(x)
    return x if x.dtype in (np.int32, np.int64) else x.astype(np.int64 if x.dtype.itemsize >= 4 else np.int32)


def _xp(x: Any) -> Any:
    """The module whose arrays these are."""
    return jnp if isinstance(x, jax.Array) else np
