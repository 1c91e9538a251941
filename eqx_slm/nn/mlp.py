"""The channel MLP: SwiGLU, GELU or ReLU."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..checks import check_whole_or_none, configured, one_of, whole
from .block import Channel
from .init import normal

Activation = Literal["swiglu", "gelu", "relu"]


@dataclass(frozen=True)
class MLPConfig:
    """What a channel MLP is made of.

    **Arguments:**

    - `d_ff`: the hidden width; None: `4 d_model`.
    - `activation`: "swiglu" (gated, three matrices), "gelu" (tanh form) or "relu" (two matrices).
    - `bias`: "all" gives every projection a bias, "none" none.
    """

    kind: Literal["mlp"] = "mlp"
    d_ff: int | None = None
    activation: Activation = "swiglu"
    bias: Literal["none", "all"] = "none"

    keeps: ClassVar[tuple[str, ...]] = ("d_ff", "activation", "bias")

    def __post_init__(self):
        check_whole_or_none(self, "d_ff", otherwise=", or None for 4 d_model")
        one_of("activation", self.activation, ("swiglu", "gelu", "relu"))
        one_of("bias", self.bias, ("none", "all"))

    @property
    def matrices(self) -> int:
        """Projections of the MLP."""
        return 3 if self.activation == "swiglu" else 2

    @property
    def branches(self) -> int:
        """One residual branch."""
        return 1

    def width(self, d_model: int) -> int:
        """The hidden width in numbers."""
        return 4 * whole("d_model", d_model) if self.d_ff is None else self.d_ff

    def parameters(self, d_model: int) -> int:
        """3 d f with a gate, 2 d f without, and the biases."""
        f = self.width(d_model)
        return self.matrices * d_model * f + ((self.matrices - 1) * f + d_model if self.bias == "all" else 0)

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token."""
        return 2 * self.matrices * d_model * self.width(d_model)

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the input, the projections, and what the nonlinearity makes on its way."""
        return d_model + (2 * self.matrices - 1) * self.width(d_model)

    def accumulated(self, d_model: int) -> int:
        """No gradient waits: every step updates."""
        return 0

    def build(self, d_model: int, *, output_scale: float = 1.0, key: PRNGKeyArray) -> "MLP":
        """The module; `output_scale` multiplies the start of `down`."""
        return MLP(d_model, self, output_scale=output_scale, key=key)


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
    config: MLPConfig = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("b_gate", "b_up", "b_down")

    def __init__(
        self,
        d_model: int,
        d_ff: int | MLPConfig | None = None,
        *,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `d_model`; the hidden width `d_ff`, or a whole `MLPConfig`; its other `fields` as keywords;
        `output_scale`, which multiplies the initial `down`; `key`.

        **Raises:** `ValueError` for a value out of its range.
        """
        d_model = whole("d_model", d_model)
        config = d_ff if isinstance(d_ff, MLPConfig) else None
        config = configured(MLPConfig, config, fields if config else {"d_ff": d_ff, **fields})
        f, gated, biased = config.width(d_model), config.activation == "swiglu", config.bias == "all"
        self.gate = normal(key, "gate", (d_model, f), d_model**-0.5) if gated else None
        self.up = normal(key, "up", (d_model, f), d_model**-0.5)
        self.down = normal(key, "down", (f, d_model), f**-0.5) * output_scale
        self.b_gate = jnp.zeros(f) if gated and biased else None
        self.b_up = jnp.zeros(f) if biased else None
        self.b_down = jnp.zeros(d_model) if biased else None
        self.d_model = d_model
        self.config = config

    @property
    def d_ff(self) -> int:
        """The hidden width."""
        return self.config.width(self.d_model)

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        hidden = _affine(x, self.up, self.b_up)
        # Two matmuls and not one over [gate, up]: so the leaves keep names and initial values of their own.
        if self.gate is not None:
            hidden = jax.nn.silu(_affine(x, self.gate, self.b_gate)) * hidden
        else:
            hidden = jax.nn.gelu(hidden) if self.config.activation == "gelu" else jax.nn.relu(hidden)
        return _affine(hidden, self.down, self.b_down)


def _affine(
    x: Float[Array, "t a"], weight: Float[Array, "a b"], bias: Float[Array, " b"] | None
) -> Float[Array, "t b"]:
    # The stream decides the precision: masters may be float32 where it is bfloat16.
    y = x @ weight.astype(x.dtype)
    return y if bias is None else y + bias.astype(x.dtype)[None]
