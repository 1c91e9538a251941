"""Sampling text from a model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..checks import whole
from ..errors import UserError
from ..nn.lm import LanguageModel
from ..nn.table import TableEmbedding
from .sampling import Sampling, draw, sampling


class MaterializedEmbedding(TableEmbedding):
    """A generator's table, evaluated once; it looks rows up at a table's speed and equals the generator."""

    def __init__(self, table: Float[Array, "v d"]):
        """**Arguments:** `table`, one row a token id."""
        self.table = table
        self.vocab_size, self.d_model = table.shape
        self.std = 0.0


def materialize(model: LanguageModel) -> LanguageModel:
    """The same model with its token embedding evaluated once into a table; a generated head becomes a tied one.

    A table stays what it is, and so does an embedding that is no `TokenEmbedding`: its vocabulary is not known.
    """
    if isinstance(model.embedding, TableEmbedding) or not hasattr(model.embedding, "materialize"):
        return model
    return eqx.tree_at(lambda m: m.embedding, model, MaterializedEmbedding(_table(model.embedding)))


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
    prompt = jnp.asarray(prompt)
    if prompt.size == 0:
        raise UserError("the prompt is empty: give at least one token")
    if prompt.ndim != 1 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise UserError(f"the prompt is {prompt.dtype} of shape {prompt.shape}: give the ids of one sequence, integers")
    tokens, context = whole("tokens", tokens, least=0), whole("context", context)
    filters: Any = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    how = sampling(1 if vocab_size is None else vocab_size, temperature=temperature, **filters)
    model = materialize(model) if hasattr(model, "embedding") else model
    prompt, length = prompt.astype(jnp.int32), prompt.shape[0]
    shape = eqx.filter_eval_shape(lambda m: m.logits(m.features(m.embed(jnp.zeros(1, jnp.int32)))), model).shape
    if vocab_size is None:
        how = how._replace(vocab_size=jnp.asarray(shape[-1], jnp.int32))
    seen = jnp.zeros(shape[-1], bool).at[prompt].set(True)
    # Sizes in steps of 64 tokens: a program then serves many lengths of prompt and answer.
    keys = jax.random.split(key, 64 * max(1, -(-tokens // 64)))
    if length + tokens <= context and getattr(model, "decodes", False):
        state, taken = model.start(min(context, -(-(length + tokens) // 64) * 64)), 0
        last = None
        while taken < length:  # in pieces of ... 8, 4, 2, 1 tokens, for the same reason
            piece = 1 << ((length - taken).bit_length() - 1)
            last, state = _read(model, prompt[taken : taken + piece], state)
            taken += piece
        return _decode(model, last, state, keys, jnp.asarray(tokens), how, seen)[:tokens]
    kept = prompt[-context:]
    window = jnp.zeros(context, jnp.int32).at[: kept.shape[0]].set(kept)
    return _slide(model, window, jnp.asarray(kept.shape[0]), keys, jnp.asarray(tokens), how, seen)[:tokens]


@eqx.filter_jit
def _read(model: Any, piece: Array, state: Any) -> tuple[Array, Any]:
    """The features of a piece's last token, and the decode state after it."""
    features, state = model.prefill(piece, state)
    return features[-1], state


@eqx.filter_jit
def _decode(model: Any, last: Any, state: Any, keys: Array, tokens: Array, how: Sampling, seen: Array) -> Array:
    """A token at a time from the decode state."""

    def step(i: Array, carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        last, state, drawn, seen = carry
        token, seen = draw(model.logits(last[None])[0], seen, how, keys[i])
        features, state = model.step(token, state)
        return features, state, drawn.at[i].set(token), seen

    return jax.lax.fori_loop(0, tokens, step, (last, state, jnp.zeros(keys.shape[0], jnp.int32), seen))[2]


@eqx.filter_jit
def _slide(model: Any, window: Array, length: Array, keys: Array, tokens: Array, how: Sampling, seen: Array) -> Array:
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

    return jax.lax.fori_loop(0, tokens, step, (window, length, jnp.zeros(keys.shape[0], jnp.int32), seen))[2]
