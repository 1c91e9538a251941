"""The ladder: a linear predictor, an MLP, and causal attention blocks, which read a window and predict what follows it.

The models of "Architectural Trade-offs in Small Language Models Under Compute Constraints" (arXiv 2512.20877) as its
notebook has them: ReLU, LayerNorm, a bias everywhere, an untied head, PyTorch's initial values, a causal mask, and a
read-out of the last position alone. A config is a function `make(key) -> model`, so that it is an arm of a study.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..checks import check_number, one_of, whole
from ..errors import UserError
from .head import ReadOut
from .init import subkey
from .norm import LayerNorm
from .positions import LearnedPositions, rotate
from .table import TableEmbedding

Targets = Literal["last", "every"]
Counted = Literal["as written", "as needed"]

CHUNK = 32  # queries of a causal attention that are computed at once

CONVENTIONS = {
    "as written": "every block over every position, the whole square of attention, the head once a target",
    "as needed": "half the square of a causal attention; where one target is read, the last block's last position only",
}


class Affine(eqx.Module):
    """`x W + b`."""

    weight: Float[Array, "{self.inputs} {self.outputs}"]
    bias: Float[Array, "{self.outputs}"]
    inputs: int = eqx.field(static=True)
    outputs: int = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("bias",)

    def __init__(self, inputs: int, outputs: int, *, bound: float | None = None, zero: bool = False, key: PRNGKeyArray):
        """**Arguments:** sizes; `bound` of the uniform initial weight (None: inputs^-1/2, PyTorch's); `zero`: the bias
        starts at 0, otherwise uniform within inputs^-1/2; `key`."""
        self.inputs, self.outputs, edge = inputs, outputs, inputs**-0.5
        self.weight = _uniform(key, "weight", (inputs, outputs), edge if bound is None else bound)
        self.bias = jnp.zeros(outputs) if zero else _uniform(key, "bias", (outputs,), edge)

    def __call__(self, x: Float[Array, "*t {self.inputs}"]) -> Float[Array, "*t {self.outputs}"]:
        return x @ self.weight + self.bias.reshape((1,) * (x.ndim - 1) + (-1,))


def _uniform(key: PRNGKeyArray, name: str, shape: tuple[int, ...], bound: float) -> Float[Array, "..."]:
    return jr.uniform(subkey(key, name), shape, minval=-bound, maxval=bound)


def dropped(x: Float[Array, "*t d"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*t d"]:
    """Dropout: each number is 0 with probability `rate` (to 2^-16), the others are scaled up; no key, no dropout."""
    of_16_bits = round(rate * 65536)
    if key is None or not of_16_bits:
        return x
    kept = jr.bits(key, x.shape, jnp.uint16) >= of_16_bits
    return jnp.where(kept, x * (65536 / (65536 - of_16_bits)), 0)


@dataclass(frozen=True)
class _Ladder:
    """What all models of the ladder have: the vocabulary, the window in tokens, the width, the dropout's rate."""

    vocab_size: int = 65
    context: int = 128
    d_model: int = 128
    dropout: float = 0.1

    def __post_init__(self):
        for name in ("vocab_size", "context", "d_model"):
            whole(name, getattr(self, name))
        check_number("dropout", self.dropout, "a share of at least 0 and below 1", lambda rate: 0 <= rate < 1)


@dataclass(frozen=True)
class FlatConfig(_Ladder):
    """Embed, flatten the window, and hidden layers of ReLU and dropout; with none it is the linear predictor.

    **Arguments:** `hidden`: the widths of the hidden layers; the rest are the ladder's: `vocab_size`, `context` (the
    last so many tokens of a window are read), `d_model`, `dropout`.
    """

    hidden: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for width in self.hidden:
            whole("hidden", width)

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths from the flattened window to the logits."""
        return (self.context * self.d_model, *self.hidden, self.vocab_size)

    def parameters(self) -> int:
        """V D, and a matrix with its bias from each width to the next."""
        layers = zip(self.widths, self.widths[1:], strict=False)
        return self.vocab_size * self.d_model + sum((a + 1) * b for a, b in layers)

    def flops(self, counted: Counted = "as needed") -> int:
        """Forward matmul FLOPs a window, the same by both of `CONVENTIONS`."""
        one_of("counted", counted, tuple(CONVENTIONS))
        return sum(2 * a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def __call__(self, key: PRNGKeyArray) -> "FlatModel":
        """The module."""
        return FlatModel(self, key=key)


@dataclass(frozen=True)
class StackConfig(_Ladder):
    """Attention blocks, a final LayerNorm, a head; the transformer by default, one block of `d_ff` 512 is "attention".

    **Arguments:**

    - `depth`, `n_heads`, `d_ff`: blocks, heads of a block, hidden width of its MLP.
    - `positions`: "learned" vectors, "rotary" angles (arXiv 2104.09864), or "none".
    - `norm`: "post" normalises after each residual sum, "pre" before each branch.
    - `causal`: whether a position sees only itself and what came before it.
    - `targets`: what training reads: the "last" position of a window, or "every" one (of causal models). A model is
      judged by the last position always.
    - the ladder's: `vocab_size`, `context` (the longest window), `d_model`, `dropout` (of attention's weights and of
      the MLP's output).
    """

    depth: int = 3
    n_heads: int = 4
    d_ff: int = 256
    positions: Literal["learned", "rotary", "none"] = "learned"
    norm: Literal["post", "pre"] = "post"
    causal: bool = True
    targets: Targets = "last"

    def __post_init__(self):
        super().__post_init__()
        for name in ("depth", "n_heads", "d_ff"):
            whole(name, getattr(self, name))
        one_of("positions", self.positions, ("learned", "rotary", "none"))
        one_of("norm", self.norm, ("post", "pre"))
        one_of("targets", self.targets, ("last", "every"))
        if self.d_model % self.n_heads:
            raise UserError(f"d_model={self.d_model} does not divide among n_heads={self.n_heads}: give a multiple")
        if self.targets == "every" and not self.causal:
            raise UserError(
                "targets='every' needs causal=True: a position that sees the later ones sees its target; "
                "set causal, or targets='last'"
            )

    def parameters(self) -> int:
        """V D + T D of tables, of a block 4 (D^2 + D) + 2 D F + F + D + 4 D, 2 D of the last norm, V (D + 1)."""
        v, d, f = self.vocab_size, self.d_model, self.d_ff
        block = 4 * (d * d + d) + 2 * d * f + f + d + 4 * d
        return (
            v * d + (self.context * d if self.positions == "learned" else 0) + self.depth * block + 2 * d + v * (d + 1)
        )

    def flops(self, counted: Counted = "as needed") -> int:
        """Forward matmul FLOPs a window of `context` tokens, by one of `CONVENTIONS`, for the config's `targets`."""
        one_of("counted", counted, tuple(CONVENTIONS))
        t, d, f, needed = self.context, self.d_model, self.d_ff, counted == "as needed"
        pairs = t * (t + 1) // 2 if needed and self.causal else t * t
        whole_block = t * (8 * d * d + 4 * d * f) + 4 * d * pairs
        last_row = 4 * t * d * d + 4 * d * d + 4 * d * f + 4 * d * t  # keys and values of all, the rest of one
        last_block = last_row if needed and self.targets == "last" else whole_block
        read = 1 if self.targets == "last" else t
        return (self.depth - 1) * whole_block + last_block + read * 2 * d * self.vocab_size

    def __call__(self, key: PRNGKeyArray) -> "StackModel":
        """The module."""
        return StackModel(self, key=key)


class _LadderModel(eqx.Module):
    """A model of the ladder in training and in judgement: its parts say `features`."""

    embedding: eqx.AbstractVar[TableEmbedding]
    head: eqx.AbstractVar[Affine]
    config: eqx.AbstractVar[Any]

    def __call__(self, tokens: Int[Array, " t"]) -> Float[Array, "s vocab"]:
        """Logits of one window, of all the positions that it has features of; the last row is what follows it."""
        return self.read_out().logits(_with_one(self.features(self.embedding(tokens))))

    def features(
        self, x: Float[Array, "t d"], *, key: PRNGKeyArray | None = None, last: bool = False
    ) -> Float[Array, "s r"]:
        """What the head reads of one window's embeddings; `last`: of its last position alone. A key is for dropout."""
        raise NotImplementedError

    def batch_features(self, tokens: Int[Array, "b t"]) -> Float[Array, "b 1 r"]:
        """What the model is judged by: the last position of every window, without dropout."""
        return _with_one(jax.vmap(lambda x: self.features(x, last=True))(self.embedding(tokens)))

    def training_features(self, tokens: Int[Array, "b t"], key: PRNGKeyArray) -> Float[Array, "b s r"]:
        """What training reads: the last position or every one, with dropout by `key`."""
        last, keys = getattr(self.config, "targets", "last") == "last", jr.split(key, tokens.shape[0])
        return _with_one(jax.vmap(lambda x, k: self.features(x, key=k, last=last))(self.embedding(tokens), keys))

    def read_out(self) -> ReadOut:
        """The factors of the logits: the bias is one more column, for a feature that is always 1."""
        return ReadOut(jnp.concatenate([self.head.weight.T, self.head.bias[:, None]], axis=1))

    def flops_per_token(self) -> dict[str, Any]:
        """Training FLOPs (3 x forward) over the tokens of a window, by both conventions; `total` is as needed."""
        per = {name: 3.0 * self.config.flops(name) / self.config.context for name in CONVENTIONS}
        return {"total": per["as needed"], "conventions": per}


def _with_one(x: Float[Array, "*t d"]) -> Float[Array, "*t r"]:
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], axis=-1)


