"""Frozen dataclasses to and from JSON; single fields set from text."""

import dataclasses
import json
import math
import operator
import types
import typing
from pathlib import Path
from typing import Any

from .checks import meant
from .errors import UserError


def read_json(path: Path) -> Any:
    """The value of a JSON file, a byte order mark before it or not.

    **Raises:** `UserError` where it cannot be read, is not JSON, or holds what JSON does not allow and Python's reader
    does (NaN, a number beyond a float's range, a name twice in one object), with the place.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_NoNumber)
        return _strict(value, "", path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


class _Pairs(list):
    """An object as it stands in the file, names that come twice and all."""


class _NoNumber(str):
    """NaN, Infinity or -Infinity."""


def _strict(value: Any, where: str, path: Path) -> Any:
    if isinstance(value, _NoNumber) or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{path}: {where or 'the value'} is {value}: JSON has finite numbers only")
    if isinstance(value, _Pairs):
        found: dict[str, Any] = {}
        for name, item in value:
            if name in found:
                raise UserError(f"{path}: {_join(where, name)} is given twice")
            found[name] = _strict(item, _join(where, name), path)
        return found
    if isinstance(value, list):
        return [_strict(item, f"{where}[{i}]", path) for i, item in enumerate(value)]
    return value


def to_dict(config: Any) -> Any:
    """Dataclasses and tuples as dicts and lists, ready for JSON."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_dict(item) for item in config]
    if isinstance(config, dict):
        return {key: to_dict(value) for key, value in config.items()}
    return config


