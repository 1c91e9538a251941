"""Fast weights in context: the levels of a continuum memory learn from the sequence that they read."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PyTree

from ..checks import check_each_whole, one_of, real
from ..errors import UserError
from .block import Decoded
from .continuum import ContinuumMemory
from .lm import LanguageModel, ModelState


class InContextState(NamedTuple):
    """Of one sequence: deltas and summed gradients of every level, the model's state at the start of the chunk and now,
    the chunk's tokens so far, how many they are, and how many chunks are complete."""

    deltas: PyTree[Array]
    sums: PyTree[Array]
    before: ModelState
    now: ModelState
    tokens: Int32[Array, " chunk"]
    filled: Int32[Array, ""]
    chunks: Int32[Array, ""]


@dataclass(frozen=True)
class InContext:
    r"""Continuum levels that take gradient steps on next-token prediction while the model reads a sequence.

    Level s of every block has a delta $D_s$, zero at the start of a sequence. After every `chunks[s]` tokens
    $D_s \leftarrow D_s - \eta_s \sum g$, with $g$ the gradient of the summed loss of a base chunk (the smallest of
    `chunks`), in which what was cached before the chunk is constant. The label of a chunk's last token is the next
    chunk's first token, and the update is used from there on: nothing leaks. An incomplete chunk updates nothing.

    `outer="first-order"` holds $g$ constant when the result is differentiated; "full" goes through it as well, which
    can explode. The cost is sequential over base chunks, and a sequence keeps a copy of its levels: vmap small batches.

    From Nested Learning (arXiv 2512.24695), eq. 71 and eq. 73 in context.
    """

    chunks: tuple[int, ...] = (8, 32)
    rates: tuple[float, ...] = (1e-2, 1e-3)
    outer: Literal["first-order", "full"] = "first-order"

    def __post_init__(self):
        multiples = "tokens, at least 1, all of them multiples of the smallest"
        check_each_whole(self, "chunks", multiples)
        if any(chunk % min(self.chunks) for chunk in self.chunks):
            raise UserError(f"chunks={self.chunks}: {multiples}")
        object.__setattr__(self, "rates", tuple(self.rates))
        if len(self.chunks) != len(self.rates):
            raise UserError(f"{len(self.chunks)} chunks and {len(self.rates)} rates: give one of each a level")
        for s, rate in enumerate(self.rates):
            real(f"rates[{s}]", rate)
        one_of("outer", self.outer, ("first-order", "full"))

    def features(self, model: LanguageModel, tokens: Int[Array, " t"]) -> Float[Array, "t d"]:
        """Features of one sequence, chunk by chunk; `model.logits` makes logits of them.

        **Arguments:**

        - `model`: every block must keep a decode state; its continua have a level for each of `chunks`.
        - `tokens`: any number of them, at least one.

        **Raises:** `ValueError` where the model has no continuum, or one with other levels.
        """
        size, t = min(self.chunks), tokens.shape[0]
        if t == 0:
            raise UserError("0 tokens: give at least one")
        complete = (t - 1) // size  # whose labels are all known
        deltas = self._zeros(model)

        def chunk(carry: tuple[Any, Any, Any], inputs: tuple[Array, Array, Array]) -> tuple[Any, Array]:
            deltas, sums, state = carry
            index, these, labels = inputs
            gradient, features, state = self._read(model, deltas, these, labels, state)
            deltas, sums = self._update(deltas, sums, gradient, index + 1)
            return (deltas, sums, state), features

        inputs = tokens[: complete * size].reshape(complete, size)
        labels = tokens[1 : complete * size + 1].reshape(complete, size)
        carry = (deltas, deltas, model.start(t))
        (deltas, _, state), features = jax.lax.scan(
            chunk, carry, (jnp.arange(complete, dtype=jnp.int32), inputs, labels)
        )
        rest = self._with(model, deltas).prefill(tokens[complete * size :], state).y
        return jnp.concatenate([features.reshape(-1, rest.shape[-1]), rest])

    def start(self, model: LanguageModel, context: int) -> InContextState:
        """The state before the first of up to `context` tokens: a new sequence has learned nothing."""
        # Every field has buffers of its own, so that the state can be donated.
        return InContextState(
            deltas=self._zeros(model),
            sums=self._zeros(model),
            before=model.start(context),
            now=model.start(context),
            tokens=jnp.zeros(min(self.chunks), jnp.int32),
            filled=jnp.zeros((), jnp.int32),
            chunks=jnp.zeros((), jnp.int32),
        )

    def step(self, model: LanguageModel, token: Int[Array, ""], state: InContextState) -> Decoded:
        """The features `(d,)` of one more token. At a chunk's boundary the chunk is replayed once, and learned from."""

        def learned(s: InContextState) -> InContextState:
            labels = jnp.concatenate([s.tokens[1:], token.astype(jnp.int32)[None]])
            gradient, _, _ = self._read(model, s.deltas, s.tokens, labels, s.before)
            deltas, sums = self._update(s.deltas, s.sums, gradient, s.chunks + 1)
            return InContextState(deltas, sums, s.now, s.now, s.tokens, jnp.zeros_like(s.filled), s.chunks + 1)

        state = jax.lax.cond(state.filled == min(self.chunks), learned, lambda s: s, state)
        features, now = self._with(model, state.deltas).step(token, state.now)
        kept = state.tokens.at[state.filled].set(token.astype(jnp.int32))
        return Decoded(features, state._replace(now=now, tokens=kept, filled=state.filled + 1))

    def _read(
        self, model: LanguageModel, deltas: PyTree, tokens: Array, labels: Array, state: ModelState
    ) -> tuple[PyTree, Array, ModelState]:
        """Gradient of a chunk's summed loss by the deltas, the chunk's features, and the state after it."""

        def loss(deltas: PyTree) -> tuple[Array, tuple[Array, ModelState]]:
            features, after = self._with(model, deltas).prefill(tokens, state)
            log_p = jax.nn.log_softmax(model.logits(features))
            return -jnp.take_along_axis(log_p, labels[:, None], axis=-1).sum(), (features, after)

        gradient, (features, after) = jax.grad(loss, has_aux=True)(deltas)
        if self.outer == "first-order":
            gradient = jax.lax.stop_gradient(gradient)
        return gradient, features, after

    def _update(self, deltas: PyTree, sums: PyTree, gradient: PyTree, done: Array) -> tuple[PyTree, PyTree]:
        """Deltas and sums after `done` base chunks: a level whose chunk is complete takes its step."""
        sums = jax.tree.map(jnp.add, sums, gradient)
        new_deltas, new_sums = [], []
        for block_deltas, block_sums in zip(deltas, sums, strict=True):
            pairs = []
            for delta, total, size, rate in zip(block_deltas, block_sums, self.chunks, self.rates, strict=True):
                due = done % (size // min(self.chunks)) == 0
                moved = jax.tree.map(lambda d, g, due=due, rate=rate: jnp.where(due, d - rate * g, d), delta, total)
                pairs.append((moved, jax.tree.map(lambda g, due=due: jnp.where(due, 0, g), total)))
            new_deltas.append(tuple(delta for delta, _ in pairs))
            new_sums.append(tuple(total for _, total in pairs))
        return tuple(new_deltas), tuple(new_sums)

    def _zeros(self, model: LanguageModel) -> PyTree[Array]:
        """A zero delta for every level of every continuum."""
        zeros = []
        for channel in _continua(model):
            if len(channel.levels) != len(self.chunks):
                raise ValueError(
                    f"{len(self.chunks)} chunks, but a continuum memory of {len(channel.levels)} levels: give one each"
                )
            arrays = [eqx.filter(level.mlp, eqx.is_inexact_array) for level in channel.levels]
            zeros.append(tuple(jax.tree.map(jnp.zeros_like, arrays)))
        if not zeros:
            raise ValueError("the model has no continuum memory: nothing in it learns in context")
        return tuple(zeros)

    def _with(self, model: LanguageModel, deltas: PyTree) -> LanguageModel:
        mlps = [level.mlp for channel in _continua(model) for level in channel.levels]
        moved = [eqx.apply_updates(mlp, d) for mlp, d in zip(mlps, [d for block in deltas for d in block], strict=True)]
        return eqx.tree_at(lambda m: [level.mlp for c in _continua(m) for level in c.levels], model, moved)


def _continua(model: LanguageModel) -> list[ContinuumMemory]:
    return [block.channel for block in model.blocks if isinstance(block.channel, ContinuumMemory)]
