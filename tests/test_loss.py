"""The chunked loss against full logits: values, gradients, matmuls, memory, precision."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from filled import as_numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from eqx_slm import ReadOut, cross_entropy, token_losses


def full_loss(features, weight, projection, targets, weights=None):
    """The definition, with all logits at once."""
    x = features if projection is None else features @ projection
    nll = optax.softmax_cross_entropy_with_integer_labels(x @ weight.T, targets)
    weights = jnp.ones(nll.shape, nll.dtype) if weights is None else weights
    total = weights.sum()
    return jnp.sum(weights * nll) / jnp.where(total == 0, 1, total)


def draw_arrays(seed, tokens, vocab, width, rank=None, scale=1.0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    features, projection = normal(tokens, width), None if rank is None else normal(width, rank)
    weight, targets = normal(vocab, rank or width), rng.integers(0, vocab, tokens).astype(np.int32)
    return np.float32(scale) * features, weight, projection, jnp.asarray(targets)


def close(got, wanted, tolerance=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, wanted)


@functools.partial(jax.jit, static_argnames="chunk")
def chunked_and_full(parameters, targets, weights, chunk):
    """Value and gradients of both forms. Not a unit cotangent: what is upstream of the loss reaches the gradients."""

    def chunked(p):
        return cross_entropy(p[0], ReadOut(p[1], p[2]), targets, weights=weights, chunk=chunk).loss

    def full(p):
        return full_loss(*p, targets, weights)

    return [(f(parameters), jax.grad(lambda p, f=f: 2.5 * jnp.square(f(p)))(parameters)) for f in (chunked, full)]


# Tokens, ids, width, rank and chunk: one token, chunks that divide and that do not, one token a chunk, more than all.
SIZES = [(1, 2, 1, None, None), (9, 11, 9, None, 4), (6, 5, 3, 2, 3), (7, 3, 9, 4, 1), (5, 8, 2, 1, 9)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@given(st.integers(0, 99), st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 3.0]), min_size=9, max_size=9))
def test_chunks_change_neither_the_loss_nor_its_gradients(sizes, weighted, seed, weights):
    tokens, vocab, width, rank, chunk = sizes
    features, weight, projection, targets = draw_arrays(seed, tokens, vocab, width, rank)
    weights = jnp.asarray(np.array(weights[:tokens], np.float32)) if weighted else None
    results = as_numpy(chunked_and_full((features, weight, projection), targets, weights, chunk))
    (loss, gradients), (wanted_loss, wanted_gradients) = results
    close(loss, wanted_loss)
    close(gradients, wanted_gradients, 2e-4)


def test_leading_axes_are_tokens():
    features, weight, _, targets = draw_arrays(0, 12, 7, 5)
    folded_features, folded_targets = (
        jnp.asarray(np.asarray(a).reshape(3, 4, *a.shape[1:])) for a in (features, targets)
    )

    @jax.jit
    def forms(weight):
        flat = cross_entropy(features, ReadOut(weight), targets, chunk=5)
        folded = cross_entropy(folded_features, ReadOut(weight), folded_targets, chunk=5)
        return flat.loss, folded.loss, token_losses(folded_features, ReadOut(weight), folded_targets, chunk=5)

    flat, folded, losses = as_numpy(forms(weight))
    assert flat == folded
    assert losses.shape == (3, 4)
    close(losses.mean(), flat)


def test_weights_make_a_weighted_mean_and_have_no_gradient():
    features, weight, _, targets = draw_arrays(1, 6, 7, 5)
    weights = jnp.asarray([0.0, 2.0, 0.0, 1.0, 0.5, 0.0])
    nll = token_losses(features, ReadOut(weight), targets)
    result = cross_entropy(features, ReadOut(weight), targets, weights=weights, chunk=4)
    close(result.loss, jnp.sum(weights * nll) / 3.5)
    assert result.tokens == 3.5
    assert cross_entropy(features, ReadOut(weight), targets).tokens == 6

    def loss(weights, features):
        return cross_entropy(features, ReadOut(weight), targets, weights=weights, chunk=4).loss

    to_weights, to_features = jax.jit(jax.grad(loss, (0, 1)))(weights, features)
    assert not to_weights.any()
    assert not to_features[jnp.asarray([0, 2, 5])].any() and to_features[jnp.asarray([1, 3, 4])].all()


def test_weights_that_are_all_zero_give_zero_and_no_nan():
    features, weight, _, targets = draw_arrays(2, 6, 7, 5)

    def loss(features, weight):
        return cross_entropy(features, ReadOut(weight), targets, weights=jnp.zeros(6), chunk=4).loss

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(features, weight)
    assert value == 0 and not gradients[0].any() and not gradients[1].any()


@pytest.mark.parametrize("wrong", [-1, -100, 7, 1000])
def test_a_target_that_is_no_id_is_an_infinite_loss_unless_its_weight_is_zero(wrong):
    features, weight, _, targets = draw_arrays(2, 6, 7, 5)
    padded, weights = targets.at[4].set(wrong), jnp.asarray([1.0, 1, 1, 1, 0, 1])

    @jax.jit
    def losses(targets, weights):
        def loss(features, weight):
            return cross_entropy(features, ReadOut(weight), targets, weights=weights, chunk=4).loss

        each = token_losses(features, ReadOut(weight), targets, chunk=4)
        return loss(features, weight), jax.value_and_grad(loss, (0, 1))(features, weight), each

    plain, differentiated, each = losses(padded, jnp.ones(6))
    assert plain == differentiated[0] == each[4] == np.inf and np.isfinite(np.delete(each, 4)).all()
    jax.tree.map(np.testing.assert_array_equal, losses(padded, weights)[:2], losses(targets, weights)[:2])


def test_no_tokens_are_no_loss():
    features, weight, _, targets = draw_arrays(2, 6, 7, 5)
    value, gradient = jax.value_and_grad(lambda w: cross_entropy(features[:0], ReadOut(w), targets[:0]).loss)(weight)
    assert value == 0 and not gradient.any()
    assert token_losses(features[:0], ReadOut(weight), targets[:0]).shape == (0,)


def test_shapes_that_do_not_fit_are_named():
    features, weight, _, targets = draw_arrays(2, 6, 7, 5)
    x, y = features.reshape(2, 3, 5), targets.reshape(3, 2)
    # The functions below the annotations: the annotations are checked here, and not for a user.
    loss = inspect.unwrap(cross_entropy)
    with pytest.raises(ValueError, match=r"features have shape \(2, 3, 5\), targets \(3, 2\): give each row a target"):
        loss(x, ReadOut(weight), y)
    with pytest.raises(ValueError, match=r"weights have shape \(3,\), targets \(6,\)"):
        loss(features, ReadOut(weight), targets, weights=jnp.ones(3))


def test_large_logits_do_not_overflow():
    features, weight, _, targets = draw_arrays(3, 6, 7, 5, scale=1e4)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, ReadOut(weight), targets).loss))(features)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    close(value, full_loss(features, weight, None, targets), 1e-4)


@pytest.mark.parametrize(("tokens", "chunk"), [(7, 3), (1, None), (6, 6), (6, 1), (5, 9)])
def test_token_losses_are_the_full_ones(tokens, chunk):
    features, weight, projection, targets = draw_arrays(4, tokens, 9, 5, rank=3)
    got = jax.jit(lambda x, w, p: token_losses(x, ReadOut(w, p), targets, chunk=chunk))(features, weight, projection)
    x, w, p = (np.asarray(a, np.float64) for a in (features, weight, projection))
    logits = x @ p @ w.T
    close(got, scipy.special.logsumexp(logits, axis=-1) - logits[np.arange(tokens), np.asarray(targets)])


def test_token_losses_have_the_gradient_of_the_mean():
    features, weight, _, targets = draw_arrays(4, 7, 9, 5)

    def mean(x, w):
        return token_losses(x, ReadOut(w), targets, chunk=3).mean()

    def full(x, w):
        return full_loss(x, w, None, targets)

    close(*jax.jit(lambda *a: [jax.grad(f, (0, 1))(*a) for f in (mean, full)])(features, weight))


def test_a_chunk_has_at_least_one_token():
    features, weight, _, targets = draw_arrays(5, 6, 7, 5)
    with pytest.raises(ValueError, match="chunk=0"):
        cross_entropy(features, ReadOut(weight), targets, chunk=0)


# ---------------------------------------------------------------------------------------------------------------------
# Cost

TOKENS, VOCAB, WIDTH = 96, 640, 128
ONE_MATMUL = 2 * TOKENS * VOCAB * WIDTH


def shapes(tokens=TOKENS, vocab=VOCAB, width=WIDTH):
    struct = jax.ShapeDtypeStruct
    return struct((tokens, width), "float32"), struct((vocab, width), "float32"), struct((tokens,), "int32")


def chunked_loss(x, w, y):
    return cross_entropy(x, ReadOut(w), y).loss


def matmuls(function, *arguments):
    """Matmuls of the program before XLA touches it, and after: its FLOPs over those of one matmul."""
    lowered = jax.jit(function).lower(*arguments)
    cost = lowered.compile().cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return lowered.as_text().count("stablehlo.dot_general"), cost["flops"] / ONE_MATMUL


def test_the_gradient_takes_three_matmuls_a_chunk():
    """All tokens in one chunk, so that no loop hides matmuls from XLA's count."""
    written, counted = matmuls(jax.value_and_grad(chunked_loss, (0, 1)), *shapes())
    assert written == 3
    assert 3 <= counted < 3.5

    def with_a_fourth(x, w, y):
        return jax.value_and_grad(chunked_loss, (0, 1))(x, w, y), jnp.max((x + 1) @ w.T)

    written, counted = matmuls(with_a_fourth, *shapes())
    assert written == 4 and counted >= 4  # both counts would see it


