"""One mesh for one device or many: what is split over which axis, and the step's form on it."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from ..errors import UserError
from ..nn.ops import varying_like
from ..pytree import path_name

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")  # the axes that split a batch
# Leaves with a row a token, in a state at any depth: parameters, their gradients, both moments.
VOCABULARY = re.compile(r"(?:^|\.)(?:embedding\.table|head\.weight)$")


@dataclass(frozen=True)
class Layout:
    """How many devices stand along each axis of the mesh.

    `data` splits a batch's rows. `fsdp` splits rows too, and every parameter and its moments along its largest axis
    that divides: a device keeps its share, and has the whole of the parameters only while a step runs. `model` splits
    the rows of the token table and of the head's weight, and with them the loss over the vocabulary. `fsdp` is the
    third stage of ZeRO (arXiv 1910.02054).
    """

    data: int = 1
    fsdp: int = 1
    model: int = 1

    @staticmethod
    def of(text: str) -> "Layout":
        """The layout of a text such as "data=4,model=2"; axes that it does not name have one device.

        **Raises:** `UserError` for what is no layout.
        """
        sizes: dict[str, int] = {}
        for part in str(text).split(","):
            match = re.fullmatch(r"\s*(\w+)\s*=\s*([1-9]\d{0,5})\s*", part)
            if match is None or match[1] not in AXES or match[1] in sizes:
                raise UserError(
                    f"--mesh {text!r}: write how many devices each axis has, such as data=4,model=2; the axes are "
                    f"{', '.join(AXES)}, each given once"
                )
            sizes[match[1]] = int(match[2])
        return Layout(**sizes)

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.data * self.fsdp * self.model

    @property
    def batch_shards(self) -> int:
        """In how many parts a batch's rows are."""
        return self.data * self.fsdp

    def mesh(self) -> Mesh:
        """The mesh over the first devices there are; `UserError` where there are too few."""
        there = jax.devices()
        if len(there) < self.devices:
            raise UserError(
                f"--mesh {self}: {self.devices} devices, but this process sees {len(there)} "
                f"({there[0].platform}); on a CPU set XLA_FLAGS=--xla_force_host_platform_device_count={self.devices}"
            )
        sizes = tuple(getattr(self, axis) for axis in AXES)
        return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=there[: self.devices])

    def check(self, shapes: Mapping[str, tuple[int, ...]], rows: int) -> None:
        """Raises `UserError` where a batch of `rows`, or a vocabulary among the parameters, does not divide."""
        if rows % self.batch_shards:
            raise UserError(
                f"--mesh {self}: the {rows} rows of a batch (--batch-size) do not divide by {self.batch_shards} shares"
            )
        for name, shape in shapes.items():
            if VOCABULARY.search(name) and shape[0] % self.model:
                raise UserError(
                    f"--mesh {self}: the {shape[0]:,} rows of {name} do not divide by model={self.model}: pad the "
                    f"vocabulary with --pad-vocab-to {self.model}"
                )

    def spec(self, name: str, shape: tuple[int, ...]) -> P:
        """Which axis splits which dimension of a leaf, by its dotted path."""
        split: list[str | None] = [None] * len(shape)
        if self.model > 1 and VOCABULARY.search(name):
            split[0] = "model"
        # Not the axis that stacked blocks are scanned along.
        free = [i for i in range(1 if ".block." in name else 0, len(shape)) if split[i] is None]
        whole = [i for i in free if shape[i] % self.fsdp == 0 and shape[i] > 1]
        if self.fsdp > 1 and whole:
            split[max(whole, key=lambda i: shape[i])] = "fsdp"
        return P(*split)

    def __str__(self) -> str:
        return ",".join(f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1) or "data=1"


