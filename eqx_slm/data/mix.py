"""Mixing by weight: whose sequence comes next, so that no prefix is a whole sequence away from the request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..errors import UserError

_LONGEST = 100_000  # places of a period


class Schedule:
    r"""Earliest deadline first over k sources.

    Source $i$ of weight $w_i$ (their sum is 1) owes its $j$-th sequence after $\lfloor j / w_i \rfloor$ places, and
    has to give it before $\lceil (j + 1) / w_i \rceil$; every place goes to the source with the earliest deadline
    among those that owe one. After n places source i has given $c_i$ with $|c_i - w_i n| < 1$, for every n (Tijdeman,
    "The chairman assignment problem", 1980). The schedule repeats after the weights' common denominator.

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
        if self.period > _LONGEST:
            raise UserError(
                f"weights {list(weights)} repeat only after {self.period:,} sequences; "
                f"round them to a common denominator of at most {_LONGEST:,}"
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
