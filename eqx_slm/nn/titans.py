"""Titans' neural long-term memory as a mixer: every head learns, token by token, to map its keys to its values."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from .block import Decoded, Mixer, check_state
from .initial import inner_dtype, normal, varying_like
from .memory_chunk import Gates, Memory, Read, Shape, Weights, memory_chunks, memory_step
from .memory_forward import NORM_EPS
from .norm import RMSNorm
from .titans_sizes import CONV, TitansSizes, group_size

ALPHA_BIAS = -6.0  # forgets about 0.25% a token at first: a half-life of some 280 tokens


@dataclass(frozen=True)
class TitansConfig(TitansSizes):
    """Heads; the memory's layers, hidden width over head width, norm and residual; chunk; read; persistent tokens.

    `memory_depth` 1 is a linear memory, 2 has one hidden layer of `expansion` head widths. `chunk` is how many tokens
    take their gradients at the same weights. The step size is divided by `chunk_train` (None: `chunk`), a constant of
    the model that stays when it is run at another chunk. `step_size` bounds the total step that a chunk puts on one
    token's error: without the memory's norm it must be at most about 0.5. `remat` keeps a state per group of chunks
    for the backward pass, from 33 chunks on ("none": per chunk).
    """

    def build(
        self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray
    ) -> "TitansMemory":
        """The module; `output_scale` multiplies w_o's start. A memory needs no positions: `rotary` is not used."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "kind"}
        return TitansMemory(d_model, **options, output_scale=output_scale, key=key)


class TitansState(NamedTuple):
    """Of one sequence: the memory of every head, where its gradients are taken, the convolutions' last rows.

    `phase` is the number of tokens in the running chunk.
    """

    weights: tuple[Float[Array, "h _ _"], ...]
    momentum: tuple[Float[Array, "h _ _"], ...]
    anchor: tuple[Float[Array, "h _ _"], ...]
    rows: Float[Array, "3 _"]
    phase: Int32[Array, ""]


