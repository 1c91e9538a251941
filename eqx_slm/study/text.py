"""A finished run opened: its model, config and tokenizer, and the text that follows a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checks import whole
from ..errors import UserError

if TYPE_CHECKING:  # --help is answered without loading jax
    from ..data.tokenizer import Tokenizer
    from ..model import ModelConfig

VOCABULARY = "vocabulary.json"  # in a run folder, as in a folder of prepared data
COUNTS = "counts.json"  # how often each id occurs in the training text


@dataclass(frozen=True)
class OpenRun:
    """A trained model with its config and the tokenizer of its run: `encode` and `decode` are the tokenizer's.

    `counts`: how often each id occurs in the text it was trained on, int64[v]; None where the run does not know.
    """

    model: Any
    config: ModelConfig
    tokenizer: Tokenizer
    counts: Any = None

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

        stops, key = _stops(stop), jax.random.key(whole("seed (--sample)", seed, least=0, most=2**32 - 1))
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
    return OpenRun(model, config, load_tokenizer(above / VOCABULARY), _counts(above / COUNTS))


def _counts(file: Path) -> Any:
    """The counts of a run folder; None where it has none."""
    import numpy as np

    from ..configs import read_json
    from ..files import unsealed

    if not file.exists():
        return None
    try:
        return np.asarray(unsealed(read_json(file), file)["counts"], np.int64)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{file} is damaged: remove it, and losses are not split by frequency") from None
