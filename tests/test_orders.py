"""Orders of the ids are stable bijections that mean what they say."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqx_slm.nn.digits import coordinate_base, to_coordinates
from eqx_slm.nn.orders import cooccurrence_order, frequency_order, random_order


def is_permutation(order, n):
    return order.dtype == np.int32 and order.shape == (n,) and np.array_equal(np.sort(order), np.arange(n))


@given(st.integers(0, 3000), st.integers(-(2**70), 2**70))
def test_random_order_is_a_bijection(vocab_size, seed):
    order = random_order(vocab_size, seed)
    assert is_permutation(order, vocab_size)
    assert np.array_equal(order, random_order(vocab_size, seed))


def test_random_order_is_frozen():
    # Against the published SplitMix64 in Python integers. It may never change: a study is replayed from its seed.
    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
    for seed in (0, 1, -5):
        keys = [mix((mix(seed % 2**64) + (i + 1) * 0x9E3779B97F4A7C15) % 2**64) for i in range(500)]
        assert random_order(500, seed).tolist() == sorted(range(500), key=keys.__getitem__)
    assert random_order(10).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert not np.array_equal(random_order(500, 0), random_order(500, 1))


def test_random_order_mixes_neighbours():
    order = random_order(10_000, 3)
    base = coordinate_base(10_000, 2)
    leading = to_coordinates(order, base, 2)[:, 0]
    assert np.mean(leading[1:] == leading[:-1]) < 0.02  # about 1 in 100, where the ids themselves give 99


@given(st.lists(st.integers(0, 5), max_size=40), st.sampled_from([np.int64, np.uint8, np.float32]))
def test_frequency_order(counts, dtype):
    array = np.array(counts, dtype=dtype)
    order = frequency_order(array)
    assert is_permutation(order, len(counts))
    assert np.argsort(order).tolist() == sorted(range(len(counts)), key=lambda i: (-counts[i], i))


def clustered_corpus(vocab_size, clusters, tokens, seed=0):
    """Sentences of 16 tokens, each from one cluster; the ids of a cluster are scattered over the vocabulary."""
    rng = np.random.default_rng(seed)
    cluster_of = rng.permutation(np.arange(vocab_size) % clusters)
    members = [np.flatnonzero(cluster_of == c) for c in range(clusters)]
    topics = rng.integers(0, clusters, tokens // 16)
    picks = rng.integers(0, vocab_size // clusters, (tokens // 16, 16))
    return np.stack([members[c][row] for c, row in zip(topics, picks, strict=True)]).ravel(), cluster_of


def shared_leading_digit(order, groups, base, k):
    """How often two tokens of one group have the same leading digit."""
    leading = to_coordinates(order, base, k)[:, 0]
    same_group = np.triu(groups[:, None] == groups[None], 1)
    return (leading[:, None] == leading[None])[same_group].mean()


def test_cooccurrence_order_groups_what_occurs_together():
    tokens, cluster_of = clustered_corpus(vocab_size=512, clusters=8, tokens=48_000)
    order = cooccurrence_order(tokens, 512)
    assert is_permutation(order, 512)
    assert np.array_equal(order, cooccurrence_order(tokens.astype(np.uint16), 512))
    found = shared_leading_digit(order, cluster_of, base=8, k=3)
    tokenizer = shared_leading_digit(np.arange(512, dtype=np.int32), cluster_of, base=8, k=3)
    assert tokenizer < 0.2 and found > 0.8  # by chance 1 in 8


def test_cooccurrence_order_does_not_depend_on_the_tokenizer_order():
    # Names are arbitrary: relabelled tokens end with the neighbours they had.
    tokens, cluster_of = clustered_corpus(vocab_size=216, clusters=6, tokens=24_000, seed=1)
    rename = random_order(216, 7)
    order = cooccurrence_order(rename[tokens], 216)
    assert shared_leading_digit(order[rename], cluster_of, base=6, k=3) > 0.8


@given(
    vocab_size=st.integers(1, 60),
    tokens=st.lists(st.integers(0, 59), max_size=80),
    window=st.integers(1, 6),
    dimensions=st.integers(1, 40),
    k=st.integers(1, 4),
)
def test_cooccurrence_order_of_any_corpus(vocab_size, tokens, window, dimensions, k):
    tokens = np.array([t % vocab_size for t in tokens], dtype=np.int64)
    order = cooccurrence_order(tokens, vocab_size, window=window, dimensions=dimensions, k=k)
    assert is_permutation(order, vocab_size)
    # What never occurs comes last, in its own order.
    absent = np.setdiff1d(np.arange(vocab_size), tokens)
    assert order[absent].tolist() == list(range(vocab_size - len(absent), vocab_size))


def test_cooccurrence_order_without_any_pair_keeps_the_ids():
    assert cooccurrence_order(np.zeros(0, np.int32), 5).tolist() == [0, 1, 2, 3, 4]
    assert cooccurrence_order(np.array([3]), 5).tolist() == [1, 2, 3, 0, 4]
    assert cooccurrence_order(np.array([3] * 20), 5).tolist() == [1, 2, 3, 0, 4]
    assert cooccurrence_order(np.array([0] * 20), 1).tolist() == [0]


def test_cooccurrence_order_of_a_large_vocabulary():
    rng = np.random.default_rng(0)
    tokens = np.minimum(rng.zipf(1.3, 20_000) - 1, 49_999).astype(np.int32)  # sparse throughout, or this would not fit
    order = cooccurrence_order(tokens, 50_000, dimensions=8)
    assert is_permutation(order, 50_000)


def test_cooccurrence_order_refuses():
    tokens = np.array([0, 1, 2])
    with pytest.raises(ValueError, match="vocabulary has 0 to 1"):
        cooccurrence_order(tokens, 2)
    with pytest.raises(ValueError, match="at least 1"):
        cooccurrence_order(tokens, 3, window=0)
    with pytest.raises(ValueError, match="8 positions are fewer than vocab_size=9"):
        cooccurrence_order(tokens, 9, base=2)


def test_scipy_is_imported_only_when_needed():
    code = "import sys; sys.modules['scipy.sparse'] = None; import eqx_slm.nn.orders as c; c.random_order(9)"
    subprocess.run([sys.executable, "-c", code], check=True)
