"""Chunks of a neural memory one after the other, with their gradient written by hand.

What a chunk leaves depends on the chunk before it; what its queries read does not go into any later chunk. So one
loop, kept short, finds the matrices at every chunk's start, and all chunks' queries are read at once; backward, the
queries' part comes first, at once, and then a loop in reverse. Differentiated by JAX, a chunk would keep every
intermediate, sum a matrix' gradient one outer product after another, and reduce over whole matrices for each
coefficient: here each matrix receives one contraction over the rows of all its uses.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Matrices = tuple[Float[Array, "*g n _ _"], ...]
Rows = tuple[Float[Array, "*g n c _"], ...]
NORM_EPS = 1e-6


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


class _Chunk(NamedTuple):
    """What the loop reads of a chunk."""

    k: Array
    v: Array
    read: ReadAt
    write: WriteAt
    full: Array | None


class _Found(NamedTuple):
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


def output_delta(identity: bool, out: Array, k: Array, v: Array, gain: Array | None) -> Array:
    """The gradient of |f - v|^2 / 2 at the last matrix' output, f = [k +] [norm](out)."""
    if gain is None:
        return (k + out if identity else out) - v
    unit, inverse = standard(out)
    gain = over_rows(gain, out)
    error = gain * unit - v
    error = (k + error if identity else error) * gain
    along = (error * unit).mean(axis=-1, keepdims=True)
    return inverse * (error - error.mean(axis=-1, keepdims=True) - unit * along)


def _slopes(a: Array) -> tuple[Array, Array, Array]:
    """SiLU and its first two derivatives."""
    s = jax.nn.sigmoid(a)
    return a * s, s * (1 + a * (1 - s)), s * (1 - s) * (2 + a * (1 - 2 * s))


def outer(x: Float[Array, "n c i"], y: Float[Array, "n c o"]) -> Float[Array, "n i o"]:
    """The sum over rows of outer products: one contraction, without a transposed copy."""
    return jax.lax.optimization_barrier(x.mT) @ y


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


def _matrix(x: Float[Array, " n"]) -> Float[Array, "n 1 1"]:
    return x[:, None, None]


def _read(read: ReadAt, start: Start, found: Surprise) -> tuple[Array, Seen]:
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


def _loop(run: Any, first: Start, turns: Any, *, reverse: bool = False) -> tuple[Start, Any]:
    """`jax.lax.scan`; one chunk without a loop, so that XLA counts its FLOPs."""
    if turns.read.q.shape[0] > 1:
        return jax.lax.scan(run, first, turns, reverse=reverse)
    last, found = run(first, jax.tree.map(lambda a: a[0], turns))
    return last, jax.tree.map(lambda a: a[None], found)


def _chunk(identity: bool, gain: Array | None, start: Start, chunk: _Chunk) -> tuple[Start, _Found]:
    """One chunk: what it leaves, and what was found on the way."""
    k, v, read, write, full = chunk
    found = surprise(identity, start.at, k, v, gain)
    out, seen = _read(read, start, found)
    keep, carry, eta = _matrix(write.keep), _matrix(write.carry), _matrix(write.eta)
    weights, momentum = [], []
    for w, s, x, delta in zip(start.weights, start.momentum, found.inputs, found.deltas, strict=True):
        weights.append(keep * w + carry * s - outer(x, delta * write.write[..., None]))
        momentum.append(eta * s - outer(x, delta * write.momentum[..., None]))
    anchor = None
    if start.anchor is not None and full is not None:
        anchor = tuple(jnp.where(full, w, a) for w, a in zip(weights, start.anchor, strict=True))
    kept = _Found(start, found.before, found.errors, found.out, found.deltas[-1], seen, out)
    return Start(tuple(weights), tuple(momentum), anchor), kept


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunks(identity: bool, given: Inputs) -> After:
    """All chunks, one after the other. `identity`: the memory adds its key to its output (the reads do not yet)."""
    return _save(identity, given)[0]


def _save(identity: bool, given: Inputs) -> tuple[After, tuple[Inputs, _Found]]:
    first = Start(given.weights, given.momentum, given.anchor)
    turns = _Chunk(given.k, given.v, given.read, given.write, given.full)
    last, found = _loop(partial(_chunk, identity, given.gain), first, turns)
    return After(*last, read=found.read), (given, found)


