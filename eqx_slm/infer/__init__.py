"""Using a trained model: generation, and generators turned into tables."""

from .generate import MaterializedEmbedding, generate, materialize

__all__ = ["MaterializedEmbedding", "generate", "materialize"]
