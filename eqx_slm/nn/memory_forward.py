"""The chunks of a neural memory, one after the other: what each leaves, what its queries see, what is kept of it.

`memory_gradient` has the way back; `memory_chunk` the rule in words and what others use.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .outer import outer

Matrices = tuple[Float[Array, "*g n _ _"], ...]
Rows = tuple[Float[Array, "*g n c _"], ...]
NORM_EPS = 1e-6
Residual = Literal["identity", "none"]


class ReadAt(NamedTuple):
    """The queries, and what they see: keep_t W_0 + carry_t S_0 - sum_j write_tj u_j.

    Without coefficients they see the matrices at which the chunk takes its gradients.
    """

    q: Float[Array, "g n c p"]
    keep: Float[Array, "g n c"] | None
    carry: Float[Array, "g n c"] | None
    write: Float[Array, "g n c c"] | None


class WriteAt(NamedTuple):
    """What a chunk leaves: W = keep W_0 + carry S_0 - sum_j write_j u_j, and S = eta S_0 - sum_j momentum_j u_j."""

    keep: Float[Array, "g n"]
    carry: Float[Array, "g n"]
    write: Float[Array, "g n c"]
    eta: Float[Array, "g n"]
    momentum: Float[Array, "g n c"]


class Inputs(NamedTuple):
    """Of g chunks, n rows: matrices before the first, keys, values, gain of the norm, coefficients.

    `anchor`: where gradients are taken, moved to the matrices after every chunk that is `full`. None for both: each
    chunk takes them at its start.
    """

    weights: Matrices
    momentum: Matrices
    anchor: Matrices | None
    full: Bool[Array, " g"] | None
    k: Float[Array, "g n c p"]
    v: Float[Array, "g n c o"]
    gain: Float[Array, "n o"] | None
    read: ReadAt
    write: WriteAt


class After(NamedTuple):
    """The matrices after the last chunk, and what the last matrix gives every query."""

    weights: Matrices
    momentum: Matrices
    anchor: Matrices | None
    read: Float[Array, "g n c o"]


class Surprise(NamedTuple):
    """The gradient of token t for matrix l is the outer product of `inputs[l][:, t]` and `deltas[l][:, t]`.

    `before` (inputs of SiLU), `errors` (deltas before its slope) and the last matrix' `out` are steps to it.
    """

    inputs: Rows
    deltas: Rows
    before: Rows
    errors: Rows
    out: Float[Array, "*g n c o"]


class Start(NamedTuple):
    """The matrices at the start of every chunk; `anchor` None: the same as `weights`."""

    weights: Matrices
    momentum: Matrices
    anchor: Matrices | None

    @property
    def at(self) -> Matrices:
        """Where gradients are taken."""
        return self.weights if self.anchor is None else self.anchor


class Seen(NamedTuple):
    """Of the queries: what goes into each SiLU, and products with keys."""

    before: Rows
    overlaps: tuple[Float[Array, "*g n c c"], ...]


class Chunk(NamedTuple):
    """What the loop reads of a chunk: as `Inputs`, without the chunks' axis."""

    k: Array
    v: Array
    read: ReadAt
    write: WriteAt
    full: Array | None


class Found(NamedTuple):
    """What a chunk started from, steps of its surprise (as in `Surprise`, `delta` the last), what its queries read."""

    start: Start
    before: Rows
    errors: Rows
    out: Float[Array, "*g n c o"]
    delta: Float[Array, "*g n c o"]
    seen: Seen
    read: Float[Array, "*g n c o"]


def standard(z: Array) -> tuple[Array, Array]:
    """Zero mean and unit variance over the last axis, and the inverse deviation."""
    centred = z - z.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)
    return centred * inverse, inverse


def over_rows(gain: Float[Array, "n o"], z: Float[Array, "*g n c o"]) -> Float[Array, "*_ n 1 o"]:
    """A row's gain, to multiply every token of `z` with."""
    return gain.reshape((1,) * (z.ndim - 3) + (gain.shape[0], 1, gain.shape[1]))


