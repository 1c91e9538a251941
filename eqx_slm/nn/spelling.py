"""How tokens are spelled, a row of pieces an id: what the embeddings that read a token's text are given."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int32

from ..errors import UserError
from ..pytree import Fixed, fixed
from .digits import to_coordinates

# "text" is the token's own; "ids" the digits of its id, a control that takes all meaning from the spelling.
SpellingKind = Literal["text", "ids"]


def padded_spelling(tokens: Sequence[Sequence[int]], vocab_size: int, longest: int) -> Int32[np.ndarray, "v p"]:
    """The pieces of every token as rows of one length, filled up with -1; ids beyond the tokens' have none.

    **Arguments:** `tokens`: pieces by id, at most `vocab_size` of them; `longest`: how many of each are kept.
    """
    rows = np.full((vocab_size, longest), -1, np.int32)
    for row, token in zip(rows, tokens, strict=False):
        row[: len(token)] = np.asarray(token[:longest], np.int32)
    return rows


def check_spelling(
    spelling: Any, vocab_size: int, *, pieces: int, longest: int
) -> Fixed | Int32[Array, "{vocab_size} {longest}"]:
    """A spelling as int32, `Fixed`, or for None that of the ids by their digits in base `pieces`.

    **Raises:** `UserError` for another shape or dtype, for pieces out of range, and for ids of too many digits.
    """
    if spelling is None:
        digits = digits_needed(vocab_size, pieces)
        if digits > longest:
            raise UserError(
                f"longest={longest}: the ids below {vocab_size} have up to {digits} digits in base {pieces}; take "
                f"longest at least {digits}"
            )
        with jax.ensure_compile_time_eval():
            found = np.asarray(to_coordinates(jnp.arange(vocab_size, dtype=jnp.int32), pieces, digits))
        return Fixed(np.pad(found, ((0, 0), (0, longest - digits)), constant_values=-1))
    spelling = spelling if isinstance(spelling, Tracer) else np.asarray(spelling)
    if not np.issubdtype(spelling.dtype, np.integer) or spelling.shape != (vocab_size, longest):
        raise UserError(
            f"spelling of dtype {spelling.dtype} and shape {spelling.shape}: it must be integers of shape "
            f"({vocab_size}, {longest}), a row a token and -1 after its last piece"
        )
    if isinstance(values := spelling, np.ndarray):
        if values.size and not (-1 <= values.min() and values.max() < pieces):
            raise UserError(f"spelling has entries from {values.min()} to {values.max()}: -1 to {pieces - 1} is meant")
    return fixed(spelling.astype(np.int32))


def digits_needed(vocab_size: int, base: int) -> int:
    """How many digits the largest id has."""
    digits, reach = 1, base
    while reach < vocab_size:
        digits, reach = digits + 1, reach * base
    return digits
