"""What configs and constructors check of what they are given: in one line and at once, not in a matmul's error."""

import dataclasses
import difflib
import functools
import math
import numbers
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from .errors import UserError

Config = TypeVar("Config")
INT32 = 2**31 - 1  # the most that steps, ids and sizes are counted to


def whole(name: str, value: Any, least: int | None = 1, otherwise: str = "", most: int | None = None) -> int:
    """`value` as a Python integer (NumPy's are taken). **Raises:** `UserError` for others, and beyond the bounds."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        bound = "" if least is None else f", at least {least}{otherwise}"
        raise UserError(f"{name}={shown(value)}: it must be a whole number{bound}")
    if least is not None and value < least:
        raise UserError(f"{name}={shown(value)}: it must be at least {least}{otherwise}")
    if most is not None and int(value) > most:
        raise UserError(f"{name}={shown(value)}: it must be at most {most:,}")
    return int(value)


def finite(name: str, value: Any, bound: str = "a number") -> None:
    """**Raises:** `UserError` where `value` is no finite number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        also = "" if "finite" in bound else ", and finite"
        raise UserError(f"{name}={shown(value)}: it must be {bound}{also}")


def real(name: str, value: Any, *, positive: bool = False) -> None:
    """**Raises:** `UserError` where `value` is no finite number from 0 on, or none above it where it is `positive`."""
    bound = "positive" if positive else "at least 0"
    finite(name, value, bound)
    if value < 0 or (positive and value == 0):
        raise UserError(f"{name}={value}: it must be {bound}")


def share(name: str, value: Any, what: str) -> None:
    """**Raises:** `UserError` where `value` is no number from 0 to 1: the share of what."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
        raise UserError(f"{name}={shown(value)}: it is a share of {what}, from 0 to 1")


def one_of(name: str, value: Any, words: tuple) -> None:
    """**Raises:** `UserError` where `value` is none of the words."""
    if value not in words:
        raise UserError(f"{name}={shown(value)}: it is one of {', '.join(words)}")


def one_sequence(x: Any, width: int, what: str) -> None:
    """Raises `UserError` for what is not (t, width): a batch above all, which a mixer would take for its heads."""
    shape = getattr(x, "shape", None)
    if shape is None or len(shape) != 2 or shape[1] != width:
        given = f"x of shape {tuple(shape)}" if shape is not None else f"x of type {type(x).__name__}"
        raise UserError(f"{given}: {what} takes one sequence, (t, {width}); wrap it in jax.vmap for a batch")


def check_key(key: Any) -> None:
    """Raises `UserError` for what is no key of JAX, such as a seed, and for several."""
    if not hasattr(key, "dtype") or not hasattr(key, "shape"):
        raise UserError(f"key={shown(key)}: give a key, such as jax.random.key(0)")
    if len(key.shape) > (0 if str(key.dtype).startswith("key<") else 1):  # a raw key is a row of integers
        raise UserError(f"key of shape {tuple(key.shape)}: give one key; jax.vmap makes a model a key")


def check_sizes(*, most: int | None = None, **sizes: Any) -> None:
    """`whole` for each, by name: a constructor's sizes."""
    for name, value in sizes.items():
        whole(name, value, most=most)


def lr_factors(text: Any) -> dict[str, float]:
    """Path -> factor of every "PATH=FACTOR" of a text, commas between them. **Raises:** `UserError` for others."""
    found: dict[str, float] = {}
    for part in text.split(",") if isinstance(text, str) and text.strip() else []:
        path, _, factor = (each.strip() for each in part.partition("="))
        try:
            found[path] = float(factor)
        except ValueError:
            found[path] = math.nan
    named = all(re.fullmatch(r"(\w+|\*)(\.(\w+|\*))*", path) for path in found)
    if not isinstance(text, str) or not named or not all(0 <= factor < math.inf for factor in found.values()):
        raise UserError(
            f"lr_multipliers={shown(text)}: write PATH=FACTOR, factors of at least 0, commas between them, such as "
            "embedding.codebooks=0.1, blocks.*.mixer=0.5"
        )
    return found


