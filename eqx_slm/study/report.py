"""The sections of a report: each a function from `Results` to blocks; a study lists those that it wants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..account.flops import CONVENTIONS
from ..nn.ladder import CONVENTIONS as WINDOWS
from .blocks import Block, Code, Folded, Heading, Mono, Paragraph, Strong, Table
from .figures import differences
from .frequency import by_frequency
from .pictures import Section, curves, forest, ledger_bars, loss_against
from .results import ArmResult, Results, Row
from .sentences import UNKNOWN, comparison_sentences, counted, human, number, percent, plural, ratio, signed, size

Cells = dict[str, str]  # of an arm's row, by the name of the column

TAX = (
    "The embedding tax is the share of all parameters that sits in tables with a row for each token. Buffers are "
    "integers that are not trained."
)
DISTINCT = (
    'The total charges a generator to every occurrence of a token; "per distinct" charges it to each distinct token of '
    "a batch, with their mean number as measured on this stream."
)
ELSEWHERE = (
    "They do not cover other corpora, tokenizers, model sizes, lengths of training or other validation text: all "
    "seeds are evaluated on the same part of the validation split."
)
APART = (
    "Each arm's rate was chosen on the validation sequences with even number, differences and verdicts are of those "
    "with odd number; losses elsewhere are of all. The seeds are the same for both."
)
SAME = "Rates were chosen on the same validation text that judged: it has no second sequence, or the rows are older."


def summary(results: Results) -> list[Block]:
    """A table of the arms and a line a verdict: what the terminal shows at the end."""
    s, compared = results.settings, {each.arm: each for each in results.comparisons}

    def cells(arm: ArmResult) -> Cells:
        its = compared.get(arm.name)
        return {
            "params": human(arm.facts.parameters.get("total")),
            "FLOPs/token": human((arm.facts.flops_per_token or {}).get("total")),
            "loss": _mean(arm, "final_nll"),
            "bits/byte": _mean(arm, "final_bits_per_byte"),
            "diff": signed(its.mean) if its else "",
            "verdict": its.verdict if its else "reference",
        }

    made = f"{plural(len(results.arms), 'arm')}, {plural(len(s['seeds']), 'seed')}, {human(s['tokens'])} tokens each"
    rule = "" if s["margin"] is None else f"; margin {s['margin']:g} nat, {percent(s['confidence'])} intervals"
    blocks: list[Block] = [Paragraph(Strong(f"{results.name}: {made}{rule}")), _by_arm(results, cells)]
    blocks += [Paragraph(comparison_sentences(each, s["tokens"], short=True)) for each in results.comparisons]
    for each in results.controls:
        blocks.append(Paragraph(["Control: ", *comparison_sentences(each, s["tokens"], short=True)]))
    told = f"Differences are in nats a token; below zero the arm is better than {_against(results)}."
    return [*blocks, *([Paragraph(told)] if compared else [])]


def verdicts(results: Results) -> list[Block]:
    """The title, and a paragraph a comparison."""
    compared, tokens = [each.arm for each in results.comparisons], results.settings["tokens"]
    title = f"{', '.join(compared)} against {_against(results)}" if compared else ", ".join(results.arms)
    blocks: list[Block] = [Heading(f"{results.name}: {title}", 1)]
    blocks += [Paragraph(comparison_sentences(each, tokens)) for each in results.comparisons]
    if not compared:
        blocks.append(Paragraph("There is nothing to compare."))
    for each in results.controls:
        blocks.append(Paragraph([f"Control ({each.question}): ", *comparison_sentences(each, tokens)]))
    told = "Differences are arm minus reference in nats a token of validation loss: below zero the arm is better."
    return [*blocks, Paragraph(told)]


def what_differs(results: Results) -> list[Block]:
    """The fields in which each arm's config differs from its reference's, and how it was matched."""
    blocks: list[Block] = [Heading("What differs")]
    for each in results.comparisons:
        known = each.config_difference
        if known:
            rows = [(Mono(name), old, new) for name, old, new in known]
            blocks.append(Table(("field", each.reference, each.arm), rows, left=3))
        else:
            equal = f"nothing, its config equals {each.reference}'s"
            unknown = "the configs are not known, the arms were given as functions"
            blocks.append(Paragraph(f"{each.arm}: {unknown if known is None else equal}."))
    return blocks + [Paragraph(f"{a.name}: {a.match}", bullet=True) for a in results.arms.values() if a.match]


def parameters(results: Results) -> list[Block]:
    """Parameters by place, with the share that the vocabulary takes; the ledger behind a line."""
    base = results.arms[results.reference].facts.parameters.get("total")
    parts = _names(results, "parameters")

    def cells(arm: ArmResult) -> Cells:
        own = arm.facts.parameters
        return {
            **{part.replace("_", " "): counted(own.get(part, 0)) for part in parts},
            "ratio": ratio(own.get("total", 0) / base if base else None),
            "embedding tax": number(arm.facts.embedding_tax, form=".1%"),
            "buffers": size(arm.facts.buffers_bytes),
        }

    ledgers = [dict(arm.facts.ledger) for arm in results.arms.values()]
    paths = dict.fromkeys(path for ledger in ledgers for path in ledger)
    places = [[Mono(path), *(counted(led[path]) if path in led else "" for led in ledgers)] for path in paths]
    ledger = Folded("Ledger, place by place", [Table(["place", *results.arms], places)])
    rates = {name: getattr(arm.made_of, "lr_multipliers", "") for name, arm in results.arms.items()}
    told = [Paragraph(f"{name}: learning rate x {text}", bullet=True) for name, text in rates.items() if text]
    return [Heading("Parameters"), _by_arm(results, cells), Paragraph(TAX), *told, ledger]


def budgets(results: Results) -> list[Block]:
    """What each arm costs: parameters, FLOPs a token, memory, time."""
    s, kinds = results.settings, _names(results, "memory_bytes")
    ways = dict.fromkeys(way for arm in results.arms.values() for way in _conventions(arm))

    def costs(arm: ArmResult) -> Cells:
        flops = arm.facts.flops_per_token or {}
        return {
            "parameters": counted(arm.facts.parameters.get("total")),
            "FLOPs/token": human(flops.get("total")),
            **{part: human(flops.get(part)) for part in ("embedding", "blocks", "head")},
            "per distinct": human(flops.get("total_distinct")),
            **{way: human(_conventions(arm).get(way)) for way in ways},
            "s/seed": number(arm.mean("train_seconds"), form=".1f"),
            "tokens/s": human(arm.mean("tokens_per_second")),
            "compile s": number(arm.compile_seconds, form=".1f"),
        }

    def memory(arm: ArmResult) -> Cells:
        held = arm.facts.memory_bytes
        total = sum(count or 0 for count in held.values())
        return {"total": size(total), **{kind: size(held.get(kind)) for kind in kinds}}

    batch = f"{s['steps']:,} steps of {s['batch_size']} sequences of {s['sequence_length']}"
    took = f" The whole study took {results.seconds:.1f} seconds of wall time." if results.seconds else ""
    return [
        Heading("Budgets"),
        Paragraph(f"Every run is given {s['tokens']:,} tokens: {batch}.{took}"),
        _by_arm(results, costs),
        Paragraph(f"{CONVENTIONS} {DISTINCT}"),
        *(Paragraph(f"FLOPs {way}: {WINDOWS[way]}.") for way in ways),
        Paragraph("Memory of a training step:"),
        _by_arm(results, memory),
    ]


def losses(results: Results) -> list[Block]:
    """Final validation loss of each seed, with bits a byte where the tokenizer loses no byte; the sweep, if any."""
    s = results.settings

    def cells(arm: ArmResult) -> Cells:
        return {
            "learning rate": f"{arm.learning_rate:g}",
            **{f"seed {seed}": _final(run for run in arm.runs if run.seed == seed) for seed in s["seeds"]},
            "mean": _mean(arm, "final_nll"),
            **({"averaged": number(arm.mean("averaged_nll"))} if s.get("average") else {}),
            "perplexity": number(math.exp(min(arm.mean("final_nll") or math.nan, 700)), form=".2f"),
            "bits/byte": _mean(arm, "final_bits_per_byte"),
        }

    def tried(arm: ArmResult) -> Cells:
        rates = s["learning_rates"]
        return {f"{rate:g}": _final(run for run in arm.all_runs if run.learning_rate == rate) for rate in rates}

    told = f" Averaged: the mean weights of the last {s['average']:.0%} of the steps." if s.get("average") else ""
    blocks = [Heading("Losses"), Paragraph(f"Final validation loss in nats a token.{told}"), _by_arm(results, cells)]
    if s["swept"]:
        told = "Every arm was swept over the same learning rates and is shown at its own. Mean final loss at each:"
        blocks += [Paragraph(told), _by_arm(results, tried)]
    return blocks


def samples(results: Results) -> list[Block]:
    """What each arm's first seed wrote."""
    told = [run for arm in results.arms.values() for run in arm.runs if run.sample]
    blocks: list[Block] = [Heading("Samples")] if told else []
    return blocks + [Folded(f"{run.arm}, seed {run.seed}", [Code(run.sample)]) for run in told]


