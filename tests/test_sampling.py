"""How a token is drawn: the filters beside a transcription in numpy and, where it is installed, transformers'."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from tiny import LENGTH, VOCAB, tiny_model

from eqx_slm import generate
from eqx_slm.infer.sampling import allowed, draw, sampling

SIZE = 12
filters = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
        "top_k": st.integers(0, SIZE + 2),
        "top_p": st.sampled_from([0.1, 0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.1, 0.5]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
    }
)
# Logits without ties: which of two equals stays is nobody's promise.
logits = st.permutations(range(SIZE)).map(lambda order: np.float32(order) * 0.7 - 3.0)
allowed_jit = jax.jit(allowed)


def transcribed(x, seen, temperature, top_k, top_p, min_p, repetition_penalty):
    x = x.astype(np.float64)
    x = np.where(seen, np.where(x > 0, x / repetition_penalty, x * repetition_penalty), x) / temperature
    if 0 < top_k < len(x):
        x = np.where(x < np.sort(x)[-top_k], -np.inf, x)
    shares = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    above = np.array([shares[shares > share].sum() for share in shares])
    x = np.where((above < top_p) | (shares == shares.max()), x, -np.inf)
    shares = np.exp(x - x.max())
    return np.where(shares < min_p, -np.inf, x)


@settings(max_examples=60)
@given(logits, st.sets(st.integers(0, SIZE - 1)), filters)
def test_filters_are_what_their_names_say(x, seen, how):
    mask = np.isin(np.arange(SIZE), list(seen))
    got = np.asarray(allowed_jit(jnp.asarray(x), jnp.asarray(mask), sampling(SIZE, **how)))
    wanted = transcribed(x, mask, **how)
    # An edge that falls within rounding of a share may go either way; at 1 and at 0 there is no edge.
    before = transcribed(x, mask, **how | {"top_p": 1.0, "min_p": 0.0})
    powers = np.sort(np.exp(before - before.max()))[::-1]
    shares = np.cumsum(powers) / powers.sum()
    clear = how["top_p"] == 1 or np.abs(shares - how["top_p"]).min() > 1e-6
    if clear and (how["min_p"] == 0 or np.abs(powers - how["min_p"]).min() > 1e-6):
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted))
        np.testing.assert_allclose(got[np.isfinite(got)], wanted[np.isfinite(wanted)], rtol=1e-5)


def test_with_top_k_a_top_p_of_one_keeps_what_is_far_below_a_rounding():
    x = jnp.asarray([0.0, -1.0, -40.0, -41.0])
    got = allowed_jit(x, jnp.zeros(4, bool), sampling(4, top_k=3, top_p=1.0))
    np.testing.assert_array_equal(np.isfinite(np.asarray(got)), [True, True, True, False])


@settings(max_examples=30)
@given(logits, st.sets(st.integers(0, SIZE - 1), min_size=1), filters)
def test_filters_are_transformers_own(x, seen, how):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    chain = [transformers.RepetitionPenaltyLogitsProcessor(how["repetition_penalty"])]
    chain.append(transformers.TemperatureLogitsWarper(how["temperature"]))
    chain += [transformers.TopKLogitsWarper(how["top_k"])] if how["top_k"] else []
    chain += [transformers.TopPLogitsWarper(how["top_p"])] if how["top_p"] < 1 else []
    chain += [transformers.MinPLogitsWarper(how["min_p"])] if how["min_p"] else []
    theirs = torch.tensor(x)[None]
    for each in chain:
        theirs = each(torch.tensor([sorted(seen)]), theirs)
    mask = np.isin(np.arange(SIZE), list(seen))
    got = np.asarray(allowed_jit(jnp.asarray(x), jnp.asarray(mask), sampling(SIZE, **how)))
    np.testing.assert_allclose(got, theirs[0].numpy(), rtol=1e-5)


def test_padding_is_never_drawn_and_greedy_takes_the_best():
    x, seen = jnp.arange(SIZE, dtype=jnp.float32), jnp.zeros(SIZE, bool)
    for seed in range(20):
        token, then = draw(x, seen, sampling(5, temperature=3.0), jax.random.key(seed))
        assert token < 5 and then[token] and then.sum() == 1
    assert draw(x, seen, sampling(SIZE, temperature=0.0), jax.random.key(0))[0] == SIZE - 1
    assert draw(x, seen, sampling(7, temperature=0.0, top_k=3, top_p=0.5), jax.random.key(0))[0] == 6


def test_no_setting_compiles_anew():
    model, module = tiny_model(), importlib.import_module("eqx_slm.infer.generate")
    how = [{}, {"temperature": 0.0}, {"temperature": 0.3, "top_k": 5}, {"top_p": 0.4, "repetition_penalty": 1.2}]
    how += [{"min_p": 0.2, "vocab_size": 30}]
    sizes = [getattr(module, name)._cached._cache_size for name in ("_read", "_decode", "_slide")]
    for context in (LENGTH, 4):
        found = []
        for each in how:
            ids = generate(model, [1, 2], tokens=8, context=context, key=jax.random.key(3), **each)
            found.append((ids.tolist(), [size() for size in sizes]))
        assert len({tuple(count) for _, count in found}) == 1
        assert max(found[-1][0]) < 30 <= max(max(ids) for ids, _ in found)
        assert len({tuple(ids) for ids, _ in found}) == len(how) and max(found[0][0]) < VOCAB


@pytest.mark.parametrize(
    "wrong",
    [{"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 1.0}, {"top_k": -1}, {"repetition_penalty": 0.0}]
    + [{"temperature": -1.0}, {"temperature": float("nan")}, {"vocab_size": 0}],
    ids=str,
)
def test_settings_out_of_range_are_one_line(wrong):
    with refuses(next(iter(wrong))):
        generate(tiny_model(), [1, 2], tokens=2, context=LENGTH, key=jax.random.key(0), **wrong)
