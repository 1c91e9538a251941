"""A dataclass of options in the form that its help should have: groups, plain types, what holds without an option."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def presented(options: Any, values: Mapping[str, str]) -> tuple[Any, Callable[[Any], Any]]:
    """(what the parser is given, how its result becomes `options` again).

    **Arguments:**

    - `options`: a dataclass; `groups`, where it has them, are titles with the names of fields, in their order. The
      others come before them. A string below a field is its help.
    - `values`: of fields that are None unless given, what then holds, in words.
    """
    from tyro.conf import OmitArgPrefixes

    fields = {field.name: field for field in dataclasses.fields(options)}
    hints, docs = typing.get_type_hints(options, include_extras=True), docstrings(options)
    groups: Mapping[str, tuple[str, ...]] = getattr(options, "groups", {})

    def spec(name: str) -> tuple[str, Any, Any]:
        hint = _presented(hints[name], docs.get(name, ""), fields[name].default, values.get(name))
        own = fields[name]
        return name, hint, dataclasses.field(default=own.default, default_factory=own.default_factory)

    inside = {name for names in groups.values() for name in names}
    parts: list[Any] = [spec(name) for name in fields if name not in inside]
    for title, names in groups.items():
        group = dataclasses.make_dataclass(title, [spec(name) for name in names if name in fields], kw_only=True)
        parts.append((title, OmitArgPrefixes[group], dataclasses.field(default_factory=group)))
    made = dataclasses.make_dataclass(options.__name__, parts, kw_only=True)
    made.__doc__ = options.__doc__

    def back(parsed: Any) -> Any:
        flat: dict[str, Any] = {}
        for name, value in vars(parsed).items():
            flat |= vars(value) if name in groups else {name: value}
        return options(**flat)

    return made, back


def docstrings(options: Any) -> dict[str, str]:
    """The string below each field of a dataclass and of its bases, in one line."""
    found: dict[str, str] = {}
    for each in reversed(options.__mro__):
        if dataclasses.is_dataclass(each):
            try:
                tree: Any = ast.parse(textwrap.dedent(inspect.getsource(cast(type, each))))
            except (OSError, TypeError):  # without a file, as in an interactive session
                continue
            body = tree.body[0].body
            for field, text in zip(body, body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def _presented(hint: Any, text: str, default: Any, value: str | None) -> Any:
    from tyro.conf import arg

    told: dict[str, Any] = {"help": text}
    if default is None or default is False or default == ():
        told["help_behavior_hint"] = f"({value})" if value else ""
    elif default is dataclasses.MISSING and "tuple" in str(hint):  # the parser would take none of them
        told["help_behavior_hint"] = "(required)"
    if (word := _word(hint)) is not None:
        told["metavar"] = word
    return Annotated[hint, arg(**told)]


def _word(hint: Any) -> str | None:
    """What stands for a value in the help; None where the parser's own word is right."""
    if typing.get_origin(hint) is Annotated:
        return _word(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return _word(kinds[0]) if len(kinds) == 1 else None
    if typing.get_origin(hint) is Literal:
        return "{" + ",".join(map(str, typing.get_args(hint))) + "}"
    if typing.get_origin(hint) is tuple:
        word = _word(typing.get_args(hint)[0])
        return None if word is None else f"{word} [{word} ...]"
    return WORDS.get(hint)
