"""A study's report: `report.md` with its verdicts first, and the picture beside it, from the result alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..account.flops import CONVENTIONS
from ..files import write_bytes_atomic, write_text_atomic
from . import tables
from .plot import render_curves
from .sentences import comparison_sentences, number, percent, plural
from .summary import print_summary, summary_text

__all__ = ["print_summary", "report_markdown", "summary_text", "write_report"]

TAX = (
    "The embedding tax is the share of all parameters that sits in tables with a row for each token. Buffers are "
    "integers that are not trained."
)
DISTINCT = (
    'The total charges a generator to every occurrence of a token; "per distinct" charges it to each distinct token of '
    "a batch, with their mean number as measured on this stream."
)
INTERVALS = (
    "The corrected ones are Holm's: the arm with the i-th smallest p of m (i from 0) has its interval at level `1 - "
    "alpha / (m - i)`, and from the first arm that is not told from zero the level stays. Verdicts are taken from "
    "the corrected interval: better or worse where it lies wholly beyond the margin, no difference beyond the "
    "margin where it lies wholly inside. Controls are not part of this family."
)
SLOPES = (
    "Least-squares slope of each seed's difference on the logarithm of tokens, interval over the seeds; the curve "
    "need not be straight, so this is a mean trend over the whole run and no forecast:"
)


def write_report(result: Mapping[str, Any], folder: str | Path) -> Path:
    """Write `report.md`, `curves.png` and `curves.svg`, each of them whole or not at all.

    **Arguments:** `result`: a study's result, of which nothing but plain values is needed. `folder`: where to; it is
    made.

    **Returns:** the path of `report.md`, which is written last.
    """
    folder, text = Path(folder), report_markdown(result)
    for file_format in ("png", "svg"):
        write_bytes_atomic(folder / f"curves.{file_format}", render_curves(result, file_format=file_format))
    return write_text_atomic(folder / "report.md", text)


def report_markdown(result: Mapping[str, Any]) -> str:
    """The text of `report.md`.

    **Arguments:** `result`: a study's result.

    **Returns:** Markdown: verdicts, picture, what differs, parameters, budgets, losses, differences, samples, scope,
    origin.
    """
    sections = [
        f"# {result['name']}: {_versus(result)}\n",
        _verdicts(result),
        "![validation loss and paired differences against tokens](curves.png)\n",
        _differences_of_configs(result),
        _parameters(result),
        _budgets(result),
        _losses(result),
        _curves(result),
        _samples(result),
        _scope(result),
        _origin(result),
    ]
    return "\n".join(section for section in sections if section)


def _versus(result: Mapping[str, Any]) -> str:
    others = [name for name in result["arms"] if name != result["reference"]]
    return f"{', '.join(others)} against {result['reference']}" if others else result["reference"]


def _verdicts(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    paragraphs = [comparison_sentences(each, settings, strong=_bold) for each in result["comparisons"]]
    if not paragraphs:
        paragraphs = ["There is one arm and nothing to compare it with."]
    for control in result.get("controls") or []:
        question = f" ({control['question']})" if control.get("question") else ""
        paragraphs.append(f"Control{question}: " + comparison_sentences(control, settings, strong=_bold))
    told = "Differences are arm minus reference in nats a token of validation loss: below zero the arm is better.\n"
    return "\n\n".join(paragraphs) + "\n\n" + told


def _differences_of_configs(result: Mapping[str, Any]) -> str:
    lines = ["## What differs\n"]
    for comparison in result["comparisons"]:
        entries, arm, reference = comparison["config_difference"], comparison["arm"], comparison["reference"]
        if entries is None:
            lines.append(f"{arm}: the configs are not known, the arms were given as functions.\n")
        elif not entries:
            lines.append(f"{arm}: nothing, its config equals {reference}'s.\n")
        else:
            rows = [[f"`{entry[0]}`", *(tables.cell(value) for value in entry[1:3])] for entry in entries]
            lines.append(tables.markdown_table(["field", reference, arm], rows, left=3))
    for name, arm in result["arms"].items():
        said = "; ".join(text for text in (arm.get("match"), arm.get("note")) if text)
        if said:
            lines.append(f"- {name}: {said}")
    return "\n".join(lines).rstrip() + "\n"


def _parameters(result: Mapping[str, Any]) -> str:
    return (
        f"## Parameters\n\n{tables.parameters_table(result)}\n{TAX}\n\n"
        f"<details><summary>Ledger, place by place</summary>\n\n{tables.ledger_table(result)}\n</details>\n"
    )


def _budgets(result: Mapping[str, Any]) -> str:
    settings, memory = result["settings"], tables.memory_table(result)
    batch = f"{settings['batch_size']} sequences of {settings['sequence_length']}"
    paragraphs = [
        f"Every run was given {settings['tokens']:,} tokens: {settings['steps']:,} steps of {batch}.\n",
        tables.budgets_table(result),
        f"{CONVENTIONS} {DISTINCT}\n",
        f"Memory of a training step:\n\n{memory}" if memory else "",
        f"The whole study took {number(result.get('seconds'), digits=1)} seconds of wall time.\n",
    ]
    return "## Budgets\n\n" + "\n".join(text for text in paragraphs if text)


def _losses(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    text = "## Losses\n\nFinal validation loss in nats a token.\n\n" + tables.losses_table(result)
    if settings.get("swept"):
        told = "Every arm was swept over the same learning rates and is shown at its own. Mean final loss at each:"
        text += f"\n{told}\n\n{tables.sweep_table(result)}"
    return text


def _curves(result: Mapping[str, Any]) -> str:
    compared = [*result["comparisons"], *(result.get("controls") or [])]
    if not compared:
        return ""
    level = percent(result["settings"].get("confidence", 0.95))
    return (
        f"## Differences\n\n{tables.verdict_table(result)}\n"
        f"Intervals are Student's t over the seeds at {level}. {INTERVALS}\n\n"
        f"Along the run, with the plain interval at each token count:\n\n{tables.curve_table(compared)}\n"
        f"{SLOPES}\n\n{tables.slope_table(compared)}"
    )


def _samples(result: Mapping[str, Any]) -> str:
    blocks = []
    for name, arm in result["arms"].items():
        run = arm["runs"][0] if arm["runs"] else {}
        if run.get("sample"):
            fence = _fence(run["sample"])
            blocks.append(f"{name}, seed {run['seed']}:\n\n{fence}text\n{run['sample'].rstrip()}\n{fence}\n")
    return "## Samples\n\n" + "\n".join(blocks) if blocks else ""


def _scope(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    seeds = f"{plural(len(settings['seeds']), 'seed')}: {', '.join(map(str, settings['seeds']))}"
    rates = ", ".join(f"{rate:g}" for rate in settings.get("learning_rates") or []) or "not recorded"
    if settings.get("pairing") == "full":
        shared = "every leaf that two arms share starts equal, and both read the same batches"
    else:
        shared = "both arms read the same batches; their initial values are their own"
    if settings.get("swept"):
        swept = (
            f"Learning rates were swept over the same grid for every arm ({rates}); rates outside it are not covered."
        )
    else:
        swept = f"**Learning rates were not swept** (all arms: {rates}); another rate may favour another arm."
    paragraphs = [
        "## What the intervals cover, and what they do not",
        f"They cover the seeds ({seeds}): initial values and the order of the data. Pairing is "
        f"`{settings.get('pairing')}`: within a seed {shared}.",
        "They do not cover other corpora, tokenizers, model sizes, lengths of training or other validation text: all "
        "seeds are evaluated on the same part of the validation split.",
        swept,
    ]
    if result["machine"].get("platform") not in (None, "cpu"):
        paragraphs.append(
            "An arm against itself is promised an exact zero on a CPU; elsewhere only with deterministic operations."
        )
    return "\n\n".join(paragraphs) + "\n"


def _origin(result: Mapping[str, Any]) -> str:
    stream = {key: value for key, value in result["stream"].items() if key != "stream_hash"}
    hashes = result["stream"].get("stream_hash") or {}
    rows = [[f"seed {seed}", f"`{value}`"] for seed, value in hashes.items()]
    replay = result.get("replay")
    config = json.dumps(result.get("config", {}), indent=2, ensure_ascii=False, default=str)
    paragraphs = [
        "## Origin and replay",
        f"eqx_slm {result.get('version', 'of an unnamed version')}, {result['created']}; {_flat(result['machine'])}.",
        f"Stream: {_flat(stream)}.",
        "The batches that every arm read:" if rows else "",
        tables.markdown_table(["seed", "stream hash"], rows, left=2).rstrip() if rows else "",
        f"To run it again:\n\n```\n{replay}\n```" if replay else "",
        f"<details><summary>Config</summary>\n\n```json\n{config}\n```\n\n</details>" if "config" in result else "",
    ]
    return "\n\n".join(text for text in paragraphs if text) + "\n"


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {_inline(value)}" for key, value in values.items() if value not in (None, "")
    )


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + _flat(value) + ")"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _bold(text: str) -> str:
    return f"**{text}**"


def _fence(text: str) -> str:
    # Longer than any run of backticks inside, so that a sample cannot end its own block.
    return "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
