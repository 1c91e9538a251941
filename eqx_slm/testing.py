"""Hypothesis strategies for budget tests: vocabulary sizes, width schedules, whole model configs.

Everything drawn is valid: it can be counted, and built. Sizes shrink towards the smallest. For example, that a budget
of one's own is never exceeded:

    from hypothesis import given
    from eqx_slm import count_parameters
    from eqx_slm.testing import model_configs

    @given(model_configs(max_depth=8))
    def test_budget(config):
        assert count_parameters(my_budget(config)) <= count_parameters(config)
"""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from .model import EmbeddingConfigs, ModelConfig, TaperConfig
from .nn.attention import AttentionConfig, QKNorm
from .nn.bigrams import BigramConfig
from .nn.binary import BinaryConfig, id_bits
from .nn.block import MixerConfig
from .nn.composed import ComposedConfig
from .nn.compositional import CompositionalConfig
from .nn.continuum import ContinuumConfig, Form
from .nn.gated import Gate, GatedAttentionConfig
from .nn.head import HeadConfig
from .nn.hybrid import HybridConfig
from .nn.leviathan import LeviathanConfig
from .nn.low_rank import LowRankConfig
from .nn.mlp import Activation, MLPConfig
from .nn.norm import NormKind
from .nn.spelled import Code, SpelledConfig
from .nn.spelling import digits_needed
from .nn.table import TableConfig
from .nn.titans import TitansConfig, TitansMACConfig, TitansMAGConfig
from .nn.titans.rule import Read
from .taper import SYMMETRIC, Schedule

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError("eqx_slm.testing needs hypothesis: pip install 'eqx_slm[test]'") from error

Draw = Callable[..., Any]  # hypothesis' own DrawFn is a protocol that cannot be checked at run time
EmbeddingKind = Literal[
    "table", "low-rank", "compositional", "leviathan", "binary", "spelled", "composed", "hybrid"
]  # fmt: skip
EMBEDDING_KINDS: tuple[EmbeddingKind, ...] = get_args(EmbeddingKind)
MixerKind = Literal["attention", "gated-attention", "titans", "titans-mag", "titans-mac"]
MIXER_KINDS: tuple[MixerKind, ...] = get_args(MixerKind)
HYBRIDS: tuple[MixerKind, ...] = ("titans-mag", "titans-mac")


