"""The named arms: what each changes in the base model, and what its budget is matched to."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax

from ..account import Match, match_flops, match_parameters, parameter_ledger
from ..account.match import Vary
from ..checks import lr_factors, meant
from ..configs import set_field
from ..errors import UserError
from ..model import ModelConfig, TaperConfig
from ..nn.bigrams import BigramConfig
from ..nn.binary import BinaryConfig
from ..nn.composed import ComposedConfig
from ..nn.compositional import CompositionalConfig
from ..nn.continuum import ContinuumConfig
from ..nn.gated import GatedAttentionConfig
from ..nn.head import HeadConfig
from ..nn.hybrid import HybridConfig
from ..nn.leviathan import LeviathanConfig
from ..nn.low_rank import LowRankConfig
from ..nn.spelled import SpelledConfig
from ..nn.titans import TitansConfig


@dataclass(frozen=True)
class Tuned:
    """Sizes, scales and learning-rate multipliers that named arms use; found by coarse sweeps (experiments/LOG.md).

    `generator_lr` and `tied_lr` are added to the base's `lr_multipliers`; `tied_scale` is a tied head's `scale`,
    `tied_std` the std of its table (None: the base's).
    """

    generator: LeviathanConfig = LeviathanConfig()
    generator_lr: str = ""
    tied_scale: float = 1.0
    tied_std: float | None = None
    tied_lr: str = ""
    compositional_std: float = 0.02
    low_rank_std: float = 0.02
    binary_std: float = 0.02
    spelled: SpelledConfig = SpelledConfig()
    composed: ComposedConfig = ComposedConfig()
    hybrid_rows: int = 4096
    hybrid_std: float = 0.02
    bigrams: BigramConfig = BigramConfig(rows=65536, rank=64)


@dataclass(frozen=True)
class Arm:
    """One arm of a study: its config, and how it was matched (None: not matched)."""

    name: str
    config: ModelConfig
    match: Match | None = None
    matched_by: Literal["parameters", "flops"] | None = None

    @property
    def match_note(self) -> str | None:
        """One sentence for the report."""
        if self.match is None:
            return None
        return f"{self.matched_by} matched to the base by {self.match}"


@dataclass(frozen=True)
class Recipe:
    """How a named arm comes from the base: a change, then (optionally) a budget matched along one dimension."""

    change: Callable[[ModelConfig, Tuned], ModelConfig]
    help: str
    match: Literal["parameters", "flops"] | None = None
    vary: Vary = "depth"


def _low_rank(base: ModelConfig, tuned: Tuned) -> ModelConfig:
    """The rank whose factors come nearest to the generator's parameters: the same budget, spent on plain factors."""
    budget = tuned.generator.parameters(base.vocab_size, base.d_model)
    rank = max(1, min(base.d_model, round(budget / (base.vocab_size + base.d_model))))
    return dataclasses.replace(base, embedding=LowRankConfig(rank=rank, std=tuned.low_rank_std))


def _compositional(base: ModelConfig, tuned: Tuned) -> ModelConfig:
    part = CompositionalConfig(coordinates=tuned.generator.coordinates, std=tuned.compositional_std)
    return dataclasses.replace(base, embedding=part)


def _generator(base: ModelConfig, tuned: Tuned) -> ModelConfig:
    return with_multipliers(dataclasses.replace(base, embedding=tuned.generator), tuned.generator_lr)


def _tied(base: ModelConfig, tuned: Tuned) -> ModelConfig:
    tied = dataclasses.replace(base, head=HeadConfig("tied", scale=tuned.tied_scale))
    if tuned.tied_std is not None:
        tied = set_field(tied, "embedding.std", str(tuned.tied_std))
    return with_multipliers(tied, tuned.tied_lr)


def with_multipliers(config: ModelConfig, multipliers: str) -> ModelConfig:
    """The config with learning-rate multipliers, such as "embedding=13, head=4", beside its own: one for a path that
    has its own takes its place. **Raises:** `UserError` for what is no list of paths and positive factors."""
    own = lr_factors(config.lr_multipliers) | lr_factors(multipliers)
    return dataclasses.replace(config, lr_multipliers=", ".join(f"{path}={factor:g}" for path, factor in own.items()))


def _embedded(make: Callable[[ModelConfig, Tuned], Any]) -> Callable[[ModelConfig, Tuned], ModelConfig]:
    return lambda base, tuned: dataclasses.replace(base, embedding=make(base, tuned))


def _hybrid(base: ModelConfig, tuned: Tuned) -> ModelConfig:
    rows = min(tuned.hybrid_rows, base.vocab_size)
    part = HybridConfig(rows=rows, generator=tuned.generator, std=tuned.hybrid_std)
    inside = tuned.generator_lr.replace("embedding", "embedding.generator")
    return with_multipliers(dataclasses.replace(base, embedding=part), inside)


def _bigrams(base: ModelConfig, tuned: Tuned) -> ModelConfig:
    return dataclasses.replace(base, bigrams=tuned.bigrams)


def _with(path: str, value: Any) -> Callable[[ModelConfig, Tuned], ModelConfig]:
    return lambda base, tuned: set_field(base, path, value)


def _unchanged(base: ModelConfig, tuned: Tuned) -> ModelConfig:
    return base


_binary = _embedded(lambda base, tuned: BinaryConfig(std=tuned.binary_std))
_binary_free = _embedded(lambda base, tuned: BinaryConfig(map="none", std=tuned.binary_std))
_spelled, _composed = _embedded(lambda base, tuned: tuned.spelled), _embedded(lambda base, tuned: tuned.composed)
_gated, _titans = _with("mixer.kind", GatedAttentionConfig.kind), _with("mixer.kind", TitansConfig.kind)

RECIPES: dict[str, Recipe] = {
    "dense": Recipe(_unchanged, "a V x D token table and an untied head"),
    "dense-tied": Recipe(_tied, "one table for both ends, same body"),
    "dense-tied-deep": Recipe(_tied, "tied, the parameters saved spent on depth", "parameters"),
    "low-rank": Recipe(_low_rank, "a factored input table of the generator's size, same body"),
    "low-rank-deep": Recipe(_low_rank, "the same, the parameters saved spent on depth", "parameters"),
    "compositional": Recipe(_compositional, "a sum of codebook rows, no splines, same body"),
    "leviathan": Recipe(_generator, "the generator in place of the input table, same body"),
    "leviathan-deep": Recipe(_generator, "the generator, the parameters saved spent on depth", "parameters"),
    "leviathan-flop": Recipe(_generator, "the generator, d_ff changed to equal training FLOPs", "flops", "d_ff"),
    "binary": Recipe(_binary, "the id's bits and one linear map for the input table, same body"),
    "binary-deep": Recipe(_binary, "the same, the parameters saved spent on depth", "parameters"),
    "binary-free": Recipe(_binary_free, "the id's bits repeated over the width, no input parameters, same body"),
    "binary-free-deep": Recipe(_binary_free, "the same, the parameters saved spent on depth", "parameters"),
    "spelled": Recipe(_spelled, "a fixed code of the token's bytes and one linear map, same body"),
    "spelled-deep": Recipe(_spelled, "the same, the parameters saved spent on depth", "parameters"),
    "composed": Recipe(_composed, "the mean of the rows of the token's pieces, same body"),
    "composed-deep": Recipe(_composed, "the same, the parameters saved spent on depth", "parameters"),
    "hybrid": Recipe(_hybrid, "rows for the most frequent tokens, the generator for the tail, same body"),
    "hybrid-deep": Recipe(_hybrid, "the same, the parameters saved spent on depth", "parameters"),
    "bigrams": Recipe(_bigrams, "hashed bigrams added, d_ff narrowed by what they take", "parameters", "d_ff"),
    "bigrams-wide": Recipe(_bigrams, "hashed bigrams added, same d_ff"),
    "tapered": Recipe(_with("taper", TaperConfig("cosine", start=1.5, end=0.5)), "MLP widths 1.5x to 0.5x on a cosine"),
    "rising": Recipe(_with("taper", TaperConfig("cosine", start=0.5, end=1.5)), "MLP widths 0.5x to 1.5x on a cosine"),
    "gated": Recipe(_gated, "a gate on every head, d_ff narrowed by what the gate takes", "parameters", "d_ff"),
    "gated-wide": Recipe(_gated, "a gate on every head, same d_ff"),
    "hope": Recipe(
        _with("channel.kind", ContinuumConfig.kind),
        "each MLP as a chain of levels, the slower ones updated every few steps",
    ),
    "titans": Recipe(_titans, "a neural memory for attention, d_ff narrowed by what it takes", "parameters", "d_ff"),
    "titans-wide": Recipe(_titans, "a neural memory for attention, same d_ff"),
}


def changed(name: str, base: ModelConfig, tuned: Tuned) -> ModelConfig:
    """The base with a named arm's change, not yet matched; `UserError` for an unknown arm and for what cannot be."""
    if name not in RECIPES:
        raise UserError(f"unknown arm {name!r}; allowed: {', '.join(RECIPES)}{meant(name, RECIPES)}")
    try:
        return RECIPES[name].change(base, tuned)
    except ValueError as error:
        raise UserError(f"arm {name}: {error}") from None


def make_arm(name: str, base: ModelConfig, tuned: Tuned, settings: tuple[str, ...] = ()) -> Arm:
    """A named arm.

    **Arguments:**

    - `name`: a key of `RECIPES`.
    - `base`: the model that "dense" is.
    - `tuned`: sizes and scales of the generator and of the other embeddings.
    - `settings`: `field=value` texts, applied before the budget is matched to the base. Where one sets the very field
        that would be varied for the match, there is no match.

    **Raises:** `UserError` for an unknown arm or field.
    """
    config, known = changed(name, base, tuned), RECIPES[name]
    for setting in settings:
        path, _, text = setting.partition("=")
        config = set_field(config, path, text)
    varied = {"depth": "depth=", "d_ff": "channel.d_ff=", "d_model": "d_model="}[known.vary]
    held = any(setting.startswith(varied) for setting in settings)  # said by hand: nothing is left to match with
    try:
        _check(config)
        if known.match is None or held:
            return Arm(name, config)
        solve = match_parameters if known.match == "parameters" else match_flops
        found = solve(config, base, known.vary)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"arm {name}: {error}") from None
    return Arm(name, found.config, found, known.match)


def _check(config: ModelConfig) -> None:
    """Raises `ValueError` for what would fail only once a model is built: a taper out of reach, sizes of a part."""
    parameter_ledger(config)
    eqx.filter_eval_shape(config.embedding.build, config.vocab_size, config.d_model, key=jax.random.key(0))
