"""Titans, memory as a context (MAC): attention within segments, and to what a memory recalls of earlier ones."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...checks import configured, one_sequence, whole
from ..attention import Attention
from ..block import Decoded, Mixer, check_state
from ..dot_product import Prefix, masked_attention
from ..init import normal, subkey
from ..norm import RMSNorm
from ..ops import inner_dtype, unit_length, varying_like
from .mag import TitansHybridConfig
from .mixer import GroupState, TitansConfig, TitansMemory, TitansState, decode_state
from .rule import NORM_EPS, Matrices, Memory, recall


@dataclass(frozen=True)
class TitansMACConfig(TitansHybridConfig):
    """What a memory as a context is made of.

    **Arguments:**

    - `memory`: the memory; its chunk is the segment, its heads are the attention's as well. Its persistent tokens are
      seen by the attention of every segment; the memory itself, which is fed by the attention, has none.
    """

    kind: Literal["titans-mac"] = "titans-mac"
    memory: TitansConfig = TitansConfig(chunk=64)

    def inner(self) -> TitansConfig:
        """The memory's config, without persistent tokens."""
        return replace(self.memory, persistent=0)

    def parameters(self, d_model: int) -> int:
        """The memory's, 4 d^2 of attention, d^2 of queries to the memory, 3 d of norms, persistent tokens."""
        own = d_model**2 + 3 * d_model + self.memory.persistent * d_model
        return self.inner().parameters(d_model) + self.attention().parameters(d_model) + own

    def flops(self, d_model: int, context: int) -> int:
        """Forward FLOPs a token: memory, recall, projections of tokens and of what was recalled, attention at half."""
        t, numbers = min(self.memory.chunk, context), self.memory.memory_numbers(d_model)
        attention = 4 * d_model * (t + self.memory.persistent)  # two causal squares at half
        prefix = 4 * d_model**2 * self.memory.persistent // context
        return self.inner().flops(d_model, context) + 2 * numbers + 14 * d_model**2 + attention + prefix

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token (an estimate): the memory's, the attention's over tokens and what they recalled, recall.

        Recall: three numbers a hidden unit; questions, answers, their norms, keys and values; and both branches' norms.
        """
        seen = 2 * min(self.memory.chunk, context) + self.memory.persistent
        hidden = self.memory.n_heads * sum(b for _, b in self.memory.layers(d_model)[:-1])
        inside = self.attention().activations(d_model, seen) + 3 * hidden + 14 * d_model
        _, chunks, group = self.inner().grouping(context)
        return self.inner().activations(d_model, context) + -(-inside * group // chunks)

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers of decode state: the memory's, and keys and values of a segment's tokens and what they recalled."""
        return self.inner().state_numbers(d_model, context) + 4 * self.memory.chunk * d_model

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> "TitansMAC":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies both w_o."""
        return TitansMAC(d_model, self, rotary=rotary, output_scale=output_scale, key=key)


class SegmentCache(NamedTuple):
    """Keys and values of the running segment's tokens, and of what they recalled."""

    k: Float[Array, "t n h"]
    v: Float[Array, "t n h"]
    recalled_k: Float[Array, "t n h"]
    recalled_v: Float[Array, "t n h"]


class MACState(NamedTuple):
    """The memory's state, whose `phase` is the number of tokens in the running segment, and the segment's cache."""

    memory: TitansState
    cache: SegmentCache


