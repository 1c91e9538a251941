"""Gated attention: softmax attention whose heads are gated before they are projected back."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..checks import one_of
from .attention import Attention, HeadsConfig
from .init import normal
from .ops import inner_dtype

Gate = Literal["elementwise", "headwise"]


@dataclass(frozen=True)
class GatedAttentionConfig(HeadsConfig):
    """What gated attention is made of.

    **Arguments:** as in `AttentionConfig`, and

    - `gate`: "elementwise" gates every channel of every head by a number of its own, "headwise" a head by one.
    """

    kind: Literal["gated-attention"] = "gated-attention"
    gate: Gate = "elementwise"

    def __post_init__(self):
        super().__post_init__()
        one_of("gate", self.gate, ("elementwise", "headwise"))

    def gate_width(self, d_model: int) -> int:
        """Gates a token."""
        n, _, h = self.head_sizes(d_model)
        return n * h if self.gate == "elementwise" else n

    def parameters(self, d_model: int) -> int:
        """Attention's, and d n h for the gate, d n headwise."""
        return super().parameters(d_model) + d_model * self.gate_width(d_model)

    def flops(self, d_model: int, context: int) -> int:
        """Attention's forward matmul FLOPs a token, and the gate's projection."""
        return super().flops(d_model, context) + 2 * d_model * self.gate_width(d_model)

    def activations(self, d_model: int, context: int) -> int:
        """Attention's numbers kept a token, the gates, and what they turn the mixed values into."""
        n, _, h = self.head_sizes(d_model)
        return super().activations(d_model, context) + self.gate_width(d_model) + n * h

    def build(
        self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray
    ) -> "GatedAttention":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies w_o's start."""
        return GatedAttention(d_model, self.positioned(rotary), output_scale=output_scale, key=key)


class GatedAttention(Attention):
    r"""$\mathrm{concat}_n(Y_n \odot \sigma(X W_{\Gamma,n}))\, W_O$, with $Y_n$ the mixed values of head $n$.

    The gate comes from the input that the queries come from, has no bias, no positions and no cache; each head has its
    own, "elementwise" for every channel or "headwise" one number. It starts near 1/2: the branch at half strength.

    From Gated Attention for Large Language Models (arXiv 2505.06708): position G1, sigmoid, multiplicative.
    """

    w_gate: Float[Array, "{self.d_model} _"]
    no_decay: ClassVar[tuple[str, ...]] = Attention.no_decay
    config_type: ClassVar[type[HeadsConfig]] = GatedAttentionConfig

    def __init__(
        self,
        d_model: int,
        config: GatedAttentionConfig | None = None,
        *,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `d_model`; a `config`, or its `fields` as keywords; `output_scale`, which multiplies the
        initial `w_o`; `key`.

        **Raises:** `ValueError` as in `Attention`.
        """
        super().__init__(d_model, config, output_scale=output_scale, key=key, **fields)
        # Both published codes start the gate at 0.02 whatever the width: nearly 1/2 for every token.
        self.w_gate = normal(key, "w_gate", (self.d_model, self.config.gate_width(self.d_model)), 0.02)

    def output(self, x: Float[Array, "t d"], mixed: Float[Array, "t n h"]) -> Float[Array, "t d"]:
        """The heads' mixed values, gated by what `x` says, projected back."""
        # The product rounds once, from at least float32: in bfloat16 a gate near 1 has steps of 1/256.
        gate = jax.nn.sigmoid(jnp.matmul(x, self.w_gate.astype(x.dtype), preferred_element_type=inner_dtype(x)))
        gate_tnh = gate.reshape(x.shape[0], self.n_heads, gate.shape[1] // self.n_heads)  # h is 1 headwise
        return super().output(x, (mixed.astype(gate.dtype) * gate_tnh).astype(mixed.dtype))
