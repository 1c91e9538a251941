"""The PyTorch side of the step benchmarks: transformers' Llama of a config's shapes, AdamW and clipping."""

from collections.abc import Callable
from typing import Any

import numpy as np

from eqx_slm.model import ModelConfig
from eqx_slm.nn import AttentionConfig
from eqx_slm.train import OptimizerConfig

from .harness import cores


def llama_stepper(
    config: ModelConfig,
    batches: list[np.ndarray],
    *,
    optimizer: OptimizerConfig | None = None,
    device: str = "cpu",
    compiled: bool = False,
) -> tuple[Callable[[], Any], int]:
    """A function that trains one step on the next batch and returns its loss, and the model's parameter count.

    `compiled`: by `torch.compile`, in bfloat16 with float32 masters (autocast), and the loss is left on the device.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    optimizer = optimizer or OptimizerConfig()
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    assert isinstance(config.mixer, AttentionConfig)
    heads, kv, _ = config.mixer.head_sizes(config.d_model)
    shapes: Any = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.channel.width(config.d_model),
        num_hidden_layers=config.depth,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=config.context,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=None,
    )
    shapes._attn_implementation = "sdpa"
    model: Any = LlamaForCausalLM(shapes).train()
    model.to(device)
    count = sum(p.numel() for p in model.parameters())
    adam = torch.optim.AdamW(
        model.parameters(),
        lr=1e-3,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
    )
    pairs = [
        (torch.tensor(batch[:, :-1]).long().to(device), torch.tensor(batch[:, 1:]).long().to(device))
        for batch in batches
    ]
    turn = [0]
    forward: Any = torch.compile(model) if compiled else model

    def step() -> Any:
        inputs, targets = pairs[turn[0] % len(pairs)]
        turn[0] += 1
        # `shift_labels` are targets as they are: as many as ours.
        with torch.autocast(device, dtype=torch.bfloat16, enabled=compiled):
            loss: Any = forward(input_ids=inputs, labels=targets, shift_labels=targets).loss
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
        adam.step()
        return loss.detach() if compiled else float(loss.detach())

    return step, count
