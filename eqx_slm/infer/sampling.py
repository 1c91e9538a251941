"""From logits to a token: temperature, top-k, top-p, min-p, a penalty on repetition; all traced, so none recompiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..checks import check_number, real, whole


class Sampling(NamedTuple):
    """How a token is drawn, as arrays: changing a value does not compile anything anew.

    `temperature` divides the logits, 0 takes the most likely token. `top_k` keeps the k most likely (0: all), `top_p`
    the most likely ones until their probabilities reach p (1: all), `min_p` those at least so many times as likely as
    the most likely (0: all). `repetition_penalty` divides a positive logit, and multiplies a negative one, of every
    token that was seen (1: none). Ids from `vocab_size` on are never drawn. In the order, and with the meaning, that
    transformers gives them. Top-k is of arXiv 1805.04833, top-p (nucleus) of 1904.09751, min-p of 2407.01082, the
    penalty of 1909.05858.
    """

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]
    vocab_size: Int[Array, ""]


def sampling(
    vocab_size: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> Sampling:
    """The settings as arrays. **Raises:** `UserError` for one that is out of range."""
    real("temperature", temperature)
    check_number("top_p", top_p, "a share above 0, at most 1", lambda p: 0 < p <= 1)
    check_number("min_p", min_p, "a share, at least 0 and below 1", lambda p: 0 <= p < 1)
    check_number("repetition_penalty", repetition_penalty, "above 0; 1 is none", lambda p: p > 0)
    whole("top_k", top_k, least=0)
    return Sampling(
        temperature=jnp.asarray(temperature, jnp.float32),
        top_k=jnp.asarray(min(top_k, 2**31 - 1), jnp.int32),
        top_p=jnp.asarray(top_p, jnp.float32),
        min_p=jnp.asarray(min_p, jnp.float32),
        repetition_penalty=jnp.asarray(repetition_penalty, jnp.float32),
        vocab_size=jnp.asarray(whole("vocab_size", vocab_size), jnp.int32),
    )


def allowed(logits: Float[Array, " v"], seen: Bool[Array, " v"], s: Sampling) -> Float[Array, " v"]:
    """The logits that a token is drawn from, divided by the temperature; minus infinity for what is left out."""
    logits = logits.astype(jnp.float32)
    logits = jnp.where(jnp.arange(logits.shape[0]) < s.vocab_size, logits, -jnp.inf)
    logits = jnp.where(
        seen, jnp.where(logits > 0, logits / s.repetition_penalty, logits * s.repetition_penalty), logits
    )
    logits = logits / jnp.where(s.temperature > 0, s.temperature, 1)
    # Sorting a vocabulary takes longer than all else here.
    logits = jax.lax.cond((s.top_k > 0) | (s.top_p < 1), _most_likely, lambda logits, s: logits, logits, s)
    return jnp.where(logits < logits.max() + jnp.log(s.min_p), -jnp.inf, logits)


def _most_likely(logits: Float[Array, " v"], s: Sampling) -> Float[Array, " v"]:
    """Top-k, and of what that leaves top-p; of equally likely tokens at the edge of top-k all stay."""
    size = logits.shape[0]
    least = jnp.sort(logits)[size - jnp.where(s.top_k > 0, jnp.minimum(s.top_k, size), size)]
    logits = jnp.where(logits < least, -jnp.inf, logits)
    order = jnp.argsort(logits, descending=True)
    shares = jax.nn.softmax(logits[order])
    before = jnp.cumsum(shares) - shares  # what is more likely; the first is always kept
    # At 1 all stay, also what is so unlikely that `before` is rounded to 1.
    kept = jnp.zeros(size, bool).at[order].set((before < s.top_p) | (s.top_p >= 1) | (jnp.arange(size) == 0))
    return jnp.where(kept, logits, -jnp.inf)


def draw(
    logits: Float[Array, " v"], seen: Bool[Array, " v"], s: Sampling, key: PRNGKeyArray
) -> tuple[Int[Array, ""], Bool[Array, " v"]]:
    """A token, and what has been seen with it."""
    kept = allowed(logits, seen, s)
    # A random number a token of the vocabulary takes longer than to find the largest logit.
    token = jax.lax.cond(s.temperature > 0, _drawn, lambda kept, key: jnp.argmax(kept), kept, key).astype(jnp.int32)
    return token, seen.at[token].set(True)


def _drawn(kept: Float[Array, " v"], key: PRNGKeyArray) -> Int[Array, ""]:
    return jax.random.categorical(key, kept)