@dataclass(frozen=True)
class Placed:
    """A layout on its mesh: where a state and a batch go, and how a function of a batch's rows runs there."""

    layout: Layout
    mesh: Mesh

    def shardings(self, tree: PyTree[Any]) -> PyTree[NamedSharding]:
        """Of every array of a state."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self.layout.spec(path_name(path), leaf.shape)), tree
        )

    def place(self, tree: PyTree[Any]) -> PyTree[Any]:
        """A state on its devices."""
        return jax.tree.map(_put, tree, self.shardings(tree))

    def kept(self, tree: PyTree[Any]) -> PyTree[Any]:
        """Inside of a compiled step: a new state stays where the old one was, so that it can take its place."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def own_rows(self, count: int) -> slice:
        """The rows, of a batch of `count`, between the first and the last that this process' devices hold."""
        split = NamedSharding(self.mesh, P(ROWS)).addressable_devices_indices_map((count,))
        ends = [index[0].indices(count)[:2] for index in split.values() if index]
        return slice(min(start for start, _ in ends), max(stop for _, stop in ends))

    def batch(self, rows: np.ndarray, count: int | None = None) -> Any:
        """A batch of `count` rows on its devices, each with its own; `rows` are all of them, or `own_rows`."""
        count = len(rows) if count is None else count
        first = 0 if count == len(rows) else self.own_rows(count).start

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(count)
            return rows[start - first : stop - first]

        shape = (count, *rows.shape[1:])
        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, P(ROWS)), part)

    def batch_like(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """The same of a shape alone."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, P(ROWS)))

    def spread(self, function: Callable[..., Any], *, mean: bool) -> Callable[..., Any]:
        """`function(params, batch, *more)` on every share of a batch's rows; `params` and `more` are whole.

        `mean`: the result is the mean of the shares'; otherwise it has a row a row of the batch. Rows are split by
        hand, so that what a function finds in its own rows (distinct tokens, chunks of a loss) stays on its device.
        Where the vocabulary is split too, all is left to the compiler, which has to know both.
        """
        if self.layout.model > 1:
            return function

        def share(params: Any, batch: Any, *more: Any) -> Any:
            found = function(varying_like(params, batch[0, 0]), batch, *more)
            return jax.lax.pmean(found, ROWS) if mean else found

        def whole(params: Any, batch: Any, *more: Any) -> Any:
            everywhere = jax.tree.map(lambda _: P(), (params, *more))
            specs = (everywhere[0], P(ROWS), *everywhere[1:])
            split = jax.shard_map(share, mesh=self.mesh, in_specs=specs, out_specs=P() if mean else P(ROWS))
            return split(params, batch, *more)

        return whole

    def own_key(self, key: Any) -> Any:
        """Inside of a function that is `spread`: a key of this share's own, or all would drop out the same numbers.

        So a model whose training draws does not draw on several devices what it draws on one.
        """
        whole = self.layout.model > 1 or self.layout.batch_shards == 1
        return key if whole else jax.random.fold_in(key, jax.lax.axis_index(ROWS))

    def everywhere(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its result whole on every device, where any process can read it."""

        def whole(*arguments: Any) -> Any:
            return jax.lax.with_sharding_constraint(function(*arguments), NamedSharding(self.mesh, P()))

        return whole

    def gathered(self, tree: PyTree[Any]) -> PyTree[Any]:
        """Whole arrays on one device of every process, wherever their parts are; leaf by leaf, so that a device has
        one whole leaf at a time beside its share."""
        whole = jax.jit(_same, out_shardings=NamedSharding(self.mesh, P()))

        def one(leaf: Any) -> Any:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
            return jnp.asarray(np.asarray(whole(leaf)))

        return jax.tree.map(one, tree)


def _same(leaf: Any) -> Any:
    return leaf


def place_on(text: str) -> Placed | None:
    """The mesh that a text asks for; None for an empty one."""
    if not text:
        return None
    layout = Layout.of(text)
    return Placed(layout, layout.mesh())


def check_processes(stream: Any, placed: Placed | None) -> None:
    """Raises `UserError` where a study of several processes would not be one: each would train, and write, its own."""
    if getattr(stream, "process_count", 1) > 1:
        raise UserError(
            f"the stream holds the share of one of {stream.process_count} processes: a study reads whole batches, so "
            "leave process_count out"
        )
    there, used = jax.device_count(), 1 if placed is None else placed.layout.devices
    if jax.process_count() > 1 and used != there:
        raise UserError(
            f"{jax.process_count()} JAX processes have {there} devices, and the mesh has {used}: give a mesh of all of "
            f"them, such as --mesh data={there}"
        )


def device_bytes(shapes: PyTree[Any], layout: Layout) -> int:
    """Bytes that a device keeps of a tree of arrays or shapes, by their paths."""
    total = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        parts = [getattr(layout, axis) for axis in layout.spec(path_name(path), leaf.shape) if axis]
        total += math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize // math.prod(parts)
    return total


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    """An array by its parts: of several processes each brings those of its own devices, and no one all of them."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
