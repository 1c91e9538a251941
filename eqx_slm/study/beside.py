"""Finished studies side by side: what each found, what differs, and paired differences where both read the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configs import differences
from ..errors import UserError
from ..train.loop import RunConfig
from .blocks import Block, Heading, Mono, Paragraph, Strong, Table
from .compare import paired
from .pictures import curves, forest, ledger_bars, pareto
from .report import summary
from .results import ArmResult, Comparison, Results
from .sentences import UNKNOWN, comparison_sentences, counted, human, number, signed

# Of a stream, what has to be equal before two losses are of the same text in the same tokens.
TEXT = ("corpus", "corpus_hash", "split_rule", "tokenizer", "tokenizer_hash", "vocab_size")
# Of settings, what says how a run was trained; how many seeds at once only changes its speed.
TRAINED = tuple(
    each.name for each in dataclasses.fields(RunConfig) if each.name not in ("seeds_at_once", "sample_tokens")
)
WIDEST = 120  # characters of a config's value


@dataclasses.dataclass(frozen=True)
class Beside:
    """Studies by their labels, and all their arms as one: `why_not` says why they have no paired differences,
    `other_text` why even their losses cannot be held against each other."""

    studies: Mapping[str, Results]
    joined: Results
    why_not: str = ""
    other_text: str = ""


def beside(studies: Mapping[str, Results]) -> Beside:
    """Joins studies, the first arm of the first being the reference of all.

    **Arguments:** `studies`: at least two, by labels without a slash (`labels`).

    Differences are taken over the seeds that all of them have, and only where the batches of those seeds, the
    validation text and the token counts are the same. An arm's name that two studies have gets its study's label.
    """
    names, arms = _names(studies), {}
    first = next(iter(studies.values()))
    for label, study in studies.items():
        for arm in study.arms.values():
            arms[names[label, arm.name]] = _renamed(arm, names[label, arm.name], label)
    other_text = _other_text(studies)
    why_not = other_text or _other_batches(studies)
    seeds = _common_seeds(studies)
    settings: dict[str, Any] = first.settings | {"seeds": seeds or first.settings["seeds"]}
    joined = Results(" beside ".join(studies), arms, settings, stream=first.stream, machine=first.machine)
    if not why_not:
        # Where one study kept its rates' part of the validation text apart from the verdict's, all are held to it.
        judged = "judging" if any(arm.judged == "judging" for arm in arms.values()) else "all"
        same = {name: dataclasses.replace(arm, runs=_of_seeds(arm, seeds), judged=judged) for name, arm in arms.items()}
        margin = 0.01 if settings["margin"] is None else settings["margin"]
        # A study that grew until it said something has stopped where it liked: only intervals for that hold.
        anytime = any(study.settings.get("until") for study in studies.values())
        analysis = paired(joined.reference, margin=margin, confidence=settings["confidence"], anytime=anytime)
        try:
            found = [_noted(each, same, studies) for each in analysis(same)]
            joined = dataclasses.replace(joined, arms=same, comparisons=tuple(found))
        except UserError as error:
            why_not = str(error)
    return Beside(studies, joined, why_not, other_text)


def labels(folders: Sequence[Path]) -> list[str]:
    """A label for each folder: its name, with a number where two are called the same."""
    found: list[str] = []
    for folder in folders:
        name, again = folder.resolve().name or "root", 2
        label = name
        while label in found:
            label, again = f"{name}-{again}", again + 1
        found.append(label)
    return found


def headline(both: Beside, *, short: bool = False) -> list[Block]:
    """What the comparison is, what can be said of it, and a row an arm; `short`: only differences and verdicts."""
    blocks: list[Block] = [Heading(both.joined.name, 1)]
    if both.why_not:
        blocks.append(Paragraph([Strong("No paired differences"), f": {both.why_not}."]))
    else:
        seeds = ", ".join(map(str, both.joined.settings["seeds"]))
        said = f"The studies read the same batches with the seeds {seeds}: every arm is held against "
        blocks.append(
            Paragraph([said, Strong(both.joined.reference), ", seed by seed, with Holm's correction over all of them."])
        )
        tokens = both.joined.settings["tokens"]
        blocks += [Paragraph(comparison_sentences(each, tokens, short=short)) for each in both.joined.comparisons]
    if both.other_text:
        blocks.append(Paragraph("Losses in nats a token are of other text or other tokens: they cannot be compared."))
    return [*blocks, _by_arm(both)]


def sections(both: Beside) -> list[Block]:
    """The whole comparison: headline, pictures, what differs, and every study's own verdicts."""
    blocks = headline(both)
    if not both.other_text:
        blocks += curves(both.joined) + forest("study")(both.joined)
    blocks += ledger_bars(both.joined)
    if not both.other_text:
        blocks += pareto("flops", "parameters")(both.joined)
    blocks += what_differs(both)
    for label, study in both.studies.items():
        blocks += [Heading(f"In {label} alone"), *summary(study)]
    return blocks


