"""A probe into a model: how far each layer's channel points along the residual stream that it is added to."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .block import Block


def channel_cosines(model: Any, tokens: Int[Array, "b t"]) -> Float[Array, " layers"]:
    r"""The mean over tokens of $\cos(\Delta, x)$ a layer: $x$ the residual stream that the channel reads, $\Delta$ what
    the channel (the MLP) adds to it.

    Near 1 a channel only makes the stream longer, near 0 it writes what was not there. Tapered Language Models (arXiv
    2606.23670) explains its widths with a cosine that rises with depth. Of a channel of several branches $\Delta$ is
    all that they add; with post-norm it is the branch before the sum, and of several branches what changes the stream.

    **Arguments:** `model`: a `LanguageModel`, or any model whose `batch_features` calls the `batch` of its `blocks`;
    `tokens`: a batch of ids.

    **Returns:** a number a block, in [-1, 1]; none for a model without blocks of the library's kind.
    """
    blocks = getattr(model, "blocks", ())
    if not isinstance(blocks, tuple) or not blocks or not all(isinstance(block, Block) for block in blocks):
        return jnp.zeros(0)
    watched = tuple(_Watched(block) for block in blocks)
    eqx.tree_at(lambda m: m.blocks, model, watched).batch_features(tokens)
    return jnp.stack([block.cosine for block in watched])


class _Watched:
    """A block that keeps the cosine of the batch that went through it."""

    def __init__(self, block: Block):
        self.block, self.cosine = block, jnp.zeros(())

    def batch(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        stream, added, after = self.block.around_channel(x)
        stream, added = stream.astype(jnp.float32), added.astype(jnp.float32)
        # The roots apart: the product of two squared norms would underflow early in training.
        norms = jnp.linalg.norm(stream, axis=-1) * jnp.linalg.norm(added, axis=-1)
        self.cosine = (jnp.sum(stream * added, axis=-1) / jnp.maximum(norms, 1e-30)).mean()
        return after