class _Normed(NamedTuple):
    """Of the norm in the memory's error: unit output, inverse deviation, gained error and its mean along the output."""

    unit: Array
    inverse: Array
    error: Array
    along: Array


class _Turn(NamedTuple):
    """What the loop in reverse reads of a chunk. `curved`: errors times the second derivative of SiLU."""

    start: Start
    full: Array | None
    read: ReadAt
    seen: Seen
    write: WriteAt
    inputs: Rows
    deltas: Rows
    slopes: Rows
    curved: Rows
    normed: _Normed | None
    pull: Array


class _Sums:
    """What one chunk's parts add up, an entry a matrix: rows, and pairs of rows that a matrix is contracted from."""

    def __init__(self, depth: int):
        self.inputs: list[Any] = [0] * depth
        self.deltas: list[Any] = [0] * depth
        self.weights: list[Any] = [0] * depth
        self.momentum: list[Any] = [0] * depth
        self.anchor: list[Any] = [0] * depth


def _mean(x: Array) -> Array:
    return x.mean(axis=-1, keepdims=True)


def _read_backward(turn: _Turn, sums: _Sums) -> ReadAt:
    """Of the queries, from the last matrix to the first."""
    read, start, seen = turn.read, turn.start, [_slopes(a)[:2] for a in turn.seen.before]
    hidden, dz = (read.q, *(s[0] for s in seen)), turn.pull
    if read.keep is None or read.carry is None or read.write is None:
        for i in reversed(range(len(hidden))):
            sums.anchor[i] += outer(hidden[i], dz)
            dz = dz @ start.at[i].mT
            if i:
                dz = dz * seen[i - 1][1]
        return ReadAt(dz, None, None, None)
    keep, carry = read.keep[..., None], read.carry[..., None]
    d_keep: Any = 0
    d_carry: Any = 0
    d_write: Any = 0
    for i in reversed(range(len(hidden))):
        overlap, across = turn.seen.overlaps[i], dz @ turn.deltas[i].mT
        d_write -= overlap * across
        across = read.write * across
        sums.deltas[i] -= outer(read.write * overlap, dz)
        sums.inputs[i] -= outer(across, hidden[i])
        from_w, from_s = dz @ start.weights[i].mT, dz @ start.momentum[i].mT
        d_keep, d_carry = d_keep + (hidden[i] * from_w).sum(-1), d_carry + (hidden[i] * from_s).sum(-1)
        sums.weights[i] += outer(hidden[i], keep * dz)
        sums.momentum[i] += outer(hidden[i], carry * dz)
        dz = keep * from_w + carry * from_s - across @ turn.inputs[i]
        if i:
            dz = dz * seen[i - 1][1]
    return ReadAt(dz, d_keep, d_carry, d_write)


def _write_backward(turn: _Turn, d_weights: Matrices, d_momentum: Matrices, sums: _Sums) -> WriteAt:
    """Of what the chunk leaves."""
    totals: list[Any] = [0] * 5
    write = turn.write
    by_weights, by_momentum = write.write[..., None], write.momentum[..., None]
    keep, carry, eta = _matrix(write.keep), _matrix(write.carry), _matrix(write.eta)
    for i, (dw, ds) in enumerate(zip(d_weights, d_momentum, strict=True)):
        x, delta, w, s = turn.inputs[i], turn.deltas[i], turn.start.weights[i], turn.start.momentum[i]
        from_w, from_s = x @ dw, x @ ds
        sums.deltas[i] -= by_weights * from_w + by_momentum * from_s
        sums.inputs[i] -= (by_weights * delta) @ dw.mT + (by_momentum * delta) @ ds.mT
        sums.weights[i] += keep * dw
        sums.momentum[i] += carry * dw + eta * ds
        whole, rows = (1, 2), -1
        products = ((dw, w, whole), (dw, s, whole), (delta, -from_w, rows), (ds, s, whole), (delta, -from_s, rows))
        totals = [total + (a * b).sum(axis) for total, (a, b, axis) in zip(totals, products, strict=True)]
    return WriteAt(*totals)


