"""Where should a small language model spend its parameters?

Modules, exact accounting, and matched pairs with an interval. The names below are the public ones; what needs more than
JAX and Equinox (data, training, studies) is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .account import (
    Flops,
    Ledger,
    Match,
    Memory,
    count_parameters,
    flops,
    match_flops,
    match_parameters,
    memory,
    parameter_ledger,
)
from .build import ModelConfig, TaperConfig, build
from .errors import UserError
from .nn import (
    MLP,
    Attention,
    AttentionConfig,
    Block,
    Channel,
    CompositionalConfig,
    CompositionalEmbedding,
    ContinuumConfig,
    ContinuumMemory,
    GatedAttention,
    GatedAttentionConfig,
    Head,
    HeadConfig,
    InContext,
    LanguageModel,
    LayerNorm,
    LearnedPositions,
    LeviathanConfig,
    LeviathanEmbedding,
    LowRankConfig,
    LowRankEmbedding,
    Mixer,
    MLPConfig,
    ReadOut,
    RMSNorm,
    TableConfig,
    TableEmbedding,
    TitansConfig,
    TitansMAC,
    TitansMACConfig,
    TitansMAG,
    TitansMAGConfig,
    TitansMemory,
    TokenEmbedding,
    bspline_basis,
    cooccurrence_order,
    coordinate_base,
    embed_batch,
    frequency_order,
    from_coordinates,
    random_order,
    to_coordinates,
)
from .taper import taper_widths

if TYPE_CHECKING:
    from .data import Stream, TokenStream, load_corpus, make_stream, make_tokenizer, open_data
    from .infer import generate, materialize
    from .study.config import PairConfig
    from .study.folder import load_run
    from .study.pair import PairResult, pair, run_pair
    from .train import OptimizerConfig, cross_entropy, make_program, token_losses

_LATE = {
    "Stream": "data",
    "TokenStream": "data",
    "load_corpus": "data",
    "make_stream": "data",
    "make_tokenizer": "data",
    "open_data": "data",
    "generate": "infer",
    "materialize": "infer",
    "OptimizerConfig": "train",
    "cross_entropy": "train",
    "make_program": "train",
    "token_losses": "train",
    "PairConfig": "study.config",
    "PairResult": "study.pair",
    "pair": "study.pair",
    "load_run": "study.folder",
    "run_pair": "study.pair",
}

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LATE])


__all__ = [
    "MLP",
    "Attention",
    "AttentionConfig",
    "Block",
    "Channel",
    "CompositionalConfig",
    "CompositionalEmbedding",
    "ContinuumConfig",
    "ContinuumMemory",
    "Flops",
    "GatedAttention",
    "GatedAttentionConfig",
    "Head",
    "HeadConfig",
    "InContext",
    "LanguageModel",
    "LayerNorm",
    "LearnedPositions",
    "Ledger",
    "LeviathanConfig",
    "LeviathanEmbedding",
    "LowRankConfig",
    "LowRankEmbedding",
    "MLPConfig",
    "Match",
    "Memory",
    "Mixer",
    "ModelConfig",
    "OptimizerConfig",
    "PairConfig",
    "PairResult",
    "RMSNorm",
    "ReadOut",
    "Stream",
    "TableConfig",
    "TableEmbedding",
    "TaperConfig",
    "TitansConfig",
    "TitansMAC",
    "TitansMACConfig",
    "TitansMAG",
    "TitansMAGConfig",
    "TitansMemory",
    "TokenEmbedding",
    "TokenStream",
    "UserError",
    "bspline_basis",
    "build",
    "cooccurrence_order",
    "coordinate_base",
    "count_parameters",
    "cross_entropy",
    "embed_batch",
    "flops",
    "frequency_order",
    "from_coordinates",
    "generate",
    "load_corpus",
    "load_run",
    "make_program",
    "make_stream",
    "make_tokenizer",
    "match_flops",
    "match_parameters",
    "materialize",
    "memory",
    "open_data",
    "pair",
    "parameter_ledger",
    "random_order",
    "run_pair",
    "taper_widths",
    "to_coordinates",
    "token_losses",
]
