"""A loop over a neural memory's chunks with its gradient written by hand.

Differentiated by JAX, a chunk would keep every intermediate, sum the matrices' gradients one outer product after
another and reduce over whole matrices for each coefficient. Here a chunk keeps what a memory's layer computes once a
token; what needs no matrix (slopes, the norm in the error, the last steps to keys and values) is done for all chunks at
once, outside the loop in reverse.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .memory_forward import (
    After,
    Chunk,
    Found,
    Inputs,
    Matrices,
    ReadAt,
    Residual,
    Rows,
    Seen,
    Start,
    WriteAt,
    loop,
    matrix,
    over_rows,
    run_chunk,
    slopes,
    standard,
)
from .outer import outer


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunks(residual: Residual, given: Inputs) -> After:
    """All chunks, one after the other; what is read lacks the memory's norm and `residual`."""
    return _save(residual, given)[0]


def _save(residual: Residual, given: Inputs) -> tuple[After, tuple[Inputs, Found]]:
    first = Start(given.weights, given.momentum, given.anchor)
    turns = Chunk(given.k, given.v, given.read, given.write, given.full)
    last, found = loop(partial(run_chunk, residual, given.gain), first, turns)
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
    """What one chunk's parts add up, an entry a matrix: for its rows, and for the matrices before the chunk."""

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
    read, start, seen = turn.read, turn.start, [slopes(a)[:2] for a in turn.seen.before]
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
    keep, carry, eta = matrix(write.keep), matrix(write.carry), matrix(write.eta)
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


def _backward(residual: Residual, saved: tuple[Inputs, Found], pull: After) -> tuple[Inputs]:
    given, found = saved
    curves, gain = [slopes(a) for a in found.before], given.gain
    deltas = (*(e * s[1] for e, s in zip(found.errors, curves, strict=True)), found.delta)
    wide, base, normed = None, given.v, None
    if gain is not None:
        wide = over_rows(gain, found.out)
        unit, inverse = standard(found.out)
        base = wide * unit - given.v + (given.k if residual == "identity" else 0)
        normed = _Normed(unit, inverse, wide * base, _mean(wide * base * unit))
    turns = _Turn(
        start=found.start,
        full=given.full,
        read=given.read,
        seen=found.seen,
        write=given.write,
        inputs=(given.k, *(s[0] for s in curves)),
        deltas=deltas,
        slopes=tuple(s[1] for s in curves),
        curved=tuple(e * s[2] for e, s in zip(found.errors, curves, strict=True)),
        normed=normed,
        pull=pull.read,
    )
    last = Start(pull.weights, pull.momentum, pull.anchor)
    first, (d_read, d_write, dk, d_error) = loop(partial(_chunk_backward, gain), last, turns, reverse=True)
    d_gain, d_base = None, d_error
    if wide is not None and normed is not None:
        d_base = wide * d_error
        d_gain = (d_error * base + d_base * normed.unit).sum(axis=(0, 2))
    dk = dk + d_base if residual == "identity" else dk
    return (Inputs(*first, None, dk, -d_base, d_gain, d_read, d_write),)


chunks.defvjp(_save, _backward)
