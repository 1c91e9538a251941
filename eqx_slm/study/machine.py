"""Where results were made: versions, device, and how many cores the runs had."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax

from ..cores import usable_cores
from .results import Row


def cores_of(rows: Sequence[Row]) -> dict[str, Any]:
    """How many cores the runs had; nothing where rows do not say it."""
    known = sorted({row.cores for row in rows if row.cores is not None})
    return {"cores": known[0] if len(known) == 1 else known} if known else {}


def machine() -> dict[str, Any]:
    """Versions and device, as a result carries them."""
    packages = ("jax", "jaxlib", "equinox", "optax", "grain", "tiktoken", "numpy")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }
