"""What every token embedding offers, whatever it is made of."""

import abc
from typing import ClassVar, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from .head import ReadOut

OrderKind = Literal["tokenizer", "random", "frequency", "co-occurrence"]


class TokenEmbedding(eqx.Module):
    """Maps token ids to vectors. Any module with this call works in a `LanguageModel`; the rest has defaults.

    Ids are not checked here: JAX clamps an index out of range, so streams check theirs on the host.
    """

    vocab_size: eqx.AbstractVar[int]
    d_model: eqx.AbstractVar[int]
    # Whether one evaluation costs enough that a batch should evaluate each distinct token only once.
    distinct_pays: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        """Vectors of the ids; ids of shape `()` or `(t,)`."""

    def materialize(self) -> Float[Array, "{self.vocab_size} {self.d_model}"]:
        """The whole table, one row a token id. A generator evaluates it in bounded chunks."""
        from .embed_batch import embed_batch  # it calls embeddings: importing it above would be a circle

        return embed_batch(self, jnp.arange(self.vocab_size, dtype=jnp.int32))

    def read_out(self) -> ReadOut:
        """The factors of a tied (or, for a generator, generated) read-out: here, the materialized table."""
        return ReadOut(self.materialize())


@runtime_checkable
class EmbeddingConfig(Protocol):
    """What `build` and the accounting ask of an embedding's config."""

    @property
    def tieable(self) -> bool:
        """Whether `head="tied"` is legal (a generator says "generated" instead)."""
        ...

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """Closed-form number of parameters."""
        ...

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """Those of them in rows that belong to one token each."""
        ...

    def buffer_bytes(self, vocab_size: int) -> int:
        """Bytes of integer buffers (a coordinate order)."""
        ...

    def flops(self, d_model: int) -> int:
        """Forward matmul FLOPs of one evaluation (a table lookup has none)."""
        ...

    def activations(self, d_model: int) -> int:
        """Numbers kept for the backward pass, per evaluated token."""
        ...

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array, " v"] | None = None, key: PRNGKeyArray
    ) -> TokenEmbedding:
        """The module."""
        ...


def position_of(ids: Int[Array, "*t"], order: Int32[Array, " v"] | None) -> Int[Array, "*t"]:
    """The position whose digits a token uses: its id, or where the coordinate order puts it."""
    return ids if order is None else order[ids]


def check_sizes(**sizes: int) -> None:
    """Raises `ValueError` naming the first size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: it must be at least 1")
