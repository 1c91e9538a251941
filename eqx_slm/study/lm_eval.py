"""A finished run as a model of lm-evaluation-harness (arXiv 2405.14782), which needs the extra `lm-eval`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import whole
from ..errors import UserError

if TYPE_CHECKING:
    from .text import OpenRun

ANSWER = 256  # tokens of an answer whose task does not say how many, the harness' own default


def harness_model(run: OpenRun, *, batch_size: int = 8) -> Any:
    """What `lm_eval.simple_evaluate(model=..., tasks=[...])` takes.

    A context that does not fit loses its oldest tokens. Before a text stands the end of a text where the tokenizer has
    one, else a line feed or the first id, so that the first token is scored too. Ids that only pad the vocabulary are
    never an answer.

    **Arguments:** `run`, of `open_run`; `batch_size`, how many sequences are scored, or continued, at once.

    **Raises:** `UserError` where lm-eval is not installed.
    """
    whole("batch_size", batch_size)
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    except ImportError as error:
        raise UserError(f"lm-eval is not installed ({error}): pip install 'eqx_slm[lm-eval]'") from None

    context = run.config.context

    class HarnessModel(TemplateLM):
        """Scores and answers by one `OpenRun`."""

        @property
        def eot_token_id(self) -> int:
            return first_id(run)

        @property
        def tokenizer_name(self) -> str:
            """For the harness' cache of prompts."""
            return f"{run.tokenizer.name}-{run.tokenizer.hash[:16]}"

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return run.encode(string).tolist()

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **_: Any) -> list[Any]:
            return score(run, [(before, after) for _, before, after in requests], batch_size)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            sums = []
            for (text,) in (request.args for request in requests):
                windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, context, 1)
                sums.append(sum(nats for nats, _ in score(run, [*map(make_disjoint_window, windows)], batch_size)))
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return answers(run, [request.args for request in requests], batch_size)

    return HarnessModel()


def first_id(run: OpenRun) -> int:
    """The id that stands before a text."""
    if run.tokenizer.separator:
        return int(run.tokenizer.separator[0])
    try:
        return int(run.encode("\n")[0])
    except (UserError, IndexError):  # characters or words that have no line feed
        return 0


def score(run: OpenRun, pairs: Sequence[tuple[list[int], list[int]]], batch_size: int) -> list[tuple[float, bool]]:
    """Of every (context, continuation) in ids: the log-likelihood of the second after the first, and whether greedy
    decoding would give it."""
    context, found = run.config.context, []
    for first in range(0, len(pairs), batch_size):
        rows, spans = np.zeros((batch_size, context + 1), np.int32), []
        for row, (before, after) in zip(rows, pairs[first : first + batch_size], strict=False):
            ids = [*before, *after][-(context + 1) :]
            row[: len(ids)] = ids
            spans.append(slice(max(len(ids) - len(after), 1) - 1, len(ids) - 1))
        nats, best = map(np.asarray, _scored()(run.model, rows, np.int32(run.tokenizer.vocab_size)))
        for i, span in enumerate(spans):
            greedy = bool((best[i, span] == rows[i, 1:][span]).all())
            found.append((-float(nats[i, span].sum(dtype=np.float64)), greedy))
    return found


@functools.cache
def _scored() -> Any:
    """Compiled once a shape: losses and most likely ids, with the logits of one sequence at a time."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    @eqx.filter_jit
    def scored(model: Any, rows: Any, known: Any) -> Any:
        def one(features: Any, targets: Any) -> Any:
            logits = model.logits(features).astype(jnp.float32)
            picked = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            best = jnp.argmax(jnp.where(jnp.arange(logits.shape[-1])[None] < known, logits, -jnp.inf), axis=-1)
            return jax.nn.logsumexp(logits, axis=-1) - picked, best

        return jax.lax.map(lambda each: one(*each), (model.batch_features(rows[:, :-1]), rows[:, 1:]))

    return scored


def answers(run: OpenRun, asked: Sequence[tuple[str, Any]], batch_size: int) -> list[str]:
    """The answer to every (context, settings): `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k`, ..."""
    groups: dict[str, list[int]] = {}
    for i, (_, settings) in enumerate(asked):
        groups.setdefault(repr(sorted(settings.items())), []).append(i)
    found = [""] * len(asked)
    for places in groups.values():
        how = _settings(asked[places[0]][1])
        for first in range(0, len(places), batch_size):
            some = places[first : first + batch_size]
            for i, text in zip(some, run.generate([asked[i][0] or [first_id(run)] for i in some], **how), strict=True):
                found[i] = text
    return found


def _settings(given: Any) -> dict[str, Any]:
    """The harness' words for settings in ours."""
    until = given.get("until") or []
    sampled = given.get("do_sample", False)
    how = {name: given[name] for name in ("top_k", "top_p", "min_p") if sampled and given.get(name)}
    tokens = next((given[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if given.get(name)), ANSWER)
    return {
        "tokens": int(tokens),
        "stop": [each for each in ([until] if isinstance(until, str) else until) if each],
        "temperature": float(given.get("temperature", 1.0)) if sampled else 0.0,
        **how,
    }
