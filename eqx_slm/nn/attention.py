"""Causal grouped-query attention with rotary positions, over all earlier tokens or a sliding window."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, PyTree

from .block import Decoded, Mixer, check_state
from .initial import inner_dtype, normal
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


class AttentionState(NamedTuple):
    """The last tokens' keys (turned by their positions) and values: token i is in row `i % size`."""

    k: Float[Array, "size kv p"]
    v: Float[Array, "size kv p"]
    length: Int32[Array, ""]


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
        empty = jnp.zeros(shape, self.w_k.dtype if dtype is None else dtype)
        return AttentionState(empty, empty, jnp.zeros((), jnp.int32))

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: PyTree) -> Decoded:
        """t more tokens, which see each other and what is cached; the oldest leave a full cache."""
        self._check(state)
        t, size, before = x.shape[0], state.k.shape[0], state.length
        q_tnp, k_tkp, v_tkp = self._projected(x, before)
        new_t = before + jnp.arange(t)
        old_s = cached_positions(before, size)
        seen = jnp.concatenate([old_s, new_t])[None, :] <= new_t[:, None]
        seen = seen & jnp.concatenate([old_s >= 0, jnp.ones(t, bool)])[None, :]
        if self.window is not None:
            seen = seen & (new_t[:, None] - jnp.concatenate([old_s, new_t])[None, :] < self.window)
        k_all, v_all = (
            jnp.concatenate([old.astype(new.dtype), new]) for old, new in ((state.k, k_tkp), (state.v, v_tkp))
        )
        mixed = masked_attention(q_tnp, k_all, v_all, seen)
        # Each row holds the latest of its tokens: one of these, or still the one it held.
        latest_s = cached_positions(before + t, size)
        rows_s = jnp.where(latest_s >= before, size + latest_s - before, jnp.arange(size))
        k, v = (jnp.take(every, rows_s, axis=0).astype(state.k.dtype) for every in (k_all, v_all))
        return Decoded(self._out(x, mixed), AttentionState(k, v, before + t))

    def step(self, x: Float[Array, "{self.d_model}"], state: PyTree) -> Decoded:
        """One more token: its key and value go into the cache, and it sees what the cache holds."""
        self._check(state)
        size, before = state.k.shape[0], state.length
        q_tnp, k_tkp, v_tkp = self._projected(x[None], before)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), before % size, axis=0)
            for old, new in ((state.k, k_tkp), (state.v, v_tkp))
        )
        held = cached_positions(before + 1, size) >= 0
        mixed = masked_attention(q_tnp, k.astype(x.dtype), v.astype(x.dtype), held[None])
        return Decoded(self._out(x[None], mixed)[0], AttentionState(k, v, before + 1))

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
        out = mixed.reshape(x.shape[0], -1) @ self.w_o.astype(x.dtype)
        return out if self.b_o is None else out + self.b_o.astype(x.dtype)[None]

    def _heads(self, x: Array, weight: Array, bias: Array | None, norm: RMSNorm | None) -> Float[Array, "t n p"]:
        y = x @ weight.astype(x.dtype)
        y = y if bias is None else y + bias.astype(x.dtype)[None]
        y = y.reshape(x.shape[0], -1, self.d_head)
        return y if norm is None else norm(y)


def causal_attention(
    q: Float[Array, "t n p"], k: Float[Array, "t kv p"], v: Float[Array, "t kv p"], window: int | None = None
) -> Float[Array, "t n p"]:
    """Scaled dot-product attention in which a token sees itself and what came before; n is a multiple of kv.

    With a `window` it sees that many tokens, itself included; long sequences then go block by block, in linear time.
    """
    t = q.shape[0]
    if window is not None and 2 * window < t:
        return _banded_attention(q, k, v, window)
    causal = jnp.tril(jnp.ones((t, t), bool))
    return masked_attention(q, k, v, causal if window is None or window >= t else jnp.triu(causal, 1 - window))


def _banded_attention(q: Array, k: Array, v: Array, window: int) -> Array:
    """Blocks of `window` queries, each over its own keys and those of the block before."""
    (t, n, p), kv = q.shape, k.shape[1]
    blocks = -(-t // window)
    q, k, v = (jnp.pad(a, ((0, blocks * window - t), (0, 0), (0, 0))) for a in (q, k, v))
    k_bskp, v_bskp = (
        jnp.concatenate([jnp.pad(a, ((1, 0), (0, 0), (0, 0), (0, 0)))[:-1], a], axis=1)
        for a in (k.reshape(blocks, window, kv, p), v.reshape(blocks, window, kv, p))
    )
    query, key = jnp.arange(window)[None, :, None], jnp.arange(-window, window)[None, None, :]
    seen_bts = (key <= query) & (key > query - window)
    seen_bts = seen_bts & ((key >= 0) | (jnp.arange(blocks) > 0)[:, None, None])  # nothing is before the first block
    mixed = jax.vmap(masked_attention)(q.reshape(blocks, window, n, p), k_bskp, v_bskp, seen_bts)
    return mixed.reshape(-1, n, p)[:t]


def masked_attention(
    q: Float[Array, "t n p"], k: Float[Array, "s kv p"], v: Float[Array, "s kv p"], mask: Bool[Array, "t s"]
) -> Float[Array, "t n p"]:
    """Scaled dot-product attention in which token t sees token s where `mask[t, s]`; every row sees one at least."""
    (t, n, p), (s, kv, _) = q.shape, k.shape
    wide = inner_dtype(q)
    # Heads lead, so that every matmul is a plain batched one; a group of query heads shares one.
    q_knp = (q * (1 / math.sqrt(p))).reshape(t, kv, n // kv, p).transpose(1, 2, 0, 3).reshape(kv, -1, p)
    scores = jnp.einsum("knp,ksp->kns", q_knp, k.transpose(1, 0, 2), preferred_element_type=wide)
    scores_kgts = scores.reshape(kv, n // kv, t, s)
    scores_kgts = jnp.where(mask[None, None], scores_kgts, jnp.finfo(wide).min)
    weights = jnp.exp(scores_kgts - jax.lax.stop_gradient(scores_kgts.max(axis=-1, keepdims=True)))
    # The softmax's division comes after the values are mixed: it is then over p numbers a row instead of t.
    flat = weights.reshape(kv, -1, s).astype(v.dtype)
    mixed = jnp.einsum("kns,ksp->knp", flat, v.transpose(1, 0, 2), preferred_element_type=wide)
    mixed = (mixed / weights.sum(axis=-1).reshape(kv, -1, 1)).astype(v.dtype)
    return mixed.reshape(n, t, p).transpose(1, 0, 2)


def cached_positions(length: Int[Array, ""], size: int) -> Int[Array, "{size}"]:
    """The position of the token in every row of a cache after `length` tokens, negative where there is none yet."""
    last = length - 1
    return last - (last - jnp.arange(size)) % size
