"""The tables of a report, in Markdown: parameters, ledger, budgets, losses, differences along the run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .runs import finite, has_diverged
from .sentences import UNKNOWN, human, number, ratio, signed, span
from .statistics import Number


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table.

    **Arguments:** `header`, `rows`: the cells; a row has as many as the header. `left`: how many columns, from the
    first, hold words and are set left; the others hold figures and are set right.

    **Returns:** the lines, ending in a newline. Pipes and line breaks within cells are escaped.
    """
    rule = ["---" if index < left else "---:" for index in range(len(header))]
    lines = [_row(header), "|" + "|".join(rule) + "|"]
    return "\n".join(lines + [_row(row) for row in rows]) + "\n"


def cell(value: Any) -> str:
    """One value as a table cell shows it."""
    if value is None:
        return UNKNOWN
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def parameters_table(result: Mapping[str, Any]) -> str:
    """Parameters of each arm by place, with the share that the vocabulary takes."""
    parts = _keys(result, "parameters")
    header = ["arm", *(part.replace("_", " ") for part in parts), "ratio", "embedding tax", "buffers"]
    base = _total(result["arms"][result["reference"]])
    rows = []
    for name, arm in result["arms"].items():
        parameters = arm.get("parameters") or {}
        counts = [_count(parameters.get(part)) for part in parts]
        total, tax = _total(arm), finite(arm.get("embedding_tax"))
        share = ratio(total / base if total is not None and base else None)
        taxed = UNKNOWN if tax is None else f"{100 * tax:.1f}%"
        rows.append([name, *counts, share, taxed, _bytes(arm.get("buffers_bytes"))])
    return markdown_table(header, rows)


def ledger_table(result: Mapping[str, Any]) -> str:
    """Every line of every arm's ledger, paths down, arms across; empty where an arm has no such place."""
    ledgers = {name: dict(_pairs(arm.get("ledger"))) for name, arm in result["arms"].items()}
    paths = list(dict.fromkeys(path for ledger in ledgers.values() for path in ledger))
    rows = []
    for path in paths:
        counts = [_count(ledger[path]) if path in ledger else "" for ledger in ledgers.values()]
        rows.append([f"`{path}`", *counts])
    return markdown_table(["place", *ledgers], rows)


def budgets_table(result: Mapping[str, Any]) -> str:
    """What each arm costs: parameters, FLOPs a token, memory, time."""
    header = ["arm", "parameters", "FLOPs/token", "head", "per distinct", "memory", "s/seed", "tokens/s", "compile s"]
    rows = []
    for name, arm in result["arms"].items():
        flops, memory = arm.get("flops_per_token") or {}, arm.get("memory_bytes") or {}
        known = [count for part, count in memory.items() if part != "total" and finite(count) is not None]
        rows.append(
            [
                name,
                _count(_total(arm)),
                human(flops.get("total")),
                human(flops.get("head")),
                human(flops.get("total_distinct")),
                _bytes(sum(known)) if known else UNKNOWN,
                number(_mean(arm["runs"], "train_seconds"), digits=1),
                human(_mean(arm["runs"], "tokens_per_second")),
                number(arm.get("compile_seconds"), digits=1),
            ]
        )
    return markdown_table(header, rows)


def memory_table(result: Mapping[str, Any]) -> str:
    """Bytes of each arm's training step, by what they hold; empty where no arm says."""
    parts = _keys(result, "memory_bytes")
    if not parts:
        return ""
    rows = []
    for name, arm in result["arms"].items():
        memory = arm.get("memory_bytes") or {}
        rows.append([name, *(_bytes(memory.get(part)) for part in parts)])
    return markdown_table(["arm", *(part.replace("_", " ") for part in parts)], rows)


def losses_table(result: Mapping[str, Any]) -> str:
    """Final validation loss of each seed, with bits per byte where the tokenizer loses no byte."""
    seeds = [run["seed"] for run in result["arms"][result["reference"]]["runs"]]
    header = ["arm", "learning rate", *(f"seed {seed}" for seed in seeds), "mean", "perplexity", "bits/byte"]
    rows = []
    for name, arm in result["arms"].items():
        runs = {run["seed"]: run for run in arm["runs"]}
        finals = [UNKNOWN if seed not in runs else _final(runs[seed]) for seed in seeds]
        mean = None if any(has_diverged(run) for run in arm["runs"]) else _mean(arm["runs"], "final_nll")
        bits = None if mean is None else _mean(arm["runs"], "final_bits_per_byte")
        perplexity = UNKNOWN if mean is None or mean > 700 else f"{math.exp(mean):.2f}"
        rows.append([name, cell(arm.get("learning_rate")), *finals, number(mean), perplexity, number(bits)])
    return markdown_table(header, rows)


