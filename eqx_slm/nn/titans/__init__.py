"""Titans' neural memory: its rule for a token, the same for chunks, and the mixers that are made of it."""

from .mac import TitansMAC, TitansMACConfig
from .mag import TitansMAG, TitansMAGConfig
from .mixer import TitansConfig, TitansMemory, TitansState

__all__ = [
    "TitansConfig",
    "TitansMAC",
    "TitansMACConfig",
    "TitansMAG",
    "TitansMAGConfig",
    "TitansMemory",
    "TitansState",
]
