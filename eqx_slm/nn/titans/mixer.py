"""Titans' neural long-term memory as a mixer: every head learns, token by token, to map its keys to its values."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ...checks import configured, one_sequence, whole
from ..block import Decoded, Mixer, check_state
from ..init import normal
from ..norm import RMSNorm
from ..ops import inner_dtype, unit_length, varying_like
from .loop import memory_chunks
from .rule import NORM_EPS, Gates, Matrices, Memory, Surroundings, memory_step
from .sizes import CONV, TitansSizes, group_size

ALPHA_BIAS = -6.0  # forgets about 0.25% a token at first: a half-life of some 280 tokens


@dataclass(frozen=True)
class TitansConfig(TitansSizes):
    """What a Titans memory is made of.

    **Arguments:**

    - `n_heads`: heads, each with a memory of its own; they divide `d_model`.
    - `memory_depth`: matrices a memory: 1 is a linear one, 2 has one hidden layer.
    - `expansion`: width of the hidden layers over the width of a head.
    - `memory_norm`: "layer" for a LayerNorm (with a learned gain) on what the last matrix gives, or "none".
    - `memory_residual`: "identity" adds the key to what is recalled, "none" does not.
    - `chunk`: tokens that take their gradients at the same weights, those at the start of the chunk.
    - `chunk_train`: what the step size is divided by (None: `chunk`): a constant of the model that stays when it is
      run at another chunk.
    - `step_size`: bounds the total step that a chunk puts on one token's error. Without the memory's norm it must be at
      most about 0.5, or the memory diverges.
    - `read`: whether a query sees the memory after its own token ("inclusive"), before it ("exclusive"), or at the
      start of the chunk ("chunk_start").
    - `persistent`: learned tokens before the sequence.
    - `remat`: what the backward pass keeps: "groups" a memory per group of chunks (from 33 chunks on), "none" one per
      chunk.
    """

    def build(
        self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray
    ) -> "TitansMemory":
        """The module; `output_scale` multiplies w_o's start. A memory needs no positions: `rotary` is not used."""
        return TitansMemory(d_model, self, output_scale=output_scale, key=key)


class TitansState(NamedTuple):
    """The decode state of one sequence.

    The memory of every head; `anchor`, the weights at which the running chunk takes its gradients; the convolutions'
    last rows; and `phase`, the number of tokens in the running chunk.
    """

    weights: tuple[Float[Array, "n _ _"], ...]
    momentum: tuple[Float[Array, "n _ _"], ...]
    anchor: tuple[Float[Array, "n _ _"], ...]
    rows: Float[Array, "3 _"]
    phase: Int32[Array, ""]


class GroupState(NamedTuple):
    """Between groups of chunks, of all heads of b sequences; no anchor where every group begins with a chunk."""

    rows: Float[Array, "b 3 _"]
    memory: Memory
    anchor: Matrices | None


