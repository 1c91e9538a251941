"""One layer: a mixer over tokens and a channel MLP, each on a residual branch."""

import abc
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .norm import LayerNorm, NormKind, RMSNorm, make_norm

Placement = Literal["pre", "post"]


class Decoded(NamedTuple):
    """What decoding returns: the output, and the state after the tokens it is of."""

    y: Any
    state: Any


class Mixer(eqx.Module):
    """Moves information between the tokens of one sequence, causally.

    A mixer that can go on from where a sequence ended is a `Decodes` as well. One that is not still trains; generation
    then runs it over the whole window for every token.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The branch's contribution; no row may depend on a later row of `x`."""


@runtime_checkable
class Decodes(Protocol):
    """The decode state of a mixer, for one sequence: prefill of t tokens equals t steps, and from the start a call."""

    def start(self, context: int, dtype: Any = None) -> PyTree:
        """The state before the first of up to `context` tokens, of a fixed size; `dtype` None is the parameters'."""
        ...

    def prefill(self, x: Float[Array, "t d"], state: Any) -> Decoded:
        """The output for t more tokens, `(t, d)`, and the state after them."""
        ...

    def step(self, x: Float[Array, " d"], state: Any) -> Decoded:
        """The output for one more token, `(d,)`, and the state after it."""
        ...


class Channel(eqx.Module):
    """Transforms every token by itself."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The branch's contribution."""


