"""The order in which windows are read: a permutation of our own, equal on every machine and version of numpy."""

from __future__ import annotations

import functools
import hashlib

import numpy as np

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


@functools.lru_cache(maxsize=4)  # a batch is read at random: keep the epochs that are in use, and no more
def _permutation(n: int, label: str) -> np.ndarray:
    start = np.uint64(int.from_bytes(hashlib.sha256(label.encode("utf-8")).digest()[:8], "big"))
    z = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN + start  # arrays of uint64 wrap silently
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = np.argsort(z ^ (z >> np.uint64(31))).astype(np.int64, copy=False)
    order.flags.writeable = False
    return order
