"""Causal grouped-query attention with rotary positions, over all earlier tokens or a sliding window."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .block import Decoded, Mixer, check_state
from .dot_product import AttentionState, Prefix, appended, causal_attention, extended
from .initial import normal
from .norm import RMSNorm, ZeroCentredRMSNorm
from .positions import rotate

QKNorm = Literal["none", "rms", "zero-centred"]


@dataclass(frozen=True)
class HeadsConfig:
    """The fields of every softmax mixer, and what follows from them."""

    kind: str = "attention"
    n_heads: int = 4
    n_kv_heads: int | None = None
    d_head: int | None = None
    rotary_fraction: float = 1.0
    rotary_base: float = 10_000.0
    qk_norm: QKNorm = "none"
    bias: Literal["none", "all"] = "none"
    window: int | None = None

    keeps: ClassVar[tuple[str, ...]] = (
        "n_heads",
        "n_kv_heads",
        "d_head",
        "rotary_fraction",
        "rotary_base",
        "qk_norm",
        "bias",
        "window",
    )

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
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: a token sees itself at least; give 1 or more, or None for all")
        return self.n_heads, n_kv, d_head

    @property
    def d_model_multiple(self) -> int:
        """What `d_model` is a multiple of."""
        return self.n_heads if self.d_head is None else 1

    def parameters(self, d_model: int) -> int:
        """2 D H p + 2 D Hk p, 2 p for QK-norm, and the biases."""
        heads, kv, p = self.head_sizes(d_model)
        norm = 0 if self.qk_norm == "none" else 2 * p
        bias = heads * p + 2 * kv * p + d_model if self.bias == "all" else 0
        return 2 * d_model * (heads + kv) * p + norm + bias

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token: the projections, and scores and values of the tokens seen.

        Of T tokens those are T / 2 in the mean (causal, counted at half), of a window W they are W - W^2 / 2T.
        """
        heads, kv, p = self.head_sizes(d_model)
        window = self._seen(context)
        return 4 * d_model * (heads + kv) * p + 2 * heads * p * (2 * window * context - window**2) // context

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the input, q, k, v, the mixed values, and scores and weights of the keys compared."""
        heads, kv, p = self.head_sizes(d_model)
        return d_model + 2 * (heads + kv) * p + 2 * heads * min(context, 2 * self._seen(context))

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers that decoding one sequence keeps: a key and a value of every key/value head and token seen."""
        _, kv, p = self.head_sizes(d_model)
        return 2 * self._seen(context) * kv * p

    def check(self, d_model: int) -> None:
        """Raises `ValueError` where the heads do not fit `d_model`."""
        self.head_sizes(d_model)

    def _seen(self, context: int) -> int:
        return context if self.window is None else min(self.window, context)

    def _options(self, rotary: bool, output_scale: float) -> dict[str, Any]:
        """The module's arguments; `rotary=False` where positions come from elsewhere."""
        return dict(
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            d_head=self.d_head,
            rotary_fraction=self.rotary_fraction if rotary else 0.0,
            rotary_base=self.rotary_base,
            qk_norm=self.qk_norm,
            bias=self.bias,
            window=self.window,
            output_scale=output_scale,
        )


@dataclass(frozen=True)
class AttentionConfig(HeadsConfig):
    """Heads, key/value heads (None: as many), head width (None: d_model / n_heads), rotary share, QK-norm, biases.

    `window` is how many tokens a token sees, itself included (None: all before it).
    """

    kind: Literal["attention"] = "attention"

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> "Attention":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies w_o's start."""
        return Attention(d_model, **self._options(rotary, output_scale), key=key)


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
    window: int | None = eqx.field(static=True)
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
        qk_norm: QKNorm = "none",
        bias: Literal["none", "all"] = "none",
        window: int | None = None,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:** as in `AttentionConfig`; `output_scale` multiplies the initial `w_o`; `key`.

        **Raises:** `ValueError` where the heads do not fit `d_model` or each other.
        """
        config = HeadsConfig("", n_heads, n_kv_heads, d_head, rotary_fraction, rotary_base, qk_norm, bias, window)
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
        norm = {"none": lambda _: None, "rms": RMSNorm, "zero-centred": ZeroCentredRMSNorm}[qk_norm]
        self.q_norm = norm(p)
        self.k_norm = norm(p)
        self.d_model = d_model
        self.n_heads = heads
        self.n_kv_heads = kv
        self.d_head = p
        self.rotary_fraction = rotary_fraction
        self.rotary_base = rotary_base
        self.window = window

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        return self._out(x, causal_attention(*self._projected(x, 0), self.window))

    def start(self, context: int, dtype: Any = None) -> AttentionState:
        """An empty cache for `context` tokens, or for a window of them."""
        if context < 1:
            raise ValueError(f"context={context}: the cache needs room for at least one token")
        size = context if self.window is None else min(self.window, context)
        shape = (size, self.n_kv_heads, self.d_head)
        k, v = (jnp.zeros(shape, self.w_k.dtype if dtype is None else dtype) for _ in range(2))  # each can be donated
        return AttentionState(k, v, jnp.zeros((), jnp.int32))

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: PyTree) -> Decoded:
        """t more tokens, which see each other and what is cached; the oldest leave a full cache."""
        self._check(state)
        mixed, state = extended(*self._projected(x, state.length), state, self.window)
        return Decoded(self._out(x, mixed), state)

    def step(self, x: Float[Array, "{self.d_model}"], state: PyTree) -> Decoded:
        """One more token: its key and value go into the cache, and it sees what the cache holds."""
        self._check(state)
        mixed, state = appended(*self._projected(x[None], state.length), state)
        return Decoded(self._out(x[None], mixed)[0], state)

    def prefix(self, tokens: Float[Array, "s {self.d_model}"] | None, dtype: Any) -> Prefix | None:
        """Keys and values of tokens before the first, which every token is to see; None for none."""
        return None if tokens is None else Prefix(*self._projected(tokens.astype(dtype), 0)[1:])

    def _check(self, state: Any) -> None:
        check_state(state, AttentionState, self)
        if state.k.shape[1:] != (self.n_kv_heads, self.d_head):
            raise ValueError(
                f"the cache has heads of shape {state.k.shape[1:]}, this attention {(self.n_kv_heads, self.d_head)}: "
                "take the state from its own start()"
            )

    def _projected(self, x: Array, offset: int | Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Queries, keys and values of tokens from position `offset` on."""
        q_tnp = self._heads(x, self.w_q, self.b_q, self.q_norm)
        k_tkp = self._heads(x, self.w_k, self.b_k, self.k_norm)
        q_tnp = rotate(q_tnp, fraction=self.rotary_fraction, base=self.rotary_base, offset=offset)
        k_tkp = rotate(k_tkp, fraction=self.rotary_fraction, base=self.rotary_base, offset=offset)
        return q_tnp, k_tkp, self._heads(x, self.w_v, self.b_v, None)

    def _out(self, x: Float[Array, "t d"], mixed: Float[Array, "t n p"]) -> Float[Array, "t d"]:
        out = mixed.reshape(x.shape[0], self.n_heads * self.d_head) @ self.w_o.astype(x.dtype)
        return out if self.b_o is None else out + self.b_o.astype(x.dtype)[None]

    def _heads(self, x: Array, weight: Array, bias: Array | None, norm: RMSNorm | None) -> Float[Array, "t n p"]:
        y = x @ weight.astype(x.dtype)
        y = y if bias is None else y + bias.astype(x.dtype)[None]
        y = y.reshape(x.shape[0], weight.shape[1] // self.d_head, self.d_head)
        return y if norm is None else norm(y)
