"""Parameters by component, from a config in closed form or from a model's leaves: the two agree to the digit."""

import difflib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax

from ..checks import shown
from ..errors import UserError
from ..model import ModelConfig
from ..nn.norm import norm_parameters
from ..pytree import is_fixed, path_name

# Components that a model of this library may be without: they count 0 and are no misspelling.
OPTIONAL = {"embedding", "bigrams", "positions", "blocks", "norm", "head"}


@dataclass(frozen=True)
class Ledger:
    """Parameters of every component, in the order of the data's way.

    `entries` are (component, parameters): "embedding", "bigrams", "positions", "blocks.0.mixer", "blocks.0.channel",
    "blocks.0.norms", ..., "norm", "head". `token_tables` counts the parameters in rows that belong to one token each
    (None where that cannot be told from leaves). `padding` counts those of all parameters that the vocabulary's padding
    costs. `buffer_bytes` is apart: integer arrays, no parameters.
    """

    entries: tuple[tuple[str, int], ...]
    buffer_bytes: int = 0
    token_tables: int | None = None
    padding: int = 0

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(count for _, count in self.entries)

    def __getitem__(self, component: str) -> int:
        """Parameters of a component or of everything below it: `ledger["blocks"]`, `ledger["blocks.0.mixer"]`.

        A part of every model that this one does without ("positions", "head") counts 0.

        **Raises:** `KeyError` for any other name, with the nearest there are.
        """
        found = [n for name, n in self.entries if name == component or name.startswith(f"{component}.")]
        if not found and component not in OPTIONAL:
            names = {".".join(name.split(".")[: k + 1]) for name, _ in self.entries for k in range(name.count(".") + 1)}
            near = difflib.get_close_matches(str(component), sorted(names | OPTIONAL), n=3, cutoff=0.5)
            there = near or sorted({name.split(".")[0] for name in names})
            raise KeyError(f"no component {component!r}; {'near it' if near else 'there are'}: {', '.join(there)}")
        return sum(found)

    def __str__(self) -> str:
        """A table: a line a component, with its share of the total; equal blocks in one line."""
        rows = [(name, count) for name, count in _runs(self.entries)] + [("total", self.total)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:{width}}  {count:>15,}  {count / max(self.total, 1):6.1%}" for name, count in rows]
        apart = {"of which padding": self.padding, "integer buffers, bytes": self.buffer_bytes}
        lines += [f"{name:{width}}  {count:>15,}" for name, count in apart.items() if count]
        return "\n".join(lines)

    @property
    def embedding_tax(self) -> float | None:
        """Share of all parameters that sits in token tables, between 0 and 1."""
        if self.token_tables is None:
            return None
        return self.token_tables / self.total if self.total else 0.0

    def summary(self) -> dict[str, int]:
        """Totals by kind of component, for reports."""
        norms = sum(n for name, n in self.entries if name == "norm" or name.endswith(".norms"))
        known = {
            "token_embedding": self["embedding"],
            **({"bigrams": self["bigrams"]} if self["bigrams"] else {}),
            "positions": self["positions"],
            "mixers": sum(n for name, n in self.entries if name.endswith(".mixer")),
            "channels": sum(n for name, n in self.entries if name.endswith(".channel")),
            "norms": norms,
            "head": self["head"],
        }
        padding = {"of_which_padding": self.padding} if self.padding else {}
        return {"total": self.total, **known, "other": self.total - sum(known.values()), **padding}


def _runs(entries: tuple[tuple[str, int], ...]) -> Iterator[tuple[str, int]]:
    """(name, parameters) of every component, blocks in a row with the same parameters as one: `blocks.0-5`."""
    blocks: dict[str, list[int]] = {}
    for name, count in entries:
        if name.startswith("blocks."):
            blocks.setdefault(name.split(".")[1], []).append(count)
    runs = [list(group) for _, group in itertools.groupby(blocks, key=lambda block: blocks[block])]
    lines = {run[0]: (f"blocks.{run[0]}" + (f"-{run[-1]}" if run[1:] else ""), run) for run in runs}
    for name, count in entries:
        block = name.split(".")[1] if name.startswith("blocks.") else None
        if block is None:
            yield name, count
        elif block in lines:
            named, run = lines.pop(block)
            yield named, sum(sum(blocks[member]) for member in run)


