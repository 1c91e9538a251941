"""A finished run put to use: text from a prompt, and the loss on any text (`eqx-slm generate`, `eqx-slm eval`)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tyro.conf import Positional

from ..commandline import command
from ..errors import UserError

if TYPE_CHECKING:  # --help is answered without loading jax
    from ..data.tokenizer import Tokenizer
    from ..model import ModelConfig

VOCABULARY = "vocabulary.json"  # in a run folder, as in a folder of prepared data


@dataclass(frozen=True)
class OpenRun:
    """A trained model with its config and the tokenizer of its run: `encode` and `decode` are the tokenizer's."""

    model: Any
    config: ModelConfig
    tokenizer: Tokenizer

    def encode(self, text: str) -> Any:
        """The ids of a text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Any) -> str:
        """The text of ids, a list or an array."""
        import numpy as np

        return self.tokenizer.decode(np.asarray(ids))

    def generate(
        self, prompt: str | Sequence[Any], *, tokens: int, seed: int = 0, stop: str | Sequence[str] = (), **how: Any
    ) -> Any:
        """What follows a prompt, or each of several (each a text, or its ids).

        **Arguments:**

        - `tokens`: how many at most.
        - `stop`: strings; the text ends before the first of them, wherever token boundaries are. A special token is
          written as it stands in the vocabulary, such as `"<|endoftext|>"`.
        - `how`: `temperature`, `top_k`, ... of `eqx_slm.generate`.

        **Returns:** the text after the prompt; of a list of prompts, a list.

        **Raises:** `UserError` for a prompt without tokens, an empty string in `stop`, and as `eqx_slm.generate`.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        found = list(self._texts(prompts, tokens, seed, stop, isinstance(prompt, str), how))
        texts = found[-1] if found else [""] * len(prompts)
        return texts[0] if isinstance(prompt, str) else texts

    def stream(
        self, prompt: str, *, tokens: int, seed: int = 0, stop: str | Sequence[str] = (), **how: Any
    ) -> Iterator[str]:
        """The same text as `generate` gives, in pieces as they are drawn; a character is never cut."""
        shown, text = "", ""
        for (text,) in self._texts([prompt], tokens, seed, stop, True, how):
            # What more tokens may still change: half a character, white space before a line, the begin of a stop.
            sure = text.rstrip("\ufffd \n\t")
            sure = sure[: len(sure) - max((len(each) - 1 for each in _stops(stop)), default=0)]
            if len(sure) > len(shown) and sure.startswith(shown):
                yield sure[len(shown) :]
                shown = sure
        if text != shown:
            yield text[len(shown) :]

    def _texts(
        self, prompts: list[Any], tokens: int, seed: int, stop: str | Sequence[str], single: bool, how: dict[str, Any]
    ) -> Iterator[list[str]]:
        """The texts so far, cut at what stops them, a few tokens longer each time."""
        import jax
        import numpy as np

        from ..infer.generate import Continuation

        stops, key = _stops(stop), jax.random.key(seed)
        rows = [self.encode(each) if isinstance(each, str) else each for each in prompts]
        if any(len(ids) == 0 for ids in rows):
            raise UserError("the prompt has no tokens: give at least one character that the tokenizer knows")
        keys = [key] if single else [jax.random.fold_in(key, i) for i in range(len(rows))]
        how = {"vocab_size": self.tokenizer.vocab_size, **how}
        drawing = Continuation(self.model, rows, keys, tokens=tokens, context=self.config.context, **how)
        drawn, texts = np.zeros((len(rows), 0), np.int32), [""] * len(rows)
        done = [False] * len(rows)
        while drawing.left and not all(done):
            drawn = np.concatenate([drawn, np.asarray(drawing.draw(PIECE))], axis=1)
            for i in range(len(rows)):
                if not done[i]:
                    texts[i], done[i] = _cut(self.decode(drawn[i]), stops)
            yield list(texts)


PIECE = 8  # tokens drawn between two looks at the text


def _stops(stop: str | Sequence[str]) -> list[str]:
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(each, str) and each for each in stops):
        raise UserError(f"stop={stop!r}: give strings that are not empty")
    return stops