def output_delta(residual: Residual, out: Array, k: Array, v: Array, gain: Array | None) -> Array:
    """The gradient of |f - v|^2 / 2 at the last matrix' output, f = [k +] [norm](out)."""
    if gain is None:
        return (k + out if residual == "identity" else out) - v
    unit, inverse = standard(out)
    gain = over_rows(gain, out)
    error = gain * unit - v
    error = (k + error if residual == "identity" else error) * gain
    along = (error * unit).mean(axis=-1, keepdims=True)
    return inverse * (error - error.mean(axis=-1, keepdims=True) - unit * along)


def slopes(a: Array) -> tuple[Array, Array, Array]:
    """SiLU and its first two derivatives."""
    s = jax.nn.sigmoid(a)
    return a * s, s * (1 + a * (1 - s)), s * (1 - s) * (2 + a * (1 - 2 * s))


def surprise(
    residual: Residual, weights: Matrices, k: Float[Array, "n c p"], v: Float[Array, "n c o"], gain: Array | None
) -> Surprise:
    """The gradients of the memory's loss at `weights`, token by token, as factors."""
    before, inputs, out = [], [k], k
    for i, w in enumerate(weights):
        if i:
            before.append(out)
            inputs.append(jax.nn.silu(out))
        out = inputs[-1] @ w
    deltas, errors = [output_delta(residual, out, k, v, gain)], []
    for w, a in zip(weights[:0:-1], before[::-1], strict=True):
        errors.append(deltas[-1] @ w.mT)
        deltas.append(errors[-1] * slopes(a)[1])
    return Surprise(tuple(inputs), tuple(deltas[::-1]), tuple(before), tuple(errors[::-1]), out)


def matrix(x: Float[Array, " n"]) -> Float[Array, "n 1 1"]:
    """A number a row, to multiply its matrices with."""
    return x[:, None, None]


def read_chunk(read: ReadAt, start: Start, found: Surprise) -> tuple[Array, Seen]:
    """What the queries of a chunk see."""
    hidden, before, overlaps = read.q, [], []
    matrices = start.at if read.keep is None else start.weights
    for i, (w, s, x, delta) in enumerate(zip(matrices, start.momentum, found.inputs, found.deltas, strict=True)):
        if i:
            before.append(hidden)
            hidden = jax.nn.silu(hidden)
        if read.keep is None or read.carry is None:
            hidden = hidden @ w
        else:
            overlaps.append(hidden @ x.mT)
            within = (read.write * overlaps[-1]) @ delta
            hidden = read.keep[..., None] * (hidden @ w) + read.carry[..., None] * (hidden @ s) - within
    return hidden, Seen(tuple(before), tuple(overlaps))


def loop(run: Any, first: Start, turns: Any, *, reverse: bool = False) -> tuple[Start, Any]:
    """`jax.lax.scan`; one chunk without a loop, so that XLA counts its FLOPs."""
    if turns.read.q.shape[0] > 1:
        return jax.lax.scan(run, first, turns, reverse=reverse)
    last, found = run(first, jax.tree.map(lambda a: a[0], turns))
    return last, jax.tree.map(lambda a: a[None], found)


def run_chunk(residual: Residual, gain: Array | None, start: Start, chunk: Chunk) -> tuple[Start, Found]:
    """One chunk: what it leaves, and what was found on the way."""
    k, v, read, write, full = chunk
    found = surprise(residual, start.at, k, v, gain)
    out, seen = read_chunk(read, start, found)
    keep, carry, eta = matrix(write.keep), matrix(write.carry), matrix(write.eta)
    weights, momentum = [], []
    for w, s, x, delta in zip(start.weights, start.momentum, found.inputs, found.deltas, strict=True):
        weights.append(keep * w + carry * s - outer(x, delta * write.write[..., None]))
        momentum.append(eta * s - outer(x, delta * write.momentum[..., None]))
    anchor = None
    if start.anchor is not None and full is not None:
        anchor = tuple(jnp.where(full, w, a) for w, a in zip(weights, start.anchor, strict=True))
    kept = Found(start, found.before, found.errors, found.out, found.deltas[-1], seen, out)
    return Start(tuple(weights), tuple(momentum), anchor), kept
