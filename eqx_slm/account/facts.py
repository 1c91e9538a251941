"""All that the accounts say of a model before it is trained, in one place, as plain data."""

from dataclasses import dataclass, field
from typing import Any

from ..model import ModelConfig
from .flops import counted_flops, flops
from .ledger import parameter_ledger
from .memory import memory


@dataclass(frozen=True)
class Facts:
    """Parameters by kind and place, FLOPs a token and bytes of a step by part; None where only a config would tell."""

    parameters: dict[str, int]
    ledger: tuple[tuple[str, int], ...] = ()
    embedding_tax: float | None = None
    buffers_bytes: int = 0
    flops_per_token: dict[str, Any] | None = None
    memory_bytes: dict[str, int | None] = field(default_factory=dict)


def facts(
    model: Any,
    *,
    batch_size: int,
    context: int,
    width: int = 4,
    share: float | None = None,
    extra: int | None = None,
    accumulate: int = 1,
    scanned: bool = False,
    remat: Any = "none",
) -> Facts:
    """The facts of a config, in closed form, or of a model.

    **Arguments:**

    - `model`: a `ModelConfig`, or a model, whose FLOPs XLA then counts where it has no `flops_per_token()` of its own.
    - `batch_size`, `context`: sequences a batch, tokens a sequence.
    - `width`: bytes of an activation. `share`: of a batch's tokens, how many are distinct.
    - `accumulate`: in how many parts a batch is taken. `scanned`, `remat`: as in `memory`.
    - `extra`: the bytes that XLA says a compiled step takes for temporaries.
    """
    ledger = parameter_ledger(model)
    optimizer, activations, counted = 8 * ledger.total, None, None
    gradients = 4 * ledger.total * (1 if accumulate == 1 else 2)
    if isinstance(model, ModelConfig):
        how: Any = {"activation_bytes": width, "accumulate": accumulate, "scanned": scanned, "remat": remat}
        needs = memory(model, batch_size=batch_size, context=context, **how)
        optimizer, activations, gradients = needs.optimizer, needs.activations, needs.gradients
        f = flops(model, context=context, distinct_share=share, batch_tokens=batch_size * context)
        counted = {"total": f.total, "embedding": f.embedding, "blocks": sum(f.blocks), "head": f.head}
        counted |= {"total_distinct": f.total_distinct}
    elif hasattr(model, "flops_per_token"):
        counted = {**model.flops_per_token(), "counted_by": "its closed form"}
    elif (total := counted_flops(model, context=context)) is not None:
        counted = {"total": total, "counted_by": "XLA"}
    held = {"parameters": 4 * ledger.total, "gradients": gradients, "optimizer": optimizer}
    return Facts(
        parameters=ledger.summary(),
        ledger=ledger.entries,
        embedding_tax=ledger.embedding_tax,
        buffers_bytes=ledger.buffer_bytes,
        flops_per_token=counted,
        memory_bytes={**held, "activations": activations, "temporary": extra},
    )
