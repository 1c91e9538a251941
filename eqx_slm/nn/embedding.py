"""What every token embedding offers, whatever it is made of."""

import abc
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from ..checks import whole
from ..errors import UserError
from ..pytree import Fixed, fixed
from .chunks import chunk_size, chunked_sum
from .head import ReadOut

OrderKind = Literal["tokenizer", "random", "frequency", "co-occurrence"]


class TokenEmbedding(eqx.Module):
    """Maps token ids to vectors. Any module with this call works in a `LanguageModel`; the rest has defaults.

    An id outside [0, vocab_size), a negative one too, is no token: its vector is NaN, in every embedding and however it
    is evaluated (streams refuse such ids on the host before they get here). No token's row has a gradient from it.

    A coordinate order, a ranking, a spelling is `Fixed`: saved with the model, never trained, no leaf, so that plain
    `jax.grad` works; only a module that is built under a transformation of it has an array of integers in its place.
    """

    vocab_size: eqx.AbstractVar[int]
    d_model: eqx.AbstractVar[int]
    # Whether one evaluation costs enough that a batch should evaluate each distinct token only once.
    distinct_pays: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        """Vectors of the ids; ids of shape `()` or `(t,)`."""

    @property
    def numbers(self) -> int:
        """Numbers in the largest array inside of one evaluation: chunks of rows are bounded by it."""
        return self.d_model

    def first_rows(self, ids: Int[Array, " n"], count: Int32[Array, ""] | int) -> Float[Array, "n {self.d_model}"]:
        """`self(ids)` for the first `count` ids, in chunks of bounded memory; the rows beyond mean nothing.

        What `embed_batch` asks where `distinct_pays`. Reverse mode only.
        """
        arrays, static = eqx.partition(self, eqx.is_array)
        one_term = jax.tree.map(lambda x: x[None], arrays)
        chunk = chunk_size(ids.shape[0], self.numbers)
        return chunked_sum(lambda arrays, part: eqx.combine(arrays, static)(part), one_term, ids, count, chunk=chunk)

    def materialize(self) -> Float[Array, "{self.vocab_size} {self.d_model}"]:
        """The whole table, one row a token id. A generator evaluates it in bounded chunks."""
        ids = jnp.arange(self.vocab_size, dtype=jnp.int32)
        return self.first_rows(ids, self.vocab_size) if self.distinct_pays else self(ids)

    def read_out(self) -> ReadOut:
        """The factors of a tied (or, for a generator, generated) read-out: here, the materialized table."""
        return ReadOut(self.materialize())


@runtime_checkable
class EmbeddingConfig(Protocol):
    """What `build` and the accounting ask of an embedding's config; `EmbeddingDefaults` has the usual answers."""

    @property
    def kind(self) -> str:
        """Its name in JSON and after `--set embedding.kind=`."""
        ...

    # Whether `head="tied"` is legal (a generator says "generated" instead).
    tieable: ClassVar[bool]

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """Closed-form number of parameters."""
        ...

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """Those of them in rows that belong to one token each."""
        ...

    def buffer_bytes(self, vocab_size: int) -> int:
        """Bytes of integer buffers (a coordinate order, a spelling)."""
        ...

    def flops(self, vocab_size: int, d_model: int) -> int:
        """Forward matmul FLOPs of one evaluation (a table lookup has none)."""
        ...

    def activations(self, vocab_size: int, d_model: int) -> int:
        """Numbers kept for the backward pass, per evaluated token."""
        ...

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array | np.ndarray, " v"] | None = None, key: PRNGKeyArray
    ) -> TokenEmbedding:
        """The module. One that knows more of a stream than an order takes that by name too (`eqx_slm.model.SIDES`)."""
        ...


