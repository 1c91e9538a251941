"""The order in which windows are read: a permutation of our own, equal on every machine and version of numpy."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

_LARGEST = 1 << 22  # beyond it an order is computed place by place: a whole one would need gigabytes
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def permutation(n: int, *, seed: int | str, epoch: int = 0) -> np.ndarray:
    r"""A pseudo-random permutation of $\{0, \dots, n - 1\}$ for one seed and epoch.

    Index $i$ gets the key $\mathrm{mix}(s + (i + 1) \gamma \bmod 2^{64})$, where $s$ is the first 8 bytes of the sha256
    of "seed/epoch" and mix and $\gamma$ are those of SplitMix64; the permutation is the order of the keys. $\gamma$ is
    odd and mix is a bijection, so that all keys differ and no tie is ever broken. Only integer arithmetic modulo
    $2^{64}$ is used.

    **Arguments:**

    - `n`: how many indices, at least 0.
    - `seed`: any integer or string.
    - `epoch`: any integer.

    **Returns:** int64[n], read-only.

    Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    return _permutation(n, f"{seed}/{epoch}")


def places(n: int, at: np.ndarray, *, seed: int | str, epoch: int = 0) -> np.ndarray:
    r"""The entries `at` of a pseudo-random permutation of $\{0, \dots, n - 1\}$, for any n below $2^{62}$.

    Up to $2^{22}$ it is `permutation`. Beyond, each entry is computed alone: six rounds of a Feistel network on the
    bits of the index, $(l, r) \to (r, l \oplus \mathrm{mix}(r + k_i))$, walked on until the result is below n, which
    keeps it a bijection (Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    **Arguments:** `n`; `at`: int64[m], each in [0, n); `seed`, `epoch`: as in `permutation`.

    **Returns:** int64[m].
    """
    if n <= _LARGEST:
        return permutation(n, seed=seed, epoch=epoch)[at]
    return _feistel(n, np.asarray(at), f"{seed}/{epoch}")


def _feistel(n: int, at: np.ndarray, label: str) -> np.ndarray:
    half = np.uint64(((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << int(half)) - 1)
    digest = hashlib.sha512(label.encode("utf-8")).digest()
    keys = [np.uint64(int.from_bytes(digest[8 * i : 8 * i + 8], "big")) for i in range(6)]
    result = at.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        left, right = result[todo] >> half, result[todo] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        result[todo] = (left << half) | right
        todo = todo[result[todo] >= np.uint64(n)]
    return result.astype(np.int64)


def draw(start: int, index: int, n: int) -> int:
    """The `index`-th number below n of the sequence that starts at `start`: the high bits of a 64-bit mix times n."""
    mask = (1 << 64) - 1
    z = (start + (index + 1) * int(_GOLDEN)) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) * n) >> 64


def label_start(label: str) -> int:
    """Where the sequence of a label starts: the first 8 bytes of its sha256."""
    return int.from_bytes(hashlib.sha256(label.encode("utf-8")).digest()[:8], "big")


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # arrays of uint64 wrap silently
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@functools.lru_cache(maxsize=4)  # a batch is read at random: keep the epochs that are in use, and no more
def _permutation(n: int, label: str) -> np.ndarray:
    z = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN + np.uint64(label_start(label))
    order = np.argsort(_mix(z)).astype(np.int64, copy=False)
    order.flags.writeable = False
    return order
