"""Using a trained model: generation, and generators turned into tables."""

from .generate import Continuation, MaterializedEmbedding, generate, generate_batch, materialize

__all__ = ["Continuation", "MaterializedEmbedding", "generate", "generate_batch", "materialize"]