def scope(results: Results) -> list[Block]:
    """What the intervals cover, and what they do not."""
    s = results.settings
    rates, seeds = ", ".join(f"{rate:g}" for rate in s["learning_rates"]), ", ".join(map(str, s["seeds"]))
    swept = [Strong("Learning rates were not swept"), f" (all arms: {rates}); another rate may favour another arm."]
    if s["swept"]:
        swept = f"Learning rates were swept over the same grid for every arm ({rates}); rates outside are not covered."
        judged = all(arm.judged == "judging" for arm in results.arms.values())
        swept += " " + (APART if judged else SAME)
    shared = "every leaf that two arms share starts equal, and both read the same batches"
    if s["pairing"] != "full":
        shared = "both arms read the same batches; their initial values are their own"
    blocks: list[Block] = [
        Heading("What the intervals cover, and what they do not"),
        Paragraph(
            f"They cover the seeds ({plural(len(s['seeds']), 'seed')}: {seeds}): initial values and the order of the "
            f"data. Pairing is {s['pairing']}: within a seed {shared}."
        ),
        Paragraph(ELSEWHERE),
        Paragraph(swept),
    ]
    told = "An arm against itself is promised an exact zero on a CPU; elsewhere only with deterministic operations."
    return blocks if results.machine.get("platform") == "cpu" else [*blocks, Paragraph(told)]


