"""The generator's heads over many tokens: bounded chunks, splines as batched matmuls, a backward pass by hand.

A chunk's splines are computed twice, forward and again backward, so that memory stays a chunk's. Where all of them are
few the tokens that a batch of text is likely to have at least are computed once, outside any loop, and kept.

`LeviathanEmbedding.__call__` is the plain form of the same function; tests hold the two together. In here tokens are
the last axis of every array: loops run along it, and no matmul needs a transposed copy.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from .ops import varying_like

# Numbers in the largest array inside a chunk. On a CPU 2 ** 19 are 2 MiB in float32, the size of a second-level cache,
# and heads come one at a time; an accelerator wants large matmuls over all heads at once.
CHUNK_NUMBERS = {"cpu": 2**19}
CHUNK_NUMBERS_ACCELERATOR = 2**26
# Numbers that the splines of the first tokens may take if they are to be kept for the backward pass: 8 MiB in float32.
KEPT_NUMBERS = 2**21
# A product of splines within these bounds has lost no factor to underflow: its derivative may divide by a factor.
SMALLEST, LARGEST = 1e-30, 1e30


class Heads(NamedTuple):
    """Parameters of the heads, heads first; `spline` holds the coefficients themselves (1 + the stored offset)."""

    w_in: Float[Array, "*h s s"]
    norm_weight: Float[Array, "*h s"]
    norm_bias: Float[Array, "*h s"]
    spline: Float[Array, "*h s g r"]
    w_out: Float[Array, "*h r d"]


class _Inside(NamedTuple):
    """What the backward pass of one head and chunk needs.

    `edge` is the basis' sum, below 1 within half a knot of either end, and `edges` the product of it: the splines are
    `raw` / `edge`, and `modes` = product(`raw`) / `edges` their product. So no knot's share is divided, and a division
    ends what several operations use: XLA would compute it again for each of them if it ended cheaply.
    """

    unit: Float[Array, "s t"]
    scale: Float[Array, "1 t"]
    u: Float[Array, "s t"]
    edge: Float[Array, "s t"]
    raw: Float[Array, "s r t"]
    edges: Float[Array, "1 t"]
    modes: Float[Array, "r t"]


def head_rows(
    seed: Float[Array, "n s"], heads: Heads, count: Int32[Array, ""], *, eps: float, chunk: int | None = None
) -> Float[Array, "n d"]:
    r"""$\sum_l M_l(z_i) W^{out}_l$ for the first `count` seeds; what stands in the rows beyond means nothing.

    Time follows `count`, memory a chunk; with few seeds and small heads, some are computed whether wanted or not, and
    kept for the backward pass. Reverse mode only.

    **Arguments:**

    - `seed`: the tokens' sums of codebook rows.
    - `heads`: the heads' parameters, in the dtype of `seed`.
    - `count`: how many seeds are wanted.
    - `eps`: LayerNorm's.
    - `chunk`: tokens at a time, none kept; None chooses by backend and sizes.
    """
    n = seed.shape[0]
    kept = _kept(n, heads) if chunk is None else 0
    heads = varying_like(heads, seed)
    if kept == 0:
        return _looped(seed, heads, count, eps, chunk)
    rows: Array = _first(eps, seed[:kept].T, heads)
    first = rows.T
    if kept == n:
        return first
    # A loop costs time even with nothing to do.
    rest = jax.lax.cond(
        count > kept,
        lambda: _looped(seed[kept:], heads, count - kept, eps, chunk),
        lambda: _zeros((n - kept, first.shape[1]), seed),
    )
    return jnp.concatenate([first, rest])


def _kept(n: int, heads: Heads) -> int:
    """How many seeds to compute outside the loop: 42%, as of 1,024 tokens of text nine in ten batches have fewer."""
    h, s, g, r = heads.spline.shape
    kept = n if n <= 128 else _odd(27 * n // 64)
    return kept if h * s * max(g, r) * kept <= KEPT_NUMBERS else 0


def _odd(n: int) -> int:
    """The nearest odd multiple of 16: whole vectors, and rows that do not all fall into the same lines of a cache."""
    return 32 * (n // 32) + 16


def _chunk_size(n: int, heads: Heads) -> int:
    """As many tokens as the bound allows, but about five chunks at least, so that little of the last one is waste."""
    _, s, g, r = heads.spline.shape
    numbers = CHUNK_NUMBERS.get(jax.default_backend(), CHUNK_NUMBERS_ACCELERATOR)
    allowed = min(numbers // (s * max(g, r) * _at_once(heads)), n // 5)
    return _odd(allowed)


def _at_once(heads: Heads) -> int:
    return 1 if jax.default_backend() == "cpu" else heads.w_in.shape[0]


def _in_groups(heads: Heads) -> Heads:
    return jax.tree.map(lambda x: x.reshape(-1, _at_once(heads), *x.shape[1:]), heads)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _first(eps: float, seed: Float[Array, "s k"], heads: Heads) -> Float[Array, "d k"]:
    return _first_forward(eps, seed, heads)[0]


def _first_forward(eps: float, seed: Array, heads: Heads) -> tuple[Array, Any]:
    inside, rows = [], _zeros((heads.w_out.shape[2], seed.shape[1]), seed)
    for part in _groups(heads):
        inside.append(jax.vmap(partial(_inside, eps, seed))(part))
        rows = rows + jnp.einsum("hrd,hrk->dk", part.w_out, inside[-1].modes)
    return rows, (seed, heads, inside)


def _first_backward(
    eps: float, residuals: tuple[Array, Heads, list[_Inside]], grad_rows: Float[Array, "d k"]
) -> tuple[Float[Array, "s k"], Heads]:
    seed, heads, inside = residuals
    grad_seed, grads = _zeros(seed.shape, seed), []
    for x, part in zip(inside, _groups(heads), strict=True):
        grad_z, grad = jax.vmap(lambda x, one: _head_backward(x, seed, one, grad_rows))(x, part)
        grad_seed = grad_seed + grad_z.sum(axis=0)
        grads.append(grad)
    return grad_seed, jax.tree.map(lambda *g: jnp.concatenate(g), *grads)


_first.defvjp(_first_forward, _first_backward)


def _groups(heads: Heads) -> list[Heads]:
    size = _at_once(heads)
    return [Heads(*(x[i : i + size] for x in heads)) for i in range(0, heads.w_in.shape[0], size)]


def _looped(
    seed: Float[Array, "n s"], heads: Heads, count: Int32[Array, ""], eps: float, chunk: int | None
) -> Float[Array, "n d"]:
    chunk = _chunk_size(seed.shape[0], heads) if chunk is None else chunk
    padded = jnp.pad(seed, ((0, -seed.shape[0] % chunk), (0, 0)))
    rows: Array = _rows(chunk, eps, padded.T, heads, count)
    return rows.T[: seed.shape[0]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rows(
    chunk: int, eps: float, seed: Float[Array, "s n"], heads: Heads, count: Int32[Array, ""]
) -> Float[Array, "d n"]:
    def group(rows: Array, part: Heads) -> tuple[Array, None]:
        def body(i: Array, rows: Array) -> Array:
            z = _slice(seed, i, chunk)
            new = jax.vmap(lambda one: one.w_out.T @ _inside(eps, z, one).modes)(part)
            return _add(rows, new.sum(axis=0), i)

        return jax.lax.fori_loop(0, _chunks(count, chunk), body, rows), None

    return jax.lax.scan(group, _zeros((heads.w_out.shape[2], seed.shape[1]), seed), _in_groups(heads))[0]


def _rows_forward(chunk: int, eps: float, seed: Array, heads: Heads, count: Array) -> tuple[Array, Any]:
    return _rows(chunk, eps, seed, heads, count), (seed, heads, count)


def _rows_backward(
    chunk: int, eps: float, residuals: tuple[Array, Heads, Array], grad_rows: Float[Array, "d n"]
) -> tuple[Float[Array, "s n"], Heads, None]:
    """Evaluates the heads again, a chunk at a time, and adds up gradients."""
    seed, heads, count = residuals

    def group(grad_seed: Array, part: Heads) -> tuple[Array, Heads]:
        def body(i: Array, carry: tuple[Array, Heads]) -> tuple[Array, Heads]:
            z, grad = _slice(seed, i, chunk), _slice(grad_rows, i, chunk)
            grad_z, grads = jax.vmap(lambda one: _head_backward(_inside(eps, z, one), z, one, grad))(part)
            return _add(carry[0], grad_z.sum(axis=0), i), jax.tree.map(jnp.add, carry[1], grads)

        start = jax.tree.map(lambda x: _zeros(x.shape, seed), part)
        return jax.lax.fori_loop(0, _chunks(count, chunk), body, (grad_seed, start))

    grad_seed, grads = jax.lax.scan(group, _zeros(seed.shape, seed), _in_groups(heads))
    return grad_seed, jax.tree.map(lambda g, x: g.reshape(x.shape), grads, heads), None


_rows.defvjp(_rows_forward, _rows_backward)


def _chunks(count: Int32[Array, ""], chunk: int) -> Int32[Array, ""]:
    return (count + chunk - 1) // chunk


def _zeros(shape: tuple[int, ...], like: Float[Array, "s n"]) -> Array:
    """What a loop that adds up under `shard_map` must start from."""
    return varying_like(jnp.zeros(shape, like.dtype), like)


def _slice(x: Float[Array, "a n"], i: Int32[Array, ""], chunk: int) -> Float[Array, "a t"]:
    return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)


def _add(x: Float[Array, "a n"], part: Float[Array, "a t"], i: Int32[Array, ""]) -> Float[Array, "a n"]:
    chunk = part.shape[1]
    return jax.lax.dynamic_update_slice_in_dim(x, _slice(x, i, chunk) + part, i * chunk, axis=1)


def _inside(eps: float, z: Float[Array, "s t"], head: Heads) -> _Inside:
    pre = head.w_in.T @ z
    centred = pre - _mean(pre)
    scale = jax.lax.rsqrt(_mean(jnp.square(centred)) + eps)
    unit = centred * scale
    u = jax.nn.sigmoid((unit * head.norm_weight[:, None] + head.norm_bias[:, None]) / 2)
    knots = head.spline.shape[1]
    place, low, high = _places(u, knots)
    edge = 1 - 0.5 * (jnp.square(low) + jnp.square(high))
    raw = jnp.einsum("srg,sgt->srt", head.spline.transpose(0, 2, 1), _basis(place, knots))
    edges = product(edge)[None]
    return _Inside(unit, scale, u, edge, raw, edges, product(raw) / edges)


def _mean(x: Float[Array, "s t"]) -> Float[Array, "1 t"]:
    return jnp.mean(x, axis=0, keepdims=True)


def _places(u: Float[Array, "s t"], knots: int) -> tuple[Array, Array, Array]:
    """u in units of the knots' spacing, and how far it is within half a knot of the low end and of the high end."""
    place = u * (knots - 1)
    return place, jnp.maximum(0.5 - place, 0), jnp.maximum(place - (knots - 1.5), 0)


