"""The tensors in a folder of Hugging Face's: which files count, and that every tensor in them is of use."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import shown
from ..configs import read_json
from ..errors import UserError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class Tensors:
    """The floating tensors of a folder's safetensors, by names without `prefix`; read when they are taken.

    **Arguments:** `folder`; `prefix` of most names, which a bare model's have not; `buffers`, a pattern of names that
    transformers computes anew and does not read.

    **Raises:** `UserError` for files that are missing, cannot be read or contradict each other, and for
    tensors that are no floats.
    """

    def __init__(self, folder: Path, prefix: str, buffers: str):
        self.folder = folder
        self._found: dict[str, tuple[Path, str]] = {}  # short name: file, name in it
        for file in _files(folder):
            for name, dtype in _header(file).items():
                short = name.removeprefix(prefix)
                if re.fullmatch(buffers, short):
                    continue
                if dtype not in FLOATS:
                    raise UserError(
                        f"{file}: {shown(name)} is of dtype {dtype}, and {', '.join(FLOATS.values())} can be imported: "
                        "where it is quantized, dequantize it and save it again"
                    )
                if short in self._found:
                    other, its = self._found[short]
                    raise UserError(
                        f"{folder}: {shown(name)} of {file.name} and {shown(its)} of {other.name} are one name: leave "
                        "one of them, or write the model anew with save_pretrained"
                    )
                self._found[short] = (file, name)

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def check_names(self, needed: Iterable[str], optional: Iterable[str]) -> None:
        """**Raises:** `UserError` where the files lack what is needed, and where they hold what has no place."""
        needed = list(needed)
        lacking = [name for name in needed if name not in self._found]
        known = {*needed, *optional}
        extra = [name for short, (_, name) in self._found.items() if short not in known]
        said = [f"it lacks {_few(lacking)}"] if lacking else []
        said += [f"it holds {_few(extra)}, for which the model of its config.json has no place"] if extra else []
        if said:
            raise UserError(f"{self.folder}: {', and '.join(said)}: they must be of one model")

    def take(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A tensor in float32. **Raises:** `UserError` for another `shape`, and for numbers that are not finite."""
        from safetensors import safe_open

        file, own = self._found[name]
        with _one_line(file), safe_open(file, framework="numpy") as opened:
            found = tuple(opened.get_slice(own).get_shape())
            if shape is not None and found != shape:
                turned = len(shape) == 2 and found == shape[::-1]
                raise UserError(
                    f"{file}: {own} has shape {list(found)}, its config.json says {list(shape)}"
                    + (": it is transposed, as torch's Linear and transformers' Conv1D are to each other" * turned)
                )
            array = opened.get_tensor(own)
        with np.errstate(over="ignore"):  # of float64: infinite then, and refused
            array = np.asarray(array).astype(np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{file}: {own} has numbers that are not finite (in float32): it cannot be used")
        return array


def refuse_adapters(folder: Path) -> None:
    """**Raises:** `UserError` where an adapter lies in the folder, which transformers would add to the model."""
    if found := sorted([*folder.glob("adapter_model.*"), *folder.glob("adapter_config.json")]):
        raise UserError(
            f"{folder} holds {found[-1].name}, an adapter (LoRA): merge it into its model first (peft's "
            "merge_and_unload, then save_pretrained), and import that"
        )


def _files(folder: Path) -> list[Path]:
    """What transformers would read."""
    index, whole = folder / INDEX, folder / WHOLE
    if index.is_file():
        return _indexed(folder, index, whole)
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        other = ", and others are not read: write it with save_pretrained" if [*folder.glob("*.bin")] else ""
        raise UserError(f"{folder} holds no .safetensors file{other}")
    return files


def _indexed(folder: Path, index: Path, whole: Path) -> list[Path]:
    content = read_json(index)
    places: Any = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places or not all(_plain(name) for name in places.values()):
        raise UserError(f"{index}: weight_map must name a file of this folder for every tensor")
    files = [folder / name for name in sorted(set(places.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{index} names {_few(missing)}, which the folder does not hold: fetch it again, whole")
    if whole.is_file() and whole not in files:  # transformers would read this one, others the shards
        raise UserError(f"{folder} holds {WHOLE} and an index of other files, {INDEX}: leave the one that is meant")
    return files


def _plain(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name and "\0" not in name


def _header(file: Path) -> dict[str, str]:
    """The names in a file, and safetensors' words for their dtypes (NumPy does not know them all)."""
    from safetensors import safe_open

    with _one_line(file), safe_open(file, framework="numpy") as opened:
        return {name: opened.get_slice(name).get_dtype() for name in sorted(opened.keys())}


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """What safetensors and the system say of a file, as one `UserError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: a dtype NumPy has not
        said = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as safetensors: {said}; fetch or write it again") from None


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shown, names[:3])) + more
