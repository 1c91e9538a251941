"""Attention against JAX's own, exact causality, rotary positions by their definition, and blocks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import as_numpy, filled
from refusals import refuses

from eqx_slm import MLP, Attention, AttentionConfig, Block, LearnedPositions
from eqx_slm.nn.dot_product import causal_attention
from eqx_slm.nn.positions import rotary_width, rotate

T = 6


def normal(*shape, seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def make(d_model, **options):
    """Random in every leaf, at a scale where the softmax is neither flat nor a single token."""
    return filled(lambda key: Attention(d_model, **options, key=key), std=0.5)


@pytest.mark.parametrize(("n", "kv"), [(1, 1), (4, 4), (6, 2), (4, 1)])
def test_equals_jax_dot_product_attention(n, kv):
    q, k, v = normal(T, n, 8), normal(T, kv, 8, seed=1), normal(T, kv, 8, seed=2)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))(q, k, v)
    np.testing.assert_allclose(jax.jit(causal_attention)(q, k, v), expected, rtol=1e-5, atol=1e-6)


def reference(attention, x):
    """The whole module in float64: projections, biases, QK-norm, rotary halves, one head and one query at a time."""
    a = {name: np.asarray(leaf, np.float64) for name, leaf in vars(attention).items() if eqx.is_array(leaf)}
    p, group = attention.d_head, attention.n_heads // attention.n_kv_heads
    width = rotary_width(p, attention.config.rotary_fraction)
    x, t = np.asarray(x, np.float64), len(x)

    def heads(which, norm):
        y = (x @ a[f"w_{which}"] + a.get(f"b_{which}", 0)).reshape(t, -1, p)
        if norm is None:
            return y
        return y / np.sqrt((y**2).mean(axis=-1, keepdims=True) + norm.eps) * np.asarray(norm.weight, np.float64)

    def turned(y):
        pairs = y[..., : width // 2] + 1j * y[..., width // 2 : width]
        angles = np.arange(t)[:, None] * attention.config.rotary_base ** (-2 * np.arange(width // 2) / max(width, 1))
        pairs = pairs * np.exp(1j * angles)[:, None]
        return np.concatenate([pairs.real, pairs.imag, y[..., width:]], axis=-1)

    q, k, v = turned(heads("q", attention.q_norm)), turned(heads("k", attention.k_norm)), heads("v", None)
    out = np.zeros((t, attention.n_heads, p))
    for head in range(attention.n_heads):
        for i in range(t):
            scores = k[: i + 1, head // group] @ q[i, head] / np.sqrt(p)
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v[: i + 1, head // group] / weights.sum()
    return out.reshape(t, -1) @ a["w_o"] + a.get("b_o", 0)


OPTIONS = {
    "plain": dict(n_heads=2),
    "grouped, normed, biased": dict(n_heads=4, n_kv_heads=2, qk_norm="rms", bias="all"),
    "own head width, half rotary": dict(n_heads=3, d_head=6, rotary_fraction=0.5, rotary_base=100.0),
    "odd heads without rotary": dict(n_heads=2, n_kv_heads=1, d_head=5, rotary_fraction=0.0),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equals_a_plain_transcription(options):
    attention = make(8, **options)
    x = normal(T, 8)
    np.testing.assert_allclose(eqx.filter_jit(attention)(x), reference(attention, x), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_no_row_depends_on_a_later_one(placement):
    mlp = filled(lambda key: MLP(8, 5, key=key))
    block = Block(make(8, n_heads=2, n_kv_heads=1), mlp, d_model=8, placement=placement)
    jacobian = np.asarray(jax.jit(lambda x: jax.jacrev(block)(x))(normal(T, 8)))
    influence = np.abs(jacobian).max(axis=(1, 3))  # of token j on row i
    assert (influence[np.triu_indices(T, 1)] == 0).all()  # exactly
    assert (influence[np.tril_indices(T)] > 1e-6).all()


def test_bfloat16_in_and_out_float32_inside():
    q, k, v = (normal(T, 2, 8, seed=s, dtype=jnp.bfloat16) for s in range(3))
    mixed = jax.jit(causal_attention)(q, k, v)
    assert mixed.dtype == jnp.bfloat16
    exact = jax.jit(causal_attention)(*(jnp.asarray(np.asarray(x, np.float32)) for x in (q, k, v)))
    np.testing.assert_allclose(np.asarray(mixed, np.float32), exact, rtol=2e-2, atol=2e-2)


def test_scores_are_float32_under_bfloat16():
    """Scores near 40 would be off by up to 1/8 in bfloat16. Not jitted: XLA leaves out rounding that it need not do."""
    q, k, v = (normal(T, 2, 64, seed=s, dtype=jnp.bfloat16) for s in range(3))
    q, k = (jnp.asarray(a + 2, jnp.bfloat16) for a in (q, k))
    mixed = np.asarray(causal_attention(q, k, v), np.float64)
    exact = causal_attention(*(jnp.asarray(np.asarray(x, np.float32)) for x in (q, k, v)))
    np.testing.assert_allclose(mixed, exact, rtol=0, atol=2**-7 * np.abs(exact).max())


def test_rotary_scores_depend_on_the_distance_only():
    with jax.enable_x64(True):
        q, k = normal(1, 2, 8, dtype=np.float64), normal(1, 2, 8, seed=1, dtype=np.float64)

        @jax.jit
        def scores(q, k):
            return jnp.einsum("tnp,snp->nts", rotate(jnp.tile(q, (9, 1, 1))), rotate(jnp.tile(k, (9, 1, 1))))

        scores = np.asarray(scores(q, k))
    for distance in range(-8, 9):
        diagonal = np.diagonal(scores, distance, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, diagonal[:, :1].repeat(diagonal.shape[1], axis=1), atol=1e-12)
    assert np.ptp(scores[:, 0]) > 0.1  # and they do depend on it


def test_rotary_keeps_norms_and_the_rest_of_a_head():
    x = normal(5, 2, 8)
    turned = as_numpy(jax.jit(lambda x: [rotate(x, fraction=f) for f in (1.0, 0.5, 0.0)])(x))
    x = np.asarray(x)
    for y, width in zip(turned, (8, 4, 0), strict=True):
        np.testing.assert_array_equal(y[..., width:], x[..., width:])
        half = width // 2
        np.testing.assert_allclose(
            y[..., :half] ** 2 + y[..., half:width] ** 2, x[..., :half] ** 2 + x[..., half:width] ** 2, rtol=1e-5
        )
        np.testing.assert_array_equal(y[0], x[0])  # the first token is not turned
        if width:
            assert np.abs(y[1:, :, :width] - x[1:, :, :width]).max() > 0.1


def test_rotary_offset_continues_a_sequence():
    x = normal(7, 2, 4)
    whole, rest = jax.jit(lambda x: (rotate(x), rotate(x[4:], offset=4)))(x)
    np.testing.assert_allclose(rest, np.asarray(whole)[4:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("d_head", "fraction", "width"), [(8, 1.0, 8), (8, 0.5, 4), (8, 0.25, 2), (8, 0.0, 0), (5, 1.0, 4), (7, 1.0, 6)]
)
def test_rotary_width(d_head, fraction, width):
    assert rotary_width(d_head, fraction) == width


@pytest.mark.parametrize("d_head", [1, 3, 5, 7, 9])
def test_odd_heads_with_full_rotary_are_refused(d_head):
    with pytest.raises(ValueError, match=f"head width {d_head} is odd.*even width"):
        AttentionConfig(n_heads=2).head_sizes(2 * d_head)
    assert AttentionConfig(n_heads=2, rotary_fraction=0.0).head_sizes(2 * d_head) == (2, 2, d_head)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(n_heads=3), "d_model=8 is not divisible by n_heads=3: take d_model 6 or 12, or set d_head"),
        (dict(n_heads=3, rotary_fraction=0.5), "take d_model 6 or 9, or set d_head"),
        (dict(n_heads=16), "take d_model 32, or set d_head"),
        (dict(n_heads=4, n_kv_heads=3), "n_heads=4 is not divisible by n_kv_heads=3"),
        (dict(n_heads=2, n_kv_heads=4), "n_heads=2 is not divisible by n_kv_heads=4"),
        (dict(n_heads=0), "n_heads=0.*at least 1"),
        (dict(n_kv_heads=0), "n_kv_heads=0.*at least 1"),
        (dict(d_head=0), "d_head=0.*at least 1"),
        (dict(rotary_fraction=1.5), "rotary_fraction=1.5.*from 0 to 1"),
        (dict(rotary_fraction=-0.1), "rotary_fraction=-0.1.*from 0 to 1"),
    ],
)
def test_heads_that_do_not_fit_are_refused_in_one_line(options, named, getkey):
    for refuse in (lambda: AttentionConfig(**options).head_sizes(8), lambda: Attention(8, **options, key=getkey())):
        with refuses(named, ValueError):
            refuse()


@pytest.mark.parametrize(("placement", "norm"), [("pre", "layer"), ("post", "rms")])
def test_a_block_is_its_formula_and_its_batch_is_vmap(placement, norm):
    attention = filled(lambda key: Attention(8, n_heads=2, bias="all", key=key), std=0.5)
    mlp = filled(lambda key: MLP(8, 5, bias="all", key=key), std=0.5)
    block = filled(lambda key: Block(attention, mlp, d_model=8, norm=norm, placement=placement), std=0.5)

    def formula(x):
        if placement == "pre":
            x = x + block.mixer(block.mixer_norm(x))
            return x + block.channel(block.channel_norm(x))
        x = block.mixer_norm(x + block.mixer(x))
        return block.channel_norm(x + block.channel(x))

    def value_and_gradient(function, x):
        value, pull = jax.vjp(function, x)
        return value, pull(jnp.sin(value))

    @jax.jit
    def forms(x):
        return [value_and_gradient(f, x) for f in (block.batch, jax.vmap(block))], formula(x[0])

    (batched, vmapped), one = as_numpy(forms(normal(3, T, 8)))
    for a, b in zip(batched, vmapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vmapped[0][0], one, rtol=1e-4, atol=1e-5)


def test_learned_positions(getkey):
    positions = filled(lambda key: LearnedPositions(5, 3, key=key))
    x = normal(4, 3)
    np.testing.assert_allclose(positions(x), np.asarray(x) + np.asarray(positions.table)[:4], rtol=1e-6)
    with pytest.raises(ValueError, match="6 tokens.*end at 5"):
        positions(normal(6, 3))
