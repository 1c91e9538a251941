"""Token embeddings of a whole batch; a generator evaluates each distinct token once, in chunks of bounded memory."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from .embedding import TokenEmbedding, check_ids, is_token, row_of


class Distinct(NamedTuple):
    """The distinct tokens of a batch: `tokens.reshape(-1) == ids[inverse]`; `ids` beyond `number` are padding."""

    ids: Int32[Array, " n"]
    inverse: Int32[Array, " t"]
    number: Int32[Array, ""]


def distinct_tokens(tokens: Int[Array, "*t"], vocab_size: int) -> Distinct:
    """The distinct tokens of a batch in rising order, found on the device with static shapes (n is the most).

    By a mark for every id and a running count of the marks, O(t + vocab_size): a sort of the batch takes longer, unless
    the vocabulary is some fifty times its size. An id outside the vocabulary is none of them: its `inverse` is n.
    """
    flat = tokens.reshape(-1)
    known, most = is_token(flat, vocab_size), min(flat.shape[0], vocab_size)
    flat = jnp.where(known, flat, vocab_size).astype(jnp.int32)  # one more place, which takes what is no token
    rank = jnp.cumsum(jnp.zeros((vocab_size,), jnp.int32).at[flat].set(1, mode="drop"))
    inverse = jnp.where(known, rank.at[flat].get(mode="clip") - 1, most)
    ids = jnp.zeros((most,), jnp.int32).at[inverse].set(flat, mode="drop")
    return Distinct(ids, inverse, rank[-1])


def embed_batch(
    embedding: TokenEmbedding, tokens: Int[Array, "*t"], *, distinct: Distinct | None = None
) -> Float[Array, "*t d"]:
    """Embeddings of `tokens` of any shape, equal to calling the embedding on each.

    For a generator (`embedding.distinct_pays`) the cost follows the number of distinct tokens, in the backward pass
    too, and the memory that of a chunk: a batch of text repeats its tokens, and a vector that is made once can be
    looked up as often as it is needed (`TokenEmbedding.first_rows` makes them). This path is reverse mode only: call
    the module itself for forward mode. An id outside the vocabulary gives NaN.

    **Arguments:**

    - `embedding`: any module that maps ids of shape `(t,)` to vectors.
    - `tokens`: ids, any shape.
    - `distinct`: the batch's distinct tokens where the caller has them already.

    **Returns:** an array of shape `tokens.shape + (d_model,)`.
    """
    tokens = check_ids(tokens)
    flat = tokens.reshape(-1)
    if not getattr(embedding, "distinct_pays", False) or flat.shape[0] == 0:
        found = embedding(flat)
        return found.reshape(*tokens.shape, found.shape[-1])
    if distinct is None:
        distinct = distinct_tokens(flat, embedding.vocab_size)
    rows = embedding.first_rows(distinct.ids, distinct.number)
    return row_of(rows, distinct.inverse).reshape(*tokens.shape, -1)
