"""A study that begins with the weights of a finished one: those of the same arm and seed, whatever its schedule was."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

from ..data.shards import VOCABULARY
from ..data.tokenizer import Tokenizer
from ..data.vocabulary import load_tokenizer
from ..errors import UserError
from ..files import folder_with
from ..train.checkpoint import named_arrays


class FirstWeights:
    """The final weights of a finished study, by arm and seed, at the learning rate that the study chose for the arm.

    Weights alone: moments, the step and the place in the data begin anew, and so does the schedule.
    """

    def __init__(
        self,
        folder: str | Path,
        runs: Collection[tuple[str, int]],
        initial: Callable[[str, int], Any],
        load: Callable[..., Any],
        tokenizer: Tokenizer | None = None,
    ):
        """**Arguments:** `folder`: the finished study's. `runs`: arm and seed of all that begin with its weights.
        `initial`: the model that a run would begin with otherwise; it says what has to be equal. `load`: `load_run`.
        `tokenizer`: of this study.

        **Raises:** `UserError` where the folder has no such run, where one is of another model, and where its ids are
        those of another tokenizer.
        """
        self.folder, self.load = folder_with("runs.jsonl", "--init-from", folder), load
        own = self.folder / VOCABULARY
        if tokenizer is not None and own.is_file() and (theirs := load_tokenizer(own)).hash != tokenizer.hash:
            raise UserError(
                f"--init-from {folder}: its ids are of another tokenizer ({theirs.name}, this study's is "
                f"{tokenizer.name} of other tokens): give --tokenizer {own}"
            )
        self.hashes: dict[tuple[str, int], str] = {}
        for name, seed in dict.fromkeys(runs):
            model = self.model(name, seed)  # one at a time: all of them together may be more than fits
            if not _alike(model, initial(name, seed)):
                raise UserError(f"--init-from {folder}: its arm {name!r} is another model than this study's")
            self.hashes[name, seed] = _hash(model)

    def model(self, name: str, seed: int) -> Any:
        """The trained model of an arm and seed; `UserError` where there is none, or where it diverged."""
        try:
            return self.load(self.folder, arm=name, seed=seed)
        except UserError as error:
            raise UserError(f"--init-from: {error}") from None


def _alike(one: Any, other: Any) -> bool:
    """Whether two models differ in the values of their parameters only."""
    shapes, others = ({k: (a.shape, a.dtype) for k, a in named_arrays(each).items()} for each in (one, other))
    fixed = [eqx.filter(each, eqx.is_inexact_array, inverse=True) for each in (one, other)]
    return shapes == others and bool(eqx.tree_equal(*fixed))


def _hash(model: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in named_arrays(model).items():
        digest.update(f"{path} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()
