"""The chunk form of a neural memory against one token at a time with `jax.grad`, and against the delta rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy
from hypothesis import given
from hypothesis import strategies as st

from eqx_slm.nn.titans.loop import memory_chunks
from eqx_slm.nn.titans.rule import Gates, Memory, memory_step
from eqx_slm.nn.titans.rule import Surroundings as Shape

ROWS, CHUNKS, C, P, M = 2, 5, 4, 3, 6
READS = ("inclusive", "exclusive", "chunk_start")


def layer_norm(z):
    return (z - z.mean()) / jnp.sqrt(((z - z.mean()) ** 2).mean() + 1e-6)


def memory_output(weights, gain, z, residual="identity"):
    """One head, one key, by the formula."""
    hidden = z
    for i, w in enumerate(weights):
        hidden = (hidden / (1 + jnp.exp(-hidden)) if i else hidden) @ w
    return (z if residual == "identity" else 0) + (hidden if gain is None else gain * layer_norm(hidden))


def one_by_one(weights, momentum, anchor, q, k, v, keep, eta, theta, gain, begin, end, chunk, residual):
    """All three reads of every token, and the state after the last; one head, gradients by `jax.grad`.

    `keep` (1 - alpha) and `eta` are given before their sigmoid: near 0 and 1 their logarithms are then well defined.
    """
    keep, eta = 1 / (1 + jnp.exp(-keep)), 1 / (1 + jnp.exp(-eta))

    def loss(weights, k, v):
        return ((memory_output(weights, gain, k, residual) - v) ** 2).sum() / 2

    def token(now, given):
        q, k, v, keep, eta, theta, at = given
        old, momentum, anchor = now
        u = jax.grad(loss)(anchor, k, v)
        new_momentum = jax.tree.map(lambda s, u: eta * s - theta * u, momentum, u)
        new = jax.tree.map(lambda w, s: keep * w + s, old, new_momentum)
        seen = (new, old, anchor)
        new_anchor = jax.tree.map(lambda w, a: jnp.where((at + 1) % chunk == 0, w, a), new, anchor)
        valid = (begin <= at) & (at < end)
        after = jax.tree.map(lambda new, old: jnp.where(valid, new, old), (new, new_momentum, new_anchor), now)
        return after, jnp.stack([jnp.where(valid, memory_output(w, gain, q, residual), 0) for w in seen])

    return jax.lax.scan(token, (weights, momentum, anchor), (q, k, v, keep, eta, theta, jnp.arange(len(q))))


def chunked(weights, momentum, anchor, q, k, v, keep, eta, theta, gain, begin, end, chunk, residual):
    """The same by `memory_chunks`, all rows together; without an anchor, as training does: whole chunks."""
    n, t = keep.shape

    def split(a):
        return jnp.moveaxis(a.reshape(n, t // chunk, chunk, *a.shape[2:]), 1, 0)

    gates = Gates(*map(split, (jax.nn.log_sigmoid(keep), jax.nn.log_sigmoid(eta), theta)))
    valid = ((jnp.arange(t) >= begin) & (jnp.arange(t) < end))[None, :, None]
    reads = []
    for read in READS:
        memory, after, y = memory_chunks(
            Memory(weights, momentum), *map(split, (q, k, v)), gates, Shape(gain, residual), read=read, anchor=anchor,
            span=None if anchor is None else (begin, end),
        )  # fmt: skip
        reads.append(jnp.where(valid, jnp.moveaxis(y, 0, 1).reshape(n, t, -1), 0))
    return (*memory, memory.weights if anchor is None else after), jnp.stack(reads, axis=2)


@functools.cache
def compiled(norm, depth, chunk, residual="identity"):
    """(outputs and state, outer gradients of everything) of both forms, under random weights on all outputs."""

    def value_and_gradient(form, leaves, pull, begin, end):
        def run(leaves):
            if leaves[2] is None and form is rows:
                leaves = (*leaves[:2], leaves[0], *leaves[3:])
            return form(*leaves, begin, end, chunk, residual)

        value, vjp = jax.vjp(run, leaves)
        return value, vjp(jax.tree.map(lambda p, y: p.astype(y.dtype), pull, value))[0]

    def rows(*leaves):
        return jax.vmap(one_by_one, in_axes=(*[0] * 9, 0 if norm == "layer" else None, *[None] * 4))(*leaves)

    # Half the time to compile.
    return jax.jit(
        lambda *a: [value_and_gradient(form, *a) for form in (chunked, rows)],
        compiler_options={"xla_backend_optimization_level": 0},
    )


def numbers(seed, norm, depth, scale):
    rng = np.random.default_rng(seed)
    t = CHUNKS * C
    widths = (P,) + (M,) * (depth - 1) + (P,)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    weights, momentum, anchor = (
        tuple(normal(ROWS, a, b) * s for a, b in zip(widths[:-1], widths[1:], strict=True)) for s in (0.5, 0.1, 0.5)
    )
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (normal(ROWS, t, P), normal(ROWS, t, P)))
    keep, eta, theta = scale * normal(ROWS, t) + 3, scale * normal(ROWS, t), scale * normal(ROWS, t) - 1
    theta = 0.2 / (1 + jnp.exp(eta)) / (1 + jnp.exp(-theta))  # 0.2 (1 - eta) sigmoid(.)
    gain = 1 + 0.3 * normal(ROWS, P) if norm == "layer" else None
    leaves = (weights, momentum, anchor, q, k, normal(ROWS, t, P), keep, eta, theta, gain)
    state = tuple(jax.tree.map(lambda w: normal(*w.shape), w) for w in (weights, momentum, anchor))
    return leaves, (state, normal(ROWS, t, 3, P))


def difference(a, b):
    """The largest difference of each leaf over the leaf's largest number."""
    a, b = jax.tree.leaves(as_numpy(a)), jax.tree.leaves(as_numpy(b))
    assert len(a) == len(b) and all(np.isfinite(x).all() for x in a + b)
    return max(np.abs(x - y).max() / (np.abs(y).max() + 1e-30) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("norm", "depth"), [("none", 2), ("layer", 2)])
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    begin=st.integers(0, C - 1),
    length=st.integers(1, CHUNKS * C),
)
def test_chunk_form_is_the_rule_token_by_token(norm, depth, seed, scale, begin, length):
    """Outputs of all reads, final state and outer gradients; any start within a chunk, any length, ragged or not."""
    with jax.enable_x64(True):
        leaves, pull = numbers(seed, norm, depth, scale)
        end = min(begin + length, CHUNKS * C)
        chunk, rule = compiled(norm, depth, C)(leaves, pull, begin, end)
    assert difference(chunk, rule) < (1e-12 if norm == "none" else 1e-8)
    assert np.abs(chunk[0][1]).max() > 1e-2 and all(np.abs(g).max() > 0 for g in jax.tree.leaves(chunk[1][3:]))


