"""Models as safetensors files: one tensor a leaf, under its dotted path; no pickle."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from ..files import write_bytes_atomic
from ..pytree import Fixed, is_fixed, path_name


def save_model(
    path: Path, model: Any, *, metadata: dict[str, Any] | None = None, hashed: bool = True, buffers: bool = True
) -> str:
    """Writes every array of `model` and JSON-able `metadata`; the file appears whole or not at all.

    `hashed`: with a hash of the arrays in the metadata, which `load_model` holds them against. `buffers`: what is
    `Fixed` too.

    **Returns:** the sha256 of the file, hex.
    """
    from safetensors.numpy import save

    tensors = {name: np.asarray(leaf, order="C") for name, leaf in named_arrays(model, buffers).items()}
    told = {**(metadata or {})}
    told |= {"sha256": _hash(tensors, told)} if hashed else {}
    # One entry: safetensors writes several in an order that changes from call to call, and equal models would differ.
    data = save(tensors, metadata={"eqx_slm": json.dumps(told, sort_keys=True)})
    write_bytes_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def load_model(path: Path, like: Any, *, expected: Mapping[str, Any] | None = None) -> Any:
    """The model of a file.

    **Arguments:**

    - `path`: a file that `save_model` wrote. One without a hash of its arrays (of an earlier version, or written by
      others) is loaded with a warning.
    - `like`: a model of the same config, or its `eqx.filter_eval_shape`: nothing of its values is used. Names, shapes
        and dtypes are compared; what shows in none of them (the number of heads) is not, so keep the config beside
        the file, as a run folder does (`load_run`).
    - `expected`: metadata that the file must have been saved with, where it has them.

    **Raises:** `UserError` where a name, a shape or a dtype differs, naming the first; where the content is not what
    the file's hash was made of; and for other metadata.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        with safe_open(path, "numpy") as file:
            told = json.loads((file.metadata() or {}).get("eqx_slm", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    told = told if isinstance(told, dict) else {}
    digest = told.pop("sha256", None)
    if digest is None:
        warnings.warn(f"{path} has no hash: whether its arrays are whole cannot be told", stacklevel=2)
    elif digest != _hash(tensors, told):
        raise UserError(f"{path} is damaged: its content is not what was saved")
    for name, value in (expected or {}).items():
        if name in told and told[name] != value:
            raise UserError(f"{path} is another file: it was saved with {name} {told[name]!r}, not {value!r}")
    return fill(like, tensors, path)


def _hash(tensors: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> str:
    """Of names, types, shapes, bytes and metadata, whatever the order."""
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fill(like: Any, tensors: dict[str, np.ndarray], path: Path, buffers: bool = True) -> Any:
    """`like` with the arrays of a file at `path` in place of its own; `UserError` as `load_model`."""
    wanted = named_arrays(like, buffers)
    for name in sorted(wanted.keys() ^ tensors.keys()):
        where = "the file" if name in wanted else "the model"
        raise UserError(f"{path}: {where} lacks {name}; the model's config is not the file's")
    for name, leaf in wanted.items():
        if tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            raise UserError(
                f"{path}: {name} is {tensors[name].dtype}{list(tensors[name].shape)}, "
                f"the model's {leaf.dtype}{list(leaf.shape)}"
            )

    def filled(at: Any, leaf: Any) -> Any:
        if not _is_array(leaf) or (is_fixed(leaf) and not buffers):
            return leaf
        array = tensors[path_name(at)]
        return Fixed(array) if is_fixed(leaf) else jnp.asarray(array)

    return jax.tree_util.tree_map_with_path(filled, like, is_leaf=is_fixed)


def named_arrays(model: Any, buffers: bool = True) -> dict[str, Any]:
    """Every array of a model by its dotted path, in the tree's order; with `buffers` also what is `Fixed`, as
    NumPy's."""
    leaves = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_fixed if buffers else None)[0]
    return {path_name(path): leaf.array if is_fixed(leaf) else leaf for path, leaf in leaves if _is_array(leaf)}


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct | Fixed)