def _cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the first of the strings, and whether one is there."""
    places = [place for each in stops if (place := text.find(each)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


@dataclass(frozen=True)
class TextLoss:
    """The loss on a text: `nll` in nats a token over `tokens` targets; `bits_per_byte` where no byte is lost."""

    nll: float
    tokens: int
    bits_per_byte: float | None

    @property
    def perplexity(self) -> float:
        """e to the loss."""
        return math.exp(self.nll)


def open_run(
    path: str | Path, *, arm: str | None = None, seed: int | None = None, rate: float | None = None
) -> OpenRun:
    """A run's model, config and tokenizer; which one, and what is refused, as `load_run` says.

    **Raises:** `UserError` also where the folder holds no tokenizer (a study of tokens, or of an earlier version).
    """
    from ..configs import from_dict, read_json
    from ..data.vocabulary import load_tokenizer
    from ..model import ModelConfig
    from .folder import load_model_of, model_folder

    folder = Path(path)
    at = model_folder(folder, arm=arm, seed=seed, rate=rate)
    model = load_model_of(folder, at)
    config = from_dict(ModelConfig, read_json(at / "model.json"))
    above = next((each for each in (folder, *at.parents) if (each / VOCABULARY).exists()), None)
    if above is None:
        raise UserError(f"{folder} holds no tokenizer ({VOCABULARY}): run its study again, or use `load_run`")
    return OpenRun(model, config, load_tokenizer(above / VOCABULARY))


def text_loss(run: OpenRun, text: str, *, stride: int | None = None) -> TextLoss:
    """The loss of a run's model on a text.

    Every token but the first is a target once. Windows of the model's context begin every `stride` tokens and count
    their last `stride` targets, the first one all of its own: so a target has at least context - stride tokens before
    it. None is the context, windows that do not overlap, as training evaluates; smaller ones cost more and give less.

    **Raises:** `UserError` for a text of fewer than two tokens, and a stride above the context or below 1.
    """
    import numpy as np

    stride = _checked(run, stride)
    ids = np.asarray(run.encode(text), np.int32)
    if len(ids) < 2:
        raise UserError(f"the text has {len(ids)} tokens: at least two are needed, of which the first is only read")
    nats = ids_losses(run, ids, stride=stride)
    lengths = run.tokenizer.byte_lengths
    size = None if lengths is None else int(lengths[ids[1:]].sum())
    bits = float(nats.sum()) / math.log(2) / size if size else None
    return TextLoss(float(nats.mean()), len(nats), bits)


def ids_losses(run: OpenRun, ids: Any, *, stride: int | None = None) -> Any:
    """The loss of every id but the first, float64[t - 1] in nats, in the windows of `text_loss`."""
    import numpy as np

    context, stride = run.config.context, _checked(run, stride)
    starts = [0]
    while starts[-1] + context + 1 < len(ids):
        starts.append(starts[-1] + stride)
    losses = []
    for first in range(0, len(starts), 8):
        rows, masks = np.zeros((8, context + 1), np.int32), np.zeros((8, context), bool)
        for row, start in enumerate(starts[first : first + 8]):
            own = ids[start : start + context + 1]
            rows[row, : len(own)] = own
            masks[row, (context - stride if start else 0) : len(own) - 1] = True
        losses.append(np.asarray(_losses()(run.model, rows), np.float64)[masks])
    return np.concatenate(losses)


def _checked(run: OpenRun, stride: int | None) -> int:
    from ..checks import whole

    return whole("stride", run.config.context if stride is None else stride, most=run.config.context)


@functools.cache
def _losses() -> Any:
    """The compiled losses of windows: one function, so that only another model or shape compiles again."""
    import equinox as eqx

    from ..train.loss import token_losses

    @eqx.filter_jit
    def losses(model: Any, rows: Any) -> Any:
        return token_losses(model.batch_features(rows[:, :-1]), model.read_out(), rows[:, 1:])

    return losses


@dataclass(frozen=True)
class Which:
    """Which model of a run folder."""

    run: Positional[Path]
    """The run folder of a finished study, or a folder in it that holds one model."""
    arm: str | None = field(default=None, kw_only=True)
    """The arm; the first one without it."""
    seed: int | None = field(default=None, kw_only=True)
    """The seed; 0 without it."""
    rate: float | None = field(default=None, kw_only=True)
    """The learning rate; the one that the study chose without it."""


@dataclass(frozen=True)
class Generate(Which):
    """Continue a prompt with a trained model."""

    examples: ClassVar = (
        'eqx-slm generate runs/quick-1 "def read(" --tokens 64',
        'eqx-slm generate runs/quick-1 "import " --arm leviathan-deep --temperature 0.7 --top-p 0.9',
        'eqx-slm generate runs/quick-1 "def f(x):" --temperature 0 --stop "\\ndef" "\\nclass"',
    )

    prompt: Positional[str] = "\n"
    """What to continue."""
    tokens: int = 128
    """How many tokens."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Only the most likely tokens whose probabilities reach p."""
    min_p: float = 0.0
    """Only tokens at least so many times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens less likely that were there before."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these; write a line feed as \\n."""
    sample: int = 0
    """Another number, another text."""


@dataclass(frozen=True)
class Evaluate(Which):
    """The loss of a trained model on a text file: nats a token, perplexity, bits a byte."""

    examples: ClassVar = (
        "eqx-slm eval runs/quick-1 book.txt",
        "eqx-slm eval runs/quick-1 book.txt --arm dense --stride 32",
    )

    file: Positional[Path]
    """A text file in UTF-8."""
    stride: int | None = None
    """Windows begin every so many tokens; the model's context, so that none overlap, without it."""


def generate_main(arguments: Sequence[str] | None = None) -> int:
    """`generate`; returns the exit code."""

    def run(o: Generate) -> None:
        found = open_run(o.run, arm=o.arm, seed=o.seed, rate=o.rate)
        names = ("tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        how = {name: getattr(o, name) for name in names}
        stop = [each.replace("\\n", "\n").replace("\\t", "\t") for each in o.stop]
        pieces = found.stream(o.prompt, seed=o.sample, stop=stop, **how)
        first = next(pieces, "")  # what cannot be is refused before anything is printed
        for piece in itertools.chain((o.prompt, first), pieces):
            print(_shown(piece), end="", flush=True)
        print()

    return command(Generate, arguments, "eqx-slm generate", run)


def evaluate_main(arguments: Sequence[str] | None = None) -> int:
    """`eval`; returns the exit code."""

    def run(o: Evaluate) -> None:
        try:
            text = o.file.read_bytes().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {o.file} as text: {getattr(error, 'strerror', None) or error}") from None
        found = text_loss(open_run(o.run, arm=o.arm, seed=o.seed, rate=o.rate), text, stride=o.stride)
        bits = "" if found.bits_per_byte is None else f", {found.bits_per_byte:.4f} bits a byte"
        print(f"{found.nll:.4f} nats a token over {found.tokens:,} tokens, perplexity {found.perplexity:.2f}{bits}")

    return command(Evaluate, arguments, "eqx-slm eval", run)


def _shown(text: str) -> str:
    from ..visible import visible

    return visible(text, keep="\n\t")
