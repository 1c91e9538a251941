"""Depth: runs of equal blocks stacked for a scan, and rematerialisation, as a form of the model that training uses."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .choices import Loop, Remat

# "auto" scans from so many equal neighbours on: fewer compile as fast written out, and keep less memory.
SCANNED = 8


class Run(eqx.Module):
    """`length` consecutive blocks of one shape, their leaves stacked along a first axis and scanned."""

    block: Any
    length: int = eqx.field(static=True)
    remat: Remat = eqx.field(static=True)

    def batch(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The blocks, one after another, over a batch of sequences."""
        # All arrays, integer buffers too: a scan slices what it is given, and a buffer is a layer's own.
        arrays, static = eqx.partition(self.block, eqx.is_array)

        def one(x: Array, layer: Any) -> tuple[Array, None]:
            block = eqx.combine(layer, static)
            return (block.batch(x) if hasattr(block, "batch") else jax.vmap(block)(x)), None

        if self.remat != "none":
            policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
            # A scan keeps XLA from undoing the rematerialisation by itself.
            one = jax.checkpoint(one, policy=policies[self.remat], prevent_cse=self.length == 1)
        if self.length == 1:
            return one(x, jax.tree.map(lambda leaf: leaf[0], arrays))[0]
        return jax.lax.scan(one, x, arrays)[0]


def stack_blocks(model: Any, *, loop: Loop = "unrolled", remat: Remat = "none") -> Any:
    """The model with its blocks in the form that a training step runs; `unstack_blocks` is the exact inverse.

    **Arguments:**

    - `model`: a `LanguageModel`, or any module with a tuple `blocks`.
    - `loop`: "unrolled" traces every block; "runs" stacks runs of blocks of one shape and scans each, so that tracing
      and compiling take the time of the distinct shapes; "auto" is "runs" where a run has 8 blocks or more, and
      where something is rematerialised.
    - `remat`: what the backward pass keeps of a block: "none" keeps everything, "dots" the results of matmuls, "full"
      the block's input alone.

    **Returns:** a model of the same values whose `blocks` are `Run`s; the model itself for "unrolled" and "none".

    **Raises:** `ValueError` for a model without a tuple of blocks.
    """
    if loop not in ("auto", "unrolled", "runs") or remat not in ("none", "full", "dots"):
        raise ValueError(
            f"loop={loop!r}, remat={remat!r}: loop is 'auto', 'unrolled' or 'runs', remat 'none', 'full' or 'dots'"
        )
    loop = loop_of(model, remat) if loop == "auto" else loop
    if loop == "unrolled" and remat == "none":
        return model
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, tuple):
        raise ValueError(
            f"loop={loop!r}, remat={remat!r} need a tuple of blocks, {type(model).__name__} has none: "
            "take loop='unrolled' and remat='none'"
        )
    # Unrolled with rematerialisation is a run of one block each: one form of a block for both.
    runs, first = [], 0
    for length in run_lengths(blocks) if loop == "runs" else (1,) * len(blocks):
        part = blocks[first : first + length]
        runs.append(Run(jax.tree.map(_stack, *part), length, remat))
        first += length
    return eqx.tree_at(lambda m: m.blocks, model, tuple(runs))


def loop_of(model: Any, remat: Remat = "none") -> Loop:
    """What "auto" is for a model: "runs" where it has a run of at least `SCANNED` blocks, and with rematerialisation,
    which XLA undoes in blocks that are written out."""
    blocks = getattr(model, "blocks", ())
    return auto_loop(run_lengths(blocks) if isinstance(blocks, tuple) else (), remat)


def auto_loop(lengths: Sequence[int], remat: Remat) -> Loop:
    """The same by the lengths of runs of equal blocks."""
    longest = max(lengths, default=0)
    return "runs" if longest >= SCANNED or (remat != "none" and longest > 1) else "unrolled"


def unstack_blocks(model: Any) -> Any:
    """The model in its public form: `blocks` a plain tuple of per-layer blocks."""
    blocks = getattr(model, "blocks", ())
    if not any(isinstance(block, Run) for block in blocks):
        return model
    plain = [jax.tree.map(lambda leaf, i=i: _unstack(leaf, i), run.block) for run in blocks for i in range(run.length)]
    return eqx.tree_at(lambda m: m.blocks, model, tuple(plain))


def run_lengths(blocks: tuple[Any, ...]) -> tuple[int, ...]:
    """How many consecutive blocks share one structure and the shapes of all leaves, run by run."""
    # Only neighbours: gathering equal blocks from different depths would change their order, which the stream sees.
    lengths: list[int] = []
    previous = None
    for block in blocks:
        form = jax.tree.structure(block), tuple(map(_form, jax.tree.leaves(block)))
        if form == previous:
            lengths[-1] += 1
        else:
            lengths.append(1)
        previous = form
    return tuple(lengths)


def first_blocks(model: Any) -> tuple[int, ...]:
    """Of every entry of a stacked model's `blocks`, the index of its first block in the plain model."""
    starts, total = [], 0
    for block in getattr(model, "blocks", ()):
        starts.append(total)
        total += block.length if isinstance(block, Run) else 1
    return tuple(starts)


def _form(leaf: Any) -> Any:
    # Shapes count as arrays: a program is lowered from shapes alone, and must find the same runs.
    return (leaf.shape, str(leaf.dtype)) if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _unstack(leaf: Any, i: int) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
    return leaf[i] if eqx.is_array(leaf) else leaf


def _stack(*leaves: Any) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(leaves), *leaves[0].shape), leaves[0].dtype)
    return jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]
