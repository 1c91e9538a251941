"""A finished study in its folder: the report written, in Markdown and HTML, and the results read back."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..account.facts import Facts
from ..configs import from_dict, read_json
from ..errors import UserError
from ..files import unsealed, write_bytes_atomic, write_text_atomic
from ..model import ModelConfig
from ..visible import visible
from .blocks import Block, Picture, markdown
from .html import page
from .results import FORMAT, Results, Row


def write_report(blocks: Sequence[Block], folder: str | Path) -> Path:
    """Writes `report.md`, its pictures and `report.html`, each whole or not at all; **returns** report.md's path."""
    folder = Path(folder)
    for picture in (block for block in blocks if isinstance(block, Picture)):
        for ending, data in picture.files.items():
            write_bytes_atomic(folder / f"{picture.name}.{ending}", data)
    write_text_atomic(folder / "report.html", page(blocks))
    return write_text_atomic(folder / "report.md", markdown(blocks))


def load_results(folder: str | Path) -> Results:
    """The results of a finished study, as `run_study` gave them, from the `result.json` and the rows in its folder.

    An arm's `made_of` is its config, or None where it was a function.

    **Raises:** `UserError` where there is no folder, no finished study in it, or a result of another format.
    """
    folder = Path(folder)
    file = folder / "result.json"
    if not folder.is_dir():
        what = f"{folder} is a file" if folder.is_file() else f"there is no folder {folder}"
        raise UserError(f"{what}: name the run folder of a finished study")
    if not file.exists():
        if (folder / "config.json").exists():
            raise UserError(f"the study in {folder} is not finished: give its command again with --out {folder}")
        raise UserError(f"{folder} holds no study: name the run folder of a finished study")
    data = read_json(file)
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        again = f"run the study's command again with --out {folder}"
        raise UserError(f"{file} has format {found!r}, this version reads {FORMAT}: {again}")
    data = unsealed(data, file)
    try:
        return _with_rows(results_of(data), folder / "runs.jsonl")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{type(error).__name__} {error}".replace("\n", " ")[:200]
        raise UserError(f"{file} is not whole ({said}): run the study's command again with --out {folder}") from None


def results_of(data: Mapping[str, Any]) -> Results:
    """What `Results.to_json` made data of."""
    arms = {name: _arm(name, arm) for name, arm in data["arms"].items()}
    known = {field.name for field in dataclasses.fields(Results)}
    return _decoded(Results, {**{name: value for name, value in data.items() if name in known}, "arms": arms})


def _with_rows(results: Results, file: Path) -> Results:
    """The results with their whole rows: runs.jsonl has of each what is too long for result.json."""
    rows = {}
    for line in file.read_bytes().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):  # cut while it was written
            row = Row.of(line)
            rows[row.key] = row
    arms = {}
    for name, arm in results.arms.items():
        runs = {part: tuple(rows.get(run.key, run) for run in getattr(arm, part)) for part in ("runs", "all_runs")}
        arms[name] = dataclasses.replace(arm, **runs)
    return dataclasses.replace(results, arms=arms)


def sections_of(results: Results) -> tuple[list[Any], list[str]]:
    """The sections that a study's report had, those of `PAIR` where it does not say; and the names of those that only
    the study's own script has."""
    from .report import PAIR

    wanted = results.settings.get("sections")
    if wanted is None:
        return list(PAIR), []
    public, found, missing = importlib.import_module("eqx_slm.study"), [], []
    for each in wanted:
        match = re.fullmatch(r"(\w+)(?:\((.*)\))?", each)
        section = getattr(public, match[1], None) if match and match[1] in public.__all__ else None
        if match and section is not None:
            found.append(section if match[2] is None else section(*match[2].split(",")))
        else:
            missing.append(visible(each))
    return found, missing


def _arm(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `ArmResult` from those of an arm in result.json."""
    facts = {field.name for field in dataclasses.fields(Facts)}
    made_of = data.get("config")
    if made_of is not None:
        try:
            made_of = from_dict(ModelConfig, made_of)
        except UserError:  # of a later or an earlier version
            made_of = None
    runs = {part: [{"key": "", **run, "arm": name} for run in data[part]] for part in ("runs", "all_runs")}
    own = {part: value for part, value in data.items() if part not in facts | {"config", "runs", "all_runs"}}
    return {**own, **runs, "name": name, "made_of": made_of, "facts": {k: data[k] for k in facts if k in data}}


def _decoded(hint: Any, value: Any) -> Any:
    """The value of a type from what JSON has of it: classes, tuples and non-finite numbers (null) come back."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in inside if option is not type(None)]
        return None if value is None else _decoded(options[0], value) if len(options) == 1 else value
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints = typing.get_type_hints(hint)
        fields = [field.name for field in dataclasses.fields(hint) if field.init and field.name in value]
        return hint(**{name: _decoded(hints[name], value[name]) for name in fields})  # type: ignore[operator]
    if origin is tuple and isinstance(value, list):
        kinds = [inside[0]] * len(value) if inside[-1] is Ellipsis else inside
        return tuple(_decoded(kind, each) for kind, each in zip(kinds, value, strict=True))
    if origin in (dict, Mapping) and isinstance(value, dict) and inside:
        return {name: _decoded(inside[1], each) for name, each in value.items()}
    return math.nan if hint is float and value is None else value
