"""The rule of a neural memory: a small MLP that every token trains, by gradient descent, while it is read.

    f(W; z) = [z +] [norm](... SiLU(z W_1) ... W_L),      loss(W; k, v) = |f(W; k) - v|^2 / 2
    u_t = grad loss(W_anchor; k_t, v_t)                   anchor: the weights at the start of t's chunk
    S_t = eta_t S_{t-1} - theta_t u_t                     momentum: past and momentary surprise
    W_t = (1 - alpha_t) W_{t-1} + S_t                     forgetting, towards zero

`memory_step` is the rule for one token, `loop.memory_chunks` the same for chunks of tokens at once. The n rows of all
arrays are memories that know nothing of each other: every head of every sequence has one.

From Titans (arXiv 2501.00663), eq. 8 to 14; weights, momentum and gates in its letters.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..ops import standardize

NORM_EPS = 1e-6
Read = Literal["inclusive", "exclusive", "chunk_start"]
Residual = Literal["identity", "none"]
Matrices = tuple[Float[Array, "n _ _"], ...]


class Memory(NamedTuple):
    """What a token changes: the weights W and their momentum S, a matrix a layer."""

    weights: Matrices
    momentum: Matrices


class Gates(NamedTuple):
    """Of every token: log(1 - alpha), log eta, both at most 0 and finite, and theta at least 0."""

    log_keep: Float[Array, "*n t"]
    log_eta: Float[Array, "*n t"]
    theta: Float[Array, "*n t"]


class Surroundings(NamedTuple):
    """What surrounds the matrices in f and learns at training's pace: the norm's gain (None: no norm), the residual.

    Without a residual the widths of key and value may differ.
    """

    gain: Float[Array, "n h"] | None
    residual: Residual = "identity"

    def finish(self, z: Float[Array, "n t _"], out: Float[Array, "n t h"]) -> Float[Array, "n t h"]:
        """f from its input z and from what the last matrix gives."""
        if self.gain is not None:
            out = self.gain[:, None, :] * standardize(out, NORM_EPS)
        return z + out if self.residual == "identity" else out


class Surprise(NamedTuple):
    """The gradient u_t of matrix l, as the factors of an outer product: `inputs[l][t]` and `deltas[l][t]`.

    No token's u is ever formed: it is as large as the memory.
    """

    inputs: tuple[Float[Array, "n t _"], ...]
    deltas: tuple[Float[Array, "n t _"], ...]


def recall(weights: Matrices, z: Float[Array, "n t _"], around: Surroundings) -> Float[Array, "n t h"]:
    """f(W; z): what memories with these weights hold for keys `z`."""
    hidden = z
    for layer, w in enumerate(weights):
        hidden = (jax.nn.silu(hidden) if layer else hidden) @ w
    return around.finish(z, hidden)


def surprise(weights: Matrices, k: Float[Array, "n t _"], v: Float[Array, "n t h"], around: Surroundings) -> Surprise:
    """The gradients of the memory's loss at `weights`, token by token."""

    # By an offset on what each matrix gives, zero in value: the gradient with respect to it is the factor `delta` that
    # a token's gradient of the matrix has beside the matrix' input.
    def loss(offsets: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
        inputs, out = [], k
        for layer, (w, offset) in enumerate(zip(weights, offsets, strict=True)):
            inputs.append(jax.nn.silu(out) if layer else out)
            out = inputs[-1] @ w + offset
        return jnp.square(around.finish(k, out) - v).sum() / 2, tuple(inputs)

    zeros = tuple(jnp.zeros_like(k, shape=(*k.shape[:-1], w.shape[-1])) for w in weights)
    deltas, inputs = jax.grad(loss, has_aux=True)(zeros)
    return Surprise(inputs, deltas)


def memory_step(
    memory: Memory,
    q: Float[Array, "n _"],
    k: Float[Array, "n _"],
    v: Float[Array, "n h"],
    gates: Gates,
    around: Surroundings,
    *,
    read: Read = "inclusive",
    anchor: Matrices | None = None,
) -> tuple[Memory, Float[Array, "n h"]]:
    """One token: the memory after it, and what its query reads.

    **Arguments:**

    - `memory`: before the token.
    - `q`, `k`, `v`, `gates`: of the token; gates of shape `(n,)`.
    - `read`: the query sees the memory after the token ("inclusive"), before it, or at the start of the chunk.
    - `anchor`: the weights at which the token takes its gradient; None: `memory`'s.
    """
    anchor = memory.weights if anchor is None else anchor
    inputs, deltas = surprise(anchor, k[:, None], v[:, None], around)
    keep, eta, theta = (x[:, None, None] for x in (jnp.exp(gates.log_keep), jnp.exp(gates.log_eta), gates.theta))
    momentum = tuple(eta * s - theta * (x.mT * d) for s, x, d in zip(memory.momentum, inputs, deltas, strict=True))
    weights = tuple(keep * w + s for w, s in zip(memory.weights, momentum, strict=True))
    seen = {"inclusive": weights, "exclusive": memory.weights, "chunk_start": anchor}[read]
    return Memory(weights, momentum), recall(seen, q[:, None], around)[:, 0]
