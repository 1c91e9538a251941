"""One training step and one evaluation as compiled functions of plain pytrees."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, PyTree

from ..checks import one_of, whole
from ..errors import UserError
from ..nn.init import subkey
from .choices import ComputeDtype, Loop, Remat
from .guard import chosen, group_norms, whole_norm
from .loss import cross_entropy, token_losses
from .mesh import Placed
from .optimizer import OptimizerConfig, make_optimizer
from .processes import leads
from .stack import loop_of, stack_blocks, unstack_blocks


class TrainState(NamedTuple):
    """What a step changes: parameters (float32 masters), the optimizer's state, and the number of steps done.

    `skipped`: how many of the steps changed nothing, because loss or gradient were no finite numbers; `in_a_row`: how
    many of those came last. `key`: of a model whose training draws (dropout), otherwise None; step i draws by
    `fold_in(key, i)`.
    """

    params: PyTree[Array]
    optimizer: PyTree[Array]
    step: Int32[Array, ""]
    skipped: Int32[Array, ""]
    in_a_row: Int32[Array, ""]
    key: Any = None


class Metrics(NamedTuple):
    """Of one step, still on the device: `loss` in nats a token, and the gradient's global norm before clipping.

    `gradient_norms`, `update_norms` and `parameter_norms` are those of every group of leaves (see `guard.group`), the
    update's with the learning rate in it, the parameters' before the update; `skipped` and
    `in_a_row` are the state's after the step.
    """

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    gradient_norms: dict[str, Float[Array, ""]]
    update_norms: dict[str, Float[Array, ""]]
    parameter_norms: dict[str, Float[Array, ""]]
    skipped: Int32[Array, ""]
    in_a_row: Int32[Array, ""]


@dataclass(frozen=True)
class Program:
    """The compiled side of one arm: shared by all its seeds and learning rates.

    `static` is the half of the model that is not parameters, in the form that the step runs (`loop`, `remat`).
    `step(state, batch, rate)` donates its state; `evaluate(params, batch)` takes a state's parameters and returns the
    negative log likelihood of every target of a batch, in nats. With several `replicates` every array of a state, and
    every batch that is trained on, has an axis of that size in front; so have metrics, and what `evaluate` returns.
    """

    static: Any
    optimizer: optax.GradientTransformation
    step: Any
    evaluate: Callable[[PyTree[Array], Int[Array | np.ndarray, "b t"]], Float[Array, "b t"]]
    loop: Loop = "unrolled"
    remat: Remat = "none"
    replicates: int = 1
    draws: bool = False
    placed: Placed | None = None

    def start(self, *models: Any, seeds: Sequence[int] | None = None) -> TrainState:
        """The state before the first step, of a model a replicate. It takes copies: they stay usable after donation.

        `seeds`: of what training draws, one a replicate, 0 by default.
        """
        if len(models) != self.replicates:
            raise ValueError(f"{len(models)} models for a program of {self.replicates} replicates")
        seeds = [0] * len(models) if seeds is None else seeds
        states = [self._start(model, seed) for model, seed in zip(models, seeds, strict=True)]
        state = states[0] if self.replicates == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        return self.place(state)

    def place(self, state: Any) -> Any:
        """A state, or its parameters, where the step wants them: split over the mesh, if there is one."""
        return state if self.placed is None or _traced(state) else self.placed.place(state)

    def whole(self, state: Any) -> Any:
        """A state as any of several processes can write it, each leaf whole; of one process the state itself."""
        return state if self.placed is None or jax.process_count() == 1 else self.placed.gathered(state)

    def batch(self, rows: np.ndarray, count: int | None = None) -> Any:
        """A batch of `count` rows where the step wants it; a process may bring its own rows alone (see `reads`)."""
        return rows if self.placed is None else self.placed.batch(rows, count)

    def reads(self, stream: Any) -> Any:
        """What this process reads of a stream: the first of several all, since it writes their hash, another those
        rows that its devices hold."""
        if leads() or self.placed is None or not hasattr(stream, "of_rows"):
            return stream
        return stream.of_rows(self.placed.own_rows(stream.batch_size))

    def _start(self, model: Any, seed: int) -> TrainState:
        stacked = stack_blocks(model, loop=self.loop, remat=self.remat)
        # Copies: the step donates its state, and the caller's model would be gone with the first batch.
        params = jax.tree.map(jnp.copy, eqx.filter(stacked, eqx.is_inexact_array))
        key = subkey(jax.random.key(seed), "training") if self.draws else None
        # Three zeros and not one three times: a step donates each.
        counts = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
        return TrainState(params, self.optimizer.init(params), *counts, key)

    def model(self, params: PyTree[Array]) -> Any:
        """The model with these parameters of a state, in its public form; whole on one device, but where traced."""
        params = params if self.placed is None or _traced(params) else self.placed.gathered(params)
        return unstack_blocks(eqx.combine(params, self.static))


def make_program(
    model: Any,
    config: OptimizerConfig,
    *,
    compute_dtype: ComputeDtype = "float32",
    loop: Loop = "unrolled",
    remat: Remat = "none",
    replicates: int = 1,
    accumulate: int = 1,
    placed: Placed | None = None,
) -> Program:
    """Compiles (at the first call) training and evaluation for models of `model`'s structure.

    **Arguments:**

    - `model`: a `LanguageModel`, or anything with `batch_features` and `read_out`. One that has `training_features`
      is trained by those, and judged by `batch_features` (see `batch_loss`).
    - `config`: the optimizer.
    - `compute_dtype`: what parameters are cast to inside the step; masters, moments and sums stay float32.
    - `loop`, `remat`: how the blocks run and what their backward pass keeps (see `stack_blocks`), at the same values.
      "auto" writes the blocks out where those of a run are not trained alike.
    - `replicates`: how many models of this structure (seeds) a step trains at once, by `vmap`.
    - `accumulate`: in how many parts of equal rows a step takes its batch, one after another: the same mean loss and
      gradient (their sums rounded in another order), activations of one part at a time. Dropout draws a part.
    - `placed`: the mesh that it runs on (`place_on("data=4,model=2")`); not with several `replicates`. A batch's shares
      draw the same dropout.

    **Returns:** a `Program`. Batches are int `(rows, T + 1)`: inputs `[:, :-1]`, targets `[:, 1:]`.
    """
    replicates, accumulate = whole("replicates", replicates), whole("accumulate", accumulate)
    one_of("compute_dtype", compute_dtype, ("float32", "bfloat16"))
    if placed is not None and replicates > 1:
        raise UserError(f"--mesh {placed.layout}, --seeds-at-once {replicates}: one program trains one seed on a mesh")
    if loop == "auto":
        loop = _loop_for(model, config, remat)
    stacked = stack_blocks(model, loop=loop, remat=remat)
    params, static = eqx.partition(stacked, eqx.is_inexact_array)
    plain = params if stacked is model else eqx.filter(model, eqx.is_inexact_array)
    optimizer = make_optimizer(config, params, plain=plain)
    draws = hasattr(model, "training_features")

    def loss(params: PyTree[Array], batch: Int[Array, "b t"], key: PRNGKeyArray | None = None) -> Float[Array, ""]:
        return batch_loss(eqx.combine(cast(params, compute_dtype), static), batch, key)

    def whole_batch(
        params: PyTree[Array], batch: Int[Array, "b t"], key: PRNGKeyArray | None
    ) -> tuple[Float[Array, ""], PyTree[Array]]:
        if key is not None and placed is not None:
            key = placed.own_key(key)
        if accumulate == 1:
            return jax.value_and_grad(loss)(params, batch, key)
        parts = batch.reshape(accumulate, share_of(batch.shape[0], accumulate), batch.shape[1])

        def add(sums: Any, part: tuple[Array, Array]) -> tuple[Any, None]:
            own = None if key is None else jax.random.fold_in(key, part[1])
            return jax.tree.map(jnp.add, sums, jax.value_and_grad(loss)(params, part[0], own)), None

        # Parts have as many targets each: the mean over tokens is the mean of theirs.
        none = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
        sums, _ = jax.lax.scan(add, none, (parts, jnp.arange(accumulate)))
        return jax.tree.map(lambda total: total / accumulate, sums)

    mean_gradient: Any = whole_batch if placed is None else placed.spread(whole_batch, mean=True)

    def step(state: TrainState, batch: Int[Array, "b t"], rate: Float[Array, ""]) -> tuple[TrainState, Metrics]:
        # The gradient is of the masters: the cast is inside the loss, so that its transpose brings float32 back.
        key = jax.random.fold_in(state.key, state.step) if draws else None
        value, gradients = mean_gradient(state.params, batch, key)
        norms = group_norms(gradients)
        norm = whole_norm(norms)
        fine = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        # The rate is an argument, not a constant of the program: a sweep over rates compiles once.
        updates = jax.tree.map(lambda p, u: rate.astype(p.dtype) * u, state.params, updates)
        params = jax.tree.map(jnp.subtract, state.params, updates)
        params, optimizer_state = chosen(fine, (params, optimizer_state), (state.params, state.optimizer))
        skipped, in_a_row = state.skipped + jnp.where(fine, 0, 1), jnp.where(fine, 0, state.in_a_row + 1)
        metrics = Metrics(value, norm, norms, group_norms(updates), group_norms(state.params), skipped, in_a_row)
        new = TrainState(params, optimizer_state, state.step + 1, skipped, in_a_row, state.key)
        return new if placed is None else placed.kept(new), metrics

    def evaluate(params: PyTree[Array], batch: Int[Array, "b t"]) -> Float[Array, "..."]:
        model = eqx.combine(cast(params, compute_dtype), static)
        features = model.batch_features(batch[:, :-1])
        return token_losses(features, model.read_out(), batch[:, 1:][:, -features.shape[1] :])

    if placed is not None:
        evaluate = placed.everywhere(placed.spread(evaluate, mean=False))
    if replicates > 1:
        step, evaluate = jax.vmap(step, in_axes=(0, 0, None)), jax.vmap(evaluate, in_axes=(0, None))
    # `jax.jit` on plain arrays: `eqx.filter_jit` would take the model apart at every call.
    compiled = jax.jit(step, donate_argnums=0), jax.jit(evaluate)
    return Program(static, optimizer, *compiled, loop, remat, replicates, draws, placed)


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _loop_for(model: Any, config: OptimizerConfig, remat: Remat) -> Loop:
    """What `loop="auto"` is: blocks that are not trained alike are written out."""
    loop = loop_of(model, remat)
    if loop == "runs":
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), eqx.filter(model, eqx.is_inexact_array))
        try:
            make_optimizer(config, stack_blocks(shapes, loop=loop), plain=shapes)
        except UserError:
            return "unrolled"
    return loop


def share_of(rows: int, accumulate: int) -> int:
    """Rows of a part. **Raises:** `UserError` where the parts of a batch would not be equal."""
    if rows % accumulate:
        raise UserError(
            f"accumulate (--accumulate)={accumulate}: it must divide the {rows} rows of a batch (--batch-size)"
        )
    return rows // accumulate


@dataclass(frozen=True)
class CompileReport:
    """What compiling a step cost and what XLA says of it: seconds, bytes of temporaries beside state and batch, FLOPs.

    XLA counts a loop's body once, so `flops` is a lower bound; `eqx_slm.account.flops` is exact.
    """

    seconds: float
    temporary_bytes: int | None
    flops: float | None = None


@dataclass(frozen=True)
class Compiled:
    """A program whose step is compiled ahead of time for one batch shape."""

    program: Program
    report: CompileReport


def compile_step(program: Program, model: Any, batch: Int[np.ndarray, "b t"]) -> Compiled:
    """Compiles the training step ahead of the first batch; nothing is executed or allocated on the device.

    `batch` is one replicate's.
    """
    started = time.perf_counter()
    params = eqx.filter(model, eqx.is_inexact_array)
    state = jax.eval_shape(program.start, *(params for _ in range(program.replicates)))
    front = (program.replicates,) if program.replicates > 1 else ()
    shape = jax.ShapeDtypeStruct(front + batch.shape, batch.dtype)
    if (placed := program.placed) is not None:
        split = placed.shardings(state)
        state = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, split)
        shape = placed.batch_like(batch.shape, batch.dtype)
    step = program.step.lower(state, shape, jax.ShapeDtypeStruct((), jnp.float32)).compile()
    seconds = time.perf_counter() - started
    analysis = step.memory_analysis()
    temporary = None if analysis is None else int(analysis.temp_size_in_bytes)
    cost = step.cost_analysis() or {}
    return Compiled(dataclasses.replace(program, step=step), CompileReport(seconds, temporary, cost.get("flops")))


def batch_loss(model: Any, batch: Int[Array, "b t"], key: PRNGKeyArray | None = None) -> Float[Array, ""]:
    """Mean negative log likelihood of a batch `(rows, T + 1)`, nats a target.

    A model reads out all T positions, or fewer: then the last ones, each with its target. With a `key` it does what it
    does in training, `training_features(inputs, key)`.
    """
    inputs, targets = batch[:, :-1], batch[:, 1:]
    features = model.batch_features(inputs) if key is None else model.training_features(inputs, key)
    return cross_entropy(features, model.read_out(), targets[:, -features.shape[1] :]).loss


def cast(params: PyTree[Array], compute_dtype: ComputeDtype) -> PyTree[Array]:
    """Parameters in the compute dtype, but for those that a module names in `full_precision`; float32 changes none."""
    if compute_dtype == "float32":
        return params
    # By identity: a pytree of the same structure has no names to ask, and a leaf stands in one place only.
    wide = {id(leaf) for leaf in _wide(params)}
    return jax.tree.map(lambda p: p if id(p) in wide else p.astype(compute_dtype), params)


def _wide(node: Any) -> list[Array]:
    """The parameters whose module keeps them out of a lower compute dtype: gates near their ends, a memory's start."""
    found = jax.tree.leaves([getattr(node, name) for name in getattr(type(node), "full_precision", ())])
    for child in jax.tree.leaves(node, is_leaf=lambda n: n is not node and isinstance(n, eqx.Module)):
        if isinstance(child, eqx.Module):
            found += _wide(child)
    return found
