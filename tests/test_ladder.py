"""The ladder's models: published counts, a transcription in numpy, XLA's FLOPs, one target against every one."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm import count_parameters
from eqx_slm.nn.ladder import CHUNK, CONVENTIONS, LADDER, FlatConfig, StackConfig, dropped
from eqx_slm.train.loss import cross_entropy
from eqx_slm.train.optimizer import OptimizerConfig
from eqx_slm.train.step import batch_loss, make_program

T = CHUNK + 8  # two chunks of queries
TINY = StackConfig(vocab_size=11, context=T, d_model=8, dropout=0.0, depth=2, n_heads=2, d_ff=12)
FLAT = FlatConfig(vocab_size=11, context=6, d_model=4, dropout=0.0, hidden=(7, 5))


def shapes(config):
    return eqx.filter_eval_shape(config, jax.random.key(0))


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 11, shape, np.int32))


PUBLISHED = {
    "linear": (LADDER["linear"], 1_073_345),
    "mlp": (LADDER["mlp"], 4_285_377),
    "attention": (LADDER["attention"], 231_617),
    "transformer": (LADDER["transformer"], 430_785),
    "rotary": (StackConfig(positions="rotary", norm="pre"), 414_401),
    "ptb": (StackConfig(vocab_size=9_999, context=64), 2_975_631),
    "wikitext-2": (StackConfig(vocab_size=33_277, context=64), 8_958_077),
}


@pytest.mark.parametrize("config, count", PUBLISHED.values(), ids=PUBLISHED)
def test_published_parameters_to_the_digit(config, count):
    assert config.parameters() == count == count_parameters(shapes(config))


some = st.integers(1, 9)
sizes = {"vocab_size": some, "context": some}
# Plain values, of which the test makes a config: the run-time type checks look at a random entry of a tuple.
flats = st.fixed_dictionaries({**sizes, "d_model": some, "hidden": st.lists(some, max_size=3).map(tuple)})
stacks = st.fixed_dictionaries(
    {
        **sizes,
        **{"n_heads": st.integers(1, 3), "width": st.integers(1, 3), "depth": st.integers(1, 3), "d_ff": some},
        "positions": st.sampled_from(["learned", "rotary", "none"]),
        "norm": st.sampled_from(["post", "pre"]),
    }
)


@given(flats | stacks)
def test_closed_form_is_what_the_leaves_have(values):
    if "hidden" in values:
        config = FlatConfig(**values)
    else:
        width = 2 * values["width"] * values["n_heads"]
        config = StackConfig(d_model=width, **{k: v for k, v in values.items() if k != "width"})
    assert config.parameters() == count_parameters(shapes(config))


def normalised(x, norm):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * np.asarray(norm.weight) + np.asarray(norm.bias)


def affine(x, layer):
    return x @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias, np.float64)


def turned(x, position):
    """One head's vector at a position: channels j and j + w/2 turn together."""
    half = len(x) // 2
    out = np.array(x)
    for j in range(half):
        a = position * 10_000.0 ** (-2 * j / len(x))
        out[j] = x[j] * math.cos(a) - x[j + half] * math.sin(a)
        out[j + half] = x[j + half] * math.cos(a) + x[j] * math.sin(a)
    return out


def attended(x, block, c):
    width, mixed = c.d_model // c.n_heads, np.zeros_like(x)
    q, k, v = affine(x, block.q), affine(x, block.k), affine(x, block.v)
    for head in range(c.n_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            seen = range(i + 1) if c.causal else range(len(x))
            at = turned if c.positions == "rotary" else lambda row, _: row
            scores = np.array([at(q[i, part], i) @ at(k[j, part], j) for j in seen]) / math.sqrt(width)
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed[i, part] = sum(w * v[j, part] for w, j in zip(weights, seen, strict=True))
    return affine(mixed, block.out)


def transcription(model, ids):
    """Logits as the paper's notebook has them, position by position."""
    c, x = model.config, np.asarray(model.embedding.table, np.float64)[ids]
    if isinstance(c, FlatConfig):
        x = x[-c.context :].reshape(1, -1)
        for layer in model.layers:
            x = np.maximum(affine(x, layer), 0)
        return affine(x, model.head)
    if c.positions == "learned":
        x = x + np.asarray(model.positions.table, np.float64)[: len(ids)]
    for b in model.blocks:
        if c.norm == "post":
            x = normalised(x + attended(x, b, c), b.mixer_norm)
            x = normalised(x + affine(np.maximum(affine(x, b.up), 0), b.down), b.channel_norm)
        else:
            x = x + attended(normalised(x, b.mixer_norm), b, c)
            x = x + affine(np.maximum(affine(normalised(x, b.channel_norm), b.up), 0), b.down)
    return affine(normalised(x, model.norm), model.head)


def filled(config):
    """A model whose norms, too, are not at their start."""
    model, count = config(jax.random.key(1)), iter(range(99))
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    noisy = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(next(count)), x.shape), arrays)
    return eqx.combine(noisy, static)


CASES = {
    "linear": dataclasses.replace(FLAT, hidden=()),
    "mlp": FLAT,
    "post": TINY,
    "pre, rotary": dataclasses.replace(TINY, positions="rotary", norm="pre"),
    "no positions, not causal": dataclasses.replace(TINY, positions="none", causal=False),
}


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_forward_equals_a_transcription_in_numpy_and_judges_by_its_last_row(config):
    model, ids = filled(config), tokens(2, T)
    expected = np.stack([transcription(model, row) for row in np.asarray(ids)])
    every = jax.jit(jax.vmap(lambda row: model(row)))(ids)
    np.testing.assert_allclose(every, expected, atol=1e-4)
    last = model.read_out().logits(jax.jit(lambda ids: model.batch_features(ids))(ids))
    np.testing.assert_allclose(last, expected[:, -1:], atol=1e-4)  # the last block computes one position only