class FlatModel(_LadderModel):
    """The linear predictor and the MLP."""

    embedding: TableEmbedding
    layers: tuple[Affine, ...]
    head: Affine
    config: FlatConfig = eqx.field(static=True)

    def __init__(self, config: FlatConfig, *, key: PRNGKeyArray):
        """**Arguments:** `config`; `key`."""
        self.config, widths = config, config.widths
        self.embedding = TableEmbedding(config.vocab_size, config.d_model, std=1.0, key=subkey(key, "embedding"))
        pairs = enumerate(zip(widths, config.hidden, strict=False))
        self.layers = tuple(Affine(a, b, key=subkey(subkey(key, "layers"), i)) for i, (a, b) in pairs)
        self.head = Affine(widths[-2], config.vocab_size, key=subkey(key, "head"))

    def features(
        self, x: Float[Array, "t d"], *, key: PRNGKeyArray | None = None, last: bool = True
    ) -> Float[Array, "1 r"]:
        if x.shape[0] < self.config.context:
            raise UserError(f"a window of {x.shape[0]} tokens, but the model reads {self.config.context}: give as many")
        x = x[-self.config.context :].reshape(1, -1)
        for i, layer in enumerate(self.layers):
            x = dropped(jax.nn.relu(layer(x)), self.config.dropout, None if key is None else jr.fold_in(key, i))
        return x


