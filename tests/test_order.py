"""The order of windows, draws and mixtures: permutations, their constants, and no prefix far from the weights."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from eqx_slm.data import order
from eqx_slm.data.order import Mixture, draw, permutation, places
from eqx_slm.errors import UserError

seeds = st.integers(-(2**70), 2**70)


@given(st.integers(0, 3000), seeds, st.integers(0, 10**9))
def test_permutation_is_a_bijection(n, seed, epoch):
    order = permutation(n, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    assert not order.flags.writeable


@given(seeds, seeds, st.integers(0, 10**6), st.integers(0, 10**6))
def test_seeds_and_epochs_have_orders_of_their_own(seed, other, epoch, later):
    assume((seed, epoch) != (other, later))
    agree = permutation(1000, seed=seed, epoch=epoch) == permutation(1000, seed=other, epoch=later)
    assert agree.sum() < 20  # one place in a thousand is expected to agree


def test_the_order_never_changes():
    """Against a plain implementation with Python's integers, and as constants: a replayed run must read the same."""

    def reference(n, label):
        import hashlib

        start, mask = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "big"), 2**64 - 1
        keys = []
        for i in range(1, n + 1):
            z = (start + i * 0x9E3779B97F4A7C15) & mask
            z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
            z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
            keys.append(z ^ (z >> 31))
        return sorted(range(n), key=keys.__getitem__)

    assert permutation(500, seed=3, epoch=2).tolist() == reference(500, "3/2")
    assert permutation(8, seed=0).tolist() == [2, 3, 0, 6, 5, 1, 4, 7]
    assert permutation(0, seed=0).tolist() == [] and permutation(1, seed=0).tolist() == [0]


def test_positions_are_uniform():
    """Chi-square of where index 0 of 16 lands over 4,096 epochs; 15 degrees of freedom, 99.99% below 44.3."""
    places = [int(np.flatnonzero(permutation(16, seed=0, epoch=epoch) == 0)[0]) for epoch in range(4096)]
    counts = np.bincount(places, minlength=16)
    assert ((counts - 256) ** 2 / 256).sum() < 44.3


def test_draws_are_uniform():
    """Chi-square over 16 places; 15 degrees of freedom, 99.99% below 44.3."""
    counts = np.bincount([draw(123, i, 16) for i in range(4096)], minlength=16)
    assert ((counts - 256) ** 2 / 256).sum() < 44.3


@given(st.integers(1, 5000), st.integers(0, 2**40), st.integers(0, 9))
def test_places_are_a_permutation(n, seed, epoch):
    at = np.arange(n)
    np.testing.assert_array_equal(places(n, at, seed=seed, epoch=epoch), permutation(n, seed=seed, epoch=epoch))
    computed = order._feistel(n, at, f"{seed}/{epoch}")
    np.testing.assert_array_equal(np.sort(computed), at)
    some = at[:: max(1, n // 7)]
    np.testing.assert_array_equal(order._feistel(n, some, f"{seed}/{epoch}"), computed[some])


def test_computed_places_look_random():
    n = 10_000
    computed = order._feistel(n, np.arange(n), "0/0")
    assert abs(np.corrcoef(np.arange(n), computed)[0, 1]) < 0.04
    assert abs(np.corrcoef(computed[:-1], computed[1:])[0, 1]) < 0.04
    assert (computed == order._feistel(n, np.arange(n), "0/1")).sum() < 12
    far = places(2**40, np.array([0, 1, 2**40 - 1]), seed=0)
    assert len(set(far.tolist())) == 3 and far.max() < 2**40


weights = st.lists(st.integers(1, 40), min_size=1, max_size=7)


@given(weights, st.integers(0, 10**9))
@example([1, 1, 1], 0)
@example([97, 1, 1, 1], 0)
def test_no_prefix_is_a_sequence_away_from_the_request(weights, later):
    schedule = Mixture(weights)
    n = min(2 * schedule.period, 600)
    for first in (0, later * schedule.period):
        which, ordinals = schedule.locate(first + np.arange(n))
        counts = np.cumsum(which[:, None] == np.arange(len(weights)), axis=0) + np.array(
            [first * w // sum(weights) for w in weights]
        )
        for step in range(n):
            for count, weight in zip(counts[step].tolist(), weights, strict=True):
                # Exact integers: |count / total - weight| < 1 sequence.
                assert abs(count * sum(weights) - (first + step + 1) * weight) < sum(weights)
            assert ordinals[step] == counts[step, which[step]] - 1


def test_weights_are_exact_decimals():
    which, _ = Mixture(["0.7", 0.2, "1/10"]).locate(np.arange(1000))
    assert np.bincount(which).tolist() == [700, 200, 100] and Mixture([0.1, 0.2]).period == 3
    for bad, message in (([], "at least one"), ([1, 0], "above 0"), (["x"], "numbers such as"), ([1, 10**6], "repeat")):
        with pytest.raises(UserError, match=message):
            Mixture(bad)
