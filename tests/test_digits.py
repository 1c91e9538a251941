"""Digits are exact and reversible, and bases minimal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm.nn.digits import coordinate_base, from_coordinates, to_coordinates

LARGEST = 2**31 - 1
digit_counts = st.integers(1, 5)
perfect_powers = st.builds(lambda base, k: base**k, st.integers(2, 100), st.integers(1, 3))
vocab_sizes = st.one_of(
    st.integers(1, 1_000_000),
    perfect_powers,
    perfect_powers.map(lambda v: v + 1),
    perfect_powers.map(lambda v: max(1, v - 1)),
    st.sampled_from([1, 2, 3, 97, 65_537, 200_019, 999_983, 1_000_000, LARGEST]),  # primes among them
)


@given(vocab_sizes, digit_counts)
def test_base_is_minimal(vocab_size, k):
    base = coordinate_base(vocab_size, k)
    assert base**k >= vocab_size
    assert base == 1 or (base - 1) ** k < vocab_size


@pytest.mark.parametrize(
    ("vocab_size", "k", "base"),
    [(1, 3, 1), (2, 5, 2), (125, 3, 5), (126, 3, 6), (1_000_000, 3, 100), (200_019, 3, 59), (3**40, 40, 3), (7, 1, 7)]
    + [
        (2**62 + 1, 1, 2**62 + 1),
        (2**63, 1, 2**63),
        (2**200, 2, 2**100),
        (2**200 + 1, 2, 2**100 + 1),
        (10**30, 3, 10**10),
    ]
    + [(1, 10**6, 1), (2, 10**6, 2), (np.int64(1000), np.int32(3), 10), (np.uint8(255), 1, 255)],
)
def test_base_by_hand(vocab_size, k, base, unchecked):
    found = coordinate_base(vocab_size, k)
    assert found == base and type(found) is int


@given(st.integers(1, 2**300), st.integers(1, 400))
def test_base_is_minimal_at_any_size(vocab_size, k):
    base = coordinate_base(vocab_size, k)
    assert base**k >= vocab_size > (base - 1) ** k or base == vocab_size == 1


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 3.0, True, "3", None, np.float32(2), np.bool_(True)])
def test_sizes_that_are_no_whole_numbers_are_refused(wrong, unchecked):
    for call in (
        lambda: coordinate_base(wrong, 3),
        lambda: coordinate_base(3, wrong),
        lambda: to_coordinates(1, wrong, 2),
        lambda: to_coordinates(1, 3, wrong),
        lambda: from_coordinates(np.array([0, 1]), wrong),
    ):
        with refuses("at least 1"):
            call()


def test_digits_by_hand():
    assert to_coordinates(np.array([0, 123, 999]), 10, 3).tolist() == [[0, 0, 0], [1, 2, 3], [9, 9, 9]]
    assert to_coordinates(200_018, 59, 3).tolist() == [57, 27, 8]
    assert from_coordinates(np.array([57, 27, 8]), 59) == 200_018


@given(vocab_sizes, digit_counts, st.data())
def test_digits_round_trip(vocab_size, k, data):
    base = coordinate_base(vocab_size, k)
    some = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=4, max_size=4))
    some += [0, vocab_size - 1, vocab_size // 2, base - 1]
    ids = np.array(some, dtype=np.int32).reshape(2, 4)
    for array in (ids, ids.astype(np.int64), ids.astype(np.uint32), jnp.asarray(ids)):
        digits = to_coordinates(array, base, k)
        assert isinstance(digits, jax.Array if isinstance(array, jax.Array) else np.ndarray)
        assert digits.shape == (2, 4, k)
        assert digits.min() >= 0 and digits.max() < base
        weights = [base ** (k - 1 - r) for r in range(k)]  # Python integers: the definition, without any overflow
        exact = [sum(int(d) * w for d, w in zip(row, weights, strict=True)) for row in np.asarray(digits).reshape(8, k)]
        assert exact == ids.ravel().tolist()
        back = from_coordinates(digits, base)
        assert back.shape == (2, 4) and type(back) is type(digits)
        assert np.array_equal(back, ids)


def test_every_id_of_a_vocabulary_has_its_own_digits():
    for vocab_size, k in ((1, 2), (8192, 3), (9999, 2), (200_019, 3), (65_536, 4)):
        base = coordinate_base(vocab_size, k)
        ids = np.arange(vocab_size, dtype=np.int32)
        digits = to_coordinates(ids, base, k)
        assert digits.dtype == np.int32
        assert np.array_equal(from_coordinates(digits, base), ids)
        # Most significant first: the rows are in lexicographic order.
        assert np.array_equal(np.lexsort(digits.T[::-1]), ids)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_no_overflow_at_the_largest_vocabulary(k):
    base = coordinate_base(LARGEST, k)
    ids = jnp.array([0, 1, LARGEST // 2, LARGEST - 1], dtype=jnp.int32)
    digits = jax.jit(to_coordinates, static_argnums=(1, 2))(ids, base, k)
    assert digits.dtype == jnp.int32
    assert np.array_equal(digits, to_coordinates(np.asarray(ids, dtype=np.int64), base, k))
    assert np.array_equal(jax.jit(from_coordinates, static_argnums=1)(digits, base), ids)


def test_narrow_integers_are_widened():
    for dtype in (np.uint8, np.int8, np.int16, np.uint16):
        ids = np.array([0, 100], dtype=dtype)
        assert to_coordinates(ids, 70_000, 2).tolist() == [[0, 0], [0, 100]]
        assert from_coordinates(np.array([[100, 99]], dtype=dtype), 70_000).tolist() == [7_000_099]
        assert from_coordinates(jnp.array([[100, 99]], dtype=dtype), 70_000).tolist() == [7_000_099]


def test_scalars_and_empty_arrays():
    assert to_coordinates(np.int64(11), 4, 2).tolist() == [2, 3]
    assert isinstance(from_coordinates(np.array([2, 3]), 4), np.ndarray)
    assert to_coordinates(jnp.int32(11), 4, 2).tolist() == [2, 3]
    assert to_coordinates(np.zeros((0, 3), np.int32), 4, 2).shape == (0, 3, 2)


def test_sizes_and_ids_out_of_range_are_refused():
    for ids in (np.array([-1, 3]), np.array([9]), 9):
        with pytest.raises(ValueError, match="2 digits in base 3 hold 0 to 8"):
            to_coordinates(ids, 3, 2)
    for sizes in ((0, 2), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            coordinate_base(*sizes)
        with pytest.raises(ValueError, match="at least 1"):
            to_coordinates(np.array([0]), *sizes)
    with pytest.raises(ValueError, match="at least 1"):
        from_coordinates(np.array([[0]]), 0)
