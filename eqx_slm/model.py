"""Config -> model. `ModelConfig` is plain frozen data; `build` is the one place that turns it into modules."""

import dataclasses
import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Array, Int32, PRNGKeyArray

from .checks import check_choices, check_key, check_whole, finite, lr_factors, real, shown
from .errors import UserError
from .nn.bigrams import BigramConfig
from .nn.block import Block, ChannelConfig, MixerConfig, Placement
from .nn.embedding import EmbeddingConfig, check_order
from .nn.head import HeadConfig
from .nn.init import subkey
from .nn.lm import LanguageModel
from .nn.norm import NormKind, make_norm
from .nn.orders import cooccurrence_order, frequency_order, random_order
from .nn.positions import LearnedPositions, PositionKind
from .nn.spelling import check_spelling, padded_spelling
from .pytree import Fixed
from .taper import Schedule, taper_widths


class Mixers:
    """The mixers that a config's JSON and `--set mixer.kind=...` know, a line each: a new one is one more import.

    In Python any config that answers the protocol `MixerConfig` fits, whether it stands here or not.
    """

    from .nn.attention import AttentionConfig
    from .nn.gated import GatedAttentionConfig
    from .nn.titans import TitansConfig, TitansMACConfig, TitansMAGConfig


class Embeddings:
    """The token embeddings, likewise."""

    from .nn.binary import BinaryConfig
    from .nn.composed import ComposedConfig
    from .nn.compositional import CompositionalConfig
    from .nn.hybrid import HybridConfig
    from .nn.leviathan import LeviathanConfig
    from .nn.low_rank import LowRankConfig
    from .nn.spelled import SpelledConfig
    from .nn.table import TableConfig


class Channels:
    """The channels, likewise."""

    from .nn.continuum import ContinuumConfig
    from .nn.mlp import MLPConfig


if TYPE_CHECKING:  # a type checker needs no more than what they promise
    MixerConfigs = MixerConfig
    ChannelConfigs = ChannelConfig
    EmbeddingConfigs = EmbeddingConfig
else:
    MixerConfigs, ChannelConfigs, EmbeddingConfigs = (
        functools.reduce(operator.or_, filter(dataclasses.is_dataclass, vars(kinds).values()))
        for kinds in (Mixers, Channels, Embeddings)
    )


@dataclass(frozen=True)
class TaperConfig:
    """How the MLP widths run over depth (see `taper_widths`); "uniform" gives every layer the same, at any multiple."""

    schedule: Schedule = "uniform"
    start: float = 1.5
    end: float | None = None
    multiple: int = 16

    def __post_init__(self):
        check_choices(self)
        check_whole(self, "multiple")
        finite("taper start", self.start)
        if self.end is not None:
            finite("taper end", self.end)

    def widths(self, depth: int, width: int) -> tuple[int, ...]:
        """The width of every layer; their sum is `depth * width`."""
        if self.schedule == "uniform":
            return (width,) * depth
        return taper_widths(
            depth, width, schedule=self.schedule, start=self.start, end=self.end, multiple=self.multiple
        )


