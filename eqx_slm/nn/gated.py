"""Gated attention: softmax attention whose heads are gated before they are projected back."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .attention import Attention, HeadsConfig
from .initial import inner_dtype, normal

Gate = Literal["elementwise", "headwise"]


@dataclass(frozen=True)
class GatedAttentionConfig(HeadsConfig):
    """As `AttentionConfig`; the gate has a number for every channel of every head, or ("headwise") one a head."""

    kind: Literal["gated-attention"] = "gated-attention"
    gate: Gate = "elementwise"

    def gate_width(self, d_model: int) -> int:
        """Gates a token."""
        heads, _, p = self.head_sizes(d_model)
        return heads * p if self.gate == "elementwise" else heads

    def parameters(self, d_model: int) -> int:
        """Attention's, and D H p for the gate, D H headwise."""
        return super().parameters(d_model) + d_model * self.gate_width(d_model)

    def flops(self, d_model: int, context: int) -> int:
        """Attention's forward matmul FLOPs a token, and the gate's projection."""
        return super().flops(d_model, context) + 2 * d_model * self.gate_width(d_model)

    def activations(self, d_model: int, context: int) -> int:
        """Attention's numbers kept a token, the gates, and what they turn the mixed values into."""
        heads, _, p = self.head_sizes(d_model)
        return super().activations(d_model, context) + self.gate_width(d_model) + heads * p

    def build(
        self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray
    ) -> "GatedAttention":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies w_o's start."""
        return GatedAttention(d_model, gate=self.gate, **self._options(rotary, output_scale), key=key)


class GatedAttention(Attention):
    r"""$\mathrm{concat}_h(Y_h \odot \sigma(X W_{\Gamma,h}))\, W_O$, with $Y_h$ the mixed values of head $h$.

    The gate comes from the input that the queries come from, has no bias, no positions and no cache; each head has its
    own, "elementwise" for every channel or "headwise" one number. It starts near 1/2: the branch at half strength.

    From Gated Attention for Large Language Models (arXiv 2505.06708): position G1, sigmoid, multiplicative.
    """

    w_gate: Float[Array, "{self.d_model} _"]
    no_decay: ClassVar[tuple[str, ...]] = Attention.no_decay

    def __init__(self, d_model: int, *, gate: Gate = "elementwise", key: PRNGKeyArray, **attention: Any):
        """**Arguments:** `gate`, "elementwise" or "headwise"; `key`; the others as in `Attention`."""
        if gate not in ("elementwise", "headwise"):
            raise ValueError(f"gate={gate!r}: it is 'elementwise' or 'headwise'")
        super().__init__(d_model, key=key, **attention)
        width = self.n_heads * (self.d_head if gate == "elementwise" else 1)
        self.w_gate = normal(key, "w_gate", (d_model, width), 0.02)

    def _out(self, x: Float[Array, "t d"], mixed: Float[Array, "t n p"]) -> Float[Array, "t d"]:
        gate = jax.nn.sigmoid(jnp.matmul(x, self.w_gate.astype(x.dtype), preferred_element_type=inner_dtype(x)))
        gate_tnp = gate.reshape(x.shape[0], self.n_heads, self.w_gate.shape[1] // self.n_heads)
        return super()._out(x, (mixed * gate_tnp).astype(mixed.dtype))
