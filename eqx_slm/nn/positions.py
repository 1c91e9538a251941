"""Where a token stands in its sequence: rotary angles (all or a fraction of a head), learned vectors, or nothing."""

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..checks import real, whole
from .init import normal
from .ops import inner_dtype

PositionKind = Literal["rotary", "learned", "none"]


def rotary_width(d_head: int, fraction: float) -> int:
    """How many of a head's channels are rotated: the even number nearest `fraction * d_head`, halves to even pairs.

    An odd head has one channel that has no partner and is never rotated.
    """
    return 2 * min(round(fraction * d_head / 2), d_head // 2)


def rotate(
    x: Float[Array, "t n h"], *, fraction: float = 1.0, base: float = 10_000.0, offset: int | Int[Array, ""] = 0
) -> Float[Array, "t n h"]:
    r"""Rotary position embedding on the first `fraction` of each head's channels.

    Channels $j$ and $j + w/2$ of the rotated width $w$ turn together by the angle $t\, b^{-2j/w}$ ("split halves", the
    layout of Llama and GPT-NeoX).

    **Arguments:**

    - `x`: queries or keys, `(tokens, heads, d_head)`.
    - `fraction`: share of each head that is rotated; 0 leaves `x` as it is.
    - `base`: the longest wavelength is about `base` times 2 pi tokens.
    - `offset`: position of the first token.

    **Returns:** an array of the same shape and dtype.

    From RoFormer (arXiv 2104.09864).
    """
    width = rotary_width(x.shape[-1], fraction)
    if width == 0:
        return x
    dtype = inner_dtype(x)
    # Angles in at least float32: at position 1,000 bfloat16 has steps of 4 radians.
    frequency = base ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angle = (jnp.arange(x.shape[0], dtype=jnp.int32) + offset).astype(dtype)[:, None] * frequency[None, :]
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    first, second = x[..., : width // 2].astype(dtype), x[..., width // 2 : width].astype(dtype)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., width:]], axis=-1)


class LearnedPositions(eqx.Module):
    """One learned vector a position, added to the token embedding."""

    table: Float[Array, "{self.context} {self.d_model}"]
    context: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, context: int, d_model: int, *, std: float = 0.02, key: PRNGKeyArray):
        """**Arguments:** `context`, the longest sequence in tokens; `d_model`; `std` of the initial values; `key`."""
        self.context = whole("context", context)
        self.d_model = whole("d_model", d_model)
        real("std", std)
        self.table = normal(key, "table", (self.context, self.d_model), std)

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        if x.shape[0] > self.context:
            raise ValueError(f"{x.shape[0]} tokens, but learned positions end at {self.context}: build them longer")
        return x + self.table[: x.shape[0]].astype(x.dtype)

    def at(self, x: Float[Array, "t {self.d_model}"], offset: Int[Array, ""]) -> Float[Array, "t {self.d_model}"]:
        """The call for tokens whose first stands at `offset`; those from `context` on become NaN, having no vector."""
        rows = self.table.at[offset + jnp.arange(x.shape[0], dtype=jnp.int32)].get(mode="fill", fill_value=jnp.nan)
        return x + rows.astype(x.dtype)