# A config for each part, for who gives its name alone.
PARTS = {
    "embedding": "LeviathanConfig",
    "head": "HeadConfig",
    "mixer": "AttentionConfig",
    "channel": "MLPConfig",
    "taper": "TaperConfig",
    "bigrams": "BigramConfig",
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's shapes and initial values, given a key.

    `channel.d_ff` is the mean width where a `taper` is set. `context` bounds learned positions and is the sequence
    length that FLOPs are counted at. `residual_init="depth"` divides the initial weights of every branch's output by
    the root of the number of branches (2 depth; more where a channel has several), after the draw. `padding_ids` of
    the vocabulary stand for nothing: the ledger says what they cost. `lr_multipliers` scale the learning rate
    of the leaves whose dotted path begins as said, `*` being any one name: "embedding.codebooks=0.1, blocks.*.mixer=2";
    the last that fits a leaf counts. `bigrams` with rows are added to the embedding. `norm_eps`: of the norms of blocks
    and of the last one; None is 1e-6 for RMSNorm, 1e-5 for LayerNorm.
    """

    vocab_size: int = 8192
    d_model: int = 128
    depth: int = 2
    context: int = 128
    embedding: EmbeddingConfigs = Embeddings.TableConfig()
    head: HeadConfig = HeadConfig()
    positions: PositionKind = "rotary"
    mixer: MixerConfigs | MixerConfig = Mixers.AttentionConfig()
    channel: ChannelConfigs | ChannelConfig = Channels.MLPConfig()
    taper: TaperConfig = TaperConfig()
    norm: NormKind = "rms"
    placement: Placement = "pre"
    residual_init: Literal["constant", "depth"] = "constant"
    padding_ids: int = 0
    lr_multipliers: str = ""
    bigrams: BigramConfig = BigramConfig()
    norm_eps: float | None = None

    def __post_init__(self):
        check_choices(self)
        for name, like in PARTS.items():
            if isinstance(part := getattr(self, name), str | dict | int | float | type | None):
                raise UserError(f"{name}={shown(part)}: give a config, such as {like}()")
        if self.norm_eps is not None:
            real("norm_eps", self.norm_eps)
        lr_factors(self.lr_multipliers)
        check_whole(self, "vocab_size", "d_model", "context", most=2**53)  # a float holds it
        check_whole(self, "depth", most=10_000)  # every layer is looked at, whatever is asked of a config
        check_whole(self, "padding_ids", least=0)
        if self.padding_ids >= self.vocab_size:
            raise ValueError(f"padding_ids={self.padding_ids}: at least 0, and below vocab_size={self.vocab_size}")
        if self.head.kind == "tied" and not self.embedding.tieable:
            raise ValueError(f'head "tied" needs a table; with a {self.embedding.kind} embedding say "generated"')
        if self.head.kind == "generated" and self.embedding.tieable:
            raise ValueError(f'head "generated" needs a generator; with a {self.embedding.kind} embedding say "tied"')
        self.mixer.check(self.d_model)
        if check := getattr(self.embedding, "check", None):
            check(self.vocab_size, self.d_model)

    @property
    def widths(self) -> tuple[int, ...]:
        """The MLP width of every layer."""
        return self.taper.widths(self.depth, self.channel.width(self.d_model))

    def channels(self) -> tuple[ChannelConfig, ...]:
        """The channel config of every layer."""
        channel: Any = self.channel  # a dataclass: a protocol cannot say so
        return tuple(dataclasses.replace(channel, d_ff=width) for width in self.widths)


# What an embedding may need to know of a stream: fields that name its kind, and the kinds that need nothing.
# Each is an array of integers, one row an id, that `build` takes by the field's name and the model keeps as a buffer.
SIDES = {"order": "tokenizer", "ranking": "tokenizer", "spelling": "ids"}


def build(
    config: ModelConfig,
    *,
    order: Int32[np.ndarray | Array, " v"] | None = None,
    ranking: Int32[np.ndarray | Array, " v"] | None = None,
    spelling: Int32[np.ndarray | Array, "v p"] | None = None,
    key: PRNGKeyArray,
) -> LanguageModel:
    """The model that a config describes.

    **Arguments:**

    - `config`: sizes and kinds.
    - `order`, `ranking`, `spelling`: what the embedding needs of a stream, by the names of its own fields (`side_for`
      makes them): the coordinate order (an int32 permutation of the ids) where its `order` is "frequency" or
      "co-occurrence", the ranking of a hybrid, the pieces of every token.
    - `key`: for the initial values. Every leaf's own key depends on `key` and the leaf's path alone, so leaves with the
      same path and shape are the same draw in any two configs, times the scale that their module gives it. Between two
      configs of the same mixer they start equal; between mixers all do but `w_gate`, which gated attention starts at a
      std of 0.02 and Titans at 1 / sqrt(d_model), as their papers do, and what `residual_init="depth"` scales.

    **Raises:** `ValueError` for sizes that do not fit, an unreachable taper, and an order, a ranking or a spelling
    that is missing or none.
    """
    if not isinstance(config, ModelConfig):
        raise UserError(f"build of a {type(config).__name__}: give a ModelConfig, such as ModelConfig(d_model=64)")
    check_key(key)
    side = _side(config, {"order": order, "ranking": ranking, "spelling": spelling})
    embedding = config.embedding.build(config.vocab_size, config.d_model, key=subkey(key, "embedding"), **side)
    positions = None
    if config.positions == "learned":
        positions = LearnedPositions(config.context, config.d_model, key=subkey(key, "positions"))
    branches = (1 + config.channel.branches) * config.depth
    scale = branches**-0.5 if config.residual_init == "depth" else 1.0
    blocks = []
    for i, channel in enumerate(config.channels()):
        block_key = subkey(subkey(key, "blocks"), i)
        mixer = config.mixer.build(
            config.d_model,
            rotary=config.positions == "rotary",
            output_scale=scale,
            key=subkey(block_key, "mixer"),
        )
        mlp = channel.build(config.d_model, output_scale=scale, key=subkey(block_key, "channel"))
        norm: dict[str, Any] = {"norm": config.norm, "norm_eps": config.norm_eps}
        blocks.append(Block(mixer, mlp, d_model=config.d_model, **norm, placement=config.placement))
    return LanguageModel(
        embedding=embedding,
        positions=positions,
        blocks=tuple(blocks),
        norm=make_norm(config.norm, config.d_model, config.norm_eps),
        head=config.head.build(config.vocab_size, config.d_model, key=subkey(key, "head")),
        logit_scale=config.head.scale,
        lr_multipliers=config.lr_multipliers,
        bigrams=config.bigrams.build(config.d_model, key=subkey(key, "bigrams")),
    )


def _kinds(config: ModelConfig) -> dict[str, str]:
    """The kind of everything that the embedding needs to know besides ids, by the field that says so."""
    kinds = {name: getattr(config.embedding, name, nothing) for name, nothing in SIDES.items()}
    return {name: kind for name, kind in kinds.items() if kind != SIDES[name]}


def _side(config: ModelConfig, given: dict[str, Any]) -> dict[str, Any]:
    """Of what is given, that which the embedding needs."""
    embedding: Any = config.embedding
    side = {}
    for name, kind in _kinds(config).items():
        side[name] = random_order(config.vocab_size) if kind == "random" and given[name] is None else given[name]
        if side[name] is None:
            raise ValueError(
                f'embedding.{name}="{kind}" depends on a stream: give build(..., {name}=), which '
                "eqx_slm.model.side_for(config, stream) makes"
            )
        if name == "spelling":
            sizes = {"pieces": embedding.pieces, "longest": embedding.longest}
            checked = check_spelling(side[name], config.vocab_size, **sizes)
        else:
            checked = check_order(side[name], config.vocab_size)
        side[name] = checked.array if isinstance(checked, Fixed) else checked
    return side


def side_for(config: ModelConfig, stream: Any) -> dict[str, np.ndarray]:
    """What a config's embedding needs to know of a stream, as keyword arguments of `build`; often nothing.

    **Raises:** `UserError` where the stream cannot tell: it has no tokenizer, or one without the pieces asked for.
    """
    embedding: Any = config.embedding
    side = {}
    for name, kind in _kinds(config).items():
        if kind == "text":
            if stream.tokenizer is None:
                raise UserError(
                    f'embedding.{name}="text" needs a tokenizer: this stream was made from tokens; say "ids"'
                )
            tokens = stream.tokenizer.spell(embedding.pieces)
            side[name] = padded_spelling(tokens, config.vocab_size, embedding.longest)
        elif kind == "frequency":
            side[name] = frequency_order(np.pad(stream.token_counts(), (0, config.vocab_size - stream.vocab_size)))
        elif kind == "co-occurrence":
            side[name] = cooccurrence_order(stream.training_tokens(), config.vocab_size, k=embedding.coordinates)
    return side


def side_like(config: ModelConfig) -> dict[str, np.ndarray]:
    """Arrays of the shapes and types of `side_for`'s, for a model whose own come from a file."""
    embedding: Any = config.embedding
    order = np.arange(config.vocab_size, dtype=np.int32)
    kinds = _kinds(config)
    blank = {name: padded_spelling([], config.vocab_size, embedding.longest) for name in kinds if name == "spelling"}
    return {name: blank.get(name, order) for name in kinds}