class TitansMemory(Mixer):
    r"""Neural long-term memory (LMM): an MLP a head, trained by the tokens as they come, read by queries.

    With $q, k, v = \mathrm{SiLU}(\mathrm{conv}(x W))$, q and k of unit length a head, and gates a token and head
    $\alpha = \sigma(x w_\alpha + b_\alpha)$, $\eta = \sigma(x w_\eta + b_\eta)$,
    $\theta = \hat\theta (1 - \eta) \sigma(x w_\theta + b_\theta) / C_\mathrm{train}$:

    $$S_t = \eta_t S_{t-1} - \theta_t \nabla \tfrac12 |f(M_\xi; k_t) - v_t|^2, \quad M_t = (1-\alpha_t) M_{t-1} + S_t$$

    with $\xi$ the end of the chunk before, $M_0$ learned, and the output
    $(\mathrm{RMSNorm}(f(M_t; q_t)) \odot \mathrm{SiLU}(x W_g)) W_o$. The division by $C_\mathrm{train}$ and by the
    momentum's gain bounds what a chunk adds up on one error: it is what keeps training stable. Memory, momentum and
    gates are in at least float32. `persistent` learned tokens, in the space of the mixer's input, come before the
    sequence; only their effect on the memory is seen. From Titans (arXiv 2501.00663), section 3.
    """

    w_q: Float[Array, "{self.d_model} {self.d_model}"]
    w_k: Float[Array, "{self.d_model} {self.d_model}"]
    w_v: Float[Array, "{self.d_model} {self.d_model}"]
    w_gate: Float[Array, "{self.d_model} {self.d_model}"]
    w_o: Float[Array, "{self.d_model} {self.d_model}"]
    conv: Float[Array, "4 3*{self.d_model}"]
    w_inner: Float[Array, "{self.d_model} 3*{self.config.n_heads}"]
    b_inner: Float[Array, " 3*{self.config.n_heads}"]
    initial: tuple[Float[Array, "{self.config.n_heads} _ _"], ...]
    gain: Float[Array, "{self.config.n_heads} _"] | None
    out_norm: RMSNorm
    persistent: Float[Array, "_ {self.d_model}"] | None
    d_model: int = eqx.field(static=True)
    config: TitansConfig = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("b_inner", "initial", "gain", "persistent")
    filters: ClassVar[tuple[str, ...]] = ("conv",)
    full_precision: ClassVar[tuple[str, ...]] = ("w_inner", "b_inner", "initial", "gain")

    def __init__(
        self,
        d_model: int,
        config: TitansConfig | None = None,
        *,
        output_scale: float = 1.0,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `d_model`; a `config`, or its `fields` as keywords; `output_scale`, which multiplies the
        initial `w_o`; `key`.

        **Raises:** `ValueError` where the heads do not fit `d_model`, or a value is out of its range.
        """
        d_model, config = whole("d_model", d_model), configured(TitansConfig, config, fields)
        layers, n = config.layers(d_model), config.n_heads
        std = d_model**-0.5
        self.w_q = normal(key, "w_q", (d_model, d_model), std)
        self.w_k = normal(key, "w_k", (d_model, d_model), std)
        self.w_v = normal(key, "w_v", (d_model, d_model), std)
        self.w_gate = normal(key, "w_gate", (d_model, d_model), std)
        self.w_o = normal(key, "w_o", (d_model, d_model), std) * output_scale
        self.conv = normal(key, "conv", (CONV, 3 * d_model), 0.3)
        # Gates start nearly independent of the token: at their biases, where training was found to be stable.
        self.w_inner = normal(key, "w_inner", (d_model, 3 * n), 0.02)
        self.b_inner = jnp.repeat(jnp.array([ALPHA_BIAS, 0.0, 0.0]), n)
        # A near-zero last matrix would make the norm's gradients many times larger.
        self.initial = tuple(normal(key, f"initial.{i}", (n, a, b), a**-0.5) for i, (a, b) in enumerate(layers))
        self.gain = jnp.ones((n, layers[-1][1])) if config.memory_norm == "layer" else None
        self.out_norm = RMSNorm(layers[-1][1], eps=NORM_EPS)
        count = config.persistent
        self.persistent = normal(key, "persistent", (count, d_model), 1.0) if count else None
        self.d_model = d_model
        self.config = config

    @property
    def chunk_train(self) -> int:
        """What the step size is divided by."""
        return self.config.chunk if self.config.chunk_train is None else self.config.chunk_train

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        one_sequence(x, self.d_model, "the mixer")
        return self.batch(x[None])[0]

    def batch(self, x: Float[Array, "b t {self.d_model}"]) -> Float[Array, "b t {self.d_model}"]:
        """`vmap` of the call: sequences and heads are the rows of plain batched matmuls."""
        b, t, d = x.shape
        if b == 0 or t == 0:
            return x
        if self.persistent is not None:
            first = jnp.broadcast_to(self.persistent.astype(x.dtype)[None], (b, *self.persistent.shape))
            x = jnp.concatenate([first, x], axis=1)
        total = x.shape[1]
        size, chunks, group = self.config.grouping(t)
        groups = -(-chunks // group)
        # Rows after the last token change nothing before them, and the memory after them is not used.
        x = jnp.pad(x, ((0, 0), (0, groups * group * size - total), (0, 0)))
        state = varying_like(self.fresh(b, inner_dtype(x)), x)

        def run(state: GroupState, x: Array) -> tuple[GroupState, Array]:
            return self.group(state, x, size)

        if groups == 1:
            y = run(state, x)[1]
        else:
            # The backward pass holds the memories between groups, and those between the chunks of one group.
            split = x.reshape(b, groups, group * size, d).swapaxes(0, 1)
            y = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), state, split)[1].swapaxes(0, 1)
        return y.reshape(b, -1, d)[:, total - t : total]

    def start(self, context: int, dtype: Any = None) -> TitansState:
        """Decode state before the first token; of the same size for any `context`."""
        wide = inner_dtype(self.w_q.dtype if dtype is None else dtype)
        rows, memory, _ = self.fresh(1, wide)
        anchor = jax.tree.map(jnp.copy, memory.weights)  # a buffer of its own, so that the state can be donated
        state = TitansState(memory.weights, memory.momentum, anchor, rows[0], jnp.zeros((), jnp.int32))
        return state if self.persistent is None else self.prefill(self.persistent.astype(wide), state).state

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: Any) -> Decoded:
        """The outputs of t tokens that follow `state`, in parallel, and the state after them.

        **Raises:** `ValueError` for a decode state of another mixer or of other sizes.
        """
        self._check(state)
        t, size = x.shape[0], self.config.chunk
        # The rows stand in their chunks as they do in the sequence: up to size - 1 come before them in a running chunk.
        chunks = max(1, -(-(t + size - 1) // size))
        group = group_size(chunks)
        groups = -(-chunks // group)
        span = group * size
        laid = jnp.zeros((groups * span, self.d_model), x.dtype)
        laid = jax.lax.dynamic_update_slice_in_dim(laid, x, state.phase, axis=0)
        offsets = span * jnp.arange(groups, dtype=jnp.int32)

        def run(before: GroupState, now: tuple[Array, Array]) -> tuple[GroupState, Array]:
            rows, offset = now
            begin, end = (jnp.clip(at - offset, 0, span) for at in (state.phase, state.phase + t))
            return self.group(before, rows[None], size, (begin, end))

        before = GroupState(state.rows[None], Memory(state.weights, state.momentum), state.anchor)
        after, y = jax.lax.scan(run, before, (laid.reshape(groups, span, -1), offsets))
        y = jax.lax.dynamic_slice_in_dim(y.reshape(groups * span, -1), state.phase, t, axis=0)
        return Decoded(y, decode_state(after, (state.phase + t) % size))

    def step(self, x: Float[Array, " {self.d_model}"], state: Any) -> Decoded:
        """One token.

        **Raises:** `ValueError` for a decode state of another mixer or of other sizes.
        """
        self._check(state)
        heads = self.config.n_heads
        rows, (q, k, v), gates = self._project(state.rows[None], x[None, None], None)
        q, k, v = (a.reshape(heads, -1) for a in (q, k, v))
        memory, y = memory_step(
            Memory(state.weights, state.momentum),
            q,
            k,
            v,
            Gates(*(g.reshape(heads) for g in gates)),
            self.surroundings(1, inner_dtype(x)),
            read=self.config.read,
            anchor=state.anchor,
        )
        phase = (state.phase + 1) % self.config.chunk
        anchor = tuple(jnp.where(phase == 0, w, a) for w, a in zip(memory.weights, state.anchor, strict=True))
        y = self._output(x[None, None], y[None, None])[0, 0]
        return Decoded(y, TitansState(memory.weights, memory.momentum, anchor, rows[0], phase))

    def _check(self, state: Any) -> None:
        check_state(state, TitansState, self)
        ours, theirs = ([tuple(w.shape) for w in weights] for weights in (self.initial, state.weights))
        if ours != theirs:
            raise ValueError(
                f"the decode state holds memories of shapes {theirs}, this memory has {ours}: take the state from the "
                "start() of the model that it is given to"
            )

    def fresh(self, b: int, dtype: Any) -> GroupState:
        """Before the first token of b sequences."""
        weights = tuple(_repeated(w.astype(dtype), b) for w in self.initial)
        momentum = tuple(jnp.zeros_like(w) for w in weights)
        return GroupState(jnp.zeros((b, CONV - 1, 3 * self.d_model), dtype), Memory(weights, momentum), None)

    def surroundings(self, b: int, dtype: Any) -> Surroundings:
        """Norm and residual of the memories of b sequences."""
        gain = None if self.gain is None else _repeated(self.gain.astype(dtype), b)
        return Surroundings(gain, self.config.memory_residual)

    def group(
        self, state: GroupState, x: Float[Array, "b s d"], size: int, span: tuple[Array, Array] | None = None
    ) -> tuple[GroupState, Float[Array, "b s d"]]:
        """Chunks of `size` tokens, from projections to outputs. Only rows from `span[0]` to before `span[1]` count."""
        b, s, _ = x.shape
        n, chunks = self.config.n_heads, s // size
        rows, qkv, gates = self._project(state.rows, x, span)

        def split(a: Float[Array, "b s n *h"]) -> Float[Array, "chunks bn t *h"]:
            a = jnp.moveaxis(a.reshape(b, chunks, size, n, *a.shape[3:]), (1, 3), (0, 2))
            return a.reshape(chunks, b * n, size, *a.shape[4:])

        q, k, v = map(split, qkv)
        memory, anchor, y = memory_chunks(
            state.memory,
            q,
            k,
            v,
            Gates(*map(split, gates)),
            self.surroundings(b, inner_dtype(x)),
            read=self.config.read,
            anchor=state.anchor,
            span=span,
        )
        y = jnp.moveaxis(y.reshape(chunks, b, n, size, -1), (0, 2), (1, 3)).reshape(b, s, n, -1)
        return GroupState(rows, memory, anchor), self._output(x, y)

    def _project(
        self, rows: Float[Array, "b 3 _"], x: Float[Array, "b s d"], span: tuple[Array, Array] | None
    ) -> tuple[Array, tuple[Array, ...], Gates]:
        """The convolutions' next rows; q, k, v (b s n h); gates (b s n). `rows` come before row `span[0]` of x."""
        b, s, _ = x.shape
        n, wide = self.config.n_heads, inner_dtype(x)
        u = (x @ jnp.concatenate([self.w_q, self.w_k, self.w_v], axis=1).astype(x.dtype)).astype(wide)
        if span is None:
            u = jnp.concatenate([rows, u], axis=1)
            rows = u[:, s:]
        else:
            u = jax.lax.dynamic_update_slice_in_dim(jnp.pad(u, ((0, 0), (CONV - 1, 0), (0, 0))), rows, span[0], axis=1)
            rows = jax.lax.dynamic_slice_in_dim(u, span[1], CONV - 1, axis=1)
        taps = self.conv.astype(wide)
        # In two dimensions: the taps' gradients are sums over rows, which XLA does slowly over two axes on a CPU.
        mixed = jax.nn.silu(sum(taps[j][None] * u[:, j : j + s].reshape(b * s, -1) for j in range(CONV)))
        q, k, v = jnp.split(mixed.reshape(b, s, 3 * n, -1), 3, axis=2)
        z = x.reshape(b * s, -1).astype(wide) @ self.w_inner.astype(wide) + self.b_inner.astype(wide)[None]
        alpha, eta, theta = (a.reshape(b, s, n) for a in jnp.split(z, 3, axis=-1))
        # A chunk of equal keys adds up to sum_j eta^j theta = theta / (1 - eta) a token on one error, which diverges
        # beyond about 2: with (1 - eta) / chunk_train in theta, `step_size` bounds the sum whatever the gates say.
        theta = self.config.step_size / self.chunk_train * jax.nn.sigmoid(-eta) * jax.nn.sigmoid(theta)
        gates = Gates(jax.nn.log_sigmoid(-alpha), jax.nn.log_sigmoid(eta), theta)
        return rows, (unit_length(q, NORM_EPS), unit_length(k, NORM_EPS), v), gates

    def _output(self, x: Float[Array, "b s d"], y: Float[Array, "b s n h"]) -> Float[Array, "b s d"]:
        gate = jax.nn.silu(x @ self.w_gate.astype(x.dtype))
        return (self.out_norm(y).astype(x.dtype).reshape(x.shape) * gate) @ self.w_o.astype(x.dtype)


def decode_state(after: GroupState, phase: Int32[Array, ""]) -> TitansState:
    """The state of the one sequence that a group's state is of."""
    weights, momentum = after.memory
    return TitansState(weights, momentum, after.anchor or weights, after.rows[0], phase)


def _repeated(x: Float[Array, "n *_"], b: int) -> Float[Array, "bn *_"]:
    """What all sequences share, for every head of each of b sequences."""
    return jnp.broadcast_to(x[None], (b, *x.shape)).reshape(-1, *x.shape[1:])
