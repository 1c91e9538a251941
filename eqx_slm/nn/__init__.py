"""Modules: pure pytrees of arrays and static plain values, each with its frozen config and its closed forms."""

from .attention import Attention, AttentionConfig
from .block import Block, Channel, Decoded, Mixer
from .compositional import CompositionalConfig, CompositionalEmbedding
from .continuum import ContinuumConfig, ContinuumMemory
from .digits import coordinate_base, from_coordinates, to_coordinates
from .embed_batch import Distinct, distinct_tokens, embed_batch
from .embedding import EmbeddingConfig, TokenEmbedding
from .gated import GatedAttention, GatedAttentionConfig
from .head import Head, HeadConfig, ReadOut
from .in_context import InContext
from .leviathan import LeviathanConfig, LeviathanEmbedding
from .lm import LanguageModel
from .low_rank import LowRankConfig, LowRankEmbedding
from .mlp import MLP, MLPConfig
from .norm import LayerNorm, RMSNorm, ZeroCentredRMSNorm
from .orders import cooccurrence_order, frequency_order, random_order
from .positions import LearnedPositions, rotate
from .spline import bspline_basis
from .table import TableConfig, TableEmbedding
from .titans import TitansConfig, TitansMemory
from .titans_mac import TitansMAC, TitansMACConfig
from .titans_mag import TitansMAG, TitansMAGConfig

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
