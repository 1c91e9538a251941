"""Modules: pure pytrees of arrays and static plain values, each with its frozen config and its closed forms."""

from .attention import Attention, AttentionConfig
from .block import Block, Channel, Decoded, Mixer
from .compositional import CompositionalConfig, CompositionalEmbedding
from .continuum import ContinuumConfig, ContinuumMemory
from .coordinates import (
    cooccurrence_order,
    coordinate_base,
    frequency_order,
    from_coordinates,
    random_order,
    to_coordinates,
)
from .embed_batch import Distinct, distinct_tokens, embed_batch
from .embedding import EmbeddingConfig, TokenEmbedding
from .fast_weights import InContext
from .gated import GatedAttention, GatedAttentionConfig
from .head import Head, HeadConfig, ReadOut
from .leviathan import LeviathanConfig, LeviathanEmbedding
from .lm import LanguageModel
from .low_rank import LowRankConfig, LowRankEmbedding
from .mlp import MLP, MLPConfig
from .norm import LayerNorm, RMSNorm, ZeroCentredRMSNorm
from .positions import LearnedPositions, rotate
from .spline import bspline_basis
from .table import TableConfig, TableEmbedding
from .titans import TitansConfig, TitansMAC, TitansMACConfig, TitansMAG, TitansMAGConfig, TitansMemory

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
    "Decoded",
    "Distinct",
    "EmbeddingConfig",
    "GatedAttention",
    "GatedAttentionConfig",
    "Head",
    "HeadConfig",
    "InContext",
    "LanguageModel",
    "LayerNorm",
    "LearnedPositions",
    "LeviathanConfig",
    "LeviathanEmbedding",
    "LowRankConfig",
    "LowRankEmbedding",
    "MLPConfig",
    "Mixer",
    "RMSNorm",
    "ReadOut",
    "TableConfig",
    "TableEmbedding",
    "TitansConfig",
    "TitansMAC",
    "TitansMACConfig",
    "TitansMAG",
    "TitansMAGConfig",
    "TitansMemory",
    "TokenEmbedding",
    "ZeroCentredRMSNorm",
    "bspline_basis",
    "cooccurrence_order",
    "coordinate_base",
    "distinct_tokens",
    "embed_batch",
    "frequency_order",
    "from_coordinates",
    "random_order",
    "rotate",
    "to_coordinates",
]
