"""Matmul FLOPs a token, by component, under conventions that are printed with every figure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..checks import whole
from ..errors import UserError
from ..model import ModelConfig

CONVENTIONS = (
    "Matmul FLOPs only, 2 a multiply-add; backward = 2 x forward, so training = 3 x forward; causal attention counted "
    "at half; head included, table lookup not; a generator counted as 2 (h s^2 + 3 h s r + h r D) an evaluation, three "
    "active knots, whatever the kernel does; a generated head as one evaluation of the whole vocabulary a step, spread "
    "over its tokens; optimizer and norms not counted."
)


@dataclass(frozen=True)
class Flops:
    """Training FLOPs a token by component (see `CONVENTIONS`).

    `embedding` (with the bigrams' map) charges the generator to every occurrence of a token. `embedding_distinct`
    charges it to each distinct token of a batch, spread over the batch's tokens; None where the mean number of distinct
    tokens was not given.
    """

    embedding: float
    blocks: tuple[float, ...]
    head: float
    embedding_distinct: float | None = None

    @property
    def total(self) -> float:
        """All components, the generator charged per occurrence."""
        return self.embedding + sum(self.blocks) + self.head

    @property
    def total_distinct(self) -> float | None:
        """All components, the generator charged per distinct token of a batch."""
        if self.embedding_distinct is None:
            return None
        return self.embedding_distinct + sum(self.blocks) + self.head


def flops(
    config: ModelConfig,
    *,
    context: int | None = None,
    distinct_share: float | None = None,
    batch_tokens: int | None = None,
) -> Flops:
    """Training FLOPs a token of a config, in closed form.

    **Arguments:**

    - `config`: the model.
    - `context`: sequence length in tokens (None: the config's).
    - `distinct_share`: mean number of distinct tokens of a batch over its tokens, in (0, 1], measured on the stream.
    - `batch_tokens`: tokens of a step, over which a generated head spreads its table (None: one sequence's, the most).

    **Returns:** `Flops`, each number FLOPs a token, forward and backward.

    **Raises:** `ValueError` for a context or a batch below one token, and a share that is none.
    """
    if not isinstance(config, ModelConfig):
        raise UserError(f"flops of a {type(config).__name__}: give a ModelConfig; counted_flops counts a model")
    context = config.context if context is None else whole("context", context)
    batch_tokens = context if batch_tokens is None else whole("batch_tokens", batch_tokens)
    if distinct_share is not None and not 0 < distinct_share <= 1:
        raise UserError(f"distinct_share={distinct_share}: a share of a batch's tokens, above 0 and at most 1")
    d_model = config.d_model
    generator = 3.0 * config.embedding.flops(config.vocab_size, d_model)
    bigrams = 3.0 * config.bigrams.flops(d_model)  # of every occurrence: they depend on the token before
    mixer = config.mixer.flops(d_model, context)
    blocks = tuple(3.0 * (mixer + channel.flops(d_model, context)) for channel in config.channels())
    head = 3.0 * _head_flops(config)
    if config.head.kind == "generated":
        head += config.vocab_size * generator / batch_tokens
    shared = None if distinct_share is None else generator * distinct_share + bigrams
    return Flops(generator + bigrams, blocks, head, shared)


def _head_flops(config: ModelConfig) -> int:
    """Forward FLOPs of a token's logits."""
    vocab, d_model = config.vocab_size, config.d_model
    rank = None
    if config.head.kind == "low-rank":
        rank = config.head.rank
    elif config.head.kind == "tied" and (known := getattr(config.embedding, "read_out_rank", None)):
        rank = known(vocab)
    return 2 * vocab * d_model if rank is None else 2 * (vocab + d_model) * rank


def counted_flops(model: Callable[[Any], Any], *, context: int) -> float | None:
    """Training FLOPs a token of any model, as XLA counts its forward pass on one sequence, times three.

    For models without a config. Unlike `flops` this counts elementwise work and the whole attention square, and a
    loop's body only once. None where the backend does not count.
    """
    tokens = jax.ShapeDtypeStruct((whole("context", context),), jnp.int32)
    cost = jax.jit(lambda t: model(t)).lower(tokens).cost_analysis()
    if isinstance(cost, list):
        cost = cost[0] if cost else None
    counted = (cost or {}).get("flops")
    return None if counted is None else 3.0 * counted / context
