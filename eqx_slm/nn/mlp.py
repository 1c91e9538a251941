"""The channel MLP: SwiGLU, GELU or ReLU."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .block import Channel
from .initial import normal

Activation = Literal["swiglu", "gelu", "relu"]


@dataclass(frozen=True)
class MLPConfig:
    """Hidden width (None: 4 d_model), activation, biases."""

    kind: Literal["mlp"] = "mlp"
    d_ff: int | None = None
    activation: Activation = "swiglu"
    bias: Literal["none", "all"] = "none"

    keeps: ClassVar[tuple[str, ...]] = ("d_ff", "activation", "bias")

    @property
    def branches(self) -> int:
        """One residual branch."""
        return 1

    def width(self, d_model: int) -> int:
        """The hidden width in numbers."""
        width = 4 * d_model if self.d_ff is None else self.d_ff
        if width < 1:
            raise ValueError(f"d_ff={width}: it must be at least 1")
        return width

    def parameters(self, d_model: int) -> int:
        """3 D f with a gate, 2 D f without, and the biases."""
        f, matrices = self.width(d_model), 3 if self.activation == "swiglu" else 2
        return matrices * d_model * f + ((matrices - 1) * f + d_model if self.bias == "all" else 0)

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token."""
        return 2 * (3 if self.activation == "swiglu" else 2) * d_model * self.width(d_model)

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the input, the projections, and what they are turned into."""
        return d_model + (3 if self.activation == "swiglu" else 2) * self.width(d_model)

    def accumulated(self, d_model: int) -> int:
        """No gradient waits: every step updates."""
        return 0

    def build(self, d_model: int, *, output_scale: float = 1.0, key: PRNGKeyArray) -> "MLP":
        """The module; `output_scale` multiplies the start of `down`."""
        return MLP(
            d_model,
            self.width(d_model),
            activation=self.activation,
            bias=self.bias,
            output_scale=output_scale,
            key=key,
        )


class MLP(Channel):
    r"""$(\mathrm{SiLU}(x W_g) \odot x W_u) W_d$, or $a(x W_u) W_d$ with $a$ GELU (tanh form) or ReLU.

    SwiGLU from GLU Variants Improve Transformer (arXiv 2002.05202).
    """

    gate: Float[Array, "{self.d_model} {self.d_ff}"] | None
    up: Float[Array, "{self.d_model} {self.d_ff}"]
    down: Float[Array, "{self.d_ff} {self.d_model}"]
    b_gate: Float[Array, "{self.d_ff}"] | None
    b_up: Float[Array, "{self.d_ff}"] | None
    b_down: Float[Array, "{self.d_model}"] | None
    d_model: int = eqx.field(static=True)
    d_ff: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("b_gate", "b_up", "b_down")

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: Activation = "swiglu",
        bias: Literal["none", "all"] = "none",
        output_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:** `d_model`; hidden width `d_ff`; `activation`; `bias`; `output_scale` of `down`; `key`."""
        if activation not in ("swiglu", "gelu", "relu"):
            raise ValueError(f"activation={activation!r}: it is 'swiglu', 'gelu' or 'relu'")
        gated = activation == "swiglu"
        self.gate = normal(key, "gate", (d_model, d_ff), d_model**-0.5) if gated else None
        self.up = normal(key, "up", (d_model, d_ff), d_model**-0.5)
        self.down = normal(key, "down", (d_ff, d_model), d_ff**-0.5) * output_scale
        self.b_gate = jnp.zeros(d_ff) if gated and bias == "all" else None
        self.b_up = jnp.zeros(d_ff) if bias == "all" else None
        self.b_down = jnp.zeros(d_model) if bias == "all" else None
        self.d_model = d_model
        self.d_ff = d_ff
        self.activation = activation

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        hidden = _affine(x, self.up, self.b_up)
        if self.gate is not None:
            hidden = jax.nn.silu(_affine(x, self.gate, self.b_gate)) * hidden
        else:
            hidden = jax.nn.gelu(hidden) if self.activation == "gelu" else jax.nn.relu(hidden)
        return _affine(hidden, self.down, self.b_down)


def _affine(
    x: Float[Array, "t a"], weight: Float[Array, "a b"], bias: Float[Array, " b"] | None
) -> Float[Array, "t b"]:
    y = x @ weight.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)[None]
