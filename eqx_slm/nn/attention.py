"""Causal grouped-query attention with rotary positions."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .block import Mixer
from .initial import inner_dtype, normal
from .norm import RMSNorm
from .positions import rotate


@dataclass(frozen=True)
class AttentionConfig:
    """Heads, key/value heads (None: as many), head width (None: d_model / n_heads), rotary share, QK-norm, biases."""

    kind: Literal["attention"] = "attention"
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_head: int | None = None
    rotary_fraction: float = 1.0
    rotary_base: float = 10_000.0
    qk_norm: Literal["none", "rms"] = "none"
    bias: Literal["none", "all"] = "none"

    def head_sizes(self, d_model: int) -> tuple[int, int, int]:
        """(query heads, key/value heads, head width); raises `ValueError` where they do not fit `d_model`."""
        n_kv = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        if self.n_heads < 1 or n_kv < 1:
            raise ValueError(f"n_heads={self.n_heads}, n_kv_heads={n_kv}: both must be at least 1")
        if self.n_heads % n_kv:
            raise ValueError(f"n_heads={self.n_heads} is not divisible by n_kv_heads={n_kv}")
        if self.d_head is None and d_model % self.n_heads:
            step = self.n_heads * (2 if self.rotary_fraction == 1 else 1)  # heads that are turned have an even width
            lower = d_model // step * step
            nearest = f"{lower} or {lower + step}" if lower else f"{step}"
            raise ValueError(
                f"d_model={d_model} is not divisible by n_heads={self.n_heads}: take d_model {nearest}, or set d_head"
            )
        d_head = d_model // self.n_heads if self.d_head is None else self.d_head
        if d_head < 1:
            raise ValueError(f"d_head={d_head}: it must be at least 1")
        if not 0 <= self.rotary_fraction <= 1:
            raise ValueError(f"rotary_fraction={self.rotary_fraction}: it is a share of the head, from 0 to 1")
        if self.rotary_fraction == 1 and d_head % 2:
            raise ValueError(
                f"head width {d_head} is odd: rotary positions turn pairs of channels; "
                "take an even width, or a rotary_fraction below 1 (0 for none)"
            )
        return self.n_heads, n_kv, d_head

    def parameters(self, d_model: int) -> int:
        """2 D H p + 2 D Hk p, 2 p for QK-norm, and the biases."""
        heads, kv, p = self.head_sizes(d_model)
        norm = 2 * p if self.qk_norm == "rms" else 0
        bias = heads * p + 2 * kv * p + d_model if self.bias == "all" else 0
        return 2 * d_model * (heads + kv) * p + norm + bias

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token: the projections, and causal scores and values counted at half."""
        heads, kv, p = self.head_sizes(d_model)
        return 4 * d_model * (heads + kv) * p + 2 * context * heads * p

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the input, q, k, v, the mixed values, and scores and weights over the context."""
        heads, kv, p = self.head_sizes(d_model)
        return d_model + 2 * (heads + kv) * p + 2 * heads * context

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> "Attention":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies w_o's start."""
        self.head_sizes(d_model)
        return Attention(
            d_model,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
            rotary_fraction=self.rotary_fraction if rotary else 0.0,
            rotary_base=self.rotary_base,
            qk_norm=self.qk_norm,
            bias=self.bias,
            output_scale=output_scale,
            key=key,
        )