@runtime_checkable
class Branches(Protocol):
    """A channel of several residual branches, one after the other: it is given the stream, not its norm."""

    def stream(self, x: Float[Array, "t d"], norm: Any, placement: Placement) -> Float[Array, "t d"]:
        """The stream after all branches; `norm` is the block's, for the first of them."""
        ...


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

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers that decoding one sequence of up to `context` tokens keeps."""
        ...

    def check(self, d_model: int) -> None:
        """Raises `ValueError` where the sizes do not fit `d_model`."""
        ...

    def build(self, d_model: int, *, rotary: bool = True, output_scale: float = 1.0, key: PRNGKeyArray) -> Mixer:
        """The module."""
        ...


@runtime_checkable
class ChannelConfig(Protocol):
    """What `build` and the accounting ask of a channel's config, a dataclass with the hidden width `d_ff`."""

    @property
    def branches(self) -> int:
        """Residual branches, one after the other."""
        ...

    def width(self, d_model: int) -> int:
        """The hidden width in numbers."""
        ...

    def parameters(self, d_model: int) -> int:
        """Closed-form number of parameters."""
        ...

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token."""
        ...

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept for the backward pass, a token."""
        ...

    def accumulated(self, d_model: int) -> int:
        """Numbers of gradient that wait for an update, beside the optimizer's moments."""
        ...

    def build(self, d_model: int, *, output_scale: float = 1.0, key: PRNGKeyArray) -> Channel:
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
        self,
        mixer: Mixer,
        channel: Channel,
        *,
        d_model: int,
        norm: NormKind = "rms",
        norm_eps: float | None = None,
        placement: Placement = "pre",
    ):
        """**Arguments:** finished `mixer` and `channel`; `d_model`; the rest as in `ModelConfig`."""
        self.mixer_norm = make_norm(norm, d_model, norm_eps)
        self.mixer = mixer
        self.channel_norm = make_norm(norm, d_model, norm_eps)
        self.channel = channel
        self.placement = placement

    def __call__(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        return self._branches(x, self.mixer, self._channel)

    def batch(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """`vmap` of the call, faster: a channel sees one token at a time, so a batch is to it one long sequence.

        Two-axis matmuls keep their gradients free of transposes (half the time of a vmapped MLP on a CPU). A mixer may
        have a batched form of its own.
        """
        return self._batch(x, self._channel)

    def around_channel(self, x: Float[Array, "b t d"]) -> tuple[Array, Array, Array]:
        """Of a batch the stream that the channel reads, what the channel adds to it, and the stream after the block,
        `(b, t, d)` each; see `channel_cosines`."""
        seen, plain = [], self.placement == "post" and not isinstance(self.channel, Branches)

        def channel(y: Float[Array, "n d"]) -> Float[Array, "n d"]:
            after = self._channel(y)
            branch = self.channel(y) if plain else after - y
            seen.extend((y.reshape(x.shape), branch.reshape(x.shape)))
            return after

        after = self._batch(x, channel)
        return seen[0], seen[1], after

    def _batch(self, x: Float[Array, "b t d"], channel: Any) -> Float[Array, "b t d"]:
        mixer = getattr(self.mixer, "batch", None) or jax.vmap(self.mixer)

        # Rows of the batch may lie one after the other here and not in the mixer: a channel never looks at a neighbour.
        def flat(y: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
            return channel(y.reshape(-1, y.shape[-1])).reshape(y.shape)

        return self._branches(x, mixer, flat)

    def _branches(self, x: Array, mixer: Any, channel: Any) -> Array:
        # Pre-norm leaves the stream itself without a norm from the embedding to the last block, so that gradients reach
        # every layer undamped; post-norm is the original form.
        if self.placement == "pre":
            return channel(x + mixer(self.mixer_norm(x)))
        return channel(self.mixer_norm(x + mixer(x)))

    def _channel(self, x: Float[Array, "t d"]) -> Float[Array, "t d"]:
        """The stream after the channel."""
        # A channel of several branches adds each to the stream before the next one reads it, and so needs the stream.
        if isinstance(self.channel, Branches):
            return self.channel.stream(x, self.channel_norm, self.placement)
        return add_branch(x, self.channel, self.channel_norm, self.placement)

    @property
    def decodes(self) -> bool:
        """Whether the mixer keeps a decode state, so that `start`, `prefill` and `step` work."""
        return isinstance(self.mixer, Decodes)

    def start(self, context: int, dtype: Any = None) -> PyTree:
        """The decode state before the first of up to `context` tokens: the mixer's (a channel has none)."""
        return self._decoder().start(context, dtype)

    def prefill(self, x: Float[Array, "t d"], state: PyTree) -> Decoded:
        """The block's output for t more tokens, and the state after them."""
        return self._decode(x, state, self._decoder().prefill, self._channel)

    def step(self, x: Float[Array, " d"], state: PyTree) -> Decoded:
        """The block's output for one more token, and the state after it."""
        return self._decode(x, state, self._decoder().step, lambda y: self._channel(y[None])[0])

    def _decode(self, x: Array, state: Any, mixer: Any, channel: Any) -> Decoded:
        # The mixer's new state leaves through this list: `_branches` is the one place that knows the order of norms and
        # sums, and asks its mixer for an array alone.
        after = []

        def mixed(y: Array) -> Array:
            out, new = mixer(y, state)
            after.append(new)
            return out

        return Decoded(self._branches(x, mixed, channel), after[0])

    def _decoder(self) -> Decodes:
        if not isinstance(self.mixer, Decodes):
            raise ValueError(
                f"{type(self.mixer).__name__} keeps no decode state: give it start, prefill and step, "
                "or run it over the whole sequence"
            )
        return self.mixer


def add_branch(x: Float[Array, "t d"], branch: Any, norm: Any, placement: Placement) -> Float[Array, "t d"]:
    """One residual branch: `x + branch(norm(x))`, or `norm(x + branch(x))` with the norm after the sum."""
    return x + branch(norm(x)) if placement == "pre" else norm(x + branch(x))


def check_state(state: Any, kind: type, mixer: Mixer) -> None:
    """Raises `ValueError` where a decode state is not of the kind that `mixer` makes."""
    if not isinstance(state, kind):
        raise ValueError(
            f"the decode state is a {type(state).__name__}, but {type(mixer).__name__} decodes with a "
            f"{kind.__name__}: take the state from the start() of the model that it is given to"
        )
