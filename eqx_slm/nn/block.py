"""One layer: a mixer over tokens and a channel MLP, each on a residual branch."""

import abc
from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .norm import LayerNorm, NormKind, RMSNorm, make_norm

Placement = Literal["pre", "post"]


class Mixer(eqx.Module):
    """Moves information between the tokens of one sequence, causally."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The branch's contribution; no row may depend on a later row of `x`."""


class Channel(eqx.Module):
    """Transforms every token by itself."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The branch's contribution."""


@runtime_checkable
class MixerConfig(Protocol):
    """What `build` and the accounting ask of a mixer's config."""

    def parameters(self, d_model: int) -> int:
        """Closed-form number of parameters."""
        ...

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token."""
        ...

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept for the backward pass, a token."""
        ...

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> Mixer:
        """The module."""
        ...


class Block(eqx.Module):
    """`x + mixer(norm(x))`, then `x + channel(norm(x))`; with `placement="post"` the norm comes after each sum.

    Pre-norm from arXiv 2002.04745; post-norm from arXiv 1706.03762.
    """

    mixer_norm: RMSNorm | LayerNorm
    mixer: Mixer
    channel_norm: RMSNorm | LayerNorm
    channel: Channel
    placement: Placement = eqx.field(static=True)

    def __init__(
        self, mixer: Mixer, channel: Channel, *, d_model: int, norm: NormKind = "rms", placement: Placement = "pre"
    ):
        """**Arguments:** finished `mixer` and `channel`; `d_model`; `norm` and `placement` as in `ModelConfig`."""
        self.mixer_norm = make_norm(norm, d_model)
        self.mixer = mixer
        self.channel_norm = make_norm(norm, d_model)
        self.channel = channel
        self.placement = placement

    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        if self.placement == "pre":
            x = x + self.mixer(self.mixer_norm(x))
            return x + self.channel(self.channel_norm(x))
        x = self.mixer_norm(x + self.mixer(x))
        return self.channel_norm(x + self.channel(x))

    def batch(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """`vmap` of the call, faster: a channel sees one token at a time, so a batch is to it one long sequence.

        Two-axis matmuls keep their gradients free of transposes (half the time of a vmapped MLP on a CPU).
        """

        def channel(y: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
            return self.channel(y.reshape(-1, y.shape[-1])).reshape(y.shape)

        if self.placement == "pre":
            x = x + jax.vmap(self.mixer)(self.mixer_norm(x))
            return x + channel(self.channel_norm(x))
        x = self.mixer_norm(x + jax.vmap(self.mixer)(x))
        return self.channel_norm(x + channel(x))