class _Carry(NamedTuple):
    """Between groups of chunks, for all heads of all sequences; no anchor where every chunk is entered at its start."""

    rows: Float[Array, "b 3 _"]
    memory: Memory
    anchor: Weights | None


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
    sequence; only their effect on the memory is seen. The gradient is written by hand: reverse mode only. From Titans
    (arXiv 2501.00663), section 3.
    """

    w_q: Float[Array, "{self.d_model} {self.d_model}"]
    w_k: Float[Array, "{self.d_model} {self.d_model}"]
    w_v: Float[Array, "{self.d_model} {self.d_model}"]
    w_gate: Float[Array, "{self.d_model} {self.d_model}"]
    w_o: Float[Array, "{self.d_model} {self.d_model}"]
    conv: Float[Array, "4 3*{self.d_model}"]
    w_inner: Float[Array, "{self.d_model} 3*{self.n_heads}"]
    b_inner: Float[Array, " 3*{self.n_heads}"]
    initial: tuple[Float[Array, "{self.n_heads} _ _"], ...]
    gain: Float[Array, "{self.n_heads} _"] | None
    out_norm: RMSNorm
    persistent: Float[Array, "_ {self.d_model}"] | None
    d_model: int = eqx.field(static=True)
    n_heads: int = eqx.field(static=True)
    chunk: int = eqx.field(static=True)
    chunk_train: int = eqx.field(static=True)
    step_size: float = eqx.field(static=True)
    memory_residual: Literal["identity", "none"] = eqx.field(static=True)
    read: Read = eqx.field(static=True)
    remat: Literal["groups", "none"] = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("b_inner", "initial", "gain", "persistent")
    full_precision: ClassVar[tuple[str, ...]] = ("w_inner", "b_inner", "initial", "gain")

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        memory_depth: int = 2,
        expansion: int = 4,
        memory_norm: Literal["layer", "none"] = "layer",
        memory_residual: Literal["identity", "none"] = "identity",
        chunk: int = 16,
        chunk_train: int | None = None,
        step_size: float = 1.0,
        read: Read = "inclusive",
        persistent: int = 0,
        remat: Literal["groups", "none"] = "groups",
        output_scale: float = 1.0,
        key: PRNGKeyArray,
    ):
        """**Arguments:** as in `TitansConfig`; `output_scale` multiplies the initial `w_o`; `key`.

        **Raises:** `ValueError` where the heads do not fit `d_model`, or a value is out of its range.
        """
        config = TitansConfig(
            "titans",
            n_heads,
            memory_depth,
            expansion,
            memory_norm,
            memory_residual,
            chunk,
            chunk_train,
            step_size,
            read,
            persistent,
            remat,
        )
        layers = config.layers(d_model)
        std = d_model**-0.5
        self.w_q = normal(key, "w_q", (d_model, d_model), std)
        self.w_k = normal(key, "w_k", (d_model, d_model), std)
        self.w_v = normal(key, "w_v", (d_model, d_model), std)
        self.w_gate = normal(key, "w_gate", (d_model, d_model), std)
        self.w_o = normal(key, "w_o", (d_model, d_model), std) * output_scale
        self.conv = normal(key, "conv", (CONV, 3 * d_model), 0.3)
        self.w_inner = normal(key, "w_inner", (d_model, 3 * n_heads), 0.02)
        self.b_inner = jnp.repeat(jnp.array([ALPHA_BIAS, 0.0, 0.0]), n_heads)
        # A near-zero last matrix would make the norm's gradients many times larger.
        self.initial = tuple(normal(key, f"initial.{i}", (n_heads, a, b), a**-0.5) for i, (a, b) in enumerate(layers))
        self.gain = jnp.ones((n_heads, layers[-1][1])) if memory_norm == "layer" else None
        self.out_norm = RMSNorm(layers[-1][1], eps=NORM_EPS)
        self.persistent = normal(key, "persistent", (persistent, d_model), 1.0) if persistent else None
        self.d_model = d_model
        self.n_heads = n_heads
        self.chunk = chunk
        self.chunk_train = chunk if chunk_train is None else chunk_train
        self.step_size = step_size
        self.memory_residual = memory_residual
        self.read = read
        self.remat = remat

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
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
        c = max(1, min(self.chunk, total))
        chunks = max(1, -(-total // c))
        group = group_size(chunks) if self.remat == "groups" else chunks
        groups = -(-chunks // group)
        # Rows after the last token change nothing before them, and the memory after them is not used.
        x = jnp.pad(x, ((0, 0), (0, groups * group * c - total), (0, 0)))
        carry = varying_like(self._fresh(b, inner_dtype(x)), x)

        def run(carry: _Carry, x: Array) -> tuple[_Carry, Array]:
            return self._group(carry, x, c)

        if groups == 1:
            y = run(carry, x)[1]
        else:
            split = x.reshape(b, groups, group * c, d).swapaxes(0, 1)
            y = jax.lax.scan(jax.checkpoint(run, prevent_cse=False), carry, split)[1].swapaxes(0, 1)
        return y.reshape(b, -1, d)[:, total - t : total]

    def start(self, context: int, dtype: Any = None) -> TitansState:
        """Decode state before the first token; of the same size for any `context`."""
        wide = jnp.promote_types(self.w_q.dtype if dtype is None else dtype, jnp.float32)
        rows, memory, _ = self._fresh(1, wide)
        anchor = jax.tree.map(jnp.copy, memory.weights)  # a buffer of its own, so that the state can be donated
        state = TitansState(memory.weights, memory.momentum, anchor, rows[0], jnp.zeros((), jnp.int32))
        return state if self.persistent is None else self.prefill(self.persistent.astype(wide), state).state

    def prefill(self, x: Float[Array, "t {self.d_model}"], state: Any) -> Decoded:
        """The outputs of t tokens that follow `state`, in parallel, and the state after them.

        **Raises:** `ValueError` for a decode state of another mixer or of other sizes.
        """
        self._check(state)
        t, c = x.shape[0], self.chunk
        # The rows stand in their chunks as they do in the sequence: up to c - 1 come before them in a running chunk.
        chunks = max(1, -(-(t + c - 1) // c))
        group = group_size(chunks)
        groups = -(-chunks // group)
        span = group * c
        laid = jnp.zeros((groups * span, self.d_model), x.dtype)
        laid = jax.lax.dynamic_update_slice_in_dim(laid, x, state.phase, axis=0)
        offsets = span * jnp.arange(groups)

        def run(carry: _Carry, now: tuple[Array, Array]) -> tuple[_Carry, Array]:
            rows, offset = now
            begin, end = (jnp.clip(at - offset, 0, span) for at in (state.phase, state.phase + t))
            return self._group(carry, rows[None], c, (begin, end))

        carry = _Carry(state.rows[None], Memory(state.weights, state.momentum), state.anchor)
        carry, y = jax.lax.scan(run, carry, (laid.reshape(groups, span, -1), offsets))
        y = jax.lax.dynamic_slice_in_dim(y.reshape(groups * span, -1), state.phase, t, axis=0)
        rows, memory, anchor = carry
        phase = (state.phase + t) % c
        return Decoded(y, TitansState(memory.weights, memory.momentum, anchor or memory.weights, rows[0], phase))

    def step(self, x: Float[Array, " {self.d_model}"], state: Any) -> Decoded:
        """One token.

        **Raises:** `ValueError` for a decode state of another mixer or of other sizes.
        """
        self._check(state)
        heads, wide = self.n_heads, inner_dtype(x)
        rows, (q, k, v), gates = self._project(state.rows[None], x[None, None], None)
        q, k, v = (a.reshape(heads, -1) for a in (q, k, v))
        gates = Gates(*(g.reshape(heads) for g in gates))
        memory, y = memory_step(
            Memory(state.weights, state.momentum),
            q,
            k,
            v,
            gates,
            self._shape(1, wide),
            read=self.read,
            anchor=state.anchor,
        )
        phase = (state.phase + 1) % self.chunk
        anchor = tuple(jnp.where(phase == 0, w, a) for w, a in zip(memory.weights, state.anchor, strict=True))
        y = self._output(x[None, None], y[None, None])[0, 0]
        return Decoded(y, TitansState(memory.weights, memory.momentum, anchor or memory.weights, rows[0], phase))

    def _check(self, state: Any) -> None:
        check_state(state, TitansState, self)
        ours, theirs = ([tuple(w.shape) for w in weights] for weights in (self.initial, state.weights))
        if ours != theirs:
            raise ValueError(
                f"the decode state holds memories of shapes {theirs}, this memory has {ours}: take the state from the "
                "start() of the model that it is given to"
            )

    def _fresh(self, b: int, wide: Any) -> _Carry:
        """Before the first token of b sequences."""
        weights = tuple(
            jnp.broadcast_to(w.astype(wide)[None], (b, *w.shape)).reshape(-1, *w.shape[1:]) for w in self.initial
        )
        momentum = tuple(jnp.zeros_like(w) for w in weights)
        return _Carry(jnp.zeros((b, CONV - 1, 3 * self.d_model), wide), Memory(weights, momentum), None)

    def _shape(self, b: int, wide: Any) -> Shape:
        gain = self.gain
        if gain is not None:
            gain = jnp.broadcast_to(gain.astype(wide)[None], (b, *gain.shape)).reshape(-1, gain.shape[1])
        return Shape(gain, self.memory_residual)

    def _project(
        self, rows: Float[Array, "b 3 e"], x: Float[Array, "b s d"], span: tuple[Array, Array] | None
    ) -> tuple[Array, tuple[Array, ...], Gates]:
        """The convolutions' next rows; q, k, v (b s h p); gates (b s h). `rows` come before row `span[0]` of x."""
        b, s, _ = x.shape
        heads, wide = self.n_heads, inner_dtype(x)
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
        q, k, v = jnp.split(mixed.reshape(b, s, 3 * heads, -1), 3, axis=2)
        q, k = (a * jax.lax.rsqrt(jnp.square(a).sum(axis=-1, keepdims=True) + NORM_EPS) for a in (q, k))
        z = x.reshape(b * s, -1).astype(wide) @ self.w_inner.astype(wide) + self.b_inner.astype(wide)[None]
        alpha, eta, theta = (a.reshape(b, s, heads) for a in jnp.split(z, 3, axis=-1))
        theta = self.step_size / self.chunk_train * jax.nn.sigmoid(-eta) * jax.nn.sigmoid(theta)
        return rows, (q, k, v), Gates(jax.nn.log_sigmoid(-alpha), jax.nn.log_sigmoid(eta), theta)

    def _output(self, x: Float[Array, "b s d"], y: Float[Array, "b s h p"]) -> Float[Array, "b s d"]:
        gate = jax.nn.silu(x @ self.w_gate.astype(x.dtype))
        return (self.out_norm(y).astype(x.dtype).reshape(x.shape) * gate) @ self.w_o.astype(x.dtype)

    def _group(
        self, carry: _Carry, x: Float[Array, "b s d"], c: int, span: tuple[Array, Array] | None = None
    ) -> tuple[_Carry, Float[Array, "b s d"]]:
        """Whole chunks of c tokens, from projections to outputs. Only rows from `span[0]` to before `span[1]` count."""
        b, s, _ = x.shape
        heads, chunks = self.n_heads, s // c
        rows, qkv, gates = self._project(carry.rows, x, span)

        def split(a: Float[Array, "b s h *p"]) -> Float[Array, "g n c *p"]:
            a = jnp.moveaxis(a.reshape(b, chunks, c, heads, *a.shape[3:]), (1, 3), (0, 2))
            return a.reshape(chunks, b * heads, c, *a.shape[4:])

        q, k, v = map(split, qkv)
        memory, anchor, y = memory_chunks(
            carry.memory,
            q,
            k,
            v,
            Gates(*map(split, gates)),
            self._shape(b, inner_dtype(x)),
            read=self.read,
            anchor=carry.anchor,
            span=span,
        )
        y = jnp.moveaxis(y.reshape(chunks, b, heads, c, -1), (0, 2), (1, 3)).reshape(b, s, heads, -1)
        return _Carry(rows, memory, anchor), self._output(x, y)
