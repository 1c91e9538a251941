"""Sampling: greedy against the whole prefix, the window, materialized tables."""

import dataclasses
import functools
import importlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import GENERATOR, LENGTH, VOCAB, tiny_config, tiny_model

from eqx_slm import (
    CompositionalConfig,
    HeadConfig,
    LowRankConfig,
    TableEmbedding,
    generate,
    generate_batch,
    materialize,
)
from eqx_slm.infer import Continuation
from eqx_slm.nn import ReadOut, TokenEmbedding

KEY = jax.random.key(0)
ORDERED = dataclasses.replace(GENERATOR, order="random")
CONFIGS = {
    "table": tiny_config(),
    "tied": tiny_config(head=HeadConfig("tied")),
    "generator": tiny_config(embedding=ORDERED),
    "generated": tiny_config(embedding=ORDERED, head=HeadConfig("generated")),
    "low-rank": tiny_config(embedding=LowRankConfig(rank=4), head=HeadConfig("tied")),
    "compositional": tiny_config(embedding=CompositionalConfig(), head=HeadConfig("tied")),
    "learned": tiny_config(positions="learned"),
}


def sharp(config):
    """A model whose features are large, so that its most likely tokens differ from place to place."""
    return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else 20 * leaf, tiny_model(config))


def next_tokens(model, ids):
    """The most likely token after every prefix of `ids`."""
    return jnp.argmax(eqx.filter_jit(model)(jnp.asarray(ids, jnp.int32)), axis=-1).tolist()


@pytest.mark.parametrize("name", ["table", "generated", "learned"])
def test_greedy_is_the_argmax_over_the_whole_prefix(name):
    model = sharp(CONFIGS[name])
    prompt = [5, 9, 60]
    got = generate(model, jnp.asarray(prompt), tokens=8, context=LENGTH, temperature=0.0, key=KEY).tolist()
    assert next_tokens(model, prompt + got)[2:-1] == got
    assert len(got) == 8 and len(set(got)) > 2


def test_the_window_slides_past_the_context():
    """With a context of 4, and a prompt that is longer alone, every token depends on the 4 before it."""
    model = sharp(CONFIGS["table"])
    prompt = [5, 9, 60, 1, 2, 3]
    got = generate(model, jnp.asarray(prompt), tokens=6, context=4, temperature=0.0, key=KEY).tolist()
    ids = prompt + got
    assert [next_tokens(model, ids[i - 4 : i])[-1] for i in range(6, 12)] == got
    assert next_tokens(model, ids)[5:-1] != got  # the length of the context matters here


def test_samples_follow_the_models_distribution():
    """One step from a prompt, many keys: frequencies against probabilities, at a temperature."""
    model, prompt, temperature = sharp(CONFIGS["table"]), jnp.asarray([5, 9]), 3.0

    def draw(key):
        return generate(model, prompt, tokens=1, context=4, temperature=temperature, key=key)[0]

    drawn = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 4000)))
    logits = eqx.filter_jit(model)(prompt)[-1]
    probabilities, colder = (np.asarray(jax.nn.softmax(logits / t)) for t in (temperature, 1.0))
    shares = np.bincount(drawn, minlength=VOCAB) / 4000
    assert abs(shares - probabilities).max() < 5 * np.sqrt(0.25 / 4000)
    assert 0.5 * abs(shares - probabilities).sum() < 0.1 < 0.5 * abs(shares - colder).sum()


def test_a_key_decides_the_sample():
    model = tiny_model()
    one, same, other = (
        generate(model, jnp.asarray([3]), tokens=12, context=LENGTH, key=key).tolist()
        for key in (KEY, KEY, jax.random.key(1))
    )
    assert one == same != other
    assert len(one) == 12 and all(0 <= token < VOCAB for token in one)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(tiny_model(), jnp.zeros(0, jnp.int32), tokens=3, context=LENGTH, key=KEY)


def test_learned_positions_end():
    model = tiny_model(CONFIGS["learned"])
    for tokens in (12, 13, 14):
        with pytest.raises(ValueError, match="context=32, but learned positions end at 16"):
            generate(model, jnp.asarray([3, 1, 2]), tokens=tokens, context=2 * LENGTH, key=KEY)
    with pytest.raises(ValueError, match="context=17, but learned positions end at 16"):
        model.start(LENGTH + 1)
    ids = jnp.arange(12)
    whole = model.features(model.embedding(jnp.concatenate([ids, ids[:4]])))
    _, state = model.prefill(ids, model.start(LENGTH))
    rest, state = model.prefill(ids[:4], state)
    np.testing.assert_allclose(rest, whole[12:], rtol=1e-4, atol=1e-5)
    assert np.isnan(model.step(ids[0], state).y).all() and np.isnan(model.prefill(ids[:2], state).y).all()


PROMPTS = ([5, 9, 60], [1], [7, 7, 2, 30, 4, 4])


