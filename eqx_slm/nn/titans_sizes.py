"""The sizes of Titans' memory: which are allowed, and its parameters, FLOPs, activations and decode state."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..configs import check_choices
from .memory_chunk import Read

CONV = 4  # taps of the depthwise causal convolution


@dataclass(frozen=True)
class TitansSizes:
    """The fields of `TitansConfig`, and all it answers but the module."""

    kind: Literal["titans"] = "titans"
    n_heads: int = 4
    memory_depth: int = 2
    expansion: int = 4
    memory_norm: Literal["layer", "none"] = "layer"
    memory_residual: Literal["identity", "none"] = "identity"
    chunk: int = 16
    chunk_train: int | None = None
    step_size: float = 1.0
    read: Read = "inclusive"
    persistent: int = 0
    remat: Literal["groups", "none"] = "groups"

    keeps: ClassVar[tuple[str, ...]] = ("n_heads",)

    @property
    def d_model_multiple(self) -> int:
        """What `d_model` is a multiple of."""
        return self.n_heads

    def check(self, d_model: int) -> None:
        """**Raises:** `ValueError` where the sizes do not fit `d_model`, or a value is not an allowed one."""
        for name in ("n_heads", "memory_depth", "expansion", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.chunk_train is not None and self.chunk_train < 1:
            raise ValueError(f"chunk_train={self.chunk_train}: it must be at least 1, or None for the chunk")
        if self.persistent < 0:
            raise ValueError(f"persistent={self.persistent}: it is a number of tokens, 0 for none")
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size={self.step_size}: it must be positive and finite")
        check_choices(self)
        if d_model % self.n_heads:
            lower = d_model // self.n_heads * self.n_heads
            nearest = f"{lower} or {lower + self.n_heads}" if lower else f"{self.n_heads}"
            raise ValueError(f"d_model={d_model} is not divisible by n_heads={self.n_heads}: take d_model {nearest}")

    def layers(self, d_model: int) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a head's memory matrices."""
        self.check(d_model)
        p = d_model // self.n_heads
        widths = (p,) + (self.expansion * p,) * (self.memory_depth - 1) + (p,)
        return tuple(zip(widths[:-1], widths[1:], strict=True))

    def memory_numbers(self, d_model: int) -> int:
        """Numbers in the memories of all heads, without momentum."""
        return self.n_heads * sum(a * b for a, b in self.layers(d_model))

    def parameters(self, d_model: int) -> int:
        """5 D^2, convolutions 12 D, gates 3 (D H + H), initial memories (8 D p), norms, persistent tokens."""
        memory = self.memory_numbers(d_model)
        p = d_model // self.n_heads
        norms = p + (d_model if self.memory_norm == "layer" else 0)
        gates = 3 * self.n_heads * (d_model + 1)
        return 5 * d_model**2 + 3 * CONV * d_model + gates + memory + norms + self.persistent * d_model

    def flops(self, d_model: int, context: int) -> int:
        """Forward FLOPs a token: projections, gates, convolutions, and the chunk form (masked halves too).

        A head's memory of s numbers: 2 s forward at the anchor, 2 s for deltas (but the first layer's), 4 s read and
        4 s written (weights and momentum), and within a chunk scores and sums over C tokens.
        """
        layers, heads = self.layers(d_model), self.n_heads
        c = min(self.chunk, context + self.persistent)
        size = sum(a * b for a, b in layers)
        head = 2 * size + 2 * (size - layers[0][0] * layers[0][1]) + 4 * size + 2 * c * c
        head += 2 * size if self.read == "chunk_start" else 4 * size + 2 * c * sum(a + b for a, b in layers)
        token = 10 * d_model**2 + 6 * d_model * heads + 6 * CONV * d_model + heads * head
        return token * (context + self.persistent) // context

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the input, a state a group of chunks, and everything inside one group (an estimate).

        Inside: weights and momentum at each chunk's start; a token's projections, convolutions, keys, values, queries
        and outputs, three numbers a hidden unit, and rows of coefficients and overlaps.
        """
        c, chunks, group = self.grouping(context)
        state = 2 * self.memory_numbers(d_model)
        hidden = self.n_heads * sum(b for _, b in self.layers(d_model)[:-1])
        inside = group * (state + c * (16 * d_model + 3 * hidden + (self.memory_depth + 3) * self.n_heads * c))
        return d_model + -(-(chunks // group * state + inside) // context)

    def grouping(self, context: int) -> tuple[int, int, int]:
        """Tokens a chunk, chunks, and chunks a group: the backward pass holds what is inside of one group at a time."""
        c = min(self.chunk, context + self.persistent)
        chunks = -(-(context + self.persistent) // c)
        return c, chunks, group_size(chunks) if self.remat == "groups" else chunks

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers of decode state, whatever the context: weights, momentum, anchor, the convolutions' last rows."""
        return 3 * self.memory_numbers(d_model) + 3 * (CONV - 1) * d_model


def group_size(chunks: int) -> int:
    """Chunks a group: near the square root of their number, and such that few are added to fill the last group."""
    if chunks <= 32:  # too few for a second forward pass to be worth their memory
        return chunks
    root = math.sqrt(chunks)
    sizes = range(math.ceil(root / 1.5), math.floor(1.5 * root) + 1)
    return min(sizes, key=lambda g: (-chunks % g, abs(g - root)))
