"""Names of a pytree's leaves."""

from typing import Any

import jax


def path_name(path: Any) -> str:
    """A leaf's path (from `jax.tree_util.tree_flatten_with_path`) as one dotted name: `blocks.17.channel.up`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")
