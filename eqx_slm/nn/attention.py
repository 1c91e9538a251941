"""Causal grouped-query attention with rotary positions, over all earlier tokens or a sliding window."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..checks import (
    check_divides,
    check_whole,
    check_whole_or_none,
    configured,
    one_of,
    one_sequence,
    real,
    share,
    whole,
)
from .block import Decoded, Mixer, check_state
from .dot_product import AttentionState, Prefix, appended, causal_attention, extended
from .init import normal
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

    def __post_init__(self):
        check_whole(self, "n_heads")
        check_whole_or_none(self, "n_kv_heads", "d_head")
        check_whole_or_none(self, "window", otherwise=" (a token sees itself), or None for all")
        share("rotary_fraction", self.rotary_fraction, "the head")
        real("rotary_base", self.rotary_base, positive=True)
        one_of("qk_norm", self.qk_norm, ("none", "rms", "zero-centred"))
        one_of("bias", self.bias, ("none", "all"))

    def head_sizes(self, d_model: int) -> tuple[int, int, int]:
        """(query heads, key/value heads, head width); raises `ValueError` where they do not fit `d_model`."""
        d_model = whole("d_model", d_model)
        n_kv = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        if self.n_heads % n_kv:
            raise ValueError(f"n_heads={self.n_heads} is not divisible by n_kv_heads={n_kv}")
        if self.d_head is None and d_model % self.n_heads:
            step = self.n_heads * (2 if self.rotary_fraction == 1 else 1)  # heads that are turned have an even width
            check_divides(d_model, step, f"divisible by n_heads={self.n_heads}", ", or set d_head")
        d_head = d_model // self.n_heads if self.d_head is None else self.d_head
        if self.rotary_fraction == 1 and d_head % 2:
            raise ValueError(
                f"head width {d_head} is odd: rotary positions turn pairs of channels; "
                "take an even width, or a rotary_fraction below 1 (0 for none)"
            )
        return self.n_heads, n_kv, d_head

    @property
    def d_model_multiple(self) -> int:
        """What `d_model` is a multiple of."""
        return self.n_heads if self.d_head is None else 1

    def parameters(self, d_model: int) -> int:
        """2 d n h + 2 d g h for n query and g key/value heads of width h, 2 h for QK-norm, and the biases."""
        n, g, h = self.head_sizes(d_model)
        norm = 0 if self.qk_norm == "none" else 2 * h
        bias = n * h + 2 * g * h + d_model if self.bias == "all" else 0
        return 2 * d_model * (n + g) * h + norm + bias

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token: the projections, and scores and values of the tokens seen.

        Of T tokens those are T / 2 in the mean (causal, counted at half), of a window W they are W - W^2 / 2T.
        """
        n, g, h = self.head_sizes(d_model)
        window = self._seen(context)
        return 4 * d_model * (n + g) * h + 2 * n * h * (2 * window * context - window**2) // context

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the input, q, k, v, the mixed values, and scores and weights of the keys compared."""
        n, g, h = self.head_sizes(d_model)
        return d_model + 2 * (n + g) * h + 2 * n * min(context, 2 * self._seen(context))

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers that decoding one sequence keeps: a key and a value of every key/value head and token seen."""
        _, g, h = self.head_sizes(d_model)
        return 2 * self._seen(context) * g * h

    def check(self, d_model: int) -> None:
        """Raises `ValueError` where the heads do not fit `d_model`."""
        self.head_sizes(d_model)

    def positioned(self, rotary: bool) -> Any:
        """The config itself, or, where positions come from elsewhere, with heads that are not turned."""
        return self if rotary else dataclasses.replace(self, rotary_fraction=0.0)

    def _seen(self, context: int) -> int:
        return context if self.window is None else min(self.window, context)


@dataclass(frozen=True)
class AttentionConfig(HeadsConfig):
    """What attention is made of.

    **Arguments:**

    - `n_heads`: query heads.
    - `n_kv_heads`: heads of keys and values, each of which serves a group of `n_heads / n_kv_heads` query heads; None:
      as many as query heads, 1: multi-query attention.
    - `d_head`: width of a head; None: `d_model / n_heads`.
    - `rotary_fraction`: share of each head that rotary positions turn, from 0 (none) to 1.
    - `rotary_base`: the longest wavelength of positions is about this many tokens times 2 pi.
    - `qk_norm`: norm of queries and keys a head, before they are turned: "none", "rms", or "zero-centred" (the weight
      kept as its offset from one).
    - `bias`: "all" gives the four projections biases, "none" none.
    - `window`: tokens that a token sees, itself included; None: all before it.
    """

    kind: Literal["attention"] = "attention"

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> "Attention":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies w_o's start."""
        return Attention(d_model, self.positioned(rotary), output_scale=output_scale, key=key)