@dataclasses.dataclass(frozen=True)
class WidthSchedule:
    """MLP widths over `depth` layers whose mean is `width`."""

    taper: TaperConfig
    depth: int
    width: int

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of every layer."""
        return self.taper.widths(self.depth, self.width)


def vocab_sizes(max_value: int = 1_000_000, *, min_value: int = 1) -> st.SearchStrategy[int]:
    """Vocabulary sizes, with weight on those where integer arithmetic goes wrong.

    Any size, perfect powers (where a floating-point root is off by one) and their neighbours, primes, powers of two.

    **Arguments:**

    - `max_value`, `min_value`: the bounds, both included.

    **Returns:** a strategy of integers.
    """
    powers = {base**k for k in (2, 3, 4, 5) for base in range(2, math.isqrt(max_value) + 1) if base**k <= max_value}
    near = {power + off for power in powers for off in (-1, 0, 1)}
    primes = {2, 3, 5, 7, 13, 97, 257, 1009, 8191, 65_537, 200_017, 999_983}
    special = sorted(n for n in near | primes if min_value <= n <= max_value)
    anything = st.integers(min_value, max_value)
    return anything if not special else st.one_of(anything, st.sampled_from(special))


def width_schedules(*, max_depth: int = 64, max_width: int = 4096) -> st.SearchStrategy[WidthSchedule]:
    """Tapers with a depth and mean width that they can reach exactly: falling, rising and flat, at odd multiples too.

    **Arguments:**

    - `max_depth`, `max_width`: bounds of the depth and of the mean width, in hidden units.

    **Returns:** a strategy of `WidthSchedule`.
    """
    return _width_schedules(max_depth, max_width)


def model_configs(
    *,
    min_vocab_size: int = 1,
    max_vocab_size: int = 1_000_000,
    max_d_model: int = 256,
    max_depth: int = 64,
    max_width: int = 1024,
    max_context: int = 128,
    embeddings: Sequence[EmbeddingKind] = EMBEDDING_KINDS,
    mixers: Sequence[MixerKind] = MIXER_KINDS,
) -> st.SearchStrategy[ModelConfig]:
    """Whole configs: every embedding with every legal head, every mixer and channel, odd sizes, grouped heads, tapers,
    norms, biases, positions.

    Coordinate orders are "tokenizer" or "random", rankings the tokenizer's and spellings those of the ids, because all
    others need a corpus.

    **Arguments:**

    - `min_vocab_size`, `max_vocab_size`, `max_d_model`, `max_depth`, `max_context`: bounds, included.
    - `max_width`: bound of the mean MLP width, where the config sets one and does not leave it at 4 d_model.
    - `embeddings`, `mixers`: the kinds of token embedding and of mixer to draw from.

    **Returns:** a strategy of `ModelConfig`.
    """
    vocabularies = vocab_sizes(max_vocab_size, min_value=min_vocab_size)
    if max_d_model < 2:  # heads of a hybrid have an even width
        mixers = [kind for kind in mixers if kind not in HYBRIDS]
    parts = st.sampled_from(embeddings), st.sampled_from(mixers)
    return _model_configs(vocabularies, max_d_model, max_depth, max_width, max_context, *parts)


@st.composite
def _width_schedules(draw: Draw, max_depth: int, max_width: int) -> WidthSchedule:
    # Reachable by construction, not by trial: trials would be thrown away, and `taper_widths` under a run-time type
    # checker uses `random`, which a strategy must not.
    depth = draw(st.integers(1, max_depth))
    schedule: Schedule = draw(st.sampled_from(get_args(Schedule)))
    if schedule == "uniform":
        return WidthSchedule(TaperConfig(), depth, draw(st.integers(1, max_width)))
    multiple = draw(st.sampled_from([m for m in (1, 2, 3, 7, 16, 24, 64) if m <= max_width]))
    units = draw(st.integers(1, max_width // multiple))
    if schedule in SYMMETRIC:
        # The widest layers, one or two, are `first`, and each of the others has a unit or more, in pairs.
        times = 1 if depth == 1 or (schedule == "crown" and depth % 2) else 2
        first = draw(st.integers(units, (depth * units - (depth - times)) // times))
        first -= (first - units) % 2 if schedule == "crown" and depth % 2 else 0
        return WidthSchedule(TaperConfig(schedule, first / units, None, multiple), depth, multiple * units)
    # The first width, or that of a step's group, in units of `multiple`. A curve from `first` to `2 units - first` has
    # its mean at `units`; a step leaves one unit or more to each of the other layers.
    group = math.ceil(depth / 3)
    most = (depth * units - (depth - group)) // group if schedule.startswith("step") else 2 * units - 1
    start = draw(st.integers(1, most)) / units
    end = None if schedule.startswith("step") else 2 - start
    return WidthSchedule(TaperConfig(schedule, start, end, multiple), depth, multiple * units)


@st.composite
def _embeddings(draw: Draw, kind: EmbeddingKind, vocab_size: int, d_model: int) -> EmbeddingConfigs:
    if kind == "table":
        return TableConfig()
    if kind == "low-rank":
        return LowRankConfig(rank=draw(st.integers(1, 16)))
    if kind == "binary":
        return BinaryConfig(
            map=draw(st.sampled_from(["linear", "none"] if d_model >= id_bits(vocab_size) else ["linear"]))
        )
    if kind == "spelled":
        longest = digits_needed(vocab_size, 256) + draw(st.integers(0, 2))
        code: Code = draw(st.sampled_from(get_args(Code)))
        return SpelledConfig(code=code, size=2 * draw(st.integers(1, 8)), longest=longest, spelling="ids")
    if kind == "composed":
        pieces = draw(st.integers(2, 40))
        longest = digits_needed(vocab_size, pieces) + draw(st.integers(0, 2))
        return ComposedConfig(pieces=pieces, longest=longest, spelling="ids")
    if kind == "hybrid":
        rows = draw(st.one_of(st.integers(0, vocab_size), st.sampled_from([0, vocab_size])))
        return HybridConfig(rows=rows, ranking="tokenizer", generator=draw(_generators()))
    coordinates, order = draw(st.integers(1, 4)), draw(st.sampled_from(["tokenizer", "random"]))
    if kind == "compositional":
        return CompositionalConfig(coordinates=coordinates, order=order)
    return draw(_generators())


@st.composite
def _generators(draw: Draw) -> LeviathanConfig:
    return LeviathanConfig(
        coordinates=draw(st.integers(1, 4)),
        seed_size=draw(st.integers(1, 12)),
        n_heads=draw(st.integers(1, 3)),
        knots=draw(st.integers(3, 8)),
        rank=draw(st.integers(1, 6)),
        skip=draw(st.sampled_from(["none", "linear"])),
        order=draw(st.sampled_from(["tokenizer", "random"])),
    )


@st.composite
def _mixers(
    draw: Draw, kind: MixerKind, max_d_model: int, max_context: int, bias: Literal["none", "all"]
) -> tuple[int, MixerConfig]:
    """A model width and a mixer that fits it."""
    unit = 2 if kind in HYBRIDS else 1  # of a head's width
    n_kv = draw(st.integers(1, min(4, max_d_model // unit)))
    n_heads = n_kv * draw(st.integers(1, min(4, max_d_model // (unit * n_kv))))
    d_head = unit * draw(st.integers(1, max_d_model // (unit * n_heads)))
    if kind not in ("attention", "gated-attention"):
        memory = TitansConfig(
            n_heads=n_heads,
            memory_depth=draw(st.integers(1, 3)),
            expansion=draw(st.integers(1, 4)),
            memory_norm=draw(st.sampled_from(["layer", "none"])),
            memory_residual=draw(st.sampled_from(["identity", "none"])),
            chunk=draw(st.integers(1, 2 * max_context)),
            chunk_train=draw(st.one_of(st.none(), st.integers(1, max_context))),
            read=draw(st.sampled_from(get_args(Read))),
            persistent=draw(st.integers(0, 3)),
        )
        if kind == "titans":
            return n_heads * d_head, memory
        if kind == "titans-mac":
            return n_heads * d_head, TitansMACConfig(memory=memory)
        return n_heads * d_head, TitansMAGConfig(memory=memory, window=draw(st.integers(1, max_context)))
    own_width = draw(st.booleans())  # the head width is given, and d_model need not be a multiple of anything
    d_model = draw(st.integers(1, max_d_model)) if own_width else n_heads * d_head
    fraction = draw(st.sampled_from([1.0, 0.5, 0.25, 0.0]))
    heads: dict[str, Any] = dict(
        n_heads=n_heads,
        n_kv_heads=draw(st.sampled_from([n_kv, None])),
        d_head=d_head if own_width else None,
        rotary_fraction=0.0 if fraction == 1 and d_head % 2 else fraction,
        qk_norm=draw(st.sampled_from(get_args(QKNorm))),
        bias=bias,
        window=draw(st.one_of(st.none(), st.integers(1, max_context))),
    )
    if kind == "attention":
        return d_model, AttentionConfig(**heads)
    return d_model, GatedAttentionConfig(gate=draw(st.sampled_from(get_args(Gate))), **heads)


@st.composite
def _model_configs(
    draw: Draw,
    vocabularies: st.SearchStrategy[int],
    max_d_model: int,
    max_depth: int,
    max_width: int,
    max_context: int,
    embeddings: st.SearchStrategy[EmbeddingKind],
    mixers: st.SearchStrategy[MixerKind],
) -> ModelConfig:
    layers = draw(_width_schedules(max_depth, max_width))
    bias: Literal["none", "all"] = draw(st.sampled_from(["none", "all"]))
    d_model, mixer = draw(mixers.flatmap(lambda kind: _mixers(kind, max_d_model, max_context, bias)))
    at_default = layers.taper.schedule == "uniform" and draw(st.booleans())
    mlp: dict[str, Any] = dict(
        d_ff=None if at_default else layers.width, activation=draw(st.sampled_from(get_args(Activation))), bias=bias
    )
    channel = MLPConfig(**mlp)
    if draw(st.booleans()):
        narrowest = layers.width if layers.taper.schedule == "uniform" else layers.taper.multiple
        periods = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=min(3, narrowest))))
        form: Form = draw(st.sampled_from(get_args(Form)))
        state = random.getstate()  # a run-time type checker looks at a random item, which a strategy must not
        channel = ContinuumConfig(periods=periods, form=form, multiple=1, **mlp)
        random.setstate(state)
    vocab_size = draw(vocabularies)
    embedding = draw(embeddings.flatmap(lambda kind: _embeddings(kind, vocab_size, d_model)))
    bigrams = BigramConfig(draw(st.integers(0, 20)), rank=draw(st.none() | st.integers(1, 8)))
    own = "tied" if embedding.tieable else "generated"
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        depth=layers.depth,
        context=draw(st.integers(1, max_context)),
        embedding=embedding,
        head=HeadConfig(draw(st.sampled_from(["untied", own, "low-rank"])), rank=draw(st.integers(1, 16))),
        positions=draw(st.sampled_from(["rotary", "learned", "none"])),
        mixer=mixer,
        channel=channel,
        taper=layers.taper,
        norm=draw(st.sampled_from(get_args(NormKind))),
        placement=draw(st.sampled_from(["pre", "post"])),
        residual_init=draw(st.sampled_from(["constant", "depth"])),
        bigrams=bigrams,
    )
