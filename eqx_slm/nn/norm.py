"""RMSNorm (its weight around one or around zero) and LayerNorm over the last axis."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..checks import one_of, real, whole
from .ops import inner_dtype, standardize

NormKind = Literal["rms", "layer", "zero-centred"]


class RMSNorm(eqx.Module):
    r"""$x \gamma / \sqrt{\mathrm{mean}(x^2) + \epsilon}$ over the last axis, the mean in at least float32.

    From Root Mean Square Layer Normalization (arXiv 1910.07467).
    """

    weight: Float[Array, "{self.size}"]
    size: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, size: int, *, eps: float = 1e-6):
        """**Arguments:** `size`, width of the last axis; `eps`, added to the mean square."""
        self.size = whole("size", size)
        self.weight = jnp.ones(self.size)
        self.eps = eps
        real("eps", eps)

    def __call__(self, x: Float[Array, "*t {self.size}"]) -> Float[Array, "*t {self.size}"]:
        # A mean of squares in bfloat16 would be off by up to 0.4%; the weight is applied in the stream's own precision,
        # as in Llama.
        wide = x.astype(inner_dtype(x))
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype) * self.weight.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class ZeroCentredRMSNorm(RMSNorm):
    r"""RMSNorm whose weight is kept as its offset from one, $x (1 + \gamma) / \sqrt{\mathrm{mean}(x^2) + \epsilon}$.

    The offset starts at zero and is decayed towards it, as in Qwen3-Next and Gemma.
    """

    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, size: int, *, eps: float = 1e-6):
        """**Arguments:** `size`, width of the last axis; `eps`, added to the mean square."""
        super().__init__(size, eps=eps)
        self.weight = jnp.zeros(self.size)

    def __call__(self, x: Float[Array, "*t {self.size}"]) -> Float[Array, "*t {self.size}"]:
        wide = x.astype(inner_dtype(x))
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        # 1 + weight in the wide precision: an offset below 1/256 would vanish beside 1 in bfloat16.
        weight = (1 + self.weight.astype(wide.dtype)).reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * scale * weight).astype(x.dtype)


class LayerNorm(eqx.Module):
    r"""$\gamma (x - \mathrm{mean}) / \sqrt{\mathrm{var} + \epsilon} + \beta$ over the last axis, in at least float32.

    From Layer Normalization (arXiv 1607.06450).
    """

    weight: Float[Array, "{self.size}"]
    bias: Float[Array, "{self.size}"]
    size: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, size: int, *, eps: float = 1e-5):
        """**Arguments:** `size`, width of the last axis; `eps`, added to the variance."""
        self.size = whole("size", size)
        self.weight = jnp.ones(self.size)
        self.bias = jnp.zeros(self.size)
        self.eps = eps
        real("eps", eps)

    def __call__(self, x: Float[Array, "*t {self.size}"]) -> Float[Array, "*t {self.size}"]:
        lead = (1,) * (x.ndim - 1) + (-1,)
        unit = standardize(x.astype(inner_dtype(x)), self.eps).astype(x.dtype)
        return unit * self.weight.astype(x.dtype).reshape(lead) + self.bias.astype(x.dtype).reshape(lead)


def make_norm(kind: NormKind, size: int, eps: float | None = None) -> RMSNorm | LayerNorm:
    """The norm a config names; without `eps` its kind's own, 1e-6 of RMSNorm and 1e-5 of LayerNorm."""
    kinds = {"rms": RMSNorm, "layer": LayerNorm, "zero-centred": ZeroCentredRMSNorm}
    one_of("norm", kind, tuple(kinds))
    return kinds[kind](size) if eps is None else kinds[kind](size, eps=eps)


def norm_parameters(kind: NormKind, size: int) -> int:
    """Parameters of one norm: `size`, twice that with a bias."""
    return 2 * size if kind == "layer" else size
