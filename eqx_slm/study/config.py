"""A run as plain data: everything that decides its result, with presets; replayed from the JSON it wrote."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import INT32, check_number, meant, shown, whole
from ..configs import from_dict, read_json, set_field
from ..errors import UserError
from ..model import ModelConfig
from ..train.loop import RunConfig
from ..train.step import share_of
from .arms import Arm, Tuned, changed, make_arm
from .statistics import check_confidence, check_margin

if TYPE_CHECKING:
    from ..data import Stream


@dataclass(frozen=True)
class StreamConfig:
    """Where tokens come from and how they are cut (see `eqx_slm.data.open_data`)."""

    data: str = "stdlib"
    data_root: str | None = None
    text_field: str | None = None
    tokenizer: str = "bpe:8192"
    vocab_size: int | None = None
    pad_vocab_to: int = 1
    sequence_length: int = 128
    batch_size: int = 16
    eval_tokens: int = 16384
    train_tokens: int | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            option = f"--{name.replace('_', '-')}"
            if value is None and field.default is None:
                continue
            if not isinstance(field.default, str) and name not in ("data_root", "text_field"):
                whole(f"{name} ({option})", value, most=INT32)
            elif not isinstance(value, str) or not value.strip():
                what = "empty" if isinstance(value, str) else "no text"
                raise UserError(f"{name}={shown(value)}: it is {what}; leave {option} out or name something")
        if self.batch_size * (self.sequence_length + 1) >= 2**31:
            raise UserError(
                f"batch_size={self.batch_size}, sequence_length={self.sequence_length}: a batch has at most 2^31 tokens"
            )

    def open(self) -> "Stream":
        """The stream that this describes."""
        from ..data.open import open_data

        options = dataclasses.asdict(self)
        return open_data(options.pop("data"), options.pop("tokenizer"), **options)


@dataclass(frozen=True)
class WindowConfig(StreamConfig):
    """Windows at random places, judged by the token after each of the first `eval_tokens` windows of `eval_split`.

    `train_tokens`: only the first so many tokens are trained on (see `eqx_slm.data.windows`).
    """

    tokenizer: str = "char"
    batch_size: int = 64
    eval_tokens: int = 10_000
    eval_split: str = "test"
    train_tokens: int | None = None

    def open(self) -> "Stream":
        """The stream that this describes."""
        from ..data.windows import open_windows

        return open_windows(**dataclasses.asdict(self))


def run_of(config: RunConfig) -> RunConfig:
    """The fields of a run alone, of a `PairConfig` too."""
    return RunConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(RunConfig)})


def check_arms(arms: Any) -> None:
    """Raises `UserError` for arms that are no configs or functions by name."""
    if not isinstance(arms, Mapping):
        raise UserError(f"arms is a {type(arms).__name__}: give a dict, a ModelConfig by name, or a grid")
    for name, arm in arms.items():
        model = hasattr(arm, "batch_features") and not isinstance(arm, type)  # modules can be called too
        if model or (not callable(arm) and not isinstance(arm, ModelConfig)):
            raise UserError(
                f"arm {name!r} is a {type(arm).__name__}: give a ModelConfig, or a function from a key to a model; "
                "arms that have names are named_arms((...), preset(...).tuned)"
            )


def several(**given: Any) -> None:
    """Raises `UserError` for what is to be a sequence and is one of its items alone."""
    for name, value in given.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name}={shown(value)}: give a tuple, of one too: ({shown(value)},)")


def check_design(name: str, arms: Any, seeds: int | Sequence[int], rates: Sequence[float], seeds_at_once: int) -> None:
    """Raises `UserError` for a name, arms, seeds (how many, or which) and learning rates that make no study."""
    name = name[:120] if isinstance(name, str) else ""
    if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name) or len(name.encode()) > 100:
        raise UserError(f"name={name!r}: letters, digits and any of . + - _, at most 100; it names a folder")
    if not arms:
        raise UserError("no arms: give at least one, the first is the reference")
    if not isinstance(seeds, Sequence):
        seeds = range(whole("seeds", seeds, most=10_000))
    if not seeds or len(seeds) > 10_000:
        raise UserError(f"seeds={len(seeds)}: give at least one, at most 10,000")
    for seed in seeds:
        whole("a seed", seed, least=0, most=2**32 - 1)
    if not rates:
        raise UserError("learning_rates (--lr): give at least one, each positive and finite")
    for rate in rates:
        # In float32, which the step computes in: 1e-50 would train nothing.
        check_number("learning_rates (--lr)", rate, "positive and finite, also in float32", _is_rate)
    for what, values in (("seeds", seeds), ("learning_rates (--lr)", rates)):
        if len(set(values)) < len(values):
            raise UserError(f"{what}={list(values)}: one is given twice")
    if seeds_at_once > len(seeds):
        raise UserError(f"seeds_at_once (--seeds-at-once)={seeds_at_once}: of seeds there are only {len(seeds)}")


def check_until(seeds: int | Sequence[int], until: int | None) -> None:
    """Raises `UserError` for a most number of seeds (None: they do not grow) that does not fit those to begin with."""
    if until is None:
        return
    whole("until (--max-seeds)", until, least=2, most=10_000)
    count = len(seeds) if isinstance(seeds, Sequence) else seeds
    if isinstance(seeds, Sequence) and list(seeds) != list(range(count)):
        raise UserError("until (--max-seeds): seeds that are added are numbered on, give how many to begin with")
    if until < count:
        raise UserError(f"until (--max-seeds)={until}: it must be at least the {count} seeds to begin with (--seeds)")


def _is_rate(rate: float) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        return bool(0 < np.float32(rate) < np.inf)


@dataclass(frozen=True)
class PairConfig(RunConfig):
    """One matched study. `model` is the base that arms change; its vocabulary is the stream's."""

    name: str = "pair"
    arms: tuple[str, ...] = ("dense", "leviathan-deep", "dense-tied-deep")
    settings: tuple[str, ...] = ()
    model: ModelConfig = ModelConfig()
    tuned: Tuned = Tuned()
    stream: StreamConfig = StreamConfig()
    seeds: int = 5
    steps: int = 240
    learning_rates: tuple[float, ...] = (3e-3,)
    margin: float = 0.01
    confidence: float = 0.95
    sample_tokens: int = 96
    until: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_design(self.name, self.arms, self.seeds, self.learning_rates, self.seeds_at_once)
        check_margin(self.margin)
        check_confidence(self.confidence)
        check_until(self.seeds, self.until)
        share_of(self.stream.batch_size, self.accumulate)

    @property
    def tokens(self) -> int:
        """Training tokens of one run."""
        return self.steps * self.stream.batch_size * self.stream.sequence_length

    def labels(self) -> tuple[str, ...]:
        """The arms' names, made distinct: a second "dense" is "dense-2", and "mine=dense" is "mine"."""
        labels: list[str] = []
        for i, arm in enumerate(self.arms):
            before = self.arms[:i].count(arm)
            labels.append(f"{arm}-{before + 1}" if before else arm.partition("=")[0])
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise UserError(f"two arms are called {twice[0]!r}: give one of them another name")
        return tuple(labels)

    @property
    def recipes(self) -> tuple[str, ...]:
        """The named arm that each arm is made from."""
        return tuple(arm.partition("=")[2] or arm for arm in self.arms)

    def resolve(self, vocab_size: int, padding: int = 0) -> dict[str, Arm]:
        """Every arm's config at a vocabulary, of which `padding` ids stand for nothing, by label.

        **Raises:** `UserError` for unknown arms and fields, for sizes that do not fit, and for a setting that would
        change nothing.
        """
        labels = self.labels()
        try:
            base = dataclasses.replace(
                self.model, vocab_size=vocab_size, padding_ids=padding, context=self.stream.sequence_length
            )
        except ValueError as error:
            raise UserError(str(error)) from None
        fields: dict[str, list[str]] = {"all": [], **{label: [] for label in labels}}
        for arm, field in (split_setting(setting, labels) for setting in self.settings):
            if again := [each for each in fields[arm] if each.partition("=")[0] == field.partition("=")[0]]:
                raise UserError(f"--set {arm}.{again[0]} has no effect: {arm}.{field} comes after it; give one")
            fields[arm].append(field)
        for field in fields["all"]:
            base = _base_with(base, field, dict(zip(labels, self.recipes, strict=True)), self.tuned)
        arms = {}
        for label, name in zip(labels, self.recipes, strict=True):
            arm = make_arm(name, base, self.tuned, tuple(fields[label]))
            config, size = arm.config, self.stream.sequence_length
            if (config.vocab_size, config.context) != (vocab_size, size):
                raise UserError(
                    f"arm {label}: vocab_size={config.vocab_size}, context={config.context}, but the data has "
                    f"{vocab_size} ids in sequences of {size}: these are the same for all arms, "
                    "set them with --vocab-size and --sequence-length"
                )
            tapers = [each for each in (*fields["all"], *fields[label]) if each.startswith("taper.")]
            if tapers and config.taper.schedule == "uniform" and not tapers[0].startswith("taper.schedule="):
                raise UserError(
                    f"--set {label}.{tapers[0]} has no effect: {label}.taper.schedule is uniform, set it too"
                )
            arms[label] = dataclasses.replace(arm, name=label)
        return arms


