"""Bytes of parameters, gradients, optimizer and activations of a training step."""

from dataclasses import dataclass

from ..checks import whole
from ..model import ModelConfig
from .ledger import total_parameters


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step. `activations` is a closed-form estimate (no rematerialisation, chunked loss)."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int = 0

    @property
    def total(self) -> int:
        """The sum: about what a step needs at its peak."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.buffers


def memory(
    config: ModelConfig,
    *,
    batch_size: int,
    context: int | None = None,
    activation_bytes: int = 4,
    accumulate: int = 1,
) -> Memory:
    """Memory of a training step with AdamW, masters and both moments in float32, and gradients that wait
    for their level's update.

    **Arguments:**

    - `config`: the model.
    - `batch_size`: sequences a batch.
    - `context`: tokens a sequence (None: the config's).
    - `activation_bytes`: 4 for float32 compute, 2 for bfloat16.
    - `accumulate`: parts a batch is taken in: a part's activations, and the gradient's sum beside the part's own.

    **Returns:** `Memory`, in bytes. Compiled programs report their own peak exactly; this is known before compiling.

    **Raises:** `ValueError` for sizes below 1.
    """
    context = config.context if context is None else whole("context", context)
    batch_size, activation_bytes = whole("batch_size", batch_size), whole("activation_bytes", activation_bytes)
    count = total_parameters(config)
    waiting = 0
    # A generated head holds its table from the forward pass to the backward one.
    table = config.vocab_size * config.d_model if config.head.kind == "generated" else 0
    a_token = config.embedding.activations(config.vocab_size, config.d_model) + config.d_model
    a_token += config.bigrams.activations(config.d_model)
    for channel in config.channels():
        # The two norms keep their inputs, which are also the residual stream.
        a_token += config.mixer.activations(config.d_model, context) + channel.activations(config.d_model, context)
        a_token += 2 * config.d_model
        waiting += channel.accumulated(config.d_model)
    return Memory(
        parameters=4 * count,
        gradients=4 * count * (1 if accumulate == 1 else 2),
        optimizer=8 * count + 4 * waiting,
        activations=(a_token * (batch_size // accumulate) * context + table) * activation_bytes,
        buffers=config.embedding.buffer_bytes(config.vocab_size),
    )