def check_whole(config: Any, *names: Any, least: int = 1, most: int | None = None) -> None:
    """`whole` for fields of a frozen config, which then hold Python integers."""
    for name in names:
        object.__setattr__(config, name, whole(name, getattr(config, name), least, most=most))


def check_whole_or_none(config: Any, *names: Any, otherwise: str = ", or None") -> None:
    """The same for fields that may be None."""
    for name in names:
        if getattr(config, name) is not None:
            object.__setattr__(config, name, whole(name, getattr(config, name), otherwise=otherwise))


def check_each_whole(config: Any, name: str, what: str) -> None:
    """A field of one or more whole numbers, each at least 1, which then is a tuple as in any config. `what` says so."""
    values = getattr(config, name)
    try:
        if isinstance(values, str) or len(values) == 0:
            raise ValueError
        found = tuple(whole(name, value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"{name}={shown(values)}: {what}") from None
    object.__setattr__(config, name, found)


def configured(cls: type[Config], config: Config | None, fields: dict) -> Config:
    """The config of a module that is given as a whole, by its fields as keywords, or as both (the keywords win).

    So the sizes of a module stand in one place, its config, with their defaults and what they mean.
    """
    if config is not None and not isinstance(config, cls):
        raise UserError(f"config={shown(config)}: it must be a {cls.__name__}, or its fields as keywords")
    known = [field.name for field in dataclasses.fields(cls) if field.name != "kind"]  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise UserError(f"{name}={shown(fields[name])}: {cls.__name__} has {', '.join(known)}")
    return cls(**fields) if config is None else dataclasses.replace(config, **fields)  # type: ignore[type-var]


def check_number(name: str, value: Any, allowed: str, fits: Callable[[float], Any]) -> None:
    """Raises `UserError` for what is no finite number or does not fit; `allowed` says in words what does."""
    finite(name, value, allowed)
    if not fits(float(value)):
        raise UserError(f"{name}={shown(value)}: it must be {allowed}")


def check_choices(config: Any) -> None:
    """Raises `UserError` where a field of a dataclass, or of one inside it, is none of the words of its `Literal`.

    A misspelt word would be another model.
    """
    for name, words in _choices(type(config)).items():
        value = getattr(config, name)
        if value not in words:
            raise UserError(f"{name}={value!r}: it is one of {', '.join(map(str, words))}")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_choices(value)


@functools.cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """The allowed values of every field that is a `Literal`, with None or without."""
    try:
        hints = typing.get_type_hints(cls)
    except NameError:  # a config of the user's own, with annotations that are not there at run time
        return {}
    found = {}
    for field in dataclasses.fields(cls):
        parts = typing.get_args(hints[field.name]) or ()
        options = [hints[field.name], *parts]
        words = [word for part in options if typing.get_origin(part) is Literal for word in typing.get_args(part)]
        if words:
            found[field.name] = (*words, None) if type(None) in parts else tuple(words)
    return found


def check_divides(d_model: int, multiple: int, what: str, instead: str = "") -> None:
    """**Raises:** `UserError` where `d_model` is no multiple, with the nearest that are."""
    if whole("d_model", d_model) % multiple:
        lower = d_model // multiple * multiple
        nearest = f"{lower} or {lower + multiple}" if lower else f"{multiple}"
        raise UserError(f"d_model={d_model} is not {what}: take d_model {nearest}{instead}")


def meant(word: str, known: Iterable[str]) -> str:
    """What a line ends with where a known word is near, such as "; is 'seeds' meant?"; otherwise nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"; is {near[0]!r} meant?" if near else ""


def shown(value: Any, most: int = 60) -> str:
    """A value as a line says it: its repr on one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[: most - 3]}..."