def sweep_table(result: Mapping[str, Any]) -> str:
    """Mean final loss of each arm at each learning rate that was tried."""
    rates = sorted({run["learning_rate"] for arm in result["arms"].values() for run in arm.get("all_runs") or []})
    rows = []
    for name, arm in result["arms"].items():
        row = [name]
        for rate in rates:
            runs = [run for run in arm.get("all_runs") or [] if run["learning_rate"] == rate]
            diverged = any(has_diverged(run) for run in runs)
            row.append("diverged" if diverged else number(_mean(runs, "final_nll")))
        rows.append(row)
    return markdown_table(["arm", *(cell(rate) for rate in rates)], rows)


def verdict_table(result: Mapping[str, Any]) -> str:
    """One line a comparison: difference, both intervals, p, ratios, verdict."""
    words, costs = ["arm", "against", "verdict"], ["parameters", "FLOPs", "time"]
    header = [*words, "difference", "interval", "Holm-corrected", "p", "p (Holm)", *costs]
    rows = [
        [
            comparison["arm"],
            comparison["reference"],
            comparison["verdict"],
            signed(comparison["mean"]),
            span(comparison["low"], comparison["high"]),
            span(comparison["corrected_low"], comparison["corrected_high"]),
            _p(comparison["p"]),
            _p(comparison.get("p_holm")),
            ratio(comparison["parameter_ratio"]),
            ratio(comparison["flops_ratio"]),
            ratio(comparison["time_ratio"]),
        ]
        for comparison in result["comparisons"]
    ]
    return markdown_table(header, rows, left=3)


def curve_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The paired difference at each token count, one column a comparison."""
    curves = [{point["tokens"]: point for point in comparison["curve"]} for comparison in comparisons]
    counts = sorted({count for curve in curves for count in curve})
    rows = [[f"{count:,}", *(_point(curve.get(count)) for curve in curves)] for count in counts]
    header = ["tokens", *(f"{comparison['arm']} minus {comparison['reference']}" for comparison in comparisons)]
    return markdown_table(header, rows, left=0)


def slope_table(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """Slope of each difference for a doubling of tokens, and where its mean crossed zero."""
    rows = []
    for comparison in comparisons:
        slope = {key: None if value is None else value * math.log(2) for key, value in comparison["slope"].items()}
        crossed = ", ".join(human(count) for count in comparison.get("crossings") or []) or "never"
        rows.append(
            [
                f"{comparison['arm']} minus {comparison['reference']}",
                signed(slope["mean"]),
                UNKNOWN if slope["mean"] is None else span(slope["low"], slope["high"]),
                crossed if comparison["mean"] is not None else UNKNOWN,
            ]
        )
    return markdown_table(["difference", "nat per doubling", "interval", "mean crossed zero at"], rows)


def _row(cells: Sequence[str]) -> str:
    escaped = (" ".join(text.split()).replace("|", "\\|") for text in cells)
    return "| " + " | ".join(escaped) + " |"


def _point(point: Mapping[str, Any] | None) -> str:
    if point is None or point["mean"] is None:
        return UNKNOWN
    bounds = "" if point["low"] is None else f" ({span(point['low'], point['high'])})"
    return signed(point["mean"]) + bounds


def _p(value: Number | None) -> str:
    if finite(value) is None or value is None:
        return UNKNOWN
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def _final(run: Mapping[str, Any]) -> str:
    return "diverged" if has_diverged(run) else number(run["final_nll"])


def _keys(result: Mapping[str, Any], group: str) -> list[str]:
    # Every name that some arm has in a group, in the order of appearance, with the total last.
    names = dict.fromkeys(name for arm in result["arms"].values() for name in arm.get(group) or {})
    return [name for name in names if name != "total"] + ["total"] * ("total" in names)


def _total(arm: Mapping[str, Any]) -> float | None:
    return finite((arm.get("parameters") or {}).get("total"))


def _count(value: Number | None) -> str:
    return UNKNOWN if finite(value) is None else f"{value:,.0f}"


def _bytes(value: Number | None) -> str:
    if finite(value) is None or value is None:
        return UNKNOWN
    return f"{value / 2**20:,.1f} MiB" if value >= 2**20 else f"{value / 2**10:,.1f} KiB" if value else "0"


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [finite(run.get(key)) for run in runs]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _pairs(ledger: Any) -> list[tuple[str, Any]]:
    return [(str(path), count) for path, count in ledger or []]
