"""A neural memory trained token by token inside the forward pass: its exact chunk-parallel form and its step form.

The memory of one row (one head of one sequence) is a small MLP with weights W_1 .. W_L. Every token moves the weights
by gradient descent with momentum and forgetting on how badly the memory maps the token's key to its value:

    f(W; z) = [z +] norm(... SiLU(z W_1) ... W_L),      loss(W; k, v) = |f(W; k) - v|^2 / 2
    u_t = grad loss(W_anchor; k_t, v_t)                  anchor: the weights at the start of t's chunk
    S_t = eta_t S_{t-1} - theta_t u_t,                   W_t = keep_t W_{t-1} + S_t

Within a chunk both lines are linear, so S_t and W_t are sums over the chunk's tokens with coefficients that depend on
the gates alone, and a token's gradient is an outer product x_t delta_t per matrix. No token's weights are ever formed.
The gradient of a chunk is written by hand (`memory_gradient`), so there is no forward mode.
From Titans (arXiv 2501.00663); reading a two-layer memory in dual form from TTT (arXiv 2407.04620).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .initial import varying_like
from .memory_forward import Inputs, ReadAt, Residual, WriteAt, over_rows, standard, surprise
from .memory_gradient import chunks

Read = Literal["inclusive", "exclusive", "chunk_start"]
Weights = tuple[Float[Array, "n _ _"], ...]


class Memory(NamedTuple):
    """What a token changes: weights and their momentum, a matrix a layer, for n rows at once."""

    weights: Weights
    momentum: Weights


class Shape(NamedTuple):
    """The function around the memory's matrices. Without a residual the widths of key and value may differ.

    `gain` (n p) is the LayerNorm's; None: no norm.
    """

    gain: Float[Array, "n p"] | None
    residual: Residual = "identity"


class Gates(NamedTuple):
    """Of every token: log(1 - alpha), log eta, both at most 0 and finite, and theta at least 0."""

    log_keep: Float[Array, "*n c"]
    log_eta: Float[Array, "*n c"]
    theta: Float[Array, "*n c"]


class Coefficients(NamedTuple):
    """W_t = keep_t W_0 + carry_t S_0 - sum_j write_tj u_j after row t of a chunk; S_C from the `last_` ones."""

    keep: Float[Array, "*n c"]
    carry: Float[Array, "*n c"]
    write: Float[Array, "*n c c"]
    last_eta: Float[Array, "*n"]
    last_write: Float[Array, "*n c"]


def coefficients(gates: Gates, valid: Bool[Array, "*#n c"] | None = None) -> Coefficients:
    """The coefficients of whole chunks from their gates.

    A row that is not `valid` leaves weights and momentum exactly as they are. (Gates alone cannot say so: with
    alpha = 0 and theta = 0 the momentum would still be added.)
    """
    log_keep, log_eta, theta = gates
    if valid is not None:
        log_keep, log_eta, theta = (jnp.where(valid, x, 0) for x in gates)
    keep, eta = _products(log_keep), _products(log_eta)
    momentum = jnp.exp(_cumulative(log_eta))
    last_write = eta[..., -1, :] * theta
    last_eta = momentum[..., -1]
    written = eta * theta[..., None, :]
    if valid is not None:
        written, momentum = jnp.where(valid[..., None], written, 0), jnp.where(valid, momentum, 0)
    return Coefficients(
        keep=jnp.exp(_cumulative(log_keep)),
        carry=(keep * momentum[..., None, :]).sum(axis=-1),
        write=keep @ written,
        last_eta=last_eta,
        last_write=last_write,
    )


def _cumulative(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    return jnp.cumsum(x, axis=-1)


def _products(log_x: Float[Array, "*n c"]) -> Float[Array, "*n c c"]:
    """Entry (t, i): the product of x_j over i < j <= t; 0 where i > t."""
    total = _cumulative(log_x)
    lower = jnp.tril(jnp.ones((total.shape[-1],) * 2, bool)).reshape((1,) * (total.ndim - 1) + (total.shape[-1],) * 2)
    # Masked inside the exponential too: above the diagonal it may overflow, and inf * 0 is NaN in the gradient.
    difference = jnp.where(lower, total[..., :, None] - total[..., None, :], 0)
    return jnp.where(lower, jnp.exp(difference), 0)


def recall(weights: Weights, z: Float[Array, "n c p"], shape: Shape) -> Float[Array, "n c o"]:
    """f(W; z): what the memory holds for keys `z`."""
    hidden = z
    for i, w in enumerate(weights):
        hidden = (jax.nn.silu(hidden) if i else hidden) @ w
    return _finish(z, hidden, shape)


def _finish(z: Array, out: Array, shape: Shape) -> Array:
    if shape.gain is not None:
        out = over_rows(shape.gain, out) * standard(out)[0]
    return z + out if shape.residual == "identity" else out


def memory_chunks(
    memory: Memory,
    q: Float[Array, "g n c p"],
    k: Float[Array, "g n c p"],
    v: Float[Array, "g n c o"],
    gates: Gates,
    shape: Shape,
    *,
    read: Read = "inclusive",
    anchor: Weights | None = None,
    span: tuple[Int[Array, ""], Int[Array, ""]] | None = None,
) -> tuple[Memory, Weights | None, Float[Array, "g n c o"]]:
    """Chunks in a row: exactly what `memory_step` gives for their tokens one after the other.

    **Arguments:**

    - `memory`: before the first token.
    - `q`, `k`, `v`, `gates`: g chunks of c tokens for n rows.
    - `read`: a query sees the memory after its own token, before it, or at the start of the chunk.
    - `anchor`, `span`: for sequences that begin or end within a chunk. Only tokens from `span[0]` (in the first chunk)
      to before `span[1]`, counted from 0, change anything; `anchor` is where the first chunk takes its gradients, and
      moves at the end of a chunk that is full.

    **Returns:** the memory after the last token, the anchor of the token to come (None where none was given), and the
    reads (without meaning outside `span`).
    """
    g, _, c, _ = q.shape
    valid, full = None, None if anchor is None else jnp.ones(g, bool)
    if span is not None:
        at = jnp.arange(g * c).reshape(g, 1, c)
        valid = (at >= span[0]) & (at < span[1])
        full = None if anchor is None else span[1] >= c * jnp.arange(1, g + 1)
    at = coefficients(gates, valid)
    keep, carry, write = at.keep, at.carry, at.write
    after = WriteAt(keep[..., -1], carry[..., -1], write[..., -1, :], at.last_eta, at.last_write)
    if read == "exclusive":  # the row before: at first the memory as it was
        first = ((0, 0), (0, 0), (1, 0))
        keep, carry = jnp.pad(keep[..., :-1], first, constant_values=1), jnp.pad(carry[..., :-1], first)
        write = jnp.pad(write[..., :-1, :], (*first, (0, 0)))
    seen = ReadAt(q, None, None, None) if read == "chunk_start" else ReadAt(q, keep, carry, write)
    # In a loop over shards, what every shard starts from must vary as its tokens do.
    weights, momentum, anchor, gain = varying_like((memory.weights, memory.momentum, anchor, shape.gain), k)
    left: Any = chunks(shape.residual, Inputs(weights, momentum, anchor, full, k, v, gain, seen, after))
    return Memory(left.weights, left.momentum), left.anchor, _finish(q, left.read, shape)


def memory_step(
    memory: Memory,
    q: Float[Array, "n p"],
    k: Float[Array, "n p"],
    v: Float[Array, "n o"],
    gates: Gates,
    shape: Shape,
    *,
    read: Read = "inclusive",
    anchor: Weights | None = None,
) -> tuple[Memory, Float[Array, "n o"]]:
    """One token, as `memory_chunks` without its sums: gates have shape (n,), `anchor` is the chunk's start."""
    anchor = memory.weights if anchor is None else anchor
    inputs, deltas, *_ = surprise(shape.residual, anchor, k[:, None], v[:, None], shape.gain)
    keep, eta, theta = (x[:, None, None] for x in (jnp.exp(gates.log_keep), jnp.exp(gates.log_eta), gates.theta))
    momentum = tuple(eta * s - theta * (x.mT * d) for s, x, d in zip(memory.momentum, inputs, deltas, strict=True))
    weights = tuple(keep * w + s for w, s in zip(memory.weights, momentum, strict=True))
    seen = {"inclusive": weights, "exclusive": memory.weights, "chunk_start": anchor}[read]
    return Memory(weights, momentum), recall(seen, q[:, None], shape)[:, 0]