@pytest.mark.parametrize(
    ("norm", "depth", "chunk", "residual"),
    [("layer", 2, C, "identity"), ("layer", 3, C, "none"), ("none", 1, C, "none"), ("layer", 2, CHUNKS * C, "none")],
)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 4.0]))
def test_whole_chunks_as_in_training_are_the_rule(norm, depth, chunk, residual, seed, scale):
    """No anchor, no span: the path that training takes, by depth, residual and number of chunks, one included."""
    with jax.enable_x64(True):
        leaves, pull = numbers(seed, norm, depth, scale)
        leaves = (*leaves[:2], None, *leaves[3:])
        chunks, rule = compiled(norm, depth, chunk, residual)(leaves, pull, 0, CHUNKS * C)
    assert difference(chunks, rule) < (1e-12 if norm == "none" else 1e-8)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(chunks[1]))


@given(seed=st.integers(0, 2**31))
def test_chunks_of_one_token_are_the_online_rule(seed):
    """With a memory of three layers."""
    with jax.enable_x64(True):
        leaves, pull = numbers(seed, "none", 3, 1.0)
        leaves = (*leaves[:2], leaves[0], *leaves[3:])
        chunk, rule = compiled("none", 3, 1)(leaves, pull, 0, CHUNKS * C)
    assert difference(chunk, rule) < 1e-12
    # Online, the gradient is taken where the memory is: reading before the token and at the chunk's start are the same.
    np.testing.assert_array_equal(chunk[0][1][:, :, 1], chunk[0][1][:, :, 2])


def delta_rule(q, k, v, beta):
    """DeltaNet (arXiv 2406.06484): S_t = S_{t-1} (I - beta k k^T) + beta v k^T, o_t = S_t q."""
    state, out = np.zeros((v.shape[1], k.shape[1])), []
    for t in range(len(q)):
        state = state @ (np.eye(k.shape[1]) - beta[t] * np.outer(k[t], k[t])) + beta[t] * np.outer(v[t], k[t])
        out.append(state @ q[t])
    return np.array(out), state


@given(seed=st.integers(0, 2**31))
def test_linear_online_memory_is_the_delta_rule(seed):
    """No residual, norm, momentum or forgetting, theta = beta; values wider than keys."""
    rng = np.random.default_rng(seed)
    t, wide = 7, 5
    q, k, v = rng.normal(size=(ROWS, t, P)), rng.normal(size=(ROWS, t, P)), rng.normal(size=(ROWS, t, wide))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta = rng.uniform(size=(ROWS, t))
    with jax.enable_x64(True):
        state, y = online_linear()(*map(jnp.asarray, (q, k, v, beta)))
    for i in range(ROWS):
        out, final = delta_rule(q[i], k[i], v[i], beta[i])
        np.testing.assert_allclose(y[:, i, 0], out, rtol=0, atol=1e-13)
        np.testing.assert_allclose(state[i].T, final, rtol=0, atol=1e-13)


@functools.cache
def online_linear():
    @jax.jit
    def run(q, k, v, beta):
        zeros = jnp.zeros((ROWS, k.shape[2], v.shape[2]))
        # log eta so low that exp is exactly 0, and finite: no momentum.
        gates = Gates(*(jnp.swapaxes(g, 0, 1)[..., None] for g in (0 * beta, 0 * beta - 1e4, beta)))
        q, k, v = (jnp.swapaxes(a, 0, 1)[:, :, None] for a in (q, k, v))
        memory, _, y = memory_chunks(Memory((zeros,), (zeros,)), q, k, v, gates, Shape(None, "none"))
        return memory.weights[0], y

    return run


@pytest.mark.parametrize("read", READS)
def test_a_step_is_a_chunk_of_one(read):
    with jax.enable_x64(True):
        (weights, momentum, anchor, q, k, v, keep, eta, theta, gain), _ = numbers(0, "layer", 2, 1.0)
        memory, gates = Memory(weights, momentum), (jax.nn.log_sigmoid(keep), jax.nn.log_sigmoid(eta), theta)

        @jax.jit
        def both():
            one = memory_step(memory, q[:, 0], k[:, 0], v[:, 0], Gates(*(g[:, 0] for g in gates)), Shape(gain),
                              read=read, anchor=anchor)  # fmt: skip
            first = (a[None, :, :1] for a in (q, k, v))
            many = memory_chunks(memory, *first, Gates(*(g[None, :, :1] for g in gates)), Shape(gain), read=read,
                                 anchor=anchor)  # fmt: skip
            return one, (many[0], many[2][0, :, 0])

        one, many = both()
    assert difference(one, many) < 1e-13
