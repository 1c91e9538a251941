"""Llama with an MLP width of its own in every layer, for transformers; `export_llama` puts a copy beside the weights.

    transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

eqx_slm itself never imports this file.
"""

import copy

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class TaperedLlamaConfig(LlamaConfig):
    """A Llama's config with `intermediate_sizes`, the MLP width of every layer."""

    model_type = "tapered_llama"

    def __init__(self, intermediate_sizes=None, **options):
        super().__init__(**options)
        self.intermediate_sizes = list(intermediate_sizes or [self.intermediate_size] * self.num_hidden_layers)


class TaperedLlamaForCausalLM(LlamaForCausalLM):
    """A Llama whose layers' MLPs are as wide as their config says, each."""

    config_class = TaperedLlamaConfig

    def __init__(self, config):
        super().__init__(config)
        for layer, width in zip(self.model.layers, config.intermediate_sizes, strict=True):
            own = copy.copy(config)
            own.intermediate_size = width
            layer.mlp = LlamaMLP(own)
        self.post_init()