class EmbeddingDefaults:
    """What an embedding's config answers unless it says otherwise: a base for frozen dataclasses, without fields."""

    def check(self, vocab_size: int, d_model: int) -> None:
        """**Raises:** `UserError` where the sizes do not fit the config; here, all do."""

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """None: no parameter belongs to one token alone."""
        return 0

    def buffer_bytes(self, vocab_size: int) -> int:
        """None."""
        return 0

    def flops(self, vocab_size: int, d_model: int) -> int:
        """None: lookups and sums multiply nothing."""
        return 0

    def activations(self, vocab_size: int, d_model: int) -> int:
        """Only the result: a lookup keeps no more, and a generator is evaluated again in the backward pass."""
        return d_model


class ConfiguredEmbedding(TokenEmbedding):
    """An embedding that keeps the config that it was made of, which a constructor takes whole or by its fields."""

    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    config: Any = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, vocab_size: int, d_model: int, config: EmbeddingDefaults):
        """**Arguments:** `vocab_size`; `d_model`; the whole `config`.

        **Raises:** `UserError` for sizes that are no whole numbers of at least 1, or do not fit the config.
        """
        self.vocab_size = whole("vocab_size", vocab_size)
        self.d_model = whole("d_model", d_model)
        config.check(self.vocab_size, self.d_model)
        self.config = config


def row_of(table: Float[Array, "v d"], ids: Int[Array, "*t"]) -> Float[Array, "*t d"]:
    """`table[ids]`, NaN for an id that has no row, where plain indexing would clamp it or count from the end."""
    ids = check_ids(ids)
    return known_or_nan(ids, table.shape[0], table.at[ids].get(mode="clip"))


def known_or_nan(ids: Int[Array, "*t"], vocab_size: int, vectors: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
    """`vectors`, NaN where the id is no token's: a comparison an id, which XLA fuses with the gather."""
    return jnp.where(is_token(ids, vocab_size)[..., None], vectors, jnp.nan)


def is_token(ids: Int[Array, "*t"], vocab_size: int) -> Bool[Array, "*t"]:
    """Whether each id is in the vocabulary; asked before any cast, which would wrap wider integers."""
    return (ids >= 0) & (ids < vocab_size)


def check_ids(ids: Any) -> Any:
    """Ids as an array, a list of them too; `UserError` for what cannot be ids: booleans would be taken for a mask."""
    if not isinstance(ids, jax.Array | np.ndarray):
        try:
            ids = jnp.asarray(ids)
        except (TypeError, ValueError):
            raise UserError(f"token ids of type {type(ids).__name__}: give integers, an array or a list") from None
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise UserError(f"token ids of dtype {ids.dtype}: they must be integers")
    return ids


def position_of(ids: Int[Array, "*t"], order: Fixed | Int32[Array, " v"] | None) -> Int[Array, "*t"]:
    """The position whose digits a token uses: its id, or where the coordinate order puts it."""
    ids = check_ids(ids)
    return ids if order is None else order[ids]


def check_order(order: Any, vocab_size: int) -> Fixed | Int32[Array, "{vocab_size}"] | None:
    """A coordinate order as int32, `Fixed`, or None; raises `UserError` unless it is a permutation of the ids.

    Under a transformation that hides its values, dtype and length are checked.
    """
    if order is None:
        return None
    try:
        order = order if isinstance(order, Tracer) else np.asarray(order)
    except (ValueError, OverflowError):
        raise UserError(f"order: its entries must be the ids 0 to {vocab_size - 1}, each once, in one row") from None
    if not np.issubdtype(order.dtype, np.integer):
        raise UserError(f"order of dtype {order.dtype}: a permutation of the ids is made of integers")
    if order.shape != (vocab_size,):
        raise UserError(f"order of shape {order.shape}: it must have one entry a token, shape ({vocab_size},)")
    if isinstance(order, np.ndarray):
        values = order
        seen = np.zeros(vocab_size, bool)
        inside = (values >= 0) & (values < vocab_size)
        seen[values[inside]] = True
        if not inside.all():
            raise UserError(
                f"order has the entry {values[~inside][0]}: a permutation's entries are 0 to {vocab_size - 1}"
            )
        if not seen.all():
            raise UserError(f"order is no permutation: no entry is {seen.argmin()} and another stands twice")
    return fixed(order.astype(np.int32))