@pytest.mark.parametrize("causal", [True, False])
def test_only_a_causal_model_is_blind_to_what_comes_later(causal):
    model, ids = filled(dataclasses.replace(TINY, causal=causal)), tokens(T)
    changed = jnp.where(jnp.arange(T) > T // 2, (ids + 1) % 11, ids)
    before, after = model(ids)[: T // 2 + 1], model(changed)[: T // 2 + 1]
    assert bool(jnp.allclose(before, after, atol=1e-6)) == causal


def test_one_target_and_every_position_have_the_same_gradient_for_the_last_target():
    model, batch, key = filled(TINY), tokens(3, T + 1), jax.random.key(0)
    every = filled(dataclasses.replace(TINY, targets="every"))
    only_last = jnp.zeros((3, T)).at[:, -1].set(1.0)

    def all_positions(m):
        return cross_entropy(
            m.training_features(batch[:, :-1], key), m.read_out(), batch[:, 1:], weights=only_last
        ).loss

    one = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: batch_loss(m, batch, key)))(model)
    many = eqx.filter_jit(eqx.filter_value_and_grad(all_positions))(every)
    np.testing.assert_allclose(one[0], many[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(many[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


WIDE = StackConfig(vocab_size=512, context=CHUNK, d_model=512, depth=2, n_heads=4, d_ff=1024, dropout=0.0)


def xlas(config, features):
    params, static = eqx.partition(shapes(config), lambda leaf: hasattr(leaf, "shape"))

    def logits(params, ids):
        model = eqx.combine(params, static)
        x = features(model, model.embedding(ids))
        return x @ model.head.weight + model.head.bias[None]

    cost = jax.jit(logits).lower(params, jax.ShapeDtypeStruct((config.context,), jnp.int32)).cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_flops_equal_xlas_count():
    flat = FlatConfig(vocab_size=512, context=8, d_model=64, hidden=(256, 256))
    assert xlas(flat, lambda m, x: m.features(x)) == pytest.approx(flat.flops(), rel=0.02)
    written = xlas(WIDE, lambda m, x: m.features(x)[-1:])
    assert written == pytest.approx(WIDE.flops("as written"), rel=0.02)
    # What a mask throws away and XLA computes: half a square in the first of the two blocks.
    t, masked = WIDE.context, 4 * WIDE.d_model * (CHUNK**2 - CHUNK * (CHUNK + 1) // 2)
    assert xlas(WIDE, lambda m, x: m.features(x, last=True)) == pytest.approx(WIDE.flops() + masked, rel=0.02)
    every = dataclasses.replace(WIDE, targets="every")
    assert xlas(every, lambda m, x: m.features(x)) == pytest.approx(every.flops() + 2 * masked, rel=0.02)
    assert every.flops("as written") - WIDE.flops("as written") == 2 * (t - 1) * WIDE.d_model * WIDE.vocab_size


def test_flops_have_the_conventions_names():
    counted = shapes(TINY).flops_per_token()
    per = counted["conventions"]
    assert per.keys() == CONVENTIONS.keys() and per["as written"] == 3 * TINY.flops("as written") / T
    assert counted["total"] == per["as needed"] == 3 * TINY.flops("as needed") / T < per["as written"]


@given(st.sampled_from([0.1, 0.25, 0.5]), st.integers(0, 5))
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate, seed):
    x = jnp.ones(4096)
    y = np.asarray(dropped(x, rate, jax.random.key(seed)))
    assert abs((y == 0).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / 4096)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-4)
    assert dropped(x, rate, None) is x and dropped(x, 0.0, jax.random.key(seed)) is x


def test_a_step_draws_by_the_seed_and_the_step_and_judgement_draws_nothing():
    config = dataclasses.replace(TINY, dropout=0.5)
    model, batch = config(jax.random.key(0)), tokens(2, T + 1)
    program = make_program(model, OptimizerConfig(schedule="constant", warmup=0.0))
    still = np.float32(1e-30)  # parameters stay: only what is drawn changes

    def losses(seed):
        state = program.start(model, seeds=[seed])
        found = []
        for _ in range(2):
            state, metrics = program.step(state, batch, still)
            found.append(float(metrics.loss))
        return found, program.evaluate(state.params, batch)

    (first, judged), (again, _), (other, judged_too) = losses(0), losses(0), losses(1)
    assert first == again and len({*first, *other}) == 4
    assert judged.shape == (2, 1) and bool((judged == judged_too).all())
    assert float(judged.mean()) == pytest.approx(float(batch_loss(model, batch)), rel=1e-5)


WRONG = {
    "heads": (lambda: StackConfig(d_model=10, n_heads=4), "n_heads=4"),
    "targets": (lambda: StackConfig(causal=False, targets="every"), "causal"),
    "hidden": (lambda: FlatConfig(hidden=(0,)), "hidden"),
    "dropout": (lambda: FlatConfig(dropout=1.0), "dropout"),
    "window": (lambda: FLAT(jax.random.key(0))(tokens(5)), "window of 5"),
}


@pytest.mark.parametrize("make, told", WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_refused_in_one_line(make, told):
    with refuses(told):
        make()