class Attention(Mixer):
    r"""$\mathrm{softmax}(Q K^T / \sqrt{h} + \mathrm{mask}) V$ a head; a key/value head serves a group of query heads.

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
    config: Any = eqx.field(static=True)  # a `HeadsConfig`, with more fields in a mixer that has more
    no_decay: ClassVar[tuple[str, ...]] = ("b_q", "b_k", "b_v", "b_o")
    config_type: ClassVar[type[HeadsConfig]] = AttentionConfig

    def __init__(
        self,
        d_model: int,
        config: HeadsConfig | None = None,
        *,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `d_model`; a `config`, or its `fields` as keywords; `output_scale`, which multiplies the
        initial `w_o`; `key`.

        **Raises:** `ValueError` where the heads do not fit `d_model` or each other.
        """
        d_model, config = whole("d_model", d_model), configured(self.config_type, config, fields)
        n, g, h = config.head_sizes(d_model)
        # Every projection keeps the variance of what it is given: 1 / sqrt(numbers it sums).
        std = d_model**-0.5
        self.w_q = normal(key, "w_q", (d_model, n * h), std)
        self.w_k = normal(key, "w_k", (d_model, g * h), std)
        self.w_v = normal(key, "w_v", (d_model, g * h), std)
        self.w_o = normal(key, "w_o", (n * h, d_model), (n * h) ** -0.5) * output_scale
        biased = config.bias == "all"
        self.b_q = jnp.zeros(n * h) if biased else None
        self.b_k = jnp.zeros(g * h) if biased else None
        self.b_v = jnp.zeros(g * h) if biased else None
        self.b_o = jnp.zeros(d_model) if biased else None
        norm = {"none": lambda _: None, "rms": RMSNorm, "zero-centred": ZeroCentredRMSNorm}[config.qk_norm]
        self.q_norm = norm(h)
        self.k_norm = norm(h)
        self.d_model = d_model
        self.config = config

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.config.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads."""
        return self.config.head_sizes(self.d_model)[1]

    @property
    def d_head(self) -> int:
        """The width of a head."""
        return self.config.head_sizes(self.d_model)[2]

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        one_sequence(x, self.d_model, "attention")
        return self.output(x, causal_attention(*self.project(x, 0), self.config.window))

    def start(self, context: int, dtype: Any = None) -> AttentionState:
        """An empty cache for `context` tokens, or for a window of them."""
        if context < 1:
            raise ValueError(f"context={context}: the cache needs room for at least one token")
        size = context if self.config.window is None else min(self.config.window, context)
        shape = (self.n_kv_heads, size, self.d_head)
        # Two arrays, not one twice: each can then be donated.
        k, v = (jnp.zeros(shape, self.w_k.dtype if dtype is None else dtype) for _ in range(2))
        return AttentionState(k, v, jnp.zeros((), jnp.int32))

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: PyTree) -> Decoded:
        """t more tokens, which see each other and what is cached; the oldest leave a full cache."""
        self._check(state)
        mixed, state = extended(*self.project(x, state.length), state, self.config.window)
        return Decoded(self.output(x, mixed), state)

    def step(self, x: Float[Array, " {self.d_model}"], state: PyTree) -> Decoded:
        """One more token: its key and value go into the cache, and it sees what the cache holds."""
        self._check(state)
        mixed, state = appended(*self.project(x[None], state.length), state)
        return Decoded(self.output(x[None], mixed)[0], state)

    def prefix(self, tokens: Float[Array, "s {self.d_model}"] | None, dtype: Any) -> Prefix | None:
        """Keys and values of tokens before the first, which every token is to see; None for none."""
        return None if tokens is None else Prefix(*self.project(tokens.astype(dtype), 0)[1:])

    def project(
        self, x: Float[Array, "t d"], offset: int | Int[Array, ""]
    ) -> tuple[Float[Array, "t n h"], Float[Array, "t g h"], Float[Array, "t g h"]]:
        """Queries, keys and values of tokens from position `offset` on: what mixers that contain attention build on."""
        # The norm comes before the positions: it would otherwise be of channels that another position has mixed.
        q_tnh = self._heads(x, self.w_q, self.b_q, self.q_norm)
        k_tgh = self._heads(x, self.w_k, self.b_k, self.k_norm)
        share, base = self.config.rotary_fraction, self.config.rotary_base
        q_tnh, k_tgh = (rotate(a, fraction=share, base=base, offset=offset) for a in (q_tnh, k_tgh))
        return q_tnh, k_tgh, self._heads(x, self.w_v, self.b_v, None)

    def output(self, x: Float[Array, "t d"], mixed: Float[Array, "t n h"]) -> Float[Array, "t d"]:
        """The mixer's output from the mixed values of all heads, for input `x` (which only a gate looks at)."""
        out = mixed.reshape(x.shape[0], self.w_o.shape[0]) @ self.w_o.astype(x.dtype)
        return out if self.b_o is None else out + self.b_o.astype(x.dtype)[None]

    def _check(self, state: Any) -> None:
        check_state(state, AttentionState, self)
        if (heads := state.k.shape[::2]) != (self.n_kv_heads, self.d_head):
            raise ValueError(
                f"the cache has heads of shape {heads}, this attention {(self.n_kv_heads, self.d_head)}: "
                "take the state from its own start()"
            )

    def _heads(self, x: Array, weight: Array, bias: Array | None, norm: RMSNorm | None) -> Float[Array, "t n h"]:
        y = x @ weight.astype(x.dtype)
        y = y if bias is None else y + bias.astype(x.dtype)[None]
        y = y.reshape(x.shape[0], weight.shape[1] // self.d_head, self.d_head)
        return y if norm is None else norm(y)