def from_dict(cls: type, data: Any, where: str = "") -> Any:
    """The dataclass that `to_dict` made `data` from.

    **Raises:** `UserError` naming the field that is unknown or has a value of the wrong type, and what is allowed.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where or cls.__name__} is {data!r}: an object with the fields of {cls.__name__} is needed")
    names = {f.name for f in dataclasses.fields(cls)}
    for name in data:
        if name not in names:
            near = meant(name, names)
            raise UserError(f"unknown field {_join(where, name)!r}; allowed: {', '.join(sorted(names))}{near}")
    hints = typing.get_type_hints(cls)
    values = {name: _decode(hints[name], value, _join(where, name)) for name, value in data.items()}
    return _make(cls, values, where)


def set_field(config: Any, path: str, value: Any) -> Any:
    """A copy of `config` with one field, given by its dotted path, set from text as typed on a command line, or a part
    (a dataclass) put in its place.

    Setting `embedding.kind=leviathan` replaces the part by that kind's defaults. A part that names fields in `keeps`
    (a mixer's `n_heads` or `memory.n_heads`, a channel's width) takes those over from the part it replaces, where both
    have them.

    **Raises:** `UserError` for an unknown field or a value of the wrong type.
    """
    return _set(config, path.split("."), value, path)


def differences(reference: Any, other: Any) -> list[tuple[str, str, str]]:
    """(field, reference's value, other's value) for every field in which two configs differ, as text."""
    left, right = _flat(to_dict(reference)), _flat(to_dict(other))
    keys = [*left, *(key for key in right if key not in left)]
    return [
        (key, _show(left.get(key)), _show(right.get(key)))
        for key in keys
        if left.get(key, _MISSING) != right.get(key, _MISSING)
    ]


_MISSING = object()


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, _join(prefix, key))
    return flat


def _show(value: Any) -> str:
    return "-" if value is None else str(value)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _set(config: Any, path: list[str], text: Any, whole: str) -> Any:
    name, rest = path[0], path[1:]
    above = ".".join(whole.split(".")[: -len(path)])
    names = [f.name for f in dataclasses.fields(config)]
    if name not in names:
        raise UserError(f"unknown field {whole!r}: {name!r} is not one of {', '.join(names)}{meant(name, names)}")
    hint = typing.get_type_hints(type(config))[name]
    current = getattr(config, name)
    if not rest:
        if dataclasses.is_dataclass(text):
            if not isinstance(text, _parts(hint)):
                raise UserError(
                    f"{whole} is a {type(text).__name__}: allowed is {' or '.join(map(_describe, _parts(hint)))}"
                )
            return _make(type(config), _values(config) | {name: text}, above)
        if dataclasses.is_dataclass(current):
            raise UserError(f"{whole!r} is a group of fields: set one of {whole}.{{{','.join(_names(current))}}}")
        return _make(type(config), _values(config) | {name: _decode(hint, _parse(hint, text), whole)}, above)
    if not dataclasses.is_dataclass(current):
        raise UserError(f"unknown field {whole!r}: {name!r} has no fields of its own")
    if rest == ["kind"] and len(_parts(hint)) > 1:
        value = _like(_decode(hint, {"kind": text}, _join("", name)), current)
    else:
        value = _set(current, rest, text, whole)
    return _make(type(config), _values(config) | {name: value}, above)


def _like(part: Any, replaced: Any) -> Any:
    """`part` with the fields that it keeps of the part it replaces; a path in `keeps` goes by its last name."""
    mine, theirs = ({path.rpartition(".")[2]: path for path in getattr(p, "keeps", ())} for p in (part, replaced))
    for name in [name for name in mine if name in theirs]:
        part = _with(part, mine[name].split("."), operator.attrgetter(theirs[name])(replaced))
    return part


def _with(config: Any, path: list[str], value: Any) -> Any:
    inner = _with(getattr(config, path[0]), path[1:], value) if path[1:] else value
    return _make(type(config), _values(config) | {path[0]: inner}, "")


def _names(config: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(config)]


def _values(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _names(config)}


def _make(cls: type, values: dict[str, Any], where: str) -> Any:
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        named = str(error).partition("=")[0] in values  # "depth=0: ...": it says of which field it speaks
        raise UserError(_join(where, str(error)) if named or not where else f"{where}: {error}") from None


def _parse(hint: Any, text: str) -> Any:
    """Text as the JSON value that `hint` would be written as."""
    options = _parts(hint)
    if text.lower() in ("none", "null") and type(None) in options:
        return None
    if any(option is str or typing.get_origin(option) is typing.Literal for option in options):
        return text
    if any(typing.get_origin(option) is tuple for option in options):
        return [_number(item) for item in text.replace(",", " ").split()]
    return _number(text)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text  # "nan" is no size and no scale
    return text


def _parts(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _decode(hint: Any, value: Any, where: str) -> Any:
    options = _parts(hint)
    if value is None and type(None) in options:
        return None
    classes = [option for option in options if dataclasses.is_dataclass(option)]
    if classes and isinstance(value, dict):
        return _decode_class(classes, value, where)
    for option in options:
        origin = typing.get_origin(option)
        if origin is typing.Literal and value in typing.get_args(option):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(_decode(typing.get_args(option)[0], item, where) for item in value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option in (str, bool) and isinstance(value, option):
            return value
    raise UserError(f"{where}={value!r}: allowed is {' or '.join(_describe(option) for option in options)}")


def _decode_class(classes: list[Any], value: dict[str, Any], where: str) -> Any:
    if len(classes) == 1:
        return from_dict(classes[0], value, where)
    kinds = {option.kind: option for option in classes}
    if value.get("kind") not in list(kinds):  # a list: what is unhashable is no kind either
        raise UserError(f"{where}.kind={value.get('kind')!r}: allowed is {', '.join(kinds)}")
    return from_dict(kinds[value["kind"]], value, where)


def _describe(option: Any) -> str:
    origin = typing.get_origin(option)
    if origin is typing.Literal:
        return ", ".join(repr(arg) for arg in typing.get_args(option))
    if option is type(None):
        return "none"
    return {int: "an integer", float: "a number", str: "text", bool: "true or false"}.get(
        option, getattr(option, "__name__", str(option))
    )
