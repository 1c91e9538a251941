"""Titans, memory as a gate (MAG): sliding-window attention, gated by a neural memory that reads the same tokens."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...checks import check_choices, check_divides, check_whole, configured, one_sequence, whole
from ..attention import Attention, AttentionConfig
from ..block import Decoded, Mixer, check_state
from ..dot_product import AttentionState, Prefix, appended, causal_attention, extended
from ..init import subkey
from ..norm import RMSNorm
from .mixer import TitansConfig, TitansMemory, TitansState


@dataclass(frozen=True)
class TitansHybridConfig:
    """The memory that both hybrids have beside their attention, and what follows from its heads, which both share."""

    kind: str = "titans-hybrid"
    memory: TitansConfig = TitansConfig()

    keeps: ClassVar[tuple[str, ...]] = ("memory.n_heads",)

    @property
    def d_model_multiple(self) -> int:
        """What `d_model` is a multiple of: heads of an even width, as rotary positions turn pairs of channels."""
        return 2 * self.memory.n_heads

    def attention(self, rotary: bool = True) -> AttentionConfig:
        """The attention's config."""
        return AttentionConfig(n_heads=self.memory.n_heads, rotary_fraction=1.0 if rotary else 0.0)

    def check(self, d_model: int) -> None:
        """**Raises:** `ValueError` where the heads do not fit `d_model`, or attention cannot share them."""
        check_choices(self.memory)
        what = f"divisible by 2 x n_heads={self.memory.n_heads} (heads that are turned have an even width)"
        check_divides(d_model, self.d_model_multiple, what)


@dataclass(frozen=True)
class TitansMAGConfig(TitansHybridConfig):
    """What a memory as a gate is made of.

    **Arguments:**

    - `memory`: the memory; its heads are the attention's as well, its persistent tokens are seen by both.
    - `window`: tokens that a token's attention sees, itself included.
    """

    kind: Literal["titans-mag"] = "titans-mag"
    window: int = 64

    def __post_init__(self):
        check_whole(self, "window")

    def parameters(self, d_model: int) -> int:
        """The memory's, 4 d^2 of attention, 2 d of norms."""
        return self.memory.parameters(d_model) + self.attention().parameters(d_model) + 2 * d_model

    def flops(self, d_model: int, context: int) -> int:
        """Forward FLOPs a token: memory, projections, and the scores and values of the tokens in sight."""
        seen = min(self.window, context)
        sums = 4 * d_model * seen * (2 * context - seen) // (2 * context) + 4 * d_model * self.memory.persistent
        prefix = 4 * d_model**2 * self.memory.persistent // context
        return self.memory.flops(d_model, context) + 8 * d_model**2 + sums + prefix

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the memory's, the attention's over its window, and both normed branches."""
        inner = replace(self.attention(), window=self.window).activations(d_model, context)
        inner += 2 * self.memory.n_heads * self.memory.persistent  # scores and weights of the prefix
        return self.memory.activations(d_model, context) + inner + 2 * d_model

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers of decode state: the memory's, and a key and a value a head and token of the window."""
        return self.memory.state_numbers(d_model, context) + 2 * min(self.window, context) * d_model

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> "TitansMAG":
        """The module; `rotary=False` where positions come from elsewhere; `output_scale` multiplies both w_o."""
        return TitansMAG(d_model, self, rotary=rotary, output_scale=output_scale, key=key)


class MAGState(NamedTuple):
    """The memory's state, and the window's keys and values."""

    memory: TitansState
    cache: AttentionState


class TitansMAG(Mixer):
    r"""$\mathrm{RMSNorm}(\mathrm{SWA}([P, x]))$ $\odot$ $\sigma(\mathrm{RMSNorm}(\mathrm{LMM}([P, x])))$,
    without P's rows.

    A token sees itself and the window - 1 tokens before it, and all persistent tokens P, which it shares with the
    memory. Both branches are causal, so the product is. The paper leaves the non-linearity of the gate open: a sigmoid
    here. From Titans (arXiv 2501.00663), section 4.2.
    """

    memory: TitansMemory
    attention: Attention
    attention_norm: RMSNorm
    memory_norm: RMSNorm
    d_model: int = eqx.field(static=True)
    config: TitansMAGConfig = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        d_model: int,
        config: TitansMAGConfig | None = None,
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
        d_model, config = whole("d_model", d_model), configured(TitansMAGConfig, config, fields)
        config.check(d_model)
        self.memory = config.memory.build(d_model, output_scale=output_scale, key=subkey(key, "memory"))
        attention = config.attention(rotary)
        self.attention = attention.build(d_model, output_scale=output_scale, key=subkey(key, "attention"))
        self.attention_norm = RMSNorm(d_model)
        self.memory_norm = RMSNorm(d_model)
        self.d_model = d_model
        self.config = config

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        one_sequence(x, self.d_model, "the mixer")
        return self.batch(x[None])[0]

    def batch(self, x: Float[Array, "b t {self.d_model}"]) -> Float[Array, "b t {self.d_model}"]:
        """`vmap` of the call, with the memory's own batched form."""
        return self._gated(jax.vmap(self._windows)(x), self.memory.batch(x))

    def start(self, context: int, dtype: Any = None) -> MAGState:
        """The memory's start, and an empty cache for the window."""
        return MAGState(
            self.memory.start(context, dtype), self.attention.start(min(self.config.window, context), dtype)
        )

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: Any) -> Decoded:
        """t more tokens in parallel.

        **Raises:** `ValueError` for a decode state of another mixer.
        """
        check_state(state, MAGState, self)
        mixed, cache = extended(
            *self._projected(x, state.cache.length), state.cache, self.config.window, self._prefix(x)
        )
        remembered, memory = self.memory.prefill(x, state.memory)
        return Decoded(self._gated(self.attention.output(x, mixed), remembered), MAGState(memory, cache))

    def step(self, x: Float[Array, "{self.d_model}"], state: Any) -> Decoded:
        """One token.

        **Raises:** `ValueError` for a decode state of another mixer.
        """
        check_state(state, MAGState, self)
        mixed, cache = appended(*self._projected(x[None], state.cache.length), state.cache, self._prefix(x))
        remembered, memory = self.memory.step(x, state.memory)
        return Decoded(self._gated(self.attention.output(x[None], mixed)[0], remembered), MAGState(memory, cache))

    def _windows(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        return self.attention.output(x, causal_attention(*self._projected(x, 0), self.config.window, self._prefix(x)))

    def _prefix(self, x: Array) -> Prefix | None:
        return self.attention.prefix(self.memory.persistent, x.dtype)

    def _projected(self, x: Float[Array, "t d"], offset: int | Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Queries, keys and values of tokens from `offset` on; positions begin with the persistent tokens."""
        first = 0 if self.memory.persistent is None else self.memory.persistent.shape[0]
        return self.attention.project(x, first + offset)

    def _gated(self, y: Float[Array, "*t d"], remembered: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        return self.attention_norm(y) * jax.nn.sigmoid(self.memory_norm(remembered))
