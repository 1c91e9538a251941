"""The language model: embedding, positions, blocks, norm, read-out."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32

from ..errors import UserError
from .bigrams import HashedBigrams, before_each
from .block import Block, Decoded
from .embed_batch import embed_batch
from .embedding import TokenEmbedding, check_ids
from .head import Head, ReadOut
from .norm import LayerNorm, RMSNorm
from .positions import LearnedPositions


@runtime_checkable
class HasReadOut(Protocol):
    """Anything with `read_out() -> ReadOut` serves as a head."""

    def read_out(self) -> ReadOut:
        """The factors of the logits."""
        ...


class ModelState(NamedTuple):
    """The decode state of a model, for one sequence: how many tokens, every block's state, the last token (or -1)."""

    length: Int32[Array, ""]
    blocks: tuple[Any, ...]
    previous: Int32[Array, ""]


class LanguageModel(eqx.Module):
    """A causal language model put together from finished modules.

    One sequence: `model(tokens) = model.logits(model.features(model.embed(tokens)))`; `embed` is the embedding and what
    `bigrams` add to it. `blocks` is a plain tuple: a leaf has a name such as `blocks.17.channel.up`. Without a `head`
    the read-out is the embedding's own (tied, or generated): there is then no second leaf, and no second gradient.
    `logit_scale` multiplies the features that the read-out sees: a tied table with large rows starts at the uniform
    distribution by it. `lr_multipliers` scale the learning rate of leaves (see `ModelConfig`), for the optimizer to
    read.
    """

    embedding: TokenEmbedding
    positions: LearnedPositions | None
    blocks: tuple[Block, ...] = eqx.field(converter=tuple)  # a list would be another tree
    norm: RMSNorm | LayerNorm | None
    head: Head | HasReadOut | None
    logit_scale: float = eqx.field(static=True, default=1.0)
    lr_multipliers: str = eqx.field(static=True, default="")
    bigrams: HashedBigrams | None = None

    def __call__(self, tokens: Int[Array, " t"]) -> Float[Array, "t vocab"]:
        """Logits of one sequence, in at least float32; row i predicts token i + 1.

        **Raises:** `UserError` for a batch: `jax.vmap(model)`, or `batch_features`, which is faster.
        """
        tokens = check_ids(tokens)
        if tokens.ndim != 1:
            raise UserError(
                f"ids of shape {tokens.shape}: a model takes one sequence, (t,); of a batch say jax.vmap(model)(ids), "
                "or model.batch_features(ids)"
            )
        return self.logits(self.features(self.embed(tokens)))

    def embed(self, tokens: Int[Array, " t"], previous: Int[Array, ""] | None = None) -> Float[Array, "t d"]:
        """What the blocks read of one sequence, after `previous` where it is one that goes on."""
        return self._with_bigrams(self.embedding(tokens), tokens, previous)

    def _with_bigrams(
        self, x: Float[Array, "*b t d"], tokens: Int[Array, "*b t"], previous: Int[Array, ""] | None = None
    ) -> Float[Array, "*b t d"]:
        if not jax.tree.leaves(eqx.filter(self.embedding, eqx.is_inexact_array)):
            # An embedding without parameters does not know what the model computes in.
            x = x.astype(jax.tree.leaves(eqx.filter(self.blocks, eqx.is_inexact_array))[0].dtype)
        return x if self.bigrams is None else x + self.bigrams(before_each(tokens, previous), tokens)

    def features(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """What the read-out sees, from the token embeddings of one sequence."""
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.inexact):
            given = f"{x.dtype} of shape {x.shape}"
            raise UserError(
                f"features of {given}: it takes the vectors of one sequence, (t, d), such as model.embed(ids)"
            )
        if self.positions is not None:
            x = self.positions(x)
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{i}"):
                x = block(x)
        return self._last(x)

    def batch_features(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Features of a batch of sequences, equal to `vmap(features)` of what `embed` gives.

        A generator evaluates each distinct token once, and blocks that know a faster batched form (`batch`) use it.
        """
        if (tokens := check_ids(tokens)).ndim != 2:
            raise UserError(f"ids of shape {tokens.shape}: a batch is (b, t); of one sequence say model(ids)")
        x = self._with_bigrams(embed_batch(self.embedding, tokens), tokens)
        # Blocks stay in a Python loop: tapered ones differ in shape. Equal ones are scanned by `train.stack`.
        if self.positions is not None:
            x = jax.vmap(self.positions)(x)
        for i, block in enumerate(self.blocks):
            with jax.named_scope(f"block_{i}"):
                x = block.batch(x) if hasattr(block, "batch") else jax.vmap(block)(x)
        return self._last(x)

    def read_out(self) -> ReadOut:
        """The factors that turn features into logits."""
        return self.embedding.read_out() if self.head is None else self.head.read_out()

    def logits(self, features: Float[Array, "t d"]) -> Float[Array, "t vocab"]:
        """All logits of one sequence (training uses `cross_entropy`, which never holds them all)."""
        return self.read_out().logits(features)

    @property
    def decodes(self) -> bool:
        """Whether every block keeps a decode state, so that `start`, `prefill` and `step` work."""
        return all(getattr(block, "decodes", False) for block in self.blocks)

    def start(self, context: int, dtype: Any = None) -> ModelState:
        """The decode state before the first of up to `context` tokens of one sequence.

        **Arguments:**

        - `context`: the most tokens that will follow; the state has a fixed size that may depend on it.
        - `dtype`: of what is kept a token; None is the parameters'.

        **Raises:** `ValueError` where a mixer keeps no decode state, and where learned positions end before `context`.
        """
        if self.positions is not None and context > self.positions.context:
            raise ValueError(f"context={context}, but learned positions end at {self.positions.context}")
        blocks = tuple(block.start(context, dtype) for block in self.blocks)
        return ModelState(jnp.zeros((), jnp.int32), blocks, jnp.full((), -1, jnp.int32))

    def prefill(self, tokens: Int[Array, " t"], state: Any) -> Decoded:
        """Features `(t, d)` of t more tokens, and the state after them: the same as t steps, in one parallel pass.

        From the start they are `features(embed(tokens))`. `logits` turns the rows that are needed into logits.
        """
        state = self._check(state)
        x = self.embed(tokens, state.previous)
        # Rotary positions come from each attention's own cache; learned ones are added here, once.
        if self.positions is not None:
            x = self.positions.at(x, state.length)
        states = []
        for block, before in zip(self.blocks, state.blocks, strict=True):
            x, after = block.prefill(x, before)
            states.append(after)
        x = self._last(x)
        previous = tokens[-1].astype(jnp.int32) if tokens.shape[0] else state.previous
        return Decoded(x, ModelState(state.length + tokens.shape[0], tuple(states), previous))

    def step(self, token: Int[Array, ""], state: Any) -> Decoded:
        """The features `(d,)` of one more token, and the state after it."""
        state = self._check(state)
        x = self.embed(token[None], state.previous)[0]
        if self.positions is not None:
            x = self.positions.at(x[None], state.length)[0]
        states = []
        for block, before in zip(self.blocks, state.blocks, strict=True):
            x, after = block.step(x, before)
            states.append(after)
        x = self._last(x)
        return Decoded(x, ModelState(state.length + 1, tuple(states), token.astype(jnp.int32)))

    def _last(self, x: Float[Array, "*t d"]) -> Float[Array, "*t d"]:
        x = x if self.norm is None else self.norm(x)
        return x if self.logit_scale == 1.0 else x * self.logit_scale

    def _check(self, state: Any) -> ModelState:
        if not isinstance(state, ModelState):
            raise ValueError(f"the decode state is a {type(state).__name__}: take it from this model's start()")
        if len(state.blocks) != len(self.blocks):
            raise ValueError(
                f"the decode state is of {len(state.blocks)} blocks, the model has {len(self.blocks)}: "
                "take it from this model's start()"
            )
        return state
