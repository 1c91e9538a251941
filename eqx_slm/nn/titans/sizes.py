"""The sizes of Titans' memory: which are allowed, and its parameters, FLOPs, activations and decode state."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ...checks import check_choices, check_divides, check_whole, check_whole_or_none, real
from .rule import Read, Residual

CONV = 4  # taps of the depthwise causal convolution


@dataclass(frozen=True)
class TitansSizes:
    """The fields of `TitansConfig`, and all it answers but the module."""

    kind: Literal["titans"] = "titans"
    n_heads: int = 4
    memory_depth: int = 2
    expansion: int = 4
    memory_norm: Literal["layer", "none"] = "layer"
    memory_residual: Residual = "identity"
    chunk: int = 16
    chunk_train: int | None = None
    step_size: float = 1.0
    read: Read = "inclusive"
    persistent: int = 0
    remat: Literal["groups", "none"] = "groups"

    keeps: ClassVar[tuple[str, ...]] = ("n_heads",)

    def __post_init__(self):
        check_whole(self, "n_heads", "memory_depth", "expansion", "chunk")
        check_whole_or_none(self, "chunk_train", otherwise=", or None for the chunk")
        check_whole(self, "persistent", least=0)
        real("step_size", self.step_size, positive=True)
        check_choices(self)

    @property
    def d_model_multiple(self) -> int:
        """What `d_model` is a multiple of."""
        return self.n_heads

    def check(self, d_model: int) -> None:
        """**Raises:** `ValueError` where the heads do not fit `d_model`, or a value is not an allowed one."""
        check_choices(self)
        check_divides(d_model, self.n_heads, f"divisible by n_heads={self.n_heads}")

    def layers(self, d_model: int) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a head's memory matrices."""
        self.check(d_model)
        h = d_model // self.n_heads
        widths = (h,) + (self.expansion * h,) * (self.memory_depth - 1) + (h,)
        return tuple(zip(widths[:-1], widths[1:], strict=True))

    def memory_numbers(self, d_model: int) -> int:
        """Numbers in the memories of all heads, without momentum."""
        return self.n_heads * sum(a * b for a, b in self.layers(d_model))

    def parameters(self, d_model: int) -> int:
        """5 d^2, convolutions 12 d, gates 3 (d n + n), initial memories (8 d h), norms, persistent tokens."""
        memory = self.memory_numbers(d_model)
        norms = d_model // self.n_heads + (d_model if self.memory_norm == "layer" else 0)
        gates = 3 * self.n_heads * (d_model + 1)
        return 5 * d_model**2 + 3 * CONV * d_model + gates + memory + norms + self.persistent * d_model

    def flops(self, d_model: int, context: int) -> int:
        """Forward FLOPs a token: projections, gates, convolutions, and the chunk form (masked halves too).

        A head's memory of m numbers: 2 m forward at the anchor, 2 m for deltas (but the first layer's), 4 m read and
        4 m written (weights and momentum), and within a chunk scores and sums over its tokens.
        """
        layers, heads = self.layers(d_model), self.n_heads
        t = min(self.chunk, context + self.persistent)
        size = sum(a * b for a, b in layers)
        head = 2 * size + 2 * (size - layers[0][0] * layers[0][1]) + 4 * size + 2 * t * t
        head += 2 * size if self.read == "chunk_start" else 4 * size + 2 * t * sum(a + b for a, b in layers)
        token = 10 * d_model**2 + 6 * d_model * heads + 6 * CONV * d_model + heads * head
        return token * (context + self.persistent) // context

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: the input, a state a group of chunks, and everything inside one group (an estimate).

        Inside: weights and momentum at each chunk's start; a token's projections, convolutions, keys, values, queries
        and outputs, three numbers a hidden unit, and rows of coefficients and overlaps.
        """
        t, chunks, group = self.grouping(context)
        state = 2 * self.memory_numbers(d_model)
        hidden = self.n_heads * sum(b for _, b in self.layers(d_model)[:-1])
        inside = group * (state + t * (16 * d_model + 3 * hidden + (self.memory_depth + 3) * self.n_heads * t))
        return d_model + -(-(chunks // group * state + inside) // context)

    def grouping(self, context: int) -> tuple[int, int, int]:
        """Tokens a chunk, chunks, and chunks a group: the backward pass holds what is inside of one group at a time."""
        t = min(self.chunk, context + self.persistent)
        chunks = -(-(context + self.persistent) // t)
        return t, chunks, group_size(chunks) if self.remat == "groups" else chunks

    def state_numbers(self, d_model: int, context: int) -> int:
        """Numbers of decode state, whatever the context: weights, momentum, anchor, the convolutions' last rows."""
        return 3 * self.memory_numbers(d_model) + 3 * (CONV - 1) * d_model


def group_size(chunks: int) -> int:
    """Chunks a group: near the square root of their number, and such that few are added to fill the last group."""
    if chunks <= 32:  # too few for another forward pass to be worth their memory
        return chunks
    root = math.sqrt(chunks)
    sizes = range(math.ceil(root / 1.5), math.floor(1.5 * root) + 1)
    return min(sizes, key=lambda g: (-chunks % g, abs(g - root)))
