"""Models as safetensors files: one tensor a leaf, under its dotted path; no pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from ..files import write_bytes_atomic
from ..pytree import path_name


def save_model(path: Path, model: Any, *, metadata: dict[str, Any] | None = None) -> str:
    """Writes every array of `model`, buffers too, and JSON-able `metadata`; the file appears whole or not at all.

    **Returns:** the sha256 of the file, hex.
    """
    from safetensors.numpy import save

    tensors = {name: np.asarray(leaf, order="C") for name, leaf in named_arrays(model).items()}
    # One entry: safetensors writes several in an order that changes from call to call, and equal models would differ.
    text = {"eqx_slm": json.dumps(metadata or {}, sort_keys=True)}
    data = save(tensors, metadata=text)
    write_bytes_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def load_model(path: Path, like: Any) -> Any:
    """The model of a file.

    **Arguments:**

    - `path`: a file that `save_model` wrote.
    - `like`: a model of the same config, or its `eqx.filter_eval_shape`: nothing of its values is used. Names, shapes
        and dtypes are compared; what shows in none of them (the number of heads) is not, so keep the config beside
        the file, as a run folder does (`load_run`).

    **Raises:** `UserError` where a name, a shape or a dtype differs, naming the first.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None
    return fill(like, tensors, path)


def fill(like: Any, tensors: dict[str, np.ndarray], path: Path) -> Any:
    """`like` with the arrays of a file at `path` in place of its own; `UserError` as `load_model`."""
    wanted = named_arrays(like)
    for name in sorted(wanted.keys() ^ tensors.keys()):
        where = "the file" if name in wanted else "the model"
        raise UserError(f"{path}: {where} lacks {name}; the model's config is not the file's")
    for name, leaf in wanted.items():
        if tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            raise UserError(
                f"{path}: {name} is {tensors[name].dtype}{list(tensors[name].shape)}, "
                f"the model's {leaf.dtype}{list(leaf.shape)}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda at, leaf: jnp.asarray(tensors[path_name(at)]) if _is_array(leaf) else leaf, like
    )


def named_arrays(model: Any) -> dict[str, Any]:
    """Every array of a model by its dotted path, in the tree's order."""
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    return {path_name(path): leaf for path, leaf in leaves if _is_array(leaf)}


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
