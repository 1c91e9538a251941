"""Titans, memory as a gate (MAG): sliding-window attention, gated by a neural memory that reads the same tokens."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from .attention import Attention, AttentionConfig, cached_positions, masked_attention
from .block import Decoded, Mixer, check_state
from .initial import subkey
from .norm import RMSNorm
from .titans import TitansConfig, TitansMemory, TitansState


def check_heads(memory: TitansConfig, d_model: int) -> None:
    """Raises `ValueError` where a memory's sizes do not fit `d_model`, or rotary attention cannot share its heads."""
    memory.check(d_model)
    if d_model // memory.n_heads % 2:
        step = 2 * memory.n_heads
        lower = d_model // step * step
        nearest = f"{lower} or {lower + step}" if lower else f"{step}"
        raise ValueError(
            f"head width {d_model // memory.n_heads} is odd: rotary positions turn pairs of channels; "
            f"with n_heads={memory.n_heads} take d_model {nearest}"
        )


@dataclass(frozen=True)
class TitansMAGConfig:
    """A memory (its heads are the attention's as well) and how many tokens a token sees, itself included."""

    kind: Literal["titans-mag"] = "titans-mag"
    memory: TitansConfig = TitansConfig()
    window: int = 64

    keeps: ClassVar[tuple[str, ...]] = ("memory.n_heads",)

    @property
    def d_model_multiple(self) -> int:
        """What `d_model` is a multiple of: heads of an even width."""
        return 2 * self.memory.n_heads

    def attention(self, rotary: bool = True) -> AttentionConfig:
        """The attention's config."""
        return AttentionConfig(n_heads=self.memory.n_heads, rotary_fraction=1.0 if rotary else 0.0)

    def check(self, d_model: int) -> None:
        """**Raises:** `ValueError` where the sizes do not fit `d_model`."""
        if self.window < 1:
            raise ValueError(f"window={self.window}: a token sees at least itself, take 1 or more")
        check_heads(self.memory, d_model)

    def parameters(self, d_model: int) -> int:
        """The memory's, 4 D^2 of attention, 2 D of norms."""
        return self.memory.parameters(d_model) + self.attention().parameters(d_model) + 2 * d_model

    def flops(self, d_model: int, context: int) -> int:
        """Forward FLOPs a token: memory, projections, and the scores and values of the tokens in sight."""
        seen = min(self.window, context)
        sums = 4 * d_model * seen * (2 * context - seen) // (2 * context) + 4 * d_model * self.memory.persistent
        prefix = 4 * d_model**2 * self.memory.persistent // context
        return self.memory.flops(d_model, context) + 8 * d_model**2 + sums + prefix

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the memory's, the attention's with its whole square, and both normed branches."""
        inner = self.attention().activations(d_model, context + self.memory.persistent)
        return self.memory.activations(d_model, context) + inner + 2 * d_model

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers of decode state: the memory's, and a key and a value a head and token of the window."""
        return self.memory.state_numbers(d_model, context) + 2 * min(self.window, context) * d_model

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> "TitansMAG":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies both w_o."""
        return TitansMAG(d_model, self, rotary=rotary, output_scale=output_scale, key=key)


class MAGState(NamedTuple):
    """The memory's state, and the last tokens' keys and values: token i is in row `i % size`."""

    memory: TitansState
    k: Float[Array, "size h p"]
    v: Float[Array, "size h p"]
    length: Int32[Array, ""]


class TitansMAG(Mixer):
    r"""$\mathrm{RMSNorm}(\mathrm{SWA}([P, x])) \odot \sigma(\mathrm{RMSNorm}(\mathrm{LMM}([P, x])))$, without P's rows.

    A token sees itself and the window - 1 tokens before it, and all persistent tokens P, which it shares with the
    memory. Both branches are causal, so the product is. The paper leaves the non-linearity of the gate open: a sigmoid
    here. From Titans (arXiv 2501.00663), section 4.2.
    """

    memory: TitansMemory
    attention: Attention
    attention_norm: RMSNorm
    memory_norm: RMSNorm
    d_model: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        d_model: int,
        config: TitansMAGConfig | None = None,
        *,
        rotary: bool = True,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:** `d_model`; `config`; `rotary` and `output_scale` as in its `build`; `key`.

        **Raises:** `ValueError` where the sizes do not fit.
        """
        config = TitansMAGConfig() if config is None else config
        config.check(d_model)
        self.memory = config.memory.build(d_model, output_scale=output_scale, key=subkey(key, "memory"))
        attention = config.attention(rotary)
        self.attention = attention.build(d_model, output_scale=output_scale, key=subkey(key, "attention"))
        self.attention_norm = RMSNorm(d_model)
        self.memory_norm = RMSNorm(d_model)
        self.d_model = d_model
        self.window = config.window

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        return self.batch(x[None])[0]

    def batch(self, x: Float[Array, "b t {self.d_model}"]) -> Float[Array, "b t {self.d_model}"]:
        """`vmap` of the call, with the memory's own batched form."""
        return self._gated(jax.vmap(self._windows)(x), self.memory.batch(x))

    def start(self, context: int, dtype: Any = None) -> MAGState:
        """The memory's start, and an empty cache for the window."""
        k, v, length = self.attention.start(min(self.window, context), dtype)
        return MAGState(self.memory.start(context, dtype), k, v, length)

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: Any) -> Decoded:
        """t more tokens in parallel.

        **Raises:** `ValueError` for a decode state of another mixer.
        """
        check_state(state, MAGState, self)
        t, size, before = x.shape[0], state.k.shape[0], state.length
        q, k, v = self.attention._projected(x, before + self._prefix_length)
        new_t, old_s = before + jnp.arange(t), cached_positions(before, size)
        at = jnp.concatenate([old_s, new_t])[None]
        mask = (at <= new_t[:, None]) & (at > new_t[:, None] - self.window) & (at >= 0)
        k, v = (jnp.concatenate([old.astype(new.dtype), new]) for old, new in ((state.k, k), (state.v, v)))
        y = self._attend(x, q, k, v, mask)
        latest_s = cached_positions(before + t, size)
        rows_s = jnp.where(latest_s >= before, size + latest_s - before, jnp.arange(size))
        k, v = (jnp.take(every, rows_s, axis=0).astype(state.k.dtype) for every in (k, v))
        remembered, memory = self.memory.prefill(x, state.memory)
        return Decoded(self._gated(y, remembered), MAGState(memory, k, v, before + t))

    def step(self, x: Float[Array, "{self.d_model}"], state: Any) -> Decoded:
        """One token.

        **Raises:** `ValueError` for a decode state of another mixer.
        """
        check_state(state, MAGState, self)
        size, before = state.k.shape[0], state.length
        q, k, v = self.attention._projected(x[None], before + self._prefix_length)
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), before % size, axis=0)
            for old, new in ((state.k, k), (state.v, v))
        )
        held = cached_positions(before + 1, size) >= 0
        y = self._attend(x[None], q, k.astype(x.dtype), v.astype(x.dtype), held[None])[0]
        remembered, memory = self.memory.step(x, state.memory)
        return Decoded(self._gated(y, remembered), MAGState(memory, k, v, before + 1))

    @property
    def _prefix_length(self) -> int:
        return 0 if self.memory.persistent is None else self.memory.persistent.shape[0]

    def _attend(
        self, x: Array, q: Float[Array, "t h p"], k: Array, v: Array, mask: Bool[Array, "t s"]
    ) -> Float[Array, "t d"]:
        """Attention to the rows in `mask` and to every persistent token."""
        if self.memory.persistent is not None:
            _, first_k, first_v = self.attention._projected(self.memory.persistent.astype(x.dtype), 0)
            k, v = jnp.concatenate([first_k, k]), jnp.concatenate([first_v, v])
            mask = jnp.concatenate([jnp.ones((mask.shape[0], first_k.shape[0]), bool), mask], axis=1)
        return self.attention._out(x, masked_attention(q, k, v, mask))

    def _windows(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """Attention over a whole sequence: long ones in blocks of a window, over a block's keys and those before."""
        (t, d), w = x.shape, self.window
        q, k, v = self.attention._projected(x, self._prefix_length)
        if t <= 2 * w:
            at = jnp.arange(t)
            return self._attend(x, q, k, v, (at[None] <= at[:, None]) & (at[None] > at[:, None] - w))
        blocks = -(-t // w)
        x, q, k, v = (
            jnp.pad(a, ((0, blocks * w - t), *[(0, 0)] * (a.ndim - 1))).reshape(blocks, w, *a.shape[1:])
            for a in (x, q, k, v)
        )
        k, v = (jnp.concatenate([jnp.pad(a[:-1], ((1, 0), *[(0, 0)] * 3)), a], axis=1) for a in (k, v))
        row, at = jnp.arange(w)[None, :, None], jnp.arange(-w, w)[None, None]
        mask = (at <= row) & (at > row - w)
        mask = mask & ((at >= 0) | (jnp.arange(blocks) > 0)[:, None, None])  # nothing is before the first block
        return jax.vmap(self._attend)(x, q, k, v, mask).reshape(-1, d)[:t]

    def _gated(self, y: Float[Array, "*t d"], remembered: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        return self.attention_norm(y) * jax.nn.sigmoid(self.memory_norm(remembered))