def test_a_loss_that_is_not_differentiated_takes_one_matmul_a_chunk():
    written, _ = matmuls(chunked_loss, *shapes())
    assert written == 1
    primitives = str(jax.make_jaxpr(lambda *a: jax.lax.stop_gradient(chunked_loss(*a)))(*shapes()))
    assert primitives.count("dot_general[") == 1


def temporary_bytes(function, *arguments):
    return jax.jit(jax.grad(function, (0, 1))).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_the_gradient_never_holds_all_logits():
    """Compiled only: at 4,096 tokens and 50,257 ids the logits alone are 785 MiB."""
    at = shapes(4096, 50_257, 64)
    logits = 4 * 4096 * 50_257
    chunked = temporary_bytes(chunked_loss, *at)
    assert temporary_bytes(lambda x, w, y: full_loss(x, w, None, y), *at) >= logits
    assert chunked < 0.25 * logits
    smaller = temporary_bytes(lambda x, w, y: cross_entropy(x, ReadOut(w), y, chunk=16).loss, *at)
    assert smaller < 0.5 * chunked  # a chunk's logits are what is left


# ---------------------------------------------------------------------------------------------------------------------
# Precision and transformations


def test_bfloat16_features_give_float32_losses():
    features, weight, _, targets = draw_arrays(6, 64, 50, 32)
    rounded = features.astype(jnp.bfloat16)

    def loss(x, w, chunk):
        return cross_entropy(x, ReadOut(w), targets, chunk=chunk).loss

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    value, (to_features, to_weight) = gradient(rounded, weight, 64)
    assert (value.dtype, to_features.dtype, to_weight.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    wide = full_loss(rounded.astype(jnp.float32), weight.astype(jnp.bfloat16).astype(jnp.float32), None, targets)
    np.testing.assert_allclose(value, wide, rtol=1e-5)
    # 64 chunks add up in float32: a sum in bfloat16 would be wrong in the third digit.
    one_by_one = gradient(rounded, weight, 1)[1][1]
    np.testing.assert_allclose(one_by_one, to_weight, rtol=1e-4, atol=1e-6)
    in_bfloat16 = gradient(rounded, weight.astype(jnp.bfloat16), 1)[1][1]
    assert in_bfloat16.dtype == jnp.bfloat16
    np.testing.assert_allclose(in_bfloat16.astype(jnp.float32), to_weight, rtol=2**-8, atol=1e-6)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(7)
        features, weight = jnp.asarray(rng.normal(size=(7, 5))), jnp.asarray(rng.normal(size=(11, 3)))
        projection, targets = jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(rng.integers(0, 11, 7))

        def loss(features, weight, projection):
            return cross_entropy(features, ReadOut(weight, projection), targets, chunk=3).loss

        def full(features, weight, projection):
            return full_loss(features, weight, projection, targets)

        got, wanted = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(features, weight, projection) for f in (loss, full))
        assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float64")}
        close(got, wanted, 1e-13)


