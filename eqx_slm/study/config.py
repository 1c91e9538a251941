"""A run as plain data: everything that decides its result, with presets; replayed from the JSON it wrote."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..build import ModelConfig
from ..choices import check_choices
from ..errors import UserError
from ..nn.attention import AttentionConfig
from ..nn.leviathan import LeviathanConfig
from ..nn.table import TableConfig
from ..train.optimizer import OptimizerConfig
from ..train.stack import Loop, Remat
from ..train.step import ComputeDtype
from .arms import Arm, Tuned, make_arm
from .codec import set_field


def check_settings(
    seeds: Sequence[int], steps: int, learning_rates: Sequence[float], margin: float, confidence: float
) -> None:
    """Raises `UserError` naming the first setting of a study that makes no sense."""
    # A range has none twice, and millions of seeds are too many to put into a set.
    if not seeds or (not isinstance(seeds, range) and len(set(seeds)) < len(seeds)):
        raise UserError(f"seeds={list(seeds)}: give at least one, and none twice")
    if steps < 1:
        raise UserError(f"steps={steps}: give at least one")
    if not learning_rates or not all(0 < rate < math.inf for rate in learning_rates):
        raise UserError(f"learning_rates (--lr)={list(learning_rates)}: give at least one, each positive and finite")
    if len(set(learning_rates)) < len(learning_rates):
        raise UserError(f"learning_rates (--lr)={list(learning_rates)}: one is given twice")
    if not 0 <= margin < math.inf:
        raise UserError(f"margin={margin}: it is a number of nats, at least 0")
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence}: it must be between 0 and 1")


def check_at_once(seeds_at_once: int) -> None:
    """Raises `UserError` for a number of seeds that cannot be trained at once."""
    if seeds_at_once < 1:
        raise UserError(f"seeds_at_once={seeds_at_once}: give at least 1")


@dataclass(frozen=True)
class StreamConfig:
    """Where tokens come from and how they are cut (see `eqx_slm.data.open_data`)."""

    data: str = "stdlib"
    data_root: str | None = None
    tokenizer: str = "bpe:8192"
    vocab_size: int | None = None
    pad_vocab_to: int = 1
    sequence_length: int = 128
    batch_size: int = 16
    eval_tokens: int = 16384


@dataclass(frozen=True)
class PairConfig:
    """One matched study. `model` is the base that arms change; its vocabulary is the stream's."""

    name: str = "quick"
    arms: tuple[str, ...] = ("dense", "leviathan-deep", "dense-tied-deep")
    settings: tuple[str, ...] = ()
    model: ModelConfig = ModelConfig()
    tuned: Tuned = Tuned()
    stream: StreamConfig = StreamConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    seeds: int = 3
    steps: int = 240
    learning_rates: tuple[float, ...] = (3e-3,)
    margin: float = 0.01
    confidence: float = 0.95
    pairing: Literal["full", "data-only"] = "full"
    compute_dtype: ComputeDtype = "float32"
    loop: Loop = "unrolled"
    remat: Remat = "none"
    seeds_at_once: int = 1
    evaluations: int = 12
    sample_tokens: int = 96

    def __post_init__(self):
        try:
            check_choices(self)
        except ValueError as error:
            raise UserError(str(error)) from None
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", self.name):
            raise UserError(f"name={self.name!r}: letters, digits and any of . + - _, it names a folder")
        if len(self.arms) < 1:
            raise UserError("no arms: name at least one, the first is the reference")
        if self.seeds < 1 or self.evaluations < 1:
            raise UserError(f"seeds={self.seeds}, evaluations={self.evaluations}: both must be at least 1")
        check_settings(range(self.seeds), self.steps, self.learning_rates, self.margin, self.confidence)
        check_at_once(self.seeds_at_once)

    @property
    def tokens(self) -> int:
        """Training tokens of one run."""
        return self.steps * self.stream.batch_size * self.stream.sequence_length

    def labels(self) -> tuple[str, ...]:
        """The arms' names, made distinct: a second "dense" is "dense-2"."""
        seen: dict[str, int] = {}
        labels = []
        for arm in self.arms:
            seen[arm] = seen.get(arm, 0) + 1
            labels.append(arm if seen[arm] == 1 else f"{arm}-{seen[arm]}")
        return tuple(labels)

    def resolve(self, vocab_size: int, padding: int = 0) -> dict[str, Arm]:
        """Every arm's config at a vocabulary, of which `padding` ids stand for nothing, by label.

        **Raises:** `UserError` for unknown arms and fields, and for sizes that do not fit.
        """
        try:
            base = dataclasses.replace(
                self.model, vocab_size=vocab_size, padding_ids=padding, context=self.stream.sequence_length
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        labels = self.labels()
        per_arm: dict[str, list[str]] = {label: [] for label in labels}
        for setting in self.settings:
            arm, field = split_setting(setting, labels)
            if arm == "all":
                path, _, text = field.partition("=")
                base = set_field(base, path, text)
            else:
                per_arm[arm].append(field)
        arms = {
            label: dataclasses.replace(make_arm(arm, base, self.tuned, tuple(per_arm[label])), name=label)
            for label, arm in zip(labels, self.arms, strict=True)
        }
        for label, arm in arms.items():
            if (arm.config.vocab_size, arm.config.context) != (vocab_size, self.stream.sequence_length):
                raise UserError(
                    f"arm {label}: vocab_size={arm.config.vocab_size}, context={arm.config.context}, but the data has "
                    f"{vocab_size} ids in sequences of {self.stream.sequence_length}: these are the same for all arms, "
                    "set them with --vocab-size and --sequence-length"
                )
        return arms


def split_setting(setting: str, labels: tuple[str, ...]) -> tuple[str, str]:
    """`arm.field=value` as (arm, "field=value"); "all" is the base model that every arm is made from."""
    match = re.fullmatch(r"([^.=]+)\.([^=]+=.*)", setting)
    if match is None:
        raise UserError(f"--set {setting!r}: write ARM.FIELD=VALUE, such as leviathan-deep.embedding.rank=32")
    if match[1] != "all" and match[1] not in labels:
        raise UserError(f"--set {setting!r}: no arm {match[1]!r} in this study; allowed: all, {', '.join(labels)}")
    return match[1], match[2]


# Small shapes with small generators: at published sizes (1.2M parameters and 512 D) one would outweigh the table it
# replaces. This one is sized so that one more layer brings Leviathan, and two the tied table, within 0.2% of dense.
# Initial scales and the learning rate are the best common choice of experiments/tune.py (coarse; experiments/LOG.md).
SMALL = Tuned(
    generator=LeviathanConfig(seed_size=48, n_heads=4, rank=16, output_std=0.15),
    compositional_std=0.3,
    low_rank_std=0.3,
)
QUICK = PairConfig(
    name="quick",
    model=ModelConfig(vocab_size=2048, d_model=64, mixer=AttentionConfig(n_heads=2), embedding=TableConfig(std=0.3)),
    tuned=SMALL,
    stream=StreamConfig(tokenizer="bpe:2048", batch_size=8, eval_tokens=8192),
    steps=240,
    evaluations=10,
    learning_rates=(1e-2,),
)
CPU = dataclasses.replace(
    QUICK,
    name="cpu",
    steps=5888,
    stream=dataclasses.replace(QUICK.stream, eval_tokens=32768),
    evaluations=20,
)


def preset(name: str) -> PairConfig:
    """A named starting point: "quick", "cpu", or a shape `d_model x depth` such as "256x6" for an accelerator.

    A shape takes the published recipe: o200k_base, SwiGLU of 4 d_model, heads of 64, sequences of 512 tokens in
    batches of 512, bfloat16 compute, the published generator (arXiv 2601.22040). The learning rate was not published;
    1e-3 is a guess until it is swept.

    **Raises:** `UserError` for another name.
    """
    if name in ("quick", "cpu"):
        return {"quick": QUICK, "cpu": CPU}[name]
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if match is None:
        raise UserError(f"unknown preset {name!r}; allowed: quick, cpu, or d_model x depth such as 256x6 or 768x12")
    d_model, depth = int(match[1]), int(match[2])
    try:
        mixer = AttentionConfig(n_heads=max(1, d_model // 64))
        model = ModelConfig(d_model=d_model, depth=depth, context=512, mixer=mixer)
    except ValueError as error:
        raise UserError(f"preset {name}, heads of about 64: {error}") from None
    return PairConfig(
        name=name,
        model=model,
        stream=StreamConfig(
            tokenizer="o200k_base", vocab_size=200_019, sequence_length=512, batch_size=512, eval_tokens=512 * 512
        ),
        steps=4096,
        learning_rates=(1e-3,),
        compute_dtype="bfloat16",
        evaluations=20,
    )
