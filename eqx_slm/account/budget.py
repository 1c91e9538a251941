"""Solve for a whole shape: width, depth and d_ff that spend a number of parameters at a wanted proportion."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from ..checks import check_number, check_sizes
from ..errors import UserError
from ..model import ModelConfig
from .ledger import total_parameters
from .match import match_parameters

# How many depths are tried on either side of the one at which the proportion is the wanted one.
REACH = 8


@dataclass(frozen=True)
class Fit:
    """A config near a budget of parameters; `residual` is (achieved - target) / target."""

    config: ModelConfig
    achieved: int
    target: int

    @property
    def residual(self) -> float:
        """Relative miss, positive above the target."""
        return (self.achieved - self.target) / self.target

    @property
    def aspect(self) -> float:
        """Width a layer: d_model / depth."""
        return self.config.d_model / self.config.depth


def fit_shape(
    make: Callable[[int, int], ModelConfig],
    target: int,
    *,
    multiple: int = 64,
    aspect: float | int = 64.0,
    tolerance: float | int = 0.05,
) -> Fit:
    """The shape for a budget: of all depths whose nearest width meets it about, the one of the wanted proportion; then
    d_ff, in multiples of 16, meets it as nearly as that can.

    **Arguments:**

    - `make`: the config at a width and a depth, `make(d_model, depth)`; parameters must rise with both.
    - `target`: parameters.
    - `multiple`: widths are multiples of it, such as a head's size.
    - `aspect`: the wanted d_model / depth. Of shapes within `tolerance` of the target the one whose proportion is
      nearest to it, by ratio, is taken; where there is none, the one nearest to the target.

    **Returns:** a `Fit`, the config and how far it is off.

    **Raises:** `UserError` where the smallest shape is above twice the target, and for sizes that are none.
    """
    check_sizes(target=target, multiple=multiple)
    check_number("aspect", aspect, "a width a layer above 0", lambda each: each > 0)
    check_number("tolerance", tolerance, "a share of the target, at least 0", lambda each: each >= 0)
    high = 2
    while (fit := _nearest(make, high, target, multiple)).aspect > aspect and fit.config.d_model > multiple:
        high *= 2
    low = high // 2
    between = range(low + 1, high)
    low += bisect_left(between, True, key=lambda depth: _nearest(make, depth, target, multiple).aspect <= aspect)
    depths = range(max(1, low - REACH), low + REACH)
    fits = [_nearest(make, depth, target, multiple) for depth in depths]
    least = min(fits, key=lambda fit: fit.achieved)
    if least.achieved > 2 * target:
        raise UserError(
            f"a budget of {target:,} parameters: the smallest shape, d_model {least.config.d_model} and "
            f"depth {least.config.depth}, has {least.achieved:,}: take a larger budget, a smaller vocabulary or a "
            "smaller multiple"
        )
    within = [fit for fit in fits if abs(fit.residual) <= tolerance]
    if within:
        best = min(within, key=lambda fit: (abs(math.log(fit.aspect / aspect)), abs(fit.residual)))
    else:
        best = min(fits, key=lambda fit: abs(fit.residual))
    match = match_parameters(best.config, target, "d_ff", multiple=16)
    finer = Fit(match.config, int(match.achieved), target)
    return min(best, finer, key=lambda fit: abs(fit.residual))


def _nearest(make: Callable[[int, int], ModelConfig], depth: int, target: int, multiple: int) -> Fit:
    """The width nearest to the target at a depth."""

    def fit(index: int) -> Fit:
        config = make(index * multiple, depth)
        return Fit(config, total_parameters(config), target)

    above = 1
    while fit(above).achieved < target:
        above *= 2
    below = above // 2
    below += bisect_left(range(below + 1, above), target, key=lambda index: fit(index).achieved)
    return min((fit(max(below, 1)), fit(below + 1)), key=lambda each: abs(each.residual))
