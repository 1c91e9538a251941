"""Names of a pytree's leaves, and arrays that are none: integers that belong to a module and are never trained."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int


def path_name(path: Any) -> str:
    """A leaf's path (from `jax.tree_util.tree_flatten_with_path`) as one dotted name: `blocks.17.channel.up`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


class Fixed:
    """Integers that a module keeps and nothing changes: a coordinate order, a ranking, a spelling.

    A node of a pytree without leaves, so that `jax.grad`, `jax.tree.map` and an optimizer see parameters alone.
    Compiled programs hold it as a constant; two are equal where their values are. `np.asarray(fixed)` is the array,
    `fixed[ids]` a part of it. Saved and loaded with the model (`eqx_slm.train.save_model`).
    """

    def __init__(self, values: Any):
        """**Arguments:** `values`: an array of integers, or what makes one."""
        self.array: Int[np.ndarray, ...] = np.array(values)
        self.array.flags.writeable = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's."""
        return self.array.dtype

    @cached_property
    def digest(self) -> bytes:
        """Of type, shape and values: compiled programs are looked up by it."""
        return hashlib.sha256(f"{self.dtype} {self.shape}".encode() + self.array.tobytes()).digest()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype, copy=copy)

    def __getitem__(self, index: Any) -> Array:
        return jnp.asarray(self.array)[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)  # by indexing it would never end: an index of JAX beyond the end is the last one

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Fixed) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Fixed({self.dtype}{list(self.shape)})"


jax.tree_util.register_pytree_node(Fixed, lambda fixed: ((), fixed), lambda fixed, _: fixed)


def is_fixed(node: Any) -> bool:
    """Whether a node is a `Fixed`: for `is_leaf`, where they are to be seen."""
    return isinstance(node, Fixed)


def fixed(values: Any) -> Any:
    """Integers as a module keeps them: `Fixed`, or, where a transformation hides their values, as they are."""
    return values if isinstance(values, Tracer | Fixed) else Fixed(values)