class Attention(Mixer):
    r"""$\mathrm{softmax}(Q K^T / \sqrt{p} + \mathrm{mask}) V$ a head; a key/value head serves a group of query heads.

    Scores and softmax are in at least float32. From Attention Is All You Need (arXiv 1706.03762), grouped queries
    (arXiv 2305.13245), rotary positions (arXiv 2104.09864), QK-norm (arXiv 2302.05442).
    """

    w_q: Float[Array, "{self.d_model} _"]
    w_k: Float[Array, "{self.d_model} _"]
    w_v: Float[Array, "{self.d_model} _"]
    w_o: Float[Array, "_ {self.d_model}"]
    b_q: Float[Array, " _"] | None
    b_k: Float[Array, " _"] | None
    b_v: Float[Array, " _"] | None
    b_o: Float[Array, " _"] | None
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    d_model: int = eqx.field(static=True)
    n_heads: int = eqx.field(static=True)
    n_kv_heads: int = eqx.field(static=True)
    d_head: int = eqx.field(static=True)
    rotary_fraction: float = eqx.field(static=True)
    rotary_base: float = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("b_q", "b_k", "b_v", "b_o")

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        rotary_fraction: float = 1.0,
        rotary_base: float = 10_000.0,
        qk_norm: Literal["none", "rms"] = "none",
        bias: Literal["none", "all"] = "none",
        output_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:** as in `AttentionConfig`; `output_scale` multiplies the initial `w_o`; `key`.

        **Raises:** `ValueError` where the heads do not fit `d_model` or each other.
        """
        config = AttentionConfig("attention", n_heads, n_kv_heads, d_head, rotary_fraction, rotary_base, qk_norm, bias)
        heads, kv, p = config.head_sizes(d_model)
        std = d_model**-0.5
        self.w_q = normal(key, "w_q", (d_model, heads * p), std)
        self.w_k = normal(key, "w_k", (d_model, kv * p), std)
        self.w_v = normal(key, "w_v", (d_model, kv * p), std)
        self.w_o = normal(key, "w_o", (heads * p, d_model), (heads * p) ** -0.5) * output_scale
        biased = bias == "all"
        self.b_q = jnp.zeros(heads * p) if biased else None
        self.b_k = jnp.zeros(kv * p) if biased else None
        self.b_v = jnp.zeros(kv * p) if biased else None
        self.b_o = jnp.zeros(d_model) if biased else None
        self.q_norm = RMSNorm(p) if qk_norm == "rms" else None
        self.k_norm = RMSNorm(p) if qk_norm == "rms" else None
        self.d_model = d_model
        self.n_heads = heads
        self.n_kv_heads = kv
        self.d_head = p
        self.rotary_fraction = rotary_fraction
        self.rotary_base = rotary_base

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        q_tnp = self._heads(x, self.w_q, self.b_q, self.q_norm)
        k_tkp = self._heads(x, self.w_k, self.b_k, self.k_norm)
        q_tnp = rotate(q_tnp, fraction=self.rotary_fraction, base=self.rotary_base)
        k_tkp = rotate(k_tkp, fraction=self.rotary_fraction, base=self.rotary_base)
        mixed = causal_attention(q_tnp, k_tkp, self._heads(x, self.w_v, self.b_v, None))
        out = mixed.reshape(x.shape[0], -1) @ self.w_o.astype(x.dtype)
        return out if self.b_o is None else out + self.b_o.astype(x.dtype)[None]

    def _heads(self, x: Array, weight: Array, bias: Array | None, norm: RMSNorm | None) -> Float[Array, "t n p"]:
        y = x @ weight.astype(x.dtype)
        y = y if bias is None else y + bias.astype(x.dtype)[None]
        y = y.reshape(x.shape[0], -1, self.d_head)
        return y if norm is None else norm(y)


def causal_attention(
    q: Float[Array, "t n p"], k: Float[Array, "t kv p"], v: Float[Array, "t kv p"]
) -> Float[Array, "t n p"]:
    """Scaled dot-product attention in which a token sees itself and what came before; n is a multiple of kv."""
    t, n, p = q.shape
    kv = k.shape[1]
    wide = inner_dtype(q)
    # Heads lead, so that every matmul is a plain batched one; a group of query heads shares one.
    q_knp = (q * (1 / math.sqrt(p))).reshape(t, kv, n // kv, p).transpose(1, 2, 0, 3).reshape(kv, -1, p)
    scores = jnp.einsum("knp,ksp->kns", q_knp, k.transpose(1, 0, 2), preferred_element_type=wide)
    scores_kgts = scores.reshape(kv, n // kv, t, t)
    causal = jnp.tril(jnp.ones((t, t), bool))[None, None]
    scores_kgts = jnp.where(causal, scores_kgts, jnp.finfo(wide).min)
    weights = jnp.exp(scores_kgts - jax.lax.stop_gradient(scores_kgts.max(axis=-1, keepdims=True)))
    # The softmax's division comes after the values are mixed: it is then over p numbers a row instead of t.
    flat = weights.reshape(kv, -1, t).astype(v.dtype)
    mixed = jnp.einsum("kns,ksp->knp", flat, v.transpose(1, 0, 2), preferred_element_type=wide)
    mixed = (mixed / weights.sum(axis=-1).reshape(kv, -1, 1)).astype(v.dtype)
    return mixed.reshape(n, t, p).transpose(1, 0, 2)
