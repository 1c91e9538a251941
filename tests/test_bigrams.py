"""Hashed bigrams: what is added, to which token, and that nothing leaks or is forgotten between prefill and step."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses
from tiny import LENGTH, VOCAB, WIDTH, tiny_config

from eqx_slm import BigramConfig, HashedBigrams, build, count_parameters, flops, generate, parameter_ledger
from eqx_slm.nn.bigrams import before_each, pair_hash

CONFIG = tiny_config(bigrams=BigramConfig(rows=40, rank=3))


def model_of(config, dtype=np.float32):
    return filled(lambda key: build(config, key=key), std=0.5, dtype=dtype)


def python_hash(previous, token):
    """The same in Python's integers."""
    h = (previous * 0x9E3779B1 + token * 0x85EBCA77) % 2**32
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)), min_size=3, max_size=3))
def test_the_hash_in_pythons_integers(pairs):
    previous, tokens = jnp.asarray(pairs, jnp.int32).T
    assert pair_hash(previous, tokens).tolist() == [python_hash(*pair) for pair in pairs]


def test_the_hash_fills_its_rows_as_chance_would():
    """Of 2^16 pairs thrown into 2^16 rows, 1 - 1/e of the rows are hit; order matters, and neighbours are far apart."""
    previous, tokens = (side.reshape(-1) for side in np.meshgrid(np.arange(256), np.arange(256), indexing="ij"))
    rows = np.asarray(pair_hash(jnp.asarray(previous), jnp.asarray(tokens))) % 2**16
    assert len(np.unique(rows)) / 2**16 == pytest.approx(1 - np.exp(-1), abs=0.01)
    back = np.asarray(pair_hash(jnp.asarray(tokens), jnp.asarray(previous))) % 2**16
    assert (rows == back).mean() < 0.01


@pytest.mark.parametrize("rank", [None, 3])
def test_a_row_for_every_pair_and_none_for_the_first_token(rank):
    bigrams = filled(lambda key: HashedBigrams(WIDTH, rows=7, rank=rank, key=key))
    tokens = np.array([3, 9, 3, 9, 60], np.int32)
    table = np.asarray(bigrams.rows, np.float64)
    table = table if rank is None else table @ np.asarray(bigrams.columns, np.float64)
    expected = [
        np.zeros(WIDTH),
        *(table[python_hash(int(a), int(b)) % 7] for a, b in zip(tokens, tokens[1:], strict=False)),
    ]
    found = eqx.filter_jit(lambda b, t: b(before_each(t), t))(bigrams, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected[1]).max() > 0 and np.array_equal(found[1], found[3])
    config = BigramConfig(7, rank=rank)
    assert count_parameters(bigrams) == config.parameters(WIDTH)


def test_what_a_token_reads_is_it_and_the_one_before():
    model = model_of(CONFIG)
    embed = eqx.filter_jit(lambda m, t: m.embed(t))
    tokens = jnp.asarray([3, 1, 10, 3, 3])
    before = np.asarray(embed(model, tokens))
    for i in range(5):
        changed = np.asarray(embed(model, tokens.at[i].set(40)))
        moved = np.flatnonzero((changed != before).any(axis=1)).tolist()
        assert moved == [j for j in (i, i + 1) if j < 5]
    batch = jnp.stack([tokens, tokens[::-1]])
    plain, batched = eqx.filter_jit(lambda m, b: (jax.vmap(lambda t: m.features(m.embed(t)))(b), m.batch_features(b)))(
        model, batch
    )
    np.testing.assert_allclose(batched, plain, rtol=1e-4, atol=1e-5)  # no row reads the end of the one above it


def test_a_model_with_bigrams_decodes_what_it_computes_at_once():
    with jax.enable_x64(True):
        model = model_of(CONFIG, np.float64)
        tokens = jnp.asarray([3, 1, 10, 3, 3])
        whole = np.asarray(eqx.filter_jit(lambda m, t: m.features(m.embed(t)))(model, tokens))
        prefill = eqx.filter_jit(lambda m, t: m.prefill(t, m.start(LENGTH)))
        more = eqx.filter_jit(lambda m, t, state: m.prefill(t, state))
        step = eqx.filter_jit(lambda m, t, state: m.step(t, state))
        for split in range(1, len(tokens) + 1):
            features, state = prefill(model, tokens[:split])
            got, again = list(np.asarray(features)), state
            for token in tokens[split:]:
                feature, state = step(model, token, state)
                got.append(np.asarray(feature))
            np.testing.assert_allclose(np.stack(got), whole, rtol=1e-12, atol=1e-12)
            assert int(state.previous) == 3
            if split < len(tokens):
                rest, _ = more(model, tokens[split:], again)
                np.testing.assert_allclose(rest, whole[split:], rtol=1e-12, atol=1e-12)


def test_both_ways_of_sampling_give_the_same_tokens(monkeypatch):
    model, prompt, taken = model_of(CONFIG), jnp.asarray([5, 9, 60]), []
    for decodes in (True, False):
        monkeypatch.setattr(type(model), "decodes", property(lambda self, decodes=decodes: decodes))
        taken.append(generate(model, prompt, tokens=8, context=LENGTH, key=jax.random.key(0)).tolist())
    assert taken[0] == taken[1]


def test_at_a_scale_of_zero_a_model_starts_as_without():
    with_rows, without = (build(config, key=jax.random.key(0)) for config in (CONFIG, tiny_config()))
    tokens = jnp.asarray([3, 1, 10, 3])
    logits = eqx.filter_jit(lambda m: m(tokens))
    np.testing.assert_array_equal(logits(with_rows), logits(without))
    gradient = eqx.filter_jit(eqx.filter_grad(lambda m: jnp.square(m(tokens)).sum()))(with_rows)
    assert np.abs(gradient.bigrams.rows).max() > 0  # and leaves the start


def test_accounts_of_bigrams():
    base, config = tiny_config(), tiny_config(bigrams=BigramConfig(100))
    assert parameter_ledger(CONFIG)["bigrams"] == 40 * 3 + 3 * WIDTH and parameter_ledger(base)["bigrams"] == 0
    assert parameter_ledger(config)["bigrams"] == 100 * WIDTH == parameter_ledger(config).summary()["bigrams"]
    assert parameter_ledger(config).token_tables == parameter_ledger(base).token_tables == 2 * VOCAB * WIDTH
    assert flops(CONFIG).total - flops(base).total == 3 * 2 * 3 * WIDTH and flops(config) == flops(base)
    assert flops(CONFIG, distinct_share=0.5).total_distinct == flops(CONFIG).total  # not spared by repetition


@pytest.mark.parametrize("wrong", [{"rows": -1}, {"rows": 3, "rank": 0}, {"rows": 3, "std": -1.0}])
def test_sizes_that_are_refused(wrong):
    (name,) = [name for name in wrong if name != "rows"] or ["rows"]
    with refuses(f"{name}="):
        dataclasses.replace(BigramConfig(), **wrong)