def split_setting(setting: str, labels: tuple[str, ...]) -> tuple[str, str]:
    """`arm.field=value` as (arm, "field=value"); "all" is the base model that every arm is made from."""
    match = re.fullmatch(r"([^.=]+)\.([^=]+=.*)", setting)
    if match is None:
        raise UserError(f"--set {setting!r}: write ARM.FIELD=VALUE, such as leviathan-deep.embedding.rank=32")
    if match[1] != "all" and match[1] not in labels:
        near = meant(match[1], ("all", *labels))
        allowed = f"all, {', '.join(labels)}{near}"
        raise UserError(f"--set {setting!r}: no arm {match[1]!r} in this study; allowed: {allowed}")
    return match[1], match[2]


def replaced_settings(settings: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    """Settings with new ones added, each in the place of an earlier one of the same field."""
    fields = {setting.partition("=")[0] for setting in new}
    return (*(setting for setting in settings if setting.partition("=")[0] not in fields), *new)


def _base_with(base: ModelConfig, field: str, arms: Mapping[str, str], tuned: Tuned) -> ModelConfig:
    """The base with a field set; `UserError` where an arm puts something of its own in that field's place."""
    path, _, text = field.partition("=")
    new = set_field(base, path, text)
    for label, name in arms.items() if new != base else ():
        arm = changed(name, new, tuned)  # without its match, which may come out alike by chance
        try:
            reached = set_field(arm, path, text) == arm
        except UserError:  # the arm's own part has no such field
            reached = False
        if not reached:
            raise UserError(
                f"--set all.{field} does not reach the arm {label}, which sets its own {path.partition('.')[0]}: set "
                f"the field by arm, such as {label}.{field}"
            )
    return new


def read_config(path: Path) -> PairConfig:
    """The config of a file that a run wrote; `UserError` where it cannot be one."""
    data = read_json(path)
    if isinstance(data, dict):
        for names, told in (({"comparisons"}, "a study's result"), ({"d_model", "mixer"}, "a model's config")):
            if names <= data.keys():
                raise UserError(f"{path} is {told}, not a study's config: give the config.json of the run's folder")
        if not {"name", "arms", "model", "stream", "steps"} <= data.keys():
            raise UserError(f"{path} is no config of a study: give a config.json that a run wrote (name, arms, ...)")
    try:
        return from_dict(PairConfig, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