def test_vmap_over_losses_and_gradients():
    features, weight, _, targets = draw_arrays(8, 12, 7, 5)
    features, targets = features.reshape(3, 4, 5), targets.reshape(3, 4)

    def loss(x, w, y):
        return cross_entropy(x, ReadOut(w), y, chunk=3).loss

    gradient = jax.value_and_grad(loss, (0, 1))
    at_once = jax.jit(jax.vmap(gradient, (0, None, 0)))(features, weight, targets)
    one_by_one = [jax.jit(gradient)(features[i], weight, targets[i]) for i in range(3)]
    close(at_once, jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one))


@settings(max_examples=max(6, settings.default.max_examples // 4))  # every example compiles
@given(st.integers(0, 99), st.none() | st.floats(0.5, 8), st.sampled_from([0.0, 1e-2, 0.7]), st.none() | st.just(2))
def test_cap_and_normaliser_loss_equal_their_definition(seed, cap, z_loss, chunk):
    features, weight, _, targets = draw_arrays(seed, 5, 7, 3)
    weights = jnp.asarray([1.0, 0.0, 2.0, 1.0, 0.5])

    def full(features, weight):
        logits = features @ weight.T
        logits = logits if cap is None else cap * jnp.tanh(logits / cap)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        losses = normaliser - logits[jnp.arange(5), targets] + z_loss * normaliser**2
        return jnp.sum(weights * losses) / weights.sum()

    def chunked(features, weight):
        options = {"weights": weights, "chunk": chunk, "soft_cap": cap, "z_loss": z_loss}
        return cross_entropy(features, ReadOut(weight), targets, **options).loss

    def mean(features, weight):
        losses = token_losses(features, ReadOut(weight), targets, soft_cap=cap)
        return jnp.sum(losses * weights) / weights.sum()

    @jax.jit
    def all_three(*arguments):
        return [jax.value_and_grad(f, (0, 1))(*arguments) for f in (chunked, full)], mean(*arguments)

    (got, wanted), mean_loss = as_numpy(all_three(features, weight))
    close(got, wanted)
    if z_loss == 0:
        close(mean_loss, wanted[0])


def test_a_cap_that_is_not_positive():
    features, weight, _, targets = draw_arrays(0, 2, 3, 2)
    with pytest.raises(ValueError, match="soft_cap=0.0: it must be positive"):
        cross_entropy(features, ReadOut(weight), targets, soft_cap=0.0)
