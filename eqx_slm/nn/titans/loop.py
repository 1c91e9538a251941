"""A neural memory over whole chunks of tokens: exactly the rule of `rule.py`, by matmuls instead of token by token.

Within a chunk all gradients u are taken at the anchor, so that they do not depend on each other, and both lines of the
recurrence are linear in them:

    S_t = eta_1..eta_t S_0 - sum_{u <= t} eta_{u+1}..eta_t theta_u u_u
    W_t = keep_t W_0 + carry_t S_0 - sum_{u <= t} write_tu u_u

with coefficients that depend on the gates alone. As u_u is an outer product x_u delta_u, a query's product with W_t is

    q_t W_t = keep_t q_t W_0 + carry_t q_t S_0 - sum_u write_tu (q_t . x_u) delta_u

which is masked linear attention to the chunk's own tokens beside two matmuls: no token's weights are ever formed.

The gradient of training goes through all of it, the memory's own gradient included, and is JAX's own. A chunk is
rematerialised: the loop keeps the memories between chunks and nothing within, so that the backward pass needs less
memory than a gradient written by hand that keeps a chunk's activations, at the same time on a CPU (1.0 - 1.1 of it).

Reading a two-layer memory in this dual form is from TTT (arXiv 2407.04620), section 2.5; decay and momentum are of
Titans (arXiv 2501.00663), section 3.2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..ops import varying_like
from .rule import Gates, Matrices, Memory, Read, Surprise, Surroundings, surprise


class Coefficients(NamedTuple):
    """W_t = keep_t W_0 + carry_t S_0 - sum_u write_tu u_u, and S_t = eta_t S_0 - sum_u momentum_u u_u at the last t."""

    keep: Float[Array, "*n t"]
    carry: Float[Array, "*n t"]
    write: Float[Array, "*n t u"]
    eta: Float[Array, "*n"]
    momentum: Float[Array, "*n u"]


def coefficients(gates: Gates, valid: Bool[Array, "*#n t"] | None = None) -> Coefficients:
    """The coefficients of whole chunks from their gates.

    A token that is not `valid` leaves weights and momentum exactly as they are. (Gates alone cannot say so: with
    alpha = 0 and theta = 0 the momentum would still be added.)
    """
    log_keep, log_eta, theta = gates
    if valid is not None:
        log_keep, log_eta, theta = (jnp.where(valid, x, 0) for x in gates)
    keep_tu, eta_tu = products_between(log_keep), products_between(log_eta)
    eta_t = jnp.exp(jnp.cumsum(log_eta, axis=-1))
    last_momentum, last_eta = eta_tu[..., -1, :] * theta, eta_t[..., -1]
    written_tu = eta_tu * theta[..., None, :]  # what u's gradient is in the momentum after t
    if valid is not None:
        written_tu, eta_t = jnp.where(valid[..., None], written_tu, 0), jnp.where(valid, eta_t, 0)
    return Coefficients(
        keep=jnp.exp(jnp.cumsum(log_keep, axis=-1)),
        carry=(keep_tu * eta_t[..., None, :]).sum(axis=-1),
        write=keep_tu @ written_tu,
        eta=last_eta,
        momentum=last_momentum,
    )


def products_between(log_x: Float[Array, "*n t"]) -> Float[Array, "*n t u"]:
    """Entry (t, u): the product of x_j over u < j <= t; 0 where u > t."""
    total = jnp.cumsum(log_x, axis=-1)
    size = total.shape[-1]
    lower = jnp.tril(jnp.ones((size, size), bool)).reshape((1,) * (total.ndim - 1) + (size, size))
    # Masked inside the exponential too: above the diagonal it may overflow, and inf * 0 is NaN in the gradient.
    difference = jnp.where(lower, total[..., :, None] - total[..., None, :], 0)
    return jnp.where(lower, jnp.exp(difference), 0)


def memory_chunks(
    memory: Memory,
    q: Float[Array, "chunks n t h"],
    k: Float[Array, "chunks n t h"],
    v: Float[Array, "chunks n t _"],
    gates: Gates,
    around: Surroundings,
    *,
    read: Read = "inclusive",
    anchor: Matrices | None = None,
    span: tuple[Int[Array, ""], Int[Array, ""]] | None = None,
) -> tuple[Memory, Matrices | None, Float[Array, "chunks n t _"]]:
    """Chunks in a row: exactly what `memory_step` gives for their tokens one after the other.

    **Arguments:**

    - `memory`: before the first token.
    - `q`, `k`, `v`, `gates`: chunks of t tokens for n rows.
    - `read`: a query sees the memory after its own token, before it, or at the start of the chunk.
    - `anchor`, `span`: for sequences that begin or end within a chunk. Only tokens from `span[0]` (in the first chunk)
      to before `span[1]`, counted from 0, change anything; `anchor` is where the first chunk takes its gradients, and
      moves at the end of a chunk that is full. None: every chunk takes them at its start.

    **Returns:** the memory after the last token, the anchor of the token to come (None where none was given), and the
    reads (without meaning outside `span`).
    """
    chunks, _, t, _ = q.shape
    valid, full = None, None if anchor is None else jnp.ones(chunks, bool)
    if span is not None:
        at = jnp.arange(chunks * t, dtype=jnp.int32).reshape(chunks, 1, t)
        valid = (at >= span[0]) & (at < span[1])
        full = None if anchor is None else span[1] >= t * jnp.arange(1, chunks + 1, dtype=jnp.int32)

    def one_chunk(
        carry: tuple[Memory, Matrices | None], chunk: tuple[Any, ...]
    ) -> tuple[tuple[Memory, Matrices | None], Array]:
        memory, anchor = carry
        q, k, v, at, full = chunk
        start = memory.weights if anchor is None else anchor
        found = surprise(start, k, v, around)
        y = _read(read, q, memory, start, at, found)
        memory = _write(memory, at, found)
        if anchor is not None:
            anchor = tuple(jnp.where(full, w, a) for w, a in zip(memory.weights, anchor, strict=True))
        return (memory, anchor), around.finish(q, y)

    # In a loop over shards, what every shard starts from must vary as its tokens do.
    memory, anchor = varying_like((memory, anchor), k)
    inputs = (q, k, v, coefficients(gates, valid), full)
    rematerialised = jax.checkpoint(one_chunk, prevent_cse=False)
    if chunks == 1:  # without a loop, so that XLA counts its FLOPs
        (memory, anchor), y = rematerialised((memory, anchor), jax.tree.map(lambda a: a[0], inputs))
        return memory, anchor, y[None]
    (memory, anchor), y = jax.lax.scan(rematerialised, (memory, anchor), inputs)
    return memory, anchor, y


def _read(
    read: Read, q: Float[Array, "n t h"], memory: Memory, start: Matrices, at: Coefficients, found: Surprise
) -> Float[Array, "n t _"]:
    """What the last matrix gives the queries of a chunk."""
    keep_t, carry_t, write_tu = at.keep, at.carry, at.write
    if read == "exclusive":  # coefficients of the token before; the first token sees the memory as it was
        keep_t = jnp.pad(keep_t[:, :-1], ((0, 0), (1, 0)), constant_values=1)
        carry_t = jnp.pad(carry_t[:, :-1], ((0, 0), (1, 0)))
        write_tu = jnp.pad(write_tu[:, :-1], ((0, 0), (1, 0), (0, 0)))
    hidden = q
    for layer, (w, s, x, delta) in enumerate(
        zip(memory.weights, memory.momentum, found.inputs, found.deltas, strict=True)
    ):
        hidden = jax.nn.silu(hidden) if layer else hidden
        if read == "chunk_start":
            hidden = hidden @ start[layer]
        else:
            within = (write_tu * (hidden @ x.mT)) @ delta
            hidden = keep_t[..., None] * (hidden @ w) + carry_t[..., None] * (hidden @ s) - within
    return hidden


def _write(memory: Memory, at: Coefficients, found: Surprise) -> Memory:
    """The memory after a chunk: the coefficients of its last token, and of its momentum."""
    keep, carry, eta = (a[:, None, None] for a in (at.keep[:, -1], at.carry[:, -1], at.eta))
    written_u, momentum_u = at.write[:, -1, :, None], at.momentum[..., None]
    weights, momentum = [], []
    for w, s, x, delta in zip(memory.weights, memory.momentum, found.inputs, found.deltas, strict=True):
        weights.append(keep * w + carry * s - x.mT @ (delta * written_u))
        momentum.append(eta * s - x.mT @ (delta * momentum_u))
    return Memory(tuple(weights), tuple(momentum))