def _basis(place: Float[Array, "s t"], knots: int) -> Float[Array, "s g t"]:
    """The quadratic spline's knots at each place, before division by their sum; cheaper computed twice than kept."""
    away = jnp.abs(place[:, None] - jnp.arange(knots, dtype=place.dtype)[None, :, None])
    return 0.5 * jnp.square(jnp.maximum(1.5 - away, 0)) - 1.5 * jnp.square(jnp.maximum(0.5 - away, 0))


def _head_backward(
    x: _Inside, z: Float[Array, "s t"], head: Heads, grad: Float[Array, "d t"]
) -> tuple[Float[Array, "s t"], Heads]:
    knots = head.spline.shape[1]
    grad_modes = head.w_out @ grad
    grad_raw = _product_backward(x.raw, x.edges, x.modes, grad_modes)
    grad_spline = jnp.einsum("sgt,srt->sgr", _basis(_places(x.u, knots)[0], knots), grad_raw)
    grad_basis = jnp.einsum("sgr,srt->sgt", head.spline, grad_raw)
    grad_edge = -(grad_modes * x.modes).sum(axis=0, keepdims=True)  # times 1 / edge, the same for every coordinate
    grad_arg = _spline_backward(x.u, x.edge, grad_basis, grad_edge)
    grad_unit = grad_arg * head.norm_weight[:, None]
    grad_pre = x.scale * (grad_unit - _mean(grad_unit) - x.unit * _mean(grad_unit * x.unit))
    grads = Heads(
        w_in=(grad_pre @ z.T).T,
        norm_weight=(grad_arg * x.unit).sum(axis=1),
        norm_bias=grad_arg.sum(axis=1),
        spline=grad_spline,
        w_out=x.modes @ grad.T,
    )
    return head.w_in @ grad_pre, grads