@pytest.mark.parametrize("name", ["table", "generated", "learned"])
@pytest.mark.parametrize("context", [LENGTH, 4])
def test_a_batch_is_its_prompts_one_by_one(name, context):
    """Prompts of unequal length, from decode states and from windows; three rows run as four."""
    model = sharp(CONFIGS[name])
    many = generate_batch(model, PROMPTS, tokens=9, context=context, top_k=20, key=KEY)
    assert many.shape == (3, 9)
    for i, prompt in enumerate(PROMPTS):
        one = generate(model, prompt, tokens=9, context=context, top_k=20, key=jax.random.fold_in(KEY, i))
        np.testing.assert_array_equal(many[i], one)


@given(
    context=st.sampled_from([LENGTH, 4]), rows=st.sampled_from([1, 3]), counts=st.lists(st.integers(0, 5), max_size=4)
)
def test_tokens_drawn_in_parts_are_those_drawn_at_once(context, rows, counts):
    model = tiny_model()
    keys = [jax.random.key(i) for i in range(rows)]
    how = {"tokens": 10, "context": context, "temperature": 1.0}
    at_once = Continuation(model, PROMPTS[:rows], keys, **how).draw(10)
    parts = Continuation(model, PROMPTS[:rows], keys, **how)
    drawn = [parts.draw(count) for count in [*counts, 10]]
    np.testing.assert_array_equal(np.concatenate(drawn, axis=1), at_once)
    assert parts.draw(3).shape == (rows, 0)


def test_no_prompts_are_refused():
    with pytest.raises(ValueError, match="no prompt"):
        generate_batch(tiny_model(), [], tokens=3, context=LENGTH, key=KEY)
    with pytest.raises(ValueError, match="the prompt is empty"):
        generate_batch(tiny_model(), [[1], []], tokens=3, context=LENGTH, key=KEY)


def test_lengths_share_programs():
    """Prompts and answers of any length below 64 run the programs that two of them have compiled."""
    model = tiny_model()
    module = importlib.import_module("eqx_slm.infer.generate")
    compiled = [getattr(module, name)._cached._cache_size for name in ("_read", "_decode", "_slide")]

    def sample(prompt, tokens, context):
        return generate(model, jnp.arange(prompt), tokens=tokens, context=context, key=KEY)

    for context in (LENGTH, 4):
        sample(7, 2, context)  # pieces of 4, 2 and 1
    before = [size() for size in compiled]
    for prompt, tokens, context in ((1, 9, LENGTH), (6, 5, LENGTH), (3, 1, LENGTH), (5, 3, 4), (9, 60, 4)):
        assert sample(prompt, tokens, context).shape == (tokens,)
    assert [size() for size in compiled] == before


class Anything(eqx.Module):
    """An embedding that promises nothing but a call."""

    table: jax.Array

    def __call__(self, ids):
        return self.table[ids]


def test_an_embedding_of_any_class_samples():
    model = tiny_model()
    other = eqx.tree_at(lambda m: m.embedding, model, Anything(model.embedding.table))
    assert materialize(other) is other
    one, two = (generate(m, jnp.asarray([3]), tokens=4, context=LENGTH, key=KEY) for m in (model, other))
    np.testing.assert_array_equal(one, two)


class Doubled(TokenEmbedding):
    """Rows of which the first half alone goes into the model's channels twice, and which reads out by the other."""

    rows: jax.Array
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)

    def __call__(self, ids):
        return jnp.repeat(self.rows[ids, : self.d_model // 2], 2, axis=-1)

    def read_out(self):
        return ReadOut(self.rows)


def test_a_tied_embedding_with_a_read_out_of_its_own_keeps_it():
    model = tiny_model()
    rows = jax.random.normal(KEY, model.embedding.table.shape)
    own = Doubled(rows, *rows.shape)
    tied = eqx.tree_at(lambda m: (m.embedding, m.head), model, (own, None), is_leaf=lambda leaf: leaf is None)
    ids = jnp.arange(LENGTH)
    np.testing.assert_allclose(materialize(tied)(ids), tied(ids), rtol=1e-5, atol=1e-5)
    drawn = generate(tied, ids[:1], tokens=3, context=LENGTH, temperature=0.0, key=KEY)
    assert drawn[0] == tied(ids[:1])[-1].argmax()


@pytest.mark.parametrize(("tokens", "context"), [(-1, LENGTH), (3, 0)])
def test_sizes_that_make_no_sense_are_refused(tokens, context):
    with pytest.raises(ValueError, match="tokens=-1: it must|context=0: it must"):
        generate(tiny_model(), jnp.asarray([3]), tokens=tokens, context=context, key=KEY)


@functools.cache
def materialized(name):
    """A model, its materialized form, and the logits of both as one program."""
    model = tiny_model(CONFIGS[name])
    return model, materialize(model), eqx.filter_jit(lambda models, ids: [model(ids) for model in models])


@pytest.mark.parametrize("name", CONFIGS)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=LENGTH, max_size=LENGTH))
def test_a_materialized_model_has_the_same_logits(name, ids):
    model, fast, logits = materialized(name)
    assert isinstance(fast.embedding, TableEmbedding)
    got, wanted = logits((fast, model), jnp.asarray(ids, jnp.int32))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert materialize(fast) is fast
    assert (fast is model) == isinstance(model.embedding, TableEmbedding)
