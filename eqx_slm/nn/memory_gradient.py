"""One chunk of a neural memory, with its gradient written by hand.

Differentiated by JAX, a chunk keeps every intermediate, sums the weights' gradients one outer product after another,
and reduces over whole weight matrices for each coefficient. Here a chunk keeps what a memory's layer computes once a
token, and each matrix receives one contraction over the rows of all its uses.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Matrices = tuple[Float[Array, "n _ _"], ...]
Rows = tuple[Float[Array, "n c _"], ...]
NORM_EPS = 1e-6


class ReadAt(NamedTuple):
    """The queries, and what they see: keep_t W_0 + carry_t S_0 - sum_j write_tj u_j."""

    q: Float[Array, "n c p"]
    keep: Float[Array, "n c"]
    carry: Float[Array, "n c"]
    write: Float[Array, "n c c"]


class WriteAt(NamedTuple):
    """What the chunk leaves: W = keep W_0 + carry S_0 - sum_j write_j u_j, and S = eta S_0 - sum_j momentum_j u_j."""

    keep: Float[Array, " n"]
    carry: Float[Array, " n"]
    write: Float[Array, "n c"]
    eta: Float[Array, " n"]
    momentum: Float[Array, "n c"]


class ChunkInputs(NamedTuple):
    """Of one chunk, n rows: matrices before it and at the anchor (None: the same), keys, values, gain, coefficients."""

    weights: Matrices
    momentum: Matrices
    anchor: Matrices | None
    k: Float[Array, "n c p"]
    v: Float[Array, "n c o"]
    gain: Float[Array, "n o"] | None
    read: ReadAt | None
    write: WriteAt


class Surprise(NamedTuple):
    """The gradient of token t for matrix l is the outer product of `inputs[l][:, t]` and `deltas[l][:, t]`.

    `before` (inputs of SiLU), `errors` (deltas before its slope) and the last matrix's `out` are steps to it.
    """

    inputs: Rows
    deltas: Rows
    before: Rows
    errors: Rows
    out: Float[Array, "n c o"]


class Kept(NamedTuple):
    """What the backward pass finds of the surprise, and of the queries: inputs of SiLU, and products with keys."""

    before: Rows
    errors: Rows
    out: Float[Array, "n c o"]
    delta: Float[Array, "n c o"]
    seen: Rows
    overlaps: tuple[Float[Array, "n c c"], ...]


def standard(z: Array) -> tuple[Array, Array]:
    """Zero mean and unit variance over the last axis, and the inverse deviation."""
    centred = z - z.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + NORM_EPS)
    return centred * inverse, inverse


def output_delta(identity: bool, out: Array, k: Array, v: Array, gain: Array | None) -> Array:
    """The gradient of |f - v|^2 / 2 at the last matrix's output, f = [k +] [norm](out)."""
    if gain is None:
        return (k + out if identity else out) - v
    unit, inverse = standard(out)
    error = gain[:, None] * unit - v
    error = (k + error if identity else error) * gain[:, None]
    along = (error * unit).mean(axis=-1, keepdims=True)
    return inverse * (error - error.mean(axis=-1, keepdims=True) - unit * along)


def _slopes(a: Array) -> tuple[Array, Array, Array]:
    """SiLU and its first two derivatives."""
    s = jax.nn.sigmoid(a)
    return a * s, s * (1 + a * (1 - s)), s * (1 - s) * (2 + a * (1 - 2 * s))


def outer(x: Float[Array, "n c i"], y: Float[Array, "n c o"]) -> Float[Array, "n i o"]:
    """The sum over rows of outer products: one contraction, without a transposed copy."""
    return jnp.einsum("nci,nco->nio", x, y)