def _noted(found: Comparison, arms: Mapping[str, ArmResult], studies: Mapping[str, Results]) -> Comparison:
    """A comparison that says where its arms were trained in different ways, which makes equal configs unequal runs."""

    def trained(arm: ArmResult) -> dict[str, Any]:
        settings = studies[arm.levels["study"]].settings
        return {name: settings.get(name) for name in TRAINED} | {"learning_rate": arm.learning_rate}

    changed = differences(trained(arms[found.reference]), trained(arms[found.arm]))
    if not changed:
        return found
    said = "trained otherwise: " + ", ".join(f"{name} {_short(old)} -> {_short(new)}" for name, old, new in changed)
    note = "" if found.config_difference == () else found.note
    return dataclasses.replace(found, note=f"{note}; {said}" if note else said)


def what_differs(both: Beside) -> list[Block]:
    """The fields in which configs, streams and machines differ from the first study's."""
    blocks: list[Block] = [Heading("What differs between the studies")]
    (base, first), *others = both.studies.items()
    for label, study in others:
        found = differences(_document(first), _document(study))
        rows = [(Mono(field), _short(old), _short(new)) for field, old, new in found]
        if rows:
            blocks.append(Table(("field", base, label), rows, left=3))
        else:
            blocks.append(Paragraph(f"Between {base} and {label}: nothing but the runs."))
    return blocks


def _document(study: Results) -> dict[str, Any]:
    settings = {name: value for name, value in study.settings.items() if name != "sections"}
    config = study.config if isinstance(study.config, dict) else settings
    stream = {name: study.stream.get(name) for name in TEXT if name in study.stream}
    return {"eqx_slm": study.version, **config, "read": stream, "machine": study.machine}


def _short(value: str) -> str:
    return value if len(value) <= WIDEST else value[: WIDEST - 1] + "…"


def _names(studies: Mapping[str, Results]) -> dict[tuple[str, str], str]:
    """The name of each study's arm among all of them."""
    every = [arm for study in studies.values() for arm in study.arms]
    pairs = [(label, arm) for label, study in studies.items() for arm in study.arms]
    names = {(label, arm): f"{label}/{arm}" if every.count(arm) > 1 else arm for label, arm in pairs}
    if len(set(names.values())) < len(pairs):  # an arm is called as another is with its label
        names = {(label, arm): f"{label}/{arm}" for label, arm in pairs}
    return names


def _renamed(arm: ArmResult, name: str, label: str) -> ArmResult:
    runs = tuple(dataclasses.replace(run, arm=name) for run in arm.runs)
    return dataclasses.replace(arm, name=name, runs=runs, all_runs=(), levels={"study": label})


def _common_seeds(studies: Mapping[str, Results]) -> list[int]:
    first, *others = ([*study.settings["seeds"]] for study in studies.values())
    return [seed for seed in first if all(seed in other for other in others)]


def _of_seeds(arm: ArmResult, seeds: Sequence[int]) -> tuple[Any, ...]:
    return tuple(run for run in arm.runs if run.seed in seeds)


def _other_text(studies: Mapping[str, Results]) -> str:
    """Why losses are not of the same tokens."""
    (base, first), *others = studies.items()
    for label, study in others:
        found = [name for name in TEXT if first.stream.get(name) != study.stream.get(name)]
        if first.settings.get("eval_tokens") != study.settings.get("eval_tokens"):
            found.append("number of validation tokens")
        if found:
            return f"{base} and {label} are evaluated on other data (they differ in {', '.join(found)})"
    return ""


def _other_batches(studies: Mapping[str, Results]) -> str:
    """Why runs of a seed do not pair."""
    (base, first), *others = studies.items()
    seeds = _common_seeds(studies)
    if not seeds:
        return "the studies have no seed in common"
    for label, study in others:
        hashes = [{str(s): r.stream.get("stream_hash", {}).get(str(s)) for s in seeds} for r in (first, study)]
        if first.settings["tokens"] != study.settings["tokens"]:
            return (
                f"the runs of {base} read {human(first.settings['tokens'])} tokens, those of {label} "
                f"{human(study.settings['tokens'])}"
            )
        if hashes[0] != hashes[1] or None in hashes[0].values():
            return f"{base} and {label} read other batches"
    return ""


def _by_arm(both: Beside) -> Table:
    compared = {each.arm: each for each in both.joined.comparisons}
    rows = []
    for name, arm in both.joined.arms.items():
        its, flops = compared.get(name), (arm.facts.flops_per_token or {}).get("total")
        tokens = max((each.tokens for run in arm.runs for each in run.evals), default=0)
        loss = "diverged" if arm.diverged else number(arm.mean("final_nll"))
        rows.append(
            [name, arm.levels["study"], *([signed(its.mean), its.verdict] if its else ["", "reference"])]
            + [loss, number(arm.mean("final_bits_per_byte")), str(len(arm.runs)), human(tokens)]
            + [counted(arm.facts.parameters.get("total")), human(flops), f"{arm.learning_rate:g}"]
        )
    header = ["arm", "study", "difference", "verdict", "loss", "bits/byte", "seeds", "tokens"]
    header += ["parameters", "FLOPs/token", "rate"]
    unknown = [i for i in range(len(header)) if all(row[i] == UNKNOWN for row in rows)]
    unknown += [] if compared else [header.index("difference"), header.index("verdict")]
    keep = [i for i in range(len(header)) if i not in unknown]
    return Table([header[i] for i in keep], [[row[i] for i in keep] for row in rows], left=2)
