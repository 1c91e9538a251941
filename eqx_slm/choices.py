"""Words that a config's types allow, checked where configs come together: a misspelt one would be another model."""

import dataclasses
import functools
import typing
from typing import Any, Literal


def check_choices(config: Any) -> None:
    """Raises `ValueError` where a field of a dataclass, or of one inside it, is none of the words of its `Literal`."""
    for name, words in _choices(type(config)).items():
        value = getattr(config, name)
        if value not in words:
            raise ValueError(f"{name}={value!r}: it is one of {', '.join(map(str, words))}")
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