def _spline_backward(
    u: Float[Array, "s t"], edge: Float[Array, "s t"], grad_basis: Float[Array, "s g t"], grad_edge: Float[Array, "1 t"]
) -> Float[Array, "s t"]:
    """The gradient of u's argument. A quadratic spline's slope is a difference of hats; unrolled it stays one loop."""
    knots = grad_basis.shape[1]
    place, low, high = _places(u, knots)
    direct = jnp.zeros_like(place)
    for knot in range(knots):
        offset = place - knot
        hats = jnp.maximum(1 - jnp.abs(offset + 0.5), 0) - jnp.maximum(1 - jnp.abs(offset - 0.5), 0)
        direct = direct + grad_basis[:, knot] * hats
    return (direct * edge + grad_edge * (low - high)) * (0.5 * (knots - 1) * u * (1 - u)) / edge


def product(raw: Float[Array, "s *n"]) -> Float[Array, "*n"]:
    """The product over the first axis, by halves: exact at zeros and signs (no logarithm)."""
    while raw.shape[0] > 1:
        half, odd = divmod(raw.shape[0], 2)
        rest = raw[2 * half :]
        raw = raw[:half] * raw[half : 2 * half]
        raw = jnp.concatenate([raw, rest]) if odd else raw
    return raw[0]


def _product_backward(
    raw: Float[Array, "s r t"], edges: Float[Array, "1 t"], modes: Float[Array, "r t"], grad: Float[Array, "r t"]
) -> Float[Array, "s r t"]:
    """Divides the product by each factor where that is exact everywhere, else multiplies the other factors."""
    exact = divisible(jnp.abs(modes) * edges)
    return jax.lax.cond(exact, lambda: (modes * grad)[None] / raw, lambda: jax.vjp(product, raw)[1](grad / edges)[0])


def divisible(size: Float[Array, "r t"]) -> Bool[Array, ""]:
    """Whether products of this size have lost no factor to underflow, any of them."""
    return _all((size > SMALLEST) & (size < LARGEST))


@jax.custom_batching.custom_vmap
def _all(x: Bool[Array, "*n"]) -> Bool[Array, ""]:
    """`all`, over a `vmap`'s axis too: the branch it decides on is then taken once and not computed both ways."""
    return jnp.all(x)


@_all.def_vmap
def _all_batched(size: int, batched: list[bool], x: Bool[Array, "*n"]) -> tuple[Bool[Array, ""], bool]:
    return _all(x), False
