"""Orders of the token ids, which decide which tokens share digits: random, by frequency, by co-occurrence."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32, Integer, Real, UInt64

from .digits import coordinate_base


def random_order(vocab_size: int, seed: int = 0) -> Int32[np.ndarray, "{vocab_size}"]:
    r"""A pseudo-random permutation of the ids: the control that takes all meaning from shared digits.

    It sorts the ids by the key $\mathrm{mix}(\mathrm{mix}(s) + (i + 1) \gamma \bmod 2^{64})$, with SplitMix64's mix and
    $\gamma$. Mix is a bijection and $\gamma$ is odd, so no two keys are equal. In integers throughout: this is the same
    permutation with every version of NumPy (whose own generators promise no such thing) and on every machine.

    **Arguments:**

    - `vocab_size`: number of ids, V.
    - `seed`: any integer, s modulo 2^64.

    **Returns:** `order[id]` is the position whose digits the id uses; a permutation of [0, V).
    """
    return np.argsort(hashes(vocab_size, seed)).astype(np.int32)


def frequency_order(counts: Real[np.ndarray, " v"]) -> Int32[np.ndarray, " v"]:
    """Positions by falling count, so that tokens of like frequency share leading digits.

    **Arguments:**

    - `counts`: how often each id occurs.

    **Returns:** `order[id]`, 0 for the most frequent; equal counts in the order of the ids.
    """
    # A stable sort of the reversed array, read backwards, falls and keeps ties in order, for unsigned counts too.
    ranking = len(counts) - 1 - np.argsort(counts[::-1], kind="stable")[::-1]
    return _positions(ranking)


def cooccurrence_order(
    tokens: Integer[np.ndarray, " n"],
    vocab_size: int,
    *,
    window: int = 4,
    dimensions: int = 32,
    base: int | None = None,
    k: int = 3,
) -> Int32[np.ndarray, "{vocab_size}"]:
    r"""Positions in a balanced tree of meaning: tokens that keep like company share leading digits.

    1. Pairs at most `window` apart are counted, both ways; $C_{ij}$.
    2. $P_{ij} = \max(0, \log \frac{C_{ij}}{C_i q_j})$, $q_j \propto C_j^{3/4}$: positive pointwise mutual information
       with smoothed contexts (Levy, Goldberg, Dagan, "Improving distributional similarity", TACL 2015), sparse.
    3. A token's vector is its row of $U \sqrt{\Sigma}$, scaled to length one, from a truncated SVD of P by subspace
       iteration (Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4) from a fixed start.
    4. The tokens are split in two along the principal direction of their vectors, and the halves again, at multiples of
       $b^{k-1}$, then of $b^{k-2}$, and so on: each digit names a group of neighbours.

    The result depends on the arguments alone (on one machine: elsewhere the last bit of a matrix product may move
    tokens that are all but equal). A million tokens over 8192 ids take a few seconds; memory grows with the number of
    tokens and of distinct pairs.

    **Arguments:**

    - `tokens`: the training tokens, in [0, V).
    - `vocab_size`: number of ids, V.
    - `window`: how far apart two tokens still count as a pair.
    - `dimensions`: length of the vectors.
    - `base`: b, the base that the digits will be taken in; None for `coordinate_base(vocab_size, k)`.
    - `k`: number of digits.

    **Returns:** `order[id]`, a permutation of [0, V). Ids that never occur come last, in their own order.

    **Raises:** `ValueError` for tokens out of range and sizes below 1.
    """
    if window < 1 or dimensions < 1:
        raise ValueError(f"window={window}, dimensions={dimensions}: both must be at least 1")
    if tokens.size and not (0 <= tokens.min() and tokens.max() < vocab_size):
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()}: the vocabulary has 0 to {vocab_size - 1}")
    tokens = tokens.astype(np.int64)
    base = coordinate_base(vocab_size, k) if base is None else base
    if base**k < vocab_size:
        raise ValueError(f"base={base}, k={k}: {base**k} positions are fewer than vocab_size={vocab_size}")
    occurs = np.bincount(tokens, minlength=vocab_size) > 0
    vectors = _vectors(_ppmi(tokens, vocab_size, window), dimensions)
    ranking = _tree(vectors, np.flatnonzero(occurs), base, k)
    return _positions(np.concatenate([ranking, np.flatnonzero(~occurs)]))


def _ppmi(tokens: Integer[np.ndarray, " n"], vocab_size: int, window: int) -> Any:
    """The positive pointwise mutual information of pairs within the window, a sparse (V, V) matrix."""
    from scipy import sparse  # only here: importing the library must stay light

    shape = (vocab_size, vocab_size)
    counts = sparse.csr_array(shape, dtype=np.float64)
    for distance in range(1, min(window, len(tokens) - 1) + 1):
        pairs = (tokens[:-distance], tokens[distance:])
        counts = counts + sparse.coo_array((np.ones(len(pairs[0])), pairs), shape=shape).tocsr()
    counts = (counts + counts.T).tocoo()
    total = np.bincount(counts.row, weights=counts.data, minlength=vocab_size)
    context = total**0.75
    context = context / max(context.sum(), 1.0)  # an empty corpus has no pair to divide
    information = np.log(counts.data / (total[counts.row] * context[counts.col]))
    keep = information > 0
    return sparse.csr_array((information[keep], (counts.row[keep], counts.col[keep])), shape=shape)


def _vectors(matrix: Any, dimensions: int) -> Float[np.ndarray, "v d"]:
    """Rows of U sqrt(S) of a truncated SVD, scaled to length one; a row of zeros stays."""
    vocab_size = matrix.shape[0]
    # A few columns more than asked for, and a few rounds, because these spectra fall slowly.
    columns = min(dimensions + 8, vocab_size)
    signs = (hashes(vocab_size * columns, seed=0) >> np.uint64(63)).astype(np.float64) * 2 - 1
    basis = signs.reshape(vocab_size, columns)
    for _ in range(4):
        basis, _ = _left_singular(matrix @ basis)
        basis, _ = _left_singular(matrix.T @ basis)
    left, scale = _left_singular(matrix @ basis)
    vectors = (left * np.sqrt(scale)[None])[:, :dimensions]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A token without information has a row of round-off: its direction must not count.
    return np.where(length > 1e-6, vectors / np.maximum(length, 1e-6), 0.0)


def _left_singular(tall: Float[np.ndarray, "v c"]) -> tuple[Float[np.ndarray, "v r"], Float[np.ndarray, " r"]]:
    """Left singular vectors and singular values of a tall matrix, the largest first, without those lost in round-off.

    From the small Gram matrix: over ten times as fast as a QR of the tall one, and its squared condition number only
    costs directions that are dropped here.
    """
    squares, right = np.linalg.eigh(tall.T @ tall)
    kept = np.flatnonzero(squares > 1e-12 * squares.max(initial=0.0))[::-1]
    scale = np.sqrt(squares[kept])
    left = (tall @ right[:, kept]) / scale[None]
    return left * _signs(left)[None], scale


def _tree(vectors: Float[np.ndarray, "v d"], ids: Int[np.ndarray, " n"], base: int, k: int) -> Int[np.ndarray, " n"]:
    """`ids` in an order in which every aligned run of b^j positions is a group of neighbours."""
    done: list[np.ndarray] = []
    todo = [(ids, k - 1)]  # a group, and the power of the base that it is cut into runs of
    while todo:
        group, power = todo.pop()
        while power > 0 and len(group) <= base**power:
            power -= 1
        group = np.sort(group)  # equal projections keep the order of the ids
        group = group[np.argsort(_projection(vectors[group]), kind="stable")]
        if power == 0:  # the last digit: nothing more is shared within
            done.append(group)
            continue
        run = base**power
        half = -(-len(group) // run) // 2 * run  # whole runs, so that only the last run of all may be short
        todo += [(group[half:], power), (group[:half], power)]
    return np.concatenate(done)


def _projection(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Coordinates along the direction in which the vectors vary most, rounded so that noise breaks no tie."""
    if vectors.size == 0:  # no tokens, or no information about any
        return np.zeros(len(vectors))
    centred = vectors - vectors.mean(axis=0, keepdims=True)
    _, directions = np.linalg.eigh(centred.T @ centred)
    direction = directions[:, -1:]
    return np.round((centred @ (direction * _signs(direction)))[:, 0], 6)


def _signs(columns: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " d"]:
    """For each column the sign of its largest entry: singular vectors are only defined up to it."""
    largest = np.abs(columns).argmax(axis=0)
    return np.where(columns[largest, np.arange(columns.shape[1])] < 0, -1.0, 1.0)


def hashes(n: int, seed: int) -> UInt64[np.ndarray, " {n}"]:
    """n different 64-bit numbers: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) started at mix(seed)."""
    start = _mix(np.array([seed % 2**64], dtype=np.uint64))
    return _mix(start + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64's bijection of the 64-bit numbers; arrays of uint64 wrap around without a warning."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _positions(ranking: Int[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """The inverse of a permutation: from the ids in order to each id's place."""
    order = np.empty(len(ranking), dtype=np.int32)
    order[ranking] = np.arange(len(ranking), dtype=np.int32)
    return order
