"""Modules: pure pytrees of arrays and static plain values, each with its frozen config and its closed forms.

The letters of dimensions, in every shape of this package and, where it helps reading, at the end of a name (`x_btd`):

    b  sequences of a batch             f  d_ff, hidden width of an MLP
    t  tokens, on the query side        v  vocabulary
    u  tokens, on the key side          c  coordinates (digits) of a token id
    d  d_model                          s  size of a seed
    n  heads                            q  knots of a spline
    g  key/value heads (groups)         r  rank, or modes
    h  width of a head                  l  layers
    p  pieces of a token's spelling     k  rows of a table of fewer rows than tokens
"""

from .attention import Attention, AttentionConfig
from .bigrams import BigramConfig, HashedBigrams
from .binary import BinaryConfig, BinaryEmbedding
from .block import Block, Channel, Decoded, Mixer
from .composed import ComposedConfig, ComposedEmbedding
from .compositional import CompositionalConfig, CompositionalEmbedding
from .continuum import ContinuumConfig, ContinuumMemory
from .digits import coordinate_base, from_coordinates, to_coordinates
from .embed_batch import Distinct, distinct_tokens, embed_batch
from .embedding import EmbeddingConfig, TokenEmbedding
from .fast_weights import InContext
from .gated import GatedAttention, GatedAttentionConfig
from .head import Head, HeadConfig, ReadOut
from .hybrid import HybridConfig, HybridEmbedding
from .leviathan import LeviathanConfig, LeviathanEmbedding
from .lm import LanguageModel
from .low_rank import LowRankConfig, LowRankEmbedding
from .mlp import MLP, MLPConfig
from .norm import LayerNorm, RMSNorm, ZeroCentredRMSNorm
from .orders import cooccurrence_order, frequency_order, random_order
from .positions import LearnedPositions, rotate
from .spelled import SpelledConfig, SpelledEmbedding
from .spline import bspline_basis
from .table import TableConfig, TableEmbedding
from .titans import TitansConfig, TitansMAC, TitansMACConfig, TitansMAG, TitansMAGConfig, TitansMemory

__all__ = [
    "MLP",
    "Attention",
    "AttentionConfig",
    "BigramConfig",
    "BinaryConfig",
    "BinaryEmbedding",
    "Block",
    "Channel",
    "ComposedConfig",
    "ComposedEmbedding",
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
    "HashedBigrams",
    "HeadConfig",
    "HybridConfig",
    "HybridEmbedding",
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
    "SpelledConfig",
    "SpelledEmbedding",
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