def origin(results: Results) -> list[Block]:
    """Versions, the stream with its hashes, the config and how to run it again."""
    stream = {name: value for name, value in results.stream.items() if name != "stream_hash"}
    hashes = [[f"seed {seed}", Mono(digest)] for seed, digest in results.stream["stream_hash"].items()]
    blocks: list[Block] = [
        Heading("Origin and replay"),
        Paragraph(f"eqx_slm {results.version}, {results.created}; {_flat(results.machine)}."),
        Paragraph(f"Stream: {_flat(stream)}. The batches that every arm read:"),
        Table(["seed", "stream hash"], hashes, left=2),
    ]
    if results.replay:
        blocks += [Paragraph("To run it again:"), Code(results.replay)]
    if results.config is not None:
        text = json.dumps(results.config, indent=2, ensure_ascii=False, default=str)
        blocks.append(Folded("Config", [Code(text, "json")]))
    return blocks


PAIR: tuple[Section, ...] = (
    *(verdicts, curves, forest(), ledger_bars, loss_against("flops", "parameters"), what_differs, parameters, budgets),
    *(losses, by_frequency, differences, samples, scope, origin),
)


def _by_arm(results: Results, cells: Callable[[ArmResult], Cells]) -> Table:
    """A row an arm; a column that is unknown of all of them is left out."""
    rows = [cells(arm) for arm in results.arms.values()]
    names = [name for name in rows[0] if any(row[name] != UNKNOWN for row in rows)]
    body = [[arm, *(row[name] for name in names)] for arm, row in zip(results.arms, rows, strict=True)]
    return Table(["arm", *names], body)


def _conventions(arm: ArmResult) -> Mapping[str, float]:
    """FLOPs a token by the names of several conventions, of models that read one target a window; the total is one."""
    return (arm.facts.flops_per_token or {}).get("conventions", {})


def _against(results: Results) -> str:
    return " and ".join(dict.fromkeys(each.reference for each in results.comparisons))


def _names(results: Results, group: str) -> list[str]:
    # Every name that some arm has, in the order of appearance, with the total last.
    names = dict.fromkeys(name for arm in results.arms.values() for name in getattr(arm.facts, group))
    return sorted(names, key=lambda name: name == "total")


def _mean(arm: ArmResult, name: str) -> str:
    return "diverged" if arm.diverged else number(arm.mean(name))


def _final(runs: Any) -> str:
    found: Sequence[Row] = list(runs)
    known = [run.final_nll for run in found if run.final_nll is not None]
    return "diverged" if len(known) < len(found) else number(math.fsum(known) / len(known) if known else None)


def _flat(values: Mapping[str, Any]) -> str:
    told = ((key.replace("_", " "), value) for key, value in values.items() if value not in (None, ""))
    return ", ".join(f"{k} ({_flat(v)})" if isinstance(v, Mapping) else f"{k} {_value(v)}" for k, v in told)


def _value(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