def parameter_ledger(model_or_config: Any) -> Ledger:
    """Parameters by component.

    **Arguments:**

    - `model_or_config`: a `ModelConfig` (closed forms, nothing allocated), or a `LanguageModel`, or any pytree
      (its inexact arrays are counted; `jax.eval_shape` results count as well). For a model made of unknown parts,
      `token_tables` is None.

    **Returns:** a `Ledger`.

    **Raises:** `ValueError` where the config's sizes do not fit.
    """
    if isinstance(model_or_config, ModelConfig):
        return _config_ledger(model_or_config)
    if isinstance(model_or_config, str | int | float | type | None):
        raise UserError(f"the ledger of {shown(model_or_config)}: give a ModelConfig, or a model")
    return _leaf_ledger(model_or_config)


def count_parameters(model_or_config: Any) -> int:
    """All parameters of a config, model or any pytree."""
    if isinstance(model_or_config, ModelConfig):
        return total_parameters(model_or_config)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model_or_config) if _is_parameter(leaf))


def total_parameters(config: ModelConfig) -> int:
    """The ledger's total."""
    return parameter_ledger(config).total


def _config_ledger(config: ModelConfig) -> Ledger:
    vocab, d_model = config.vocab_size, config.d_model
    norm = norm_parameters(config.norm, d_model)
    entries = [("embedding", config.embedding.parameters(vocab, d_model))]
    if config.bigrams.rows:
        entries.append(("bigrams", config.bigrams.parameters(d_model)))
    if config.positions == "learned":
        entries.append(("positions", config.context * d_model))
    for i, channel in enumerate(config.channels()):
        entries.append((f"blocks.{i}.norms", 2 * norm))
        entries.append((f"blocks.{i}.mixer", config.mixer.parameters(d_model)))
        entries.append((f"blocks.{i}.channel", channel.parameters(d_model)))
    entries.append(("norm", norm))
    if config.head.has_leaves:
        entries.append(("head", config.head.parameters(vocab, d_model)))
    tables = config.embedding.table_parameters(vocab, d_model) + config.head.table_parameters(vocab, d_model)
    return Ledger(tuple(entries), config.embedding.buffer_bytes(vocab), tables, _padding(config))


def _padding(config: ModelConfig) -> int:
    """What the vocabulary's padding costs: parameters at the vocabulary less those at the ids that are used."""
    vocab, used, d_model = config.vocab_size, config.vocab_size - config.padding_ids, config.d_model
    count = config.embedding.parameters(vocab, d_model) - config.embedding.parameters(used, d_model)
    if config.head.has_leaves:
        count += config.head.parameters(vocab, d_model) - config.head.parameters(used, d_model)
    return count


def _leaf_ledger(tree: Any) -> Ledger:
    counts: dict[str, int] = {}
    buffers = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_fixed)[0]:
        if not hasattr(leaf, "shape"):
            continue
        if _is_parameter(leaf):
            name = component(path_name(path))
            counts[name] = counts.get(name, 0) + math.prod(leaf.shape)
        else:
            buffers += math.prod(leaf.shape) * leaf.dtype.itemsize
    return Ledger(tuple(counts.items()), buffers)


def _is_parameter(leaf: Any) -> bool:
    shape = isinstance(leaf, jax.ShapeDtypeStruct) and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)
    return shape or eqx.is_inexact_array(leaf)


def component(name: str) -> str:
    """The ledger's component that a leaf belongs to, by its dotted name."""
    parts = name.split(".")
    if parts[0] != "blocks" or len(parts) < 3:
        return parts[0]
    part = "norms" if parts[2] in ("mixer_norm", "channel_norm") else parts[2]
    return ".".join([*parts[:2], part])
