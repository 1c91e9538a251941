"""What a step does with a gradient that is no number, and the norms that show one coming."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..pytree import path_name

Tree = TypeVar("Tree")
# Parts of a block by the name of their field.
PARTS = {"mixer": "mixers", "channel": "channels", "mixer_norm": "norms", "channel_norm": "norms", "norm": "norms"}


def group(name: str) -> str:
    """The group that a leaf's norm belongs to, by its dotted path: "embedding", "mixers", "channels", "norms", "head".

    The same for a plain model and for its stacked form; of a model of other parts its first field.
    """
    first, *rest = name.split(".")
    if first == "blocks" and len(rest) > 1:
        inside = rest[2] if rest[1] == "block" and len(rest) > 2 else rest[1]
        return PARTS.get(inside, "blocks")
    return PARTS.get(first, first)


def group_norms(tree: PyTree[Array]) -> dict[str, Float[Array, ""]]:
    """The Euclidean norm of every group's leaves, in float32."""
    squares: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = group(path_name(path))
        squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return {name: jnp.sqrt(total) for name, total in squares.items()}


def whole_norm(norms: dict[str, Float[Array, ""]]) -> Float[Array, ""]:
    """The norm of all groups together; it is no finite number where one leaf has one that is none."""
    return jnp.sqrt(sum((jnp.square(norm) for norm in norms.values()), jnp.zeros((), jnp.float32)))


def chosen(fine: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """`new` where all is `fine`, otherwise `old`, leaf by leaf: nothing of a bad update is left, moments included."""
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
