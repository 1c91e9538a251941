"""Sampling text from a model: a prompt, many at once, or a few tokens at a time."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..checks import check_key, whole
from ..errors import UserError
from ..nn.embedding import TokenEmbedding
from ..nn.lm import LanguageModel
from ..nn.table import TableConfig, TableEmbedding
from .sampling import Sampling, draw, sampling


class MaterializedEmbedding(TableEmbedding):
    """A generator's table, evaluated once; it looks rows up at a table's speed and equals the generator."""

    def __init__(self, table: Float[Array, "v d"]):
        """**Arguments:** `table`, one row a token id."""
        self.table = table
        self.vocab_size, self.d_model = table.shape
        self.config = TableConfig(std=0.0)


def materialize(model: LanguageModel) -> LanguageModel:
    """The same model with its token embedding evaluated once into a table; a generated head becomes a tied one.

    A table stays what it is, and so does an embedding that is no `TokenEmbedding`: its vocabulary is not known. One
    that reads out by other factors than its rows goes on doing so, as the head.
    """
    embedding, head = model.embedding, model.head
    if isinstance(embedding, TableEmbedding) or not hasattr(embedding, "materialize"):
        return model
    if head is None and type(embedding).read_out is not TokenEmbedding.read_out:
        head = embedding
    both = MaterializedEmbedding(_table(embedding)), head
    return eqx.tree_at(lambda m: (m.embedding, m.head), model, both, is_leaf=lambda leaf: leaf is None)


@eqx.filter_jit
def _table(embedding: Any) -> Array:
    return embedding.materialize()


def generate(
    model: Any,
    prompt: Int[Array | np.ndarray, " p"] | list[int],
    *,
    tokens: int,
    context: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    vocab_size: int | None = None,
    key: PRNGKeyArray,
) -> Int[Array, " n"]:
    """Continues a prompt by sampling, `tokens` times, from the model's next-token distribution.

    Where every block keeps a decode state and prompt and tokens fit into `context`, the prompt is run once and every
    token after it alone. Otherwise every token runs the model over a window of its last `context` tokens. Both sample
    the same tokens from the same key (up to rounding of the logits).

    **Arguments:**

    - `model`: a `LanguageModel`.
    - `prompt`: at least one id; its last `context` ids are used.
    - `tokens`: how many to sample.
    - `context`: the window, at most what the model was built for.
    - `temperature`: divides the logits; 0 takes the most likely token.
    - `top_k`, `top_p`, `min_p`, `repetition_penalty`: see `Sampling`; the defaults leave everything as it is. No value
      of these or of the temperature compiles anything anew.
    - `vocab_size`: how many ids stand for something, where the model's vocabulary is padded: others are never drawn.
    - `key`: for the sampling.

    **Returns:** the sampled ids, without the prompt.

    **Raises:** `ValueError` for an empty prompt, and for sizes out of range.
    """
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    how |= {"repetition_penalty": repetition_penalty, "vocab_size": vocab_size}
    return Continuation(model, [prompt], [key], tokens=tokens, context=context, **how).draw(tokens)[0]


def generate_batch(
    model: Any, prompts: Sequence[Any], *, tokens: int, context: int, key: PRNGKeyArray, **how: Any
) -> Int[Array, "b n"]:
    """Continues prompts of any lengths together, each by `tokens` tokens.

    **Arguments:** `prompts`: of each the ids; `how`: `temperature` and the rest of `generate`, the same for all.

    **Returns:** the sampled ids; row i is what `generate` gives with `jax.random.fold_in(key, i)`, up to rounding of
    the logits. **Raises:** as `generate`, and for no prompts.
    """
    keys = [jax.random.fold_in(key, i) for i in range(len(prompts))]
    return Continuation(model, prompts, keys, tokens=tokens, context=context, **how).draw(tokens)


MOST = 10_000_000  # tokens of one continuation: what is drawn, and a key for each, is held in memory


class Continuation:
    """Prompts that are being continued: every call of `draw` gives some more tokens of each, up to `tokens` in all."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Any],
        keys: Sequence[PRNGKeyArray],
        *,
        tokens: int,
        context: int,
        vocab_size: int | None = None,
        **how: Any,
    ):
        """Runs the prompts.

        **Arguments:** a key for each of the prompts; the rest as in `generate`. **Raises:** as `generate`.
        """
        if not len(prompts):
            raise UserError("there is no prompt: give at least one")
        rows = [_checked(prompt) for prompt in prompts]
        for key in keys:
            check_key(key)
        self.left, context = whole("tokens", tokens, least=0, most=MOST), whole("context", context)
        self.how = sampling(1 if vocab_size is None else vocab_size, **how)
        self.model = model = materialize(model) if hasattr(model, "embedding") else model
        # Sizes in steps of 64 tokens: a program then serves many lengths of prompt and answer.
        size = 64 * max(1, -(-tokens // 64))
        longest = max(row.shape[0] for row in rows) + tokens
        fits = longest <= context and getattr(model, "decodes", False)
        self.advance = _decode if fits else _slide
        room = min(context, -(-longest // 64) * 64)
        begun = [_prefilled(model, row, room) if fits else _window(row, context) for row in rows]
        vocab = _logits_size(model, begun[0][0] if fits else None)
        if vocab_size is None:
            self.how = self.how._replace(vocab_size=jnp.asarray(vocab, jnp.int32))
        known = getattr(getattr(model, "embedding", None), "vocab_size", vocab)
        for row in rows:
            if not isinstance(row, Tracer) and not bool(((row >= 0) & (row < known)).all()):
                raise UserError(f"the prompt has the id {row[(row < 0) | (row >= known)][0]}: ids are 0 to {known - 1}")
        seen = [jnp.zeros(vocab, bool).at[row].set(True) for row in rows]
        carries = [(*each, jnp.zeros(size, jnp.int32), had) for each, had in zip(begun, seen, strict=True)]
        split = [jax.random.split(key, size) for key in keys]
        self.at, self.rows = 0, None if len(rows) == 1 else len(rows)
        self.carry, self.keys = carries[0], split[0]
        if self.rows is not None:
            # A program for each power of two: rows beyond those asked for are the first one again.
            more = (1 << (len(rows) - 1).bit_length()) - len(rows)
            self.carry = _stacked(carries + carries[:1] * more)
            self.keys = jnp.stack(split + split[:1] * more)
            self.advance = _decode_rows if fits else _slide_rows

    def draw(self, count: int) -> Int[Array, "b n"]:
        """The next tokens of every prompt: `count`, or as many as are left."""
        count = min(whole("count", count, least=0), self.left)
        last = self.at + count
        self.carry = self.advance(self.model, self.carry, self.keys, jnp.asarray(self.at), jnp.asarray(last), self.how)
        drawn = self.carry[-2] if self.rows is not None else self.carry[-2][None]
        first, self.at, self.left = self.at, last, self.left - count
        return drawn[: self.rows, first:last]


def _checked(prompt: Any) -> Int[Array, " p"]:
    if isinstance(prompt, str):
        raise UserError("the prompt is text: give ids, as a run's encode makes them, or use OpenRun.generate")
    prompt = jnp.asarray(prompt)
    if prompt.size == 0:
        raise UserError("the prompt is empty: give at least one token")
    if prompt.ndim != 1 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise UserError(f"the prompt is {prompt.dtype} of shape {prompt.shape}: give the ids of one sequence, integers")
    return prompt.astype(jnp.int32)


def _prefilled(model: Any, prompt: Array, size: int) -> tuple[Any, Any]:
    """The features of a prompt's last token, and the decode state after it, with room for `size` tokens."""
    state, taken, last = model.start(size), 0, None
    while taken < prompt.shape[0]:  # in pieces of ... 8, 4, 2, 1 tokens: a program for each serves all lengths
        piece = 1 << ((prompt.shape[0] - taken).bit_length() - 1)
        last, state = _read(model, prompt[taken : taken + piece], state)
        taken += piece
    return last, state


def _window(prompt: Array, context: int) -> tuple[Array, Array]:
    """The last `context` ids of a prompt, in a window of that size, and how many there are."""
    kept = prompt[-context:]
    return jnp.zeros(context, jnp.int32).at[: kept.shape[0]].set(kept), jnp.asarray(kept.shape[0])


def _logits_size(model: Any, features: Array | None) -> int:
    """How many logits a model gives for a token; from its features where they are known, for tracing a model that is
    only asked for its head takes no time beside a short answer."""
    if features is None:
        whole = eqx.filter_eval_shape(lambda m: m.logits(m.features(m.embed(jnp.zeros(1, jnp.int32)))), model)
    else:
        whole = eqx.filter_eval_shape(lambda m, last: m.logits(last[None]), model, features)
    return whole.shape[-1]


def _stacked(carries: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *carries)


@eqx.filter_jit
def _read(model: Any, piece: Array, state: Any) -> tuple[Array, Any]:
    """The features of a piece's last token, and the decode state after it."""
    features, state = model.prefill(piece, state)
    return features[-1], state


def _decoding(model: Any, carry: Any, keys: Array, first: Array, last: Array, how: Sampling) -> Any:
    """A token at a time from the decode state: the draws from `first` to `last`."""

    def step(i: Array, carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        features, state, drawn, seen = carry
        token, seen = draw(model.logits(features[None])[0], seen, how, keys[i])
        features, state = model.step(token, state)
        return features, state, drawn.at[i].set(token), seen

    return jax.lax.fori_loop(first, last, step, carry)


def _sliding(model: Any, carry: Any, keys: Array, first: Array, last: Array, how: Sampling) -> Any:
    """The whole window again for every token."""

    def step(i: Array, carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        window, length, drawn, seen = carry
        features = model.features(model.embed(window))
        # Causality lets the unused tail of the window hold anything.
        last = jax.lax.dynamic_slice_in_dim(features, length - 1, 1)
        token, seen = draw(model.logits(last)[0], seen, how, keys[i])
        full = length == window.shape[0]
        window = jnp.where(full, jnp.roll(window, -1), window)
        length = jnp.where(full, length, length + 1)
        return window.at[length - 1].set(token), length, drawn.at[i].set(token), seen

    return jax.lax.fori_loop(first, last, step, carry)


def _of_rows(advance: Any) -> Any:
    in_axes: Any = (None, eqx.if_array(0), 0, None, None, None)
    return eqx.filter_jit(eqx.filter_vmap(advance, in_axes=in_axes))


_decode, _slide = eqx.filter_jit(_decoding), eqx.filter_jit(_sliding)
_decode_rows, _slide_rows = _of_rows(_decoding), _of_rows(_sliding)
