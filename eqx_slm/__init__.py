"""Where should a small language model spend its parameters?

Modules, exact accounting, and matched pairs with an interval. The public names stand in `__init__.pyi`, each once;
each is loaded when it is first used, so that importing the package costs nothing.
"""

import lazy_loader

from .version import __version__ as __version__

__getattr__, _public, __all__ = lazy_loader.attach_stub(__name__, __file__)  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
