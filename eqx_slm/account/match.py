"""Solve for equal budgets: the config nearest to a number of parameters or FLOPs, along one dimension."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..checks import check_sizes
from ..errors import UserError
from ..model import ModelConfig
from .flops import flops
from .ledger import total_parameters

Vary = Literal["depth", "d_ff", "d_model"]
# The largest values tried: a target beyond them gives the nearest end.
LIMITS: dict[Vary, int] = {"depth": 2**12, "d_ff": 2**24, "d_model": 2**20}


@dataclass(frozen=True)
class Match:
    """The nearest reachable config and how far it is from the target.

    `residual` is (achieved - target) / target.
    """

    config: ModelConfig
    vary: Vary
    value: int
    achieved: float
    target: float

    @property
    def residual(self) -> float:
        """Relative miss, positive above the target."""
        return (self.achieved - self.target) / self.target

    def __str__(self) -> str:
        far = ", the nearest there is" if abs(self.residual) > 0.05 else ""
        return f"{self.vary} {self.value}, {self.achieved:,.0f} for {self.target:,.0f} ({self.residual:+.3%}{far})"


def match_parameters(
    config: ModelConfig, target: int | ModelConfig, vary: Vary = "depth", *, multiple: int | None = None
) -> Match:
    """The config nearest to `target` parameters when only `vary` changes.

    **Arguments:**

    - `config`: where to start; every field but the varied one is kept.
    - `target`: a number of parameters, or the config that has it.
    - `vary`: "depth", "d_ff" (mean width) or "d_model".
    - `multiple`: step of the varied size. None is 1 for depth and d_ff (a taper's own multiple where one is set), and
      what the heads allow for d_model.

    **Returns:** a `Match`; of two equally near configs, the smaller. A target out of reach gives the nearest end.

    **Raises:** `ValueError` where no value along `vary` makes a valid config.
    """
    goal = total_parameters(target) if isinstance(target, ModelConfig) else target
    return _match(config, _budget(goal), vary, multiple, lambda c: float(total_parameters(c)))


def match_flops(
    config: ModelConfig,
    target: float | int | ModelConfig,
    vary: Vary = "depth",
    *,
    multiple: int | None = None,
    context: int | None = None,
    distinct_share: float | None = None,
    batch_tokens: int | None = None,
) -> Match:
    """The config nearest to `target` training FLOPs a token when only `vary` changes.

    As `match_parameters`; `context`, `distinct_share` and `batch_tokens` as in `flops`. Without `distinct_share` a
    generator is charged to every occurrence of a token, which does not depend on data.
    """
    # A context or share that is none would otherwise be taken for configs that do not fit, one after the other.
    known: Any = {"context": context, "distinct_share": distinct_share, "batch_tokens": batch_tokens}
    flops(ModelConfig(), **known)

    def measure(c: ModelConfig) -> float:
        counted = flops(c, **known)
        return counted.total if counted.total_distinct is None else counted.total_distinct

    goal = measure(target) if isinstance(target, ModelConfig) else target
    return _match(config, _budget(goal), vary, multiple, measure)


def with_value(config: ModelConfig, vary: Vary, value: int) -> ModelConfig:
    """`config` with its depth, mean d_ff or d_model set."""
    if vary == "d_ff":
        channel: Any = config.channel
        return dataclasses.replace(config, channel=dataclasses.replace(channel, d_ff=value))
    return dataclasses.replace(config, **{vary: value})


def _budget(target: Any) -> float:
    """The target as a number; raises `UserError` for what is no budget."""
    real = isinstance(target, int | float | np.integer | np.floating) and not isinstance(target, bool)
    if not real or not 0 < target < math.inf:
        raise UserError(f"target={target!r}: a number, which must be positive and finite, or a ModelConfig")
    return float(target)


def _step(config: ModelConfig, vary: Vary) -> int:
    """The finest step along `vary` that can be valid."""
    if vary == "d_ff":
        # A taper's sum, depth times the mean width, is a multiple of the taper's multiple.
        multiple = config.taper.multiple
        return 1 if config.taper.schedule == "uniform" else multiple // math.gcd(multiple, config.depth)
    if vary == "d_model":
        return getattr(config.mixer, "d_model_multiple", 1)
    return 1


def _match(
    config: ModelConfig, goal: float, vary: Vary, multiple: int | None, measure: Callable[[ModelConfig], float]
) -> Match:
    if vary not in LIMITS:
        raise UserError(f"vary={vary!r}: it is 'depth', 'd_ff' or 'd_model'")
    if multiple is not None:
        check_sizes(multiple=multiple)
    step = _step(config, vary) if multiple is None else multiple

    def at(index: int) -> float | None:
        """The measure at `index` steps, None where no such config exists (odd heads, an unreachable taper)."""
        try:
            return measure(with_value(config, vary, index * step))
        except ValueError:
            return None

    # The measure rises along every dimension. Where some values are invalid, a bracket moves to the nearest valid ones.
    valid_steps = 64 * max(config.taper.multiple, 2)

    def nearest_valid(index: int, direction: int) -> int | None:
        for i in range(index, index + direction * valid_steps, direction):
            if i < 1:
                return None
            if at(i) is not None:
                return i
        return None

    low = nearest_valid(1, 1)
    if low is None:
        raise UserError(f"no valid value of {vary} in steps of {step}: the config itself does not fit")
    high = low
    while high * step < LIMITS[vary] and (at(high) or 0.0) < goal:
        following = nearest_valid(2 * high, 1)
        if following is None:
            break
        low, high = high, following
    while True:
        middle = nearest_valid((low + high + 1) // 2, 1)
        if middle is None or middle >= high:
            middle = nearest_valid((low + high) // 2, -1)
        if middle is None or middle <= low or middle >= high:
            break
        if (at(middle) or 0.0) < goal:
            low = middle
        else:
            high = middle
    best = min((low, high), key=lambda i: (abs((at(i) or math.inf) - goal), i))
    final = with_value(config, vary, best * step)
    return Match(final, vary, best * step, measure(final), goal)