def surprise(
    identity: bool, weights: Matrices, k: Float[Array, "n c p"], v: Float[Array, "n c o"], gain: Array | None
) -> Surprise:
    """The gradients of the memory's loss at `weights`, token by token, as factors."""
    before, inputs, out = [], [k], k
    for i, w in enumerate(weights):
        if i:
            before.append(out)
            inputs.append(jax.nn.silu(out))
        out = inputs[-1] @ w
    deltas, errors = [output_delta(identity, out, k, v, gain)], []
    for w, a in zip(weights[:0:-1], before[::-1], strict=True):
        errors.append(deltas[-1] @ w.mT)
        deltas.append(errors[-1] * _slopes(a)[1])
    return Surprise(tuple(inputs), tuple(deltas[::-1]), tuple(before), tuple(errors[::-1]), out)


def _forward(identity: bool, given: ChunkInputs) -> tuple[tuple[Matrices, Matrices, Array | None], Kept]:
    weights, momentum, anchor, k, v, gain, read, write = given
    inputs, deltas, before, errors, out = surprise(identity, weights if anchor is None else anchor, k, v, gain)
    hidden, seen, overlaps = None, [], []
    if read is not None:
        hidden = read.q
        for i, (w, s, x, delta) in enumerate(zip(weights, momentum, inputs, deltas, strict=True)):
            if i:
                seen.append(hidden)
                hidden = jax.nn.silu(hidden)
            overlaps.append(hidden @ x.mT)
            within = (read.write * overlaps[-1]) @ delta
            hidden = read.keep[..., None] * (hidden @ w) + read.carry[..., None] * (hidden @ s) - within
    (keep, carry, eta), rows = (a[:, None, None] for a in write[:2] + write[3:4]), (write.write, write.momentum)
    new = [], []
    for w, s, x, delta in zip(weights, momentum, inputs, deltas, strict=True):
        new[0].append(keep * w + carry * s - outer(x, delta * rows[0][..., None]))
        new[1].append(eta * s - outer(x, delta * rows[1][..., None]))
    kept = Kept(before, errors, out, deltas[-1], tuple(seen), tuple(overlaps))
    return (tuple(new[0]), tuple(new[1]), hidden), kept


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunk(identity: bool, given: ChunkInputs) -> tuple[Matrices, Matrices, Array | None]:
    """Weights and momentum after the chunk, and what the last matrix gives the queries (None without a read).

    `identity`: the memory adds its key to its output.
    """
    return _forward(identity, given)[0]


def _save(identity: bool, given: ChunkInputs) -> tuple:
    result, kept = _forward(identity, given)
    return result, (given, kept)


class _Sums:
    """What the parts of a backward pass add up, a list an entry a matrix.

    `left` and `right`: a matrix's gradient is the contraction of both over the rows of all its uses.
    """

    def __init__(self, depth: int):
        self.inputs: list[Any] = [0] * depth
        self.deltas: list[Any] = [0] * depth
        self.left: list[list[Array]] = [[] for _ in range(depth)]
        self.right: list[list[Array]] = [[] for _ in range(depth)]

    def use(self, i: int, left: Array, right: Array) -> None:
        self.left[i].append(left)
        self.right[i].append(right)

    def contracted(self, i: int) -> Any:
        if not self.left[i]:
            return 0
        return outer(jnp.concatenate(self.left[i], axis=1), jnp.concatenate(self.right[i], axis=1))


def _backward(identity: bool, saved: tuple[ChunkInputs, Kept], pull: tuple) -> tuple[ChunkInputs]:
    given, kept = saved
    anchor = given.weights if given.anchor is None else given.anchor
    slopes = [_slopes(a) for a in kept.before]
    inputs = [given.k, *(s[0] for s in slopes)]
    deltas = [*(e * s[1] for e, s in zip(kept.errors, slopes, strict=True)), kept.delta]
    sums = _Sums(len(anchor))
    anchored = sums if given.anchor is None else _Sums(len(anchor))
    d_weights, d_momentum, dz = pull
    d_read, by_read = None, [0] * len(anchor)
    if given.read is not None:
        d_read, by_read = _read_backward(given, given.read, kept, inputs, deltas, dz, sums)
    d_write = _write_backward(given, inputs, deltas, d_weights, d_momentum, sums)
    # The surprise: up through the errors, and down again through the memory.
    d_before = []
    for i, (_, slope, curve) in enumerate(slopes):
        d_error = sums.deltas[i] * slope
        d_before.append(sums.deltas[i] * kept.errors[i] * curve)
        sums.deltas[i + 1] += d_error @ anchor[i + 1]
        anchored.use(i + 1, d_error, deltas[i + 1])
    top = jax.vjp(partial(output_delta, identity), kept.out, given.k, given.v, given.gain)[1]
    d_out, dk, dv, d_gain = top(sums.deltas[-1])
    for i in reversed(range(len(anchor))):
        anchored.use(i, inputs[i], d_out)
        sums.inputs[i] += d_out @ anchor[i].mT
        if i:
            d_out = sums.inputs[i] * slopes[i - 1][1] + d_before[i - 1]
    keep, carry, eta = (a[:, None, None] for a in (given.write.keep, given.write.carry, given.write.eta))
    both = list(zip(d_weights, d_momentum, strict=True))
    return (
        ChunkInputs(
            tuple(keep * dw + sums.contracted(i) for i, dw in enumerate(d_weights)),
            tuple(carry * dw + eta * ds + by_read[i] for i, (dw, ds) in enumerate(both)),
            None if given.anchor is None else tuple(anchored.contracted(i) for i in range(len(anchor))),
            sums.inputs[0] + dk,
            dv,
            d_gain,
            d_read,
            d_write,
        ),
    )


def _read_backward(
    given: ChunkInputs, read: ReadAt, kept: Kept, inputs: list, deltas: list, dz: Array, sums: _Sums
) -> tuple[ReadAt, list]:
    """Of the queries, from the last matrix to the first; also what the momenta receive."""
    keep, carry = read.keep[..., None], read.carry[..., None]
    d_keep: Any = 0
    d_carry: Any = 0
    d_write: Any = 0
    seen = [_slopes(a)[:2] for a in kept.seen]
    hiddens, by_momentum = [read.q, *(s[0] for s in seen)], []
    for i in reversed(range(len(inputs))):
        hidden, across = hiddens[i], dz @ deltas[i].mT
        d_write -= kept.overlaps[i] * across
        across = read.write * across
        sums.deltas[i] -= (read.write * kept.overlaps[i]).mT @ dz
        sums.inputs[i] -= across.mT @ hidden
        from_w, from_s = dz @ given.weights[i].mT, dz @ given.momentum[i].mT
        d_keep, d_carry = d_keep + (hidden * from_w).sum(-1), d_carry + (hidden * from_s).sum(-1)
        sums.use(i, hidden, keep * dz)
        by_momentum.append(outer(hidden, carry * dz))
        dz = keep * from_w + carry * from_s - across @ inputs[i]
        if i:
            dz = dz * seen[i - 1][1]
    return ReadAt(dz, d_keep, d_carry, d_write), by_momentum[::-1]


def _write_backward(
    given: ChunkInputs, inputs: list, deltas: list, d_weights: Matrices, d_momentum: Matrices, sums: _Sums
) -> WriteAt:
    """Of what the chunk leaves."""
    totals: list[Any] = [0] * 5
    write, momentum = given.write.write[..., None], given.write.momentum[..., None]
    for i, (dw, ds) in enumerate(zip(d_weights, d_momentum, strict=True)):
        x, delta, w, s = inputs[i], deltas[i], given.weights[i], given.momentum[i]
        from_w, from_s = x @ dw, x @ ds
        sums.deltas[i] -= write * from_w + momentum * from_s
        sums.inputs[i] -= (write * delta) @ dw.mT + (momentum * delta) @ ds.mT
        whole, rows = (1, 2), -1
        products = ((dw, w, whole), (dw, s, whole), (delta, -from_w, rows), (ds, s, whole), (delta, -from_s, rows))
        totals = [total + (a * b).sum(axis) for total, (a, b, axis) in zip(totals, products, strict=True)]
    return WriteAt(*totals)


chunk.defvjp(_save, _backward)