class StackBlock(eqx.Module):
    """Attention and a ReLU MLP, each on a residual branch with a LayerNorm before or after."""

    q: Affine
    k: Affine
    v: Affine
    out: Affine
    mixer_norm: LayerNorm
    up: Affine
    down: Affine
    channel_norm: LayerNorm
    config: StackConfig = eqx.field(static=True)

    def __init__(self, config: StackConfig, *, key: PRNGKeyArray):
        """**Arguments:** `config`; `key`."""
        d, f, self.config = config.d_model, config.d_ff, config
        # PyTorch draws queries, keys and values as one matrix of (D, 3 D), by Glorot's rule.
        self.q, self.k, self.v = (
            Affine(d, d, bound=(6 / (4 * d)) ** 0.5, zero=True, key=subkey(key, name)) for name in "qkv"
        )
        self.out = Affine(d, d, zero=True, key=subkey(key, "out"))
        self.up, self.down = Affine(d, f, key=subkey(key, "up")), Affine(f, d, key=subkey(key, "down"))
        self.mixer_norm, self.channel_norm = LayerNorm(d), LayerNorm(d)

    def __call__(
        self, x: Float[Array, "t d"], *, key: PRNGKeyArray | None = None, last: bool = False
    ) -> Float[Array, "s d"]:
        """The block over one window; `last` computes only the last position, from the keys and values of all."""
        pre, rate = self.config.norm == "pre", self.config.dropout
        key_mixer, key_channel = (None, None) if key is None else jr.split(key)
        h = self.mixer_norm(x) if pre else x
        first = x.shape[0] - 1 if last else 0
        x = x[first:] + self.attend(h[first:], h, key_mixer)
        x = x if pre else self.mixer_norm(x)
        h = self.channel_norm(x) if pre else x
        x = x + dropped(self.down(jax.nn.relu(self.up(h))), rate, key_channel)
        return x if pre else self.channel_norm(x)

    def attend(
        self, queries: Float[Array, "s d"], x: Float[Array, "t d"], key: PRNGKeyArray | None
    ) -> Float[Array, "s d"]:
        """What the last s positions of a window take from all of it."""
        (s, t), n = (queries.shape[0], x.shape[0]), self.config.n_heads
        q, k, v = self.q(queries).reshape(s, n, -1), self.k(x).reshape(t, n, -1), self.v(x).reshape(t, n, -1)
        if self.config.positions == "rotary":
            q, k = rotate(q, offset=t - s), rotate(k)
        q, k, v = q.transpose(1, 0, 2) * q.shape[-1] ** -0.5, k.transpose(1, 0, 2), v.transpose(1, 0, 2)
        mixed = []
        for i in range(0, s, CHUNK):
            # A chunk of queries against the keys that any of them sees: a causal square is never made whole.
            rows = jnp.arange(t - s + i, t - s + min(i + CHUNK, s))
            end = t - s + min(i + CHUNK, s) if self.config.causal else t
            scores = q[:, i : i + CHUNK] @ k[:, :end].mT
            if self.config.causal:
                scores = jnp.where((jnp.arange(end)[None] <= rows[:, None])[None], scores, jnp.finfo(scores.dtype).min)
            weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
            kept = dropped(weights, self.config.dropout, None if key is None else jr.fold_in(key, i))
            # The softmax's division comes after the values are mixed, over h numbers a row.
            mixed.append((kept @ v[:, :end]) / weights.sum(axis=-1, keepdims=True))
        return self.out(jnp.concatenate(mixed, axis=1).transpose(1, 0, 2).reshape(s, -1))


