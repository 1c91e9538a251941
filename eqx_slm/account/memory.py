"""Bytes of parameters, gradients, optimizer and activations of a training step."""

from dataclasses import dataclass
from typing import Literal

from ..checks import whole
from ..model import ModelConfig
from .ledger import total_parameters

# A scan's stacked activations beside those that are read from it: what XLA plans on a CPU over the same blocks written
# out.
SCAN_COPIES = 1.3


@dataclass(frozen=True)
class Memory:
    """Bytes of one training step. `activations` is a closed-form estimate (chunked loss), near what XLA plans on a CPU
    for float32: within 15% with the gradients at 256x6 (tests/test_memory.py)."""

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
    scanned: bool = False,
    remat: Literal["none", "full", "dots"] = "none",
) -> Memory:
    """Memory of a training step with AdamW, masters and both moments in float32, and gradients that wait
    for their level's update.

    **Arguments:**

    - `config`: the model.
    - `batch_size`: sequences a batch.
    - `context`: tokens a sequence (None: the config's).
    - `activation_bytes`: 4 for float32 compute, 2 for bfloat16.
    - `accumulate`: parts a batch is taken in: a part's activations, and the gradient's sum beside the part's own.
    - `scanned`: whether equal blocks are scanned (`loop="runs"`), which keeps copies of what their backward pass reads.
    - `remat`: what the backward pass keeps of a scanned block: everything, its input ("full"), or the results of
      matmuls too ("dots"); one block's activations are there at a time. XLA undoes it in blocks that are written out.

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
    blocks, largest = 0, 0
    for channel in config.channels():
        # The two norms keep their inputs, which are also the residual stream.
        own = config.mixer.activations(config.d_model, context) + channel.activations(config.d_model, context)
        own, largest = own + 2 * config.d_model, max(largest, own + 2 * config.d_model)
        if remat != "none" and scanned:
            # A matrix' parameters over d_model are its outputs, but for the one that leads back from the inner width.
            matmuls = (config.mixer.parameters(config.d_model) + channel.parameters(config.d_model)) // config.d_model
            matmuls -= channel.width(config.d_model) - config.d_model
            own = config.d_model + (matmuls if remat == "dots" else 0)
        blocks += own
        waiting += channel.accumulated(config.d_model)
    if scanned:
        blocks = round(blocks * SCAN_COPIES) if remat == "none" else blocks + largest
    a_token += blocks
    return Memory(
        parameters=4 * count,
        gradients=4 * count * (1 if accumulate == 1 else 2),
        optimizer=8 * count + 4 * waiting,
        activations=(a_token * (batch_size // accumulate) * context + table) * activation_bytes,
        buffers=config.embedding.buffer_bytes(config.vocab_size),
    )