def _delta_backward(turn: _Turn, gain: Array | None, pull: Array) -> tuple[Array, Array]:
    """Of `output_delta`: what its output and its error (with the gain) receive."""
    if gain is None or turn.normed is None:
        return pull, pull
    unit, inverse, error, along = turn.normed
    across = _mean(pull * unit)
    d_error = inverse * (pull - _mean(pull) - unit * across)
    d_unit = jnp.square(gain)[:, None] * d_error - inverse * (along * pull + across * error)
    below = _mean(d_unit * unit) + _mean(pull * turn.deltas[-1])
    return inverse * (d_unit - _mean(d_unit) - unit * below), d_error


def _surprise_backward(turn: _Turn, gain: Array | None, sums: _Sums) -> Array:
    """Up through the errors, and down again through the memory; what the error (with the gain) receives."""
    before, at = [], turn.start.at
    for i, (slope, curved) in enumerate(zip(turn.slopes, turn.curved, strict=True)):
        d_error = sums.deltas[i] * slope
        before.append(sums.deltas[i] * curved)
        sums.deltas[i + 1] += d_error @ at[i + 1]
        sums.anchor[i + 1] += outer(d_error, turn.deltas[i + 1])
    d_out, d_error = _delta_backward(turn, gain, sums.deltas[-1])
    for i in reversed(range(len(at))):
        sums.anchor[i] += outer(turn.inputs[i], d_out)
        sums.inputs[i] += d_out @ at[i].mT
        if i:
            d_out = sums.inputs[i] * turn.slopes[i - 1] + before[i - 1]
    return d_error


def _chunk_backward(
    gain: Array | None, after: Start, turn: _Turn
) -> tuple[Start, tuple[ReadAt, WriteAt, Array, Array]]:
    """From what the matrices after a chunk receive to what those before it do; also coefficients, keys and errors."""
    d_weights, d_momentum, d_anchor = after
    sums = _Sums(len(turn.inputs))
    if d_anchor is not None and turn.full is not None:
        moved = zip(d_weights, d_anchor, strict=True)
        d_weights = tuple(dw + jnp.where(turn.full, da, 0) for dw, da in moved)
        sums.anchor = [jnp.where(turn.full, 0, da) for da in d_anchor]
    d_read = _read_backward(turn, sums)
    d_write = _write_backward(turn, d_weights, d_momentum, sums)
    d_error = _surprise_backward(turn, gain, sums)
    if d_anchor is None:
        sums.weights = [a + b for a, b in zip(sums.weights, sums.anchor, strict=True)]
    before = Start(tuple(sums.weights), tuple(sums.momentum), None if d_anchor is None else tuple(sums.anchor))
    return before, (d_read, d_write, sums.inputs[0], d_error)


def _backward(identity: bool, saved: tuple[Inputs, _Found], pull: After) -> tuple[Inputs]:
    given, found = saved
    slopes, gain = [_slopes(a) for a in found.before], given.gain
    deltas = (*(e * s[1] for e, s in zip(found.errors, slopes, strict=True)), found.delta)
    wide, base, normed = None, given.v, None
    if gain is not None:
        wide = over_rows(gain, found.out)
        unit, inverse = standard(found.out)
        base = wide * unit - given.v + (given.k if identity else 0)
        normed = _Normed(unit, inverse, wide * base, _mean(wide * base * unit))
    turns = _Turn(
        start=found.start,
        full=given.full,
        read=given.read,
        seen=found.seen,
        write=given.write,
        inputs=(given.k, *(s[0] for s in slopes)),
        deltas=deltas,
        slopes=tuple(s[1] for s in slopes),
        curved=tuple(e * s[2] for e, s in zip(found.errors, slopes, strict=True)),
        normed=normed,
        pull=pull.read,
    )
    last = Start(pull.weights, pull.momentum, pull.anchor)
    first, (d_read, d_write, dk, d_error) = _loop(partial(_chunk_backward, gain), last, turns, reverse=True)
    d_gain, d_base = None, d_error
    if wide is not None and normed is not None:
        d_base = wide * d_error
        d_gain = (d_error * base + d_base * normed.unit).sum(axis=(0, 2))
    dk = dk + d_base if identity else dk
    return (Inputs(*first, None, dk, -d_base, d_gain, d_read, d_write),)


chunks.defvjp(_save, _backward)
