"""The order in which windows are read, equal on every machine and version of numpy: permutations, draws, mixtures."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..errors import UserError

_LARGEST = 1 << 22  # beyond it an order is computed place by place: a whole one would need gigabytes
_LONGEST_PERIOD = 100_000  # sequences
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def permutation(n: int, *, seed: int | str, epoch: int = 0) -> np.ndarray:
    r"""A pseudo-random permutation of $\{0, \dots, n - 1\}$ for one seed and epoch, int64[n], read-only.

    Index $i$ gets the key $\mathrm{mix}(s + (i + 1) \gamma \bmod 2^{64})$, where $s$ is the first 8 bytes of the sha256
    of "seed/epoch" and mix and $\gamma$ are those of SplitMix64; the permutation is the order of the keys. $\gamma$ is
    odd and mix is a bijection, so that all keys differ and no tie is ever broken.

    **Arguments:** `n`: how many indices, at least 0; `seed`: any integer or string; `epoch`: any integer.

    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    return _permutation(n, f"{seed}/{epoch}")


def places(n: int, at: np.ndarray, *, seed: int | str, epoch: int = 0) -> np.ndarray:
    r"""The entries `at`, int64[m], of a pseudo-random permutation of $\{0, \dots, n - 1\}$, for any n below $2^{62}$.

    Up to $2^{22}$ it is `permutation`. Beyond, each entry is computed alone: six rounds of a Feistel network on the
    bits of the index, $(l, r) \to (r, l \oplus \mathrm{mix}(r + k_i))$, walked on until the result is below n, which
    keeps it a bijection (Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
    """
    if n <= _LARGEST:
        return permutation(n, seed=seed, epoch=epoch)[at]
    return _feistel(n, np.asarray(at), f"{seed}/{epoch}")


def _feistel(n: int, at: np.ndarray, label: str) -> np.ndarray:
    half = ((n - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    digest = hashlib.sha512(label.encode("utf-8")).digest()
    keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "big") for i in range(6)]
    result = at.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= n]
    return result.astype(np.int64)


def draw(start: int, index: int, n: int) -> int:
    """The `index`-th number below n of the sequence that starts at `start`: the high bits of a 64-bit mix times n."""
    return (_mix((start + (index + 1) * _GOLDEN) & _MASK) * n) >> 64


def label_start(label: str) -> int:
    """Where the sequence of a label starts: the first 8 bytes of its sha256."""
    return int.from_bytes(hashlib.sha256(label.encode("utf-8")).digest()[:8], "big")


def _mix(z: Any) -> Any:
    """SplitMix64's, of a Python integer or of uint64[n], which wraps by itself."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@functools.lru_cache(maxsize=4)  # a batch is read at random: keep the epochs that are in use, and no more
def _permutation(n: int, label: str) -> np.ndarray:
    order = np.argsort(_mix(np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN + label_start(label))).astype(np.int64)
    order.flags.writeable = False
    return order


class Mixture:
    r"""Whose sequence comes next, of k sources: earliest deadline first.

    Source $i$ of weight $w_i$ (their sum is 1) owes its $j$-th sequence after $\lfloor j / w_i \rfloor$ places, and
    has to give it before $\lceil (j + 1) / w_i \rceil$; every place goes to the source with the earliest deadline
    among those that owe one. After n places source i has given $c_i$ with $|c_i - w_i n| < 1$, for every n (Tijdeman,
    "The chairman assignment problem", 1980). It repeats after the weights' common denominator.

    **Arguments:** `weights`: positive numbers, or text such as "0.7" or "2/3"; they are taken as exact decimals.

    **Raises:** `UserError` where one is not positive, or their common denominator is above 100,000.
    """

    def __init__(self, weights: Sequence[float | int | str]) -> None:
        try:
            exact = [Fraction(str(weight)) for weight in weights]
        except (ValueError, ZeroDivisionError):
            raise UserError(f"weights {list(weights)}: give numbers such as 0.7, 3 or 2/3") from None
        if not exact or min(exact) <= 0:
            raise UserError(f"weights {list(weights)}: give at least one, and each above 0")
        shares = [weight / sum(exact) for weight in exact]
        self.period = math.lcm(*(share.denominator for share in shares))
        if self.period > _LONGEST_PERIOD:
            raise UserError(
                f"weights {list(weights)} repeat only after {self.period:,} sequences; "
                f"round them to a common denominator of at most {_LONGEST_PERIOD:,}"
            )
        self.quotas = [int(share * self.period) for share in shares]
        given = [0] * len(shares)
        table, ordinals = [], []
        for place in range(self.period):
            owing = [i for i, quota in enumerate(self.quotas) if given[i] * self.period // quota <= place]
            first = min(owing, key=lambda i: (-(-(given[i] + 1) * self.period // self.quotas[i]), i))
            table.append(first)
            ordinals.append(given[first])
            given[first] += 1
        self._table, self._ordinals = np.array(table), np.array(ordinals, np.int64)
        self._quotas = np.array(self.quotas, np.int64)

    def __len__(self) -> int:
        return len(self.quotas)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which source gives each row, and which of its own sequences that is, counted from 0."""
        turn, place = np.divmod(rows, self.period)
        source = self._table[place]
        return source, turn * self._quotas[source] + self._ordinals[place]
