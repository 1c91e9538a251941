"""The read-out from features to logits: untied, low-rank, or the embedding's own factors (no leaf at all)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..checks import one_of, real, whole
from .init import normal
from .ops import inner_dtype

HeadKind = Literal["untied", "tied", "low-rank", "generated"]


class ReadOut(NamedTuple):
    """What turns features into logits: `logits = (x @ projection) @ weight.T`, without `projection` where it is None.

    The loss takes this rather than a function, so that it can run over chunks and never hold all logits.
    """

    weight: Float[Array, "v r"]
    projection: Float[Array, "d r"] | None = None

    def project(self, features: Float[Array, "*t d"]) -> Float[Array, "*t r"]:
        """Features in the space of `weight`'s rows."""
        return features if self.projection is None else features @ self.projection.astype(features.dtype)

    def logits(self, features: Float[Array, "*t d"]) -> Float[Array, "*t v"]:
        """All logits at once, accumulated in at least float32."""
        # Low precision in, float32 out: a softmax over logits that were rounded to bfloat16 is off in its second digit.
        x = self.project(features)
        return jnp.einsum("...r,vr->...v", x, self.weight.astype(x.dtype), preferred_element_type=inner_dtype(x))


@dataclass(frozen=True)
class HeadConfig:
    """The read-out: `kind`, the rank of a low-rank one, the std of the rows' initial values, and `scale`, by which all
    logits are multiplied (with a tied table, whose rows serve both ends, it sets the loss at the start)."""

    kind: HeadKind = "untied"
    rank: int = 64
    std: float = 0.02
    scale: float = 1.0

    def __post_init__(self):
        one_of("head", self.kind, ("untied", "tied", "low-rank", "generated"))
        object.__setattr__(self, "rank", whole("head rank", self.rank))
        real("head std", self.std)
        real("head scale", self.scale, positive=True)

    @property
    def has_leaves(self) -> bool:
        """Whether the head has parameters of its own."""
        return self.kind in ("untied", "low-rank")

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """Parameters of the head: v d, v r + d r, or none."""
        return {"untied": vocab_size * d_model, "low-rank": (vocab_size + d_model) * self.rank}.get(self.kind, 0)

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """Parameters in rows that belong to one token each."""
        return {"untied": vocab_size * d_model, "low-rank": vocab_size * self.rank}.get(self.kind, 0)

    def build(self, vocab_size: int, d_model: int, *, key: PRNGKeyArray) -> "Head | None":
        """The module, or None where the read-out is the embedding's own."""
        if not self.has_leaves:
            return None
        return Head(vocab_size, d_model, rank=self.rank if self.kind == "low-rank" else None, std=self.std, key=key)


class Head(eqx.Module):
    """A read-out with weights of its own, dense or of rank `rank`; no bias."""

    weight: Float[Array, "{self.vocab_size} _"]
    projection: Float[Array, "{self.d_model} _"] | None
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    std: float = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ()

    def __init__(self, vocab_size: int, d_model: int, *, rank: int | None = None, std: float = 0.02, key: PRNGKeyArray):
        """**Arguments:** `vocab_size`; `d_model`; `rank` (None: dense); `std` of the rows, one a token (small, so that
        training starts near the uniform distribution); `key`."""
        self.vocab_size = whole("vocab_size", vocab_size)
        self.d_model = whole("d_model", d_model)
        self.rank = None if rank is None else whole("rank", rank)
        self.std = std
        real("std", std)
        # Small rows and a projection that keeps its variance: logits start near 0 whatever the rank.
        width = d_model if rank is None else rank
        self.weight = normal(key, "weight", (vocab_size, width), std)
        self.projection = None if rank is None else normal(key, "projection", (d_model, width), d_model**-0.5)

    def read_out(self) -> ReadOut:
        """The factors of the logits."""
        return ReadOut(self.weight, self.projection)
