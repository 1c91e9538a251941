"""Training: the chunked loss, AdamW with explicit groups, the compiled step, one run, and model files.

Importing this package loads nothing heavy; its names, in `__init__.pyi`, load what they need.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]