class TitansMAC(Mixer):
    r"""Segment by segment: recall, attend to it, write what attention made of it, and gate that with a second read.

    In a segment of C tokens x, with M the memory at its start and P the persistent tokens:

    $$h = M(q(x)), \quad y = \mathrm{Attn}([P, h, x]), \quad
    o = \mathrm{RMSNorm}(y) \odot \sigma(\mathrm{RMSNorm}(\mathrm{LMM}(y)))$$

    A literal reading of the paper leaks in two places, because all of a segment's tokens are handled at once: $h_j$
    comes from token j, so a query i < j must not see it (h is masked like x), and reading the memory after the whole
    segment was written would show token i what token j wrote (the LMM here reads after token i's own writing).
    Positions count from the segment's start. From Titans (arXiv 2501.00663), section 4.1.
    """

    memory: TitansMemory
    attention: Attention
    w_recall: Float[Array, "{self.d_model} {self.d_model}"]
    persistent: Float[Array, "_ {self.d_model}"] | None
    recall_norm: RMSNorm
    attention_norm: RMSNorm
    memory_norm: RMSNorm
    d_model: int = eqx.field(static=True)
    config: TitansMACConfig = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("persistent",)

    def __init__(
        self,
        d_model: int,
        config: TitansMACConfig | None = None,
        *,
        rotary: bool = True,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `d_model`; a `config`, or its `fields` as keywords; `rotary` and `output_scale` as in its
        `build`; `key`.

        **Raises:** `ValueError` where the sizes do not fit.
        """
        d_model, config = whole("d_model", d_model), configured(TitansMACConfig, config, fields)
        config.check(d_model)
        count = config.memory.persistent
        self.memory = config.inner().build(d_model, output_scale=output_scale, key=subkey(key, "memory"))
        attention = config.attention(rotary)
        self.attention = attention.build(d_model, output_scale=output_scale, key=subkey(key, "attention"))
        self.w_recall = normal(key, "w_recall", (d_model, d_model), d_model**-0.5)
        self.persistent = normal(key, "persistent", (count, d_model), 1.0) if count else None
        self.recall_norm = RMSNorm(d_model)
        self.attention_norm = RMSNorm(d_model)
        self.memory_norm = RMSNorm(d_model)
        self.d_model = d_model
        self.config = config

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        one_sequence(x, self.d_model, "the mixer")
        t = x.shape[0]
        if t == 0:
            return x
        size, segments, group = self.memory.config.grouping(t)
        groups = -(-segments // group)
        # Rows after the last token change nothing before them.
        x = jnp.pad(x, ((0, groups * group * size - t), (0, 0))).reshape(groups, group, size, -1)
        prefix = self._prefix(x)

        def segment(carry: GroupState, x: Array) -> tuple[GroupState, Array]:
            carry, _, y = self._segment(carry, x, prefix)
            return carry, y

        def run(carry: GroupState, x: Array) -> tuple[GroupState, Array]:
            return jax.lax.scan(segment, carry, x)

        carry = varying_like(self.memory.fresh(1, inner_dtype(x)), x)
        if groups == 1:
            y = run(carry, x[0])[1]
        else:
            y = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, x)[1]
        return y.reshape(-1, self.d_model)[:t]

    def start(self, context: int, dtype: Any = None) -> MACState:
        """The memory's start, and an empty cache for a segment."""
        empty = [self.attention.start(self.memory.config.chunk, dtype) for _ in range(2)]
        # Rows first, as keys of a segment are made; four arrays, each to be donated.
        cache = SegmentCache(*(part.swapaxes(0, 1) for state in empty for part in (state.k, state.v)))
        return MACState(self.memory.start(context, dtype), cache)

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: Any) -> Decoded:
        """t more tokens, a segment at a time.

        **Raises:** `ValueError` for a decode state of another mixer.
        """
        check_state(state, MACState, self)
        memory, cache = state
        t, size, phase = x.shape[0], self.memory.config.chunk, memory.phase
        segments = max(1, -(-(t + size - 1) // size))
        laid = jnp.zeros((segments * size, self.d_model), x.dtype)
        laid = jax.lax.dynamic_update_slice_in_dim(laid, x, phase, axis=0)
        prefix = self._prefix(x)

        def run(
            carry: tuple[GroupState, SegmentCache], now: tuple[Array, Array]
        ) -> tuple[tuple[GroupState, SegmentCache], Array]:
            inner, cache = carry
            rows, offset = now
            span = (jnp.clip(phase - offset, 0, size), jnp.clip(phase + t - offset, 0, size))
            inner, cache, y = self._segment(inner, rows, prefix, cache, span)
            return (inner, cache), y

        carry = GroupState(memory.rows[None], Memory(memory.weights, memory.momentum), memory.anchor)
        inputs = (laid.reshape(segments, size, -1), size * jnp.arange(segments, dtype=jnp.int32))
        (carry, cache), y = jax.lax.scan(run, (carry, cache), inputs)
        y = jax.lax.dynamic_slice_in_dim(y.reshape(segments * size, -1), phase, t, axis=0)
        return Decoded(y, MACState(decode_state(carry, (phase + t) % size), cache))

    def step(self, x: Float[Array, "{self.d_model}"], state: Any) -> Decoded:
        """One token.

        **Raises:** `ValueError` for a decode state of another mixer.
        """
        check_state(state, MACState, self)
        memory, cache = state
        q, new = self._projected(x[None], memory.anchor, memory.phase)
        cache = SegmentCache(
            *(
                jax.lax.dynamic_update_slice_in_dim(old, row.astype(old.dtype), memory.phase, axis=0)
                for old, row in zip(cache, new, strict=True)
            )
        )
        seen = (jnp.arange(self.memory.config.chunk, dtype=jnp.int32) <= memory.phase)[None]
        y = self._attend(x[None], q, SegmentCache(*(a.astype(x.dtype) for a in cache)), seen, self._prefix(x))[0]
        remembered, memory = self.memory.step(y, memory)
        return Decoded(self._gated(y, remembered), MACState(memory, cache))

    def _segment(
        self,
        carry: GroupState,
        x: Float[Array, "t d"],
        prefix: Prefix | None,
        cache: SegmentCache | None = None,
        span: tuple[Array, Array] | None = None,
    ) -> tuple[GroupState, SegmentCache, Float[Array, "t d"]]:
        """One segment. Only rows from `span[0]` to before `span[1]` are new; `cache` has the others."""
        size = x.shape[0]
        anchor = carry.memory.weights if carry.anchor is None else carry.anchor
        q, new = self._projected(x, anchor, 0)
        if cache is not None and span is not None:
            fresh = ((jnp.arange(size, dtype=jnp.int32) >= span[0]) & (jnp.arange(size, dtype=jnp.int32) < span[1]))[
                :, None, None
            ]
            new = SegmentCache(*(jnp.where(fresh, a.astype(old.dtype), old) for a, old in zip(new, cache, strict=True)))
        causal = jnp.tril(jnp.ones((size, size), bool))
        y = self._attend(x, q, SegmentCache(*(a.astype(x.dtype) for a in new)), causal, prefix)
        carry, remembered = self.memory.group(carry, y[None], size, span)
        return carry, new, self._gated(y, remembered[0])

    def _projected(
        self, x: Float[Array, "t d"], weights: Matrices, at: int | Int[Array, ""]
    ) -> tuple[Array, SegmentCache]:
        """Queries of tokens from row `at` of a segment on, and keys and values of them and of what they recall."""
        heads, wide = self.memory.config.n_heads, inner_dtype(x)
        asked = jax.nn.silu((x @ self.w_recall.astype(x.dtype)).astype(wide)).reshape(x.shape[0], heads, -1)
        asked = unit_length(asked, NORM_EPS)
        recalled = recall(weights, asked.swapaxes(0, 1), self.memory.surroundings(1, wide)).swapaxes(0, 1)
        recalled = self.recall_norm(recalled.reshape(x.shape)).astype(x.dtype)
        first = 0 if self.persistent is None else self.persistent.shape[0]
        q, k, v = self.attention.project(x, first + at)
        _, recalled_k, recalled_v = self.attention.project(recalled, first + at)
        return q, SegmentCache(k, v, recalled_k, recalled_v)

    def _prefix(self, x: Array) -> Prefix | None:
        return self.attention.prefix(self.persistent, x.dtype)

    def _attend(
        self, x: Array, q: Array, cache: SegmentCache, mask: Bool[Array, "t u"], prefix: Prefix | None
    ) -> Float[Array, "t d"]:
        """Attention to the persistent tokens, and to the rows of the segment, and of what it recalled, in `mask`."""
        k, v = jnp.concatenate([cache.recalled_k, cache.k]), jnp.concatenate([cache.recalled_v, cache.v])
        mixed = masked_attention(q, k, v, jnp.concatenate([mask, mask], axis=1), prefix)
        return self.attention.output(x, mixed)

    def _gated(self, y: Float[Array, "*t d"], remembered: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        return self.attention_norm(y) * jax.nn.sigmoid(self.memory_norm(remembered))
