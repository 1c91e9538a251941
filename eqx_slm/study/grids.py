"""Arms as a grid: the levels of one field, times those of another, with a label for every point."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..configs import set_field
from ..errors import UserError
from ..model import ModelConfig
from .arms import Tuned, make_arm


@dataclass(frozen=True)
class Change:
    """A level that is more than a field: from config to config."""

    make: Callable[[ModelConfig], ModelConfig]


@dataclass(frozen=True)
class Grid:
    """Points, each some levels of factors: `(factor, label, field, value)`; a `Change` in the value's place needs no
    field. `*` crosses two grids, `+` joins them."""

    points: tuple[tuple[tuple[str, str, str, Any], ...], ...]

    def __mul__(self, other: Grid) -> Grid:
        return Grid(tuple(a + b for a, b in itertools.product(self.points, other.points)))

    def __add__(self, other: Grid) -> Grid:
        return Grid(self.points + other.points)

    def arms(self, base: ModelConfig) -> Iterator[tuple[str, ModelConfig, dict[str, str]]]:
        """(name, config, factor -> level) of every point, its fields set in `base` from left to right.

        **Raises:** `UserError` for a field, a value or sizes that do not fit, and for a name that comes twice.
        """
        seen = set()
        for point in self.points:
            name, config = "-".join(label for _, label, _, _ in point), base
            for _, _, field, value in point:
                part: Any = value if dataclasses.is_dataclass(value) else str(value)
                config = value.make(config) if isinstance(value, Change) else set_field(config, field, part)
            if name in seen:
                raise UserError(f"two arms of the grid are called {name}: give the levels labels that tell them apart")
            seen.add(name)
            yield name, config, {factor: label for factor, label, _, _ in point}


def grid(field: str, levels: Iterable[Any] | Mapping[str, Any]) -> Grid:
    """A grid of one factor.

    **Arguments:**

    - `field`: the dotted path of a `ModelConfig`'s field, such as "mixer.kind", "taper" or "embedding.rank".
    - `levels`: its values, or label -> value: texts as typed after `--set`, numbers, or parts (`TaperConfig(...)`).

    **Returns:** a `Grid` whose factor has the field's name, without ".kind"; `grid("mixer.kind", MIXERS) *
    grid("taper", TAPERS)` has every pair.
    """
    name = field.removesuffix(".kind")
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise UserError(f"grid {field!r}: its levels are {levels!r}; give several, such as ({levels!r},), or a dict")
    if not isinstance(levels, Mapping):
        last = name.rpartition(".")[2]
        levels = {level if isinstance(level, str) else f"{last}={level}": level for level in levels}
    if not levels:
        raise UserError(f"grid {field!r} has no levels: give at least one")
    return Grid(tuple(((name, str(label), field, value),) for label, value in levels.items()))


def made_arms(changes: Iterable[tuple[str, Callable[[ModelConfig], ModelConfig]]]) -> Grid:
    """A grid of one factor, "arm": names, each with a function from the base, the fields before it set, to a config."""
    return Grid(tuple((("arm", name, "", Change(change)),) for name, change in changes))


def named_arms(names: Iterable[str], tuned: Tuned) -> Grid:
    """A grid of one factor, "arm": the named arms (`RECIPES` in arms.py), each made from the fields set before it.

    **Arguments:** `names`; `tuned`: sizes and scales of their embeddings, a preset's. `grid("d_model", (32, 64)) *
    named_arms(("dense", "leviathan"), tuned)` has both arms at both widths, budgets matched at each.
    """

    def change(name: str) -> Callable[[ModelConfig], ModelConfig]:
        return lambda base: make_arm(name, base, tuned).config

    return made_arms((name, change(name)) for name in names)
