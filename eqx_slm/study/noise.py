"""How noisy paired differences are, as measured, and what that says of a study before it is run.

The table lies beside this file (noise.json): an entry for each pair of arms at a shape and a number of tokens, with the
standard deviation of one seed's paired difference. `experiments/noise.py` makes entries from finished run folders.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from ..account.ledger import parameter_ledger
from ..configs import from_dict, to_dict
from ..errors import UserError
from ..model import ModelConfig
from .anytime import anytime_quantile
from .blocks import Block, Heading, Paragraph, Table
from .compare import paired
from .sentences import UNKNOWN, counted, human, number, plural
from .spread import half_width, seeds_for
from .study import Study

# Sizes that differ by more are other shapes.
NEAR = 1.05


@dataclass(frozen=True)
class Noise:
    """One measurement.

    **Arguments:** `vocab_size`, and `parameters` of the reference: the shape. `tokens` of a run. `sd`: of the paired
    difference of one seed in the final validation loss, nats a token, from `seeds`. `alike`: a name that entries of
    one shape and number of tokens share where their spreads do not differ; empty where nobody said. `recipe`: how the
    runs were trained. `source`: where the figure comes from.
    """

    vocab_size: int
    parameters: int
    tokens: int
    arm: str
    reference: str
    sd: float
    seeds: int
    alike: str = ""
    recipe: str = ""
    source: str = ""


def noise_table() -> tuple[Noise, ...]:
    """The table of the package."""
    text = resources.files("eqx_slm.study").joinpath("noise.json").read_text("utf-8")
    return tuple(from_dict(Noise, entry) for entry in json.loads(text))


def table_text(entries: Sequence[Noise]) -> str:
    """A table as a file's text, an entry a line, in a fixed order."""
    ordered = sorted(entries, key=lambda e: (e.vocab_size, e.parameters, e.tokens, e.reference, e.arm, e.recipe))
    return "[\n" + ",\n".join(json.dumps(to_dict(entry), ensure_ascii=False) for entry in ordered) + "\n]\n"


def merged(old: Sequence[Noise], new: Sequence[Noise]) -> list[Noise]:
    """Both, a new entry in the place of an old one of the same arms, shape, tokens and recipe."""

    def key(entry: Noise) -> Any:
        return dataclasses.astuple(dataclasses.replace(entry, sd=0.0, seeds=0, alike="", source=""))

    return list({key(entry): entry for entry in (*old, *new)}.values())


def measured(result: Mapping[str, Any], source: str) -> list[Noise]:
    """The entries of a finished study, from what its result.json holds: a comparison whose runs all ended is one.

    **Raises:** `UserError` where it is no result, or of a version that did not keep what is needed.
    """
    try:
        settings, arms = result["settings"], result["arms"]
        found, recipe = [], recipe_of(settings)
        for each in result["comparisons"]:
            config = arms[each["reference"]]["config"]
            if each["sd"] and config is not None:
                shape = {
                    "vocab_size": config["vocab_size"],
                    "parameters": arms[each["reference"]]["parameters"]["total"],
                }
                what = {"tokens": settings["tokens"], "arm": each["arm"], "reference": each["reference"]}
                how = {"sd": float(f"{each['sd']:.4g}"), "seeds": len(each["seeds"]), "recipe": recipe}
                found.append(Noise(**shape, **what, **how, source=source))
        return found
    except (KeyError, TypeError):
        raise UserError(f"{source}: this is no result of a study of this version; run the study again") from None


def recipe_of(settings: Mapping[str, Any]) -> str:
    """How runs are trained, on a line, from a study's settings."""
    optimizer = ", ".join(f"{name} {value}" for name, value in settings["optimizer"].items())
    rates = " ".join(f"{rate:g}" for rate in settings["learning_rates"])
    own = "" if settings["pairing"] == "full" else f", pairing {settings['pairing']}"
    return f"rate {rates}, {settings['batch_size']} x {settings['sequence_length']} tokens a step, {optimizer}{own}"


def nearest(
    entries: Sequence[Noise], *, vocab_size: int, parameters: int, tokens: int, arm: str, reference: str
) -> tuple[Noise | None, bool]:
    """The entry that says most of a pair of arms, and whether it is of these arms.

    Of this pair at this shape the one nearest in tokens; without one the noisiest of those that are nearest in tokens,
    whatever their arms. None where nothing was measured at this shape.
    """
    shape = [
        e for e in entries if e.vocab_size == vocab_size and abs(math.log(e.parameters / parameters)) < math.log(NEAR)
    ]
    own = [e for e in shape if (e.arm, e.reference) == (arm, reference)]
    if not shape:
        return None, False

    def away(entry: Noise) -> float:
        return abs(math.log(entry.tokens / tokens))

    least = min(map(away, own or shape))
    return max((e for e in own or shape if away(e) <= least + 1e-9), key=lambda e: e.sd), bool(own)


def outlook(study: Study, vocab_size: int, context: int, batch_size: int, padding: int = 0) -> list[Block]:
    """What a study's intervals will be like, by the table: a block of figures, none where nothing is known or asked.

    Half-widths stand at the level of Holm's first step, the widest that an arm may get.
    """
    arms, levels = study.resolve(vocab_size, context, padding)
    asked = [each for each in study.analyses if isinstance(each, paired)]
    entries, rows, tokens = noise_table(), [], study.run.steps * batch_size * context
    seeds = study.until or len(study.which)
    quantile = None if study.until is None else anytime_quantile
    for analysis in asked:
        pairs = analysis.pairs(levels)
        level = 1 - (1 - analysis.confidence) / max(1, len(pairs))
        for arm, reference in pairs:
            known, own, config = None, False, arms[reference]
            if isinstance(config, ModelConfig):
                size = {"vocab_size": vocab_size, "parameters": parameter_ledger(config).total, "tokens": tokens}
                known, own = nearest(entries, **size, arm=arm, reference=reference)
            if known is None:
                rows.append([f"{arm} minus {reference}", UNKNOWN, "never measured at this shape", UNKNOWN, UNKNOWN])
                continue
            whose = "" if own else f"{known.arm} minus {known.reference}, "
            half = half_width(known.sd, seeds, confidence=level, quantile=quantile)
            needed = seeds_for(analysis.margin, known.sd, confidence=level, quantile=quantile)
            told = f"{whose}{human(known.tokens)} tokens, {plural(known.seeds, 'seed')}"
            rows.append([f"{arm} minus {reference}", number(known.sd), told, number(half), counted(needed)])
    if not rows:
        return []
    margins = " or ".join(dict.fromkeys(f"{each.margin:g}" for each in asked))
    columns = ["difference", "SD", "measured", f"half-width at {plural(seeds, 'seed')}", f"seeds for {margins} nat"]
    return [
        Heading("What to expect"),
        Table(columns, rows, left=1),
        Paragraph(
            f"By the noise measured before; another recipe, or {human(tokens)} tokens where others were measured, may "
            "be noisier. Seeds for the margin make an interval as short as the margin, so that one around no "
            "difference lies within; a larger difference takes fewer."
        ),
    ]