class StackModel(_LadderModel):
    """One attention block, or the transformer."""

    embedding: TableEmbedding
    positions: LearnedPositions | None
    blocks: tuple[StackBlock, ...]
    norm: LayerNorm
    head: Affine
    config: StackConfig = eqx.field(static=True)

    def __init__(self, config: StackConfig, *, key: PRNGKeyArray):
        """**Arguments:** `config`; `key`."""
        self.config, d = config, config.d_model
        self.embedding = TableEmbedding(config.vocab_size, d, std=1.0, key=subkey(key, "embedding"))
        learned = config.positions == "learned"
        self.positions = LearnedPositions(config.context, d, std=1.0, key=subkey(key, "positions")) if learned else None
        self.blocks = tuple(StackBlock(config, key=subkey(subkey(key, "blocks"), i)) for i in range(config.depth))
        self.norm, self.head = LayerNorm(d), Affine(d, config.vocab_size, key=subkey(key, "head"))

    def features(
        self, x: Float[Array, "t d"], *, key: PRNGKeyArray | None = None, last: bool = False
    ) -> Float[Array, "s d"]:
        x = x if self.positions is None else self.positions(x)
        for i, block in enumerate(self.blocks):
            # Of the last block nothing but what is read has to be computed.
            only = last and i == self.config.depth - 1
            x = block(x, key=None if key is None else jr.fold_in(key, i), last=only)
        return self.norm(x)


LADDER: dict[str, FlatConfig | StackConfig] = {
    "linear": FlatConfig(),
    "mlp": FlatConfig(hidden=(256, 256)),
    "attention": StackConfig(depth=1, d_ff=512),
    "transformer": StackConfig(),
}
