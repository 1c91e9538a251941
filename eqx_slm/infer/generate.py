"""Sampling text from a model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..nn.lm import LanguageModel
from ..nn.table import TableEmbedding


class MaterializedEmbedding(TableEmbedding):
    """A generator's table, evaluated once; it looks rows up at a table's speed and equals the generator."""

    def __init__(self, table: Float[Array, "v d"]):
        """**Arguments:** `table`, one row a token id."""
        self.table = table
        self.vocab_size, self.d_model = table.shape
        self.std = 0.0


def materialize(model: LanguageModel) -> LanguageModel:
    """The same model with its token embedding evaluated once into a table; a generated head becomes a tied one."""
    if isinstance(model.embedding, TableEmbedding):
        return model
    table = eqx.filter_jit(lambda embedding: embedding.materialize())(model.embedding)
    return eqx.tree_at(lambda m: m.embedding, model, MaterializedEmbedding(table))


def generate(
    model: Any,
    prompt: Int[Array, " p"],
    *,
    tokens: int,
    context: int,
    temperature: float = 1.0,
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
    - `key`: for the sampling.

    **Returns:** the sampled ids, without the prompt.

    **Raises:** `ValueError` for an empty prompt, and for sizes out of range.
    """
    if prompt.shape[0] < 1:
        raise ValueError("the prompt is empty: give at least one token")
    if tokens < 0 or context < 1 or temperature < 0:
        raise ValueError(
            f"tokens={tokens}, context={context}, temperature={temperature}: give at least 0 tokens, a context of at "
            "least 1, and a temperature of at least 0"
        )
    model = materialize(model) if hasattr(model, "embedding") else model
    keys, hot = jax.random.split(key, tokens), float(temperature)
    if prompt.shape[0] + tokens <= context and getattr(model, "decodes", False):
        # A cache in steps of 64 tokens: one program serves many lengths, and costs hardly more than what is needed.
        size = min(context, -(-(prompt.shape[0] + tokens) // 64) * 64)
        return _decode(model, prompt.astype(jnp.int32), size, keys, hot)
    kept = prompt[-context:].astype(jnp.int32)
    window = jnp.zeros(context, jnp.int32).at[: kept.shape[0]].set(kept)
    return _slide(model, window, jnp.asarray(kept.shape[0]), keys, hot)


def _draw(logits: Float[Array, " v"], temperature: float, key: PRNGKeyArray) -> Int[Array, ""]:
    token = jax.random.categorical(key, logits / temperature) if temperature > 0 else jnp.argmax(logits)
    return token.astype(jnp.int32)


@eqx.filter_jit
def _decode(model: Any, prompt: Array, context: int, keys: Array, temperature: float) -> Array:
    """The prompt at once, then a token at a time from the decode state."""
    features, state = model.prefill(prompt, model.start(context))
    params, static = eqx.partition(model, eqx.is_array)

    def step(carry: tuple[Array, Any], key: PRNGKeyArray) -> tuple[tuple[Array, Any], Array]:
        last, state = carry
        this = eqx.combine(params, static)
        token = _draw(this.logits(last[None])[0], temperature, key)
        return tuple(this.step(token, state)), token

    return jax.lax.scan(step, (features[-1], state), keys)[1]


@eqx.filter_jit
def _slide(model: Any, window: Array, length: Array, keys: Array, temperature: float) -> Array:
    """The whole window again for every token."""
    params, static = eqx.partition(model, eqx.is_array)

    def step(carry: tuple[Array, Array], key: PRNGKeyArray) -> tuple[tuple[Array, Array], Array]:
        window, length = carry
        this = eqx.combine(params, static)
        features = this.features(this.embedding(window))
        # Causality lets the unused tail of the window hold anything.
        last = jax.lax.dynamic_slice_in_dim(features, length - 1, 1)
        token = _draw(this.logits(last)[0], temperature, key)
        full = length == window.shape[0]
        window = jnp.where(full, jnp.roll(window, -1), window)
        length = jnp.where(full, length, length + 1)
        return (window.at[length - 1].set(token), length), token

    return jax.lax.scan(step, (window, length), keys)[1]
