"""One training run: the steps of one arm, seed and learning rate, evaluated at fixed token counts."""

import hashlib
import itertools
import math
import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, Int32, PyTree

from ..checks import INT32, check_choices, share, whole
from .choices import ComputeDtype, Loop, Remat
from .host import keep_freed_memory
from .mesh import Layout
from .optimizer import OptimizerConfig
from .processes import from_first, leads, together
from .record import Evaluation, Progress, RunRecord, of_each
from .resume import Checkpoints, reread
from .stack import auto_loop
from .step import Metrics, Program, TrainState

# Steps left out of a run's speed: the first ones pay for warming caches up.
WARM_STEPS = 3


@dataclass(frozen=True)
class RunConfig:
    """How a run is trained, whatever its model, data, seed and learning rate.

    **Arguments:**

    - `steps`: training steps, each of `batch_size * sequence_length` tokens.
    - `optimizer`: betas, decay, clipping, schedule.
    - `pairing`: "full" starts leaves of equal path and shape equal in all arms; "data-only" gives every arm initial
      values of its own (for null studies).
    - `compute_dtype`: what parameters are cast to inside the step.
    - `loop`, `remat`: how blocks run and what their backward pass keeps (see `stack_blocks`).
    - `seeds_at_once`: how many seeds of an arm one program trains, by `vmap`: the same numbers but for the order of
      sums. On a CPU it gains nothing (benchmarks/README.md).
    - `accumulate`: in how many parts a step takes its batch, for less memory: the same mean loss and gradient.
    - `evaluations`: how many log-spaced token counts are evaluated.
    - `average`: share of a run's last steps whose weights are averaged; the mean is evaluated beside the last weights.
    - `sample_tokens`: length of the text that the first seed's model writes; 0 for none.
    - `probe`: "cosines" keeps the layers' `channel_cosines` of every evaluation.
    - `patience`: after so many steps in a row without a finite gradient (a quarter of a short run's), none of which
      changes anything, a run ends as diverged; its weights are those of before.
    - `mesh`: how many devices along each axis, such as "data=4,model=2" (see `Layout`); empty for one device.
    - `frequency`: how many classes of training frequency the final losses are split by, 10 for deciles; 0 for none.
    """

    steps: int = 160
    optimizer: OptimizerConfig = OptimizerConfig()
    pairing: Literal["full", "data-only"] = "full"
    compute_dtype: ComputeDtype = "float32"
    loop: Loop = "auto"
    remat: Remat = "none"
    seeds_at_once: int = 1
    evaluations: int = 12
    average: float = 0.0
    sample_tokens: int = 0
    probe: Literal["none", "cosines"] = "none"
    frequency: int = 0
    accumulate: int = 1
    patience: int = 25
    mesh: str = ""

    def __post_init__(self):
        check_choices(self)
        whole("steps", self.steps, most=INT32)
        whole("seeds_at_once (--seeds-at-once)", self.seeds_at_once, most=10_000)
        whole("accumulate (--accumulate)", self.accumulate, most=INT32)
        whole("patience", self.patience, most=INT32)
        whole("evaluations", self.evaluations, most=10_000)
        if self.mesh != "":
            Layout.of(self.mesh)
        share("average", self.average, "a run's steps")
        whole("frequency (--frequency)", self.frequency, least=0, most=1000)
        whole("sample_tokens", self.sample_tokens, least=0, most=100_000)

    def scans(self, widths: Sequence[int]) -> bool:
        """Whether blocks of these MLP widths, alike but for them, are scanned."""
        lengths = [len(list(equal)) for _, equal in itertools.groupby(widths)]
        return (auto_loop(lengths, self.remat) if self.loop == "auto" else self.loop) == "runs"

    @property
    def activation_bytes(self) -> int:
        """Bytes of a number within the step."""
        return 2 if self.compute_dtype == "bfloat16" else 4


@runtime_checkable
class Batches(Protocol):
    """What a run needs of a stream (`eqx_slm.data.TokenStream` is one)."""

    @property
    def batch_size(self) -> int:
        """Sequences a batch."""
        ...

    @property
    def sequence_length(self) -> int:
        """Tokens a sequence."""
        ...

    def batches(self, seed: int, *, start: int = 0) -> Iterator[Int32[np.ndarray, "b t"]]:
        """Training batches `(rows, T + 1)` in an order that depends on the seed alone."""
        ...

    def eval_batches(self) -> Sequence[Int32[np.ndarray, "b t"]]:
        """The fixed validation batches, of the same shape."""
        ...

    def eval_bytes(self) -> int | None:
        """Bytes of the evaluated targets, None where the tokenizer loses bytes."""
        ...


def eval_steps(steps: int, count: int = 12) -> tuple[int, ...]:
    """`count` log-spaced steps from 1 / 64 of the run to its end, the last one included; ascending, distinct.

    A short run has too few whole steps at its start for that spacing: later ones fill up, as far as there are any.
    """
    if count == 1:
        return (steps,)
    first = max(1, steps // 64)
    points = np.geomspace(first, steps, num=count)
    chosen = sorted({*(int(round(p)) for p in points), steps})
    for step in range(first, steps):
        if len(chosen) >= min(count, steps):
            break
        if step not in chosen:
            chosen = sorted([*chosen, step])
    return tuple(chosen)


def train_run(
    program: Program,
    model: Any,
    stream: Batches,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    optimizer: OptimizerConfig,
    evaluate_at: Sequence[int],
    average: float = 0.0,
    on_progress: Callable[[Progress], None] | None = None,
    progress_seconds: float = 1.0,
) -> RunRecord:
    """Trains `model` for exactly `steps` steps.

    **Arguments:**

    - `program`: the compiled side of the arm; `model`: its initial values (kept).
    - `stream`: where batches come from; `seed` decides their order.
    - `learning_rate`: the peak; `optimizer` holds the schedule.
    - `evaluate_at`: steps after which the fixed validation part is evaluated.
    - `average`: share of the last steps whose weights are averaged, for `averaged_nll`; 0 for none.
    - `on_progress`: called at every evaluation and about every `progress_seconds`. The loss it sees is a step old, so
      that reading it never makes the device wait.

    **Returns:** a `RunRecord` with the final parameters. Its seconds exclude evaluation and the first steps.

    **Raises:** `ValueError` where the stream ends before the last step.
    """
    return train_runs(
        program,
        [model],
        stream,
        seeds=[seed],
        steps=steps,
        learning_rate=learning_rate,
        optimizer=optimizer,
        evaluate_at=evaluate_at,
        average=average,
        on_progress=on_progress and (lambda _, progress: on_progress(progress)),
        progress_seconds=progress_seconds,
    )[0]


def train_runs(
    program: Program,
    models: Sequence[Any],
    stream: Batches,
    *,
    seeds: Sequence[int],
    steps: int,
    learning_rate: float,
    optimizer: OptimizerConfig,
    evaluate_at: Sequence[int],
    average: float = 0.0,
    on_progress: Callable[[int, Progress], None] | None = None,
    progress_seconds: float = 1.0,
    probe: Callable[[PyTree[Array], Int32[np.ndarray, "b t"]], Any] | None = None,
    checkpoints: Checkpoints | None = None,
    patience: int = 25,
) -> list[RunRecord]:
    """Trains one model a seed, all in the same steps: `train_run` for each, equal but for the order of sums.

    **Arguments:** those of `train_run`, and

    - `program`: of `replicates=len(seeds)`.
    - `on_progress`: is given the seed too; between evaluations it is told of the first seed only.
    - `probe`: asked at every evaluation, of a state's parameters and the first validation batch, for an evaluation's
      `cosines`.
    - `checkpoints`: where the run is saved on its way, and goes on from if it is there (see `Checkpoints`).
    - `patience`: where all seeds have had no finite gradient for so many steps the runs end, their last evaluation NaN.

    **Returns:** a record a seed. Each has its share of the seconds, and the tokens a second of all of them.

    **Raises:** `ValueError` where `program`, `models` and `seeds` are not of one number, and where the stream ends
    before the last step; `Stopped` where `checkpoints` says so.
    """
    if not len(models) == len(seeds) == program.replicates:
        raise ValueError(f"{len(models)} models, {len(seeds)} seeds, a program of {program.replicates} replicates")
    keep_freed_memory()
    patience = min(patience, max(1, steps // 4))  # a short run that ends in bad steps has diverged as well
    records = [RunRecord(seed=seed, learning_rate=learning_rate) for seed in seeds]
    state: TrainState = program.start(*models, seeds=seeds)
    at_once = len(seeds)
    tokens_a_step = stream.batch_size * stream.sequence_length
    due = set(evaluate_at)
    digests = [hashlib.sha256() for _ in seeds]
    previous: Metrics | None = None
    spent, counted, told = 0.0, 0, time.perf_counter()
    done, averaged_from = 0, steps - round(average * steps)
    mean = None
    own_rows = program.reads(stream)
    feeds = [own_rows.batches(seed) for seed in seeds]
    if checkpoints is not None and (saved := checkpoints.load(state)):
        state, done, spent, counted = program.place(saved.state), saved.step, saved.seconds, saved.counted
        if saved.mean is not None and done > averaged_from:  # a shorter run had another average
            mean = program.place(saved.mean)
        for record, own in zip(records, saved.records, strict=True):
            record.evals, record.losses = own.evals, own.losses
        seen = zip(feeds, digests, saved.records, strict=True) if leads() else ()
        together(lambda: [reread(feed, digest, done, own.stream_hash) for feed, digest, own in seen])
        feeds = feeds if leads() else [own_rows.batches(seed, start=done) for seed in seeds]
    mark = time.perf_counter()
    for index, *batches in zip(range(done, steps), *feeds, strict=False):
        rate = np.float32(learning_rate * optimizer.multiplier(index, steps))
        rows = program.batch(batches[0] if at_once == 1 else np.stack(batches), stream.batch_size)
        state, metrics = program.step(state, rows, rate)
        for digest, batch in zip(digests, batches, strict=True):  # while the step runs
            digest.update(np.ascontiguousarray(batch).tobytes())
        done = index + 1
        if done > averaged_from:
            mean = mean_with(state.params if mean is None else mean, state.params, np.float32(done - averaged_from))
        evaluated = None
        saving = checkpoints is not None and (checkpoints.keep_at == done or (done < steps and checkpoints.due(done)))
        if done == WARM_STEPS or done in due or saving:
            jax.block_until_ready(metrics)
            now = time.perf_counter()
            if done > WARM_STEPS:
                spent, counted = spent + now - mark, done - WARM_STEPS
            if done in due:
                at = {"step": done, "tokens": done * tokens_a_step}
                evaluated = evaluate(program, state.params, stream, **at, probe=probe)
                for record, (evaluation, own) in zip(records, evaluated, strict=True):
                    record.evals.append(evaluation)
                    record.losses = own
            mark = time.perf_counter()
        if on_progress and (evaluated or time.perf_counter() - told > progress_seconds):
            told = time.perf_counter()
            shown = metrics if evaluated or previous is None else previous
            running = spent + (0.0 if evaluated or done <= WARM_STEPS else told - mark)
            counts = running > 0 and done > WARM_STEPS
            speed = at_once * (done - WARM_STEPS) * tokens_a_step / running if counts else math.nan
            figures = of_each(shown, at_once)
            for i, seed in enumerate(seeds if evaluated else seeds[:1]):
                said = {"evaluation": evaluated[i][0] if evaluated else None, **figures[i]}
                on_progress(seed, Progress(done, done * tokens_a_step, tokens_per_second=speed, **said))
        if checkpoints is not None and saving:
            hashes = [digest.hexdigest() for digest in digests]
            whole = program.whole(state), program.whole(mean)
            checkpoints.save(*whole, records, hashes, step=done, seconds=spent, counted=counted)
            del whole
            mark = time.perf_counter()
        if done % patience == 0 and previous is not None and np.min(previous.in_a_row) >= patience:
            break  # seen a step late, so that the device never waits
        previous = metrics
    stuck = np.atleast_1d(np.asarray(state.in_a_row)) >= patience
    if done < steps and not stuck.all():
        raise ValueError(f"the stream ended after {done} of {steps} batches: take fewer steps, or let it repeat")
    for digest, feed in zip(digests, feeds, strict=True):  # all arms see the same batches, also one that ends early
        for _, batch in zip(range(done, steps), feed, strict=False):
            digest.update(np.ascontiguousarray(batch).tobytes())
    if mean is not None and not stuck.all():
        found = evaluate(program, mean, stream, step=done, tokens=done * tokens_a_step)
        for record, own, (evaluation, _) in zip(records, stuck, found, strict=True):
            record.averaged_nll = record.averaged_nll if own else evaluation.nll
    for record, own, skipped in zip(records, stuck, np.atleast_1d(np.asarray(state.skipped)), strict=True):
        record.skipped = int(skipped)
        if own:
            record.end_diverged(done, done * tokens_a_step)
    params = [state.params]
    if at_once > 1:
        params = [jax.tree.map(operator.itemgetter(i), state.params) for i in range(at_once)]
    for record, digest, found in zip(records, digests, params, strict=True):
        record.train_seconds = spent * done / max(counted, 1) / at_once
        record.tokens_per_second = at_once * counted * tokens_a_step / spent if spent else 0.0
        record.stream_hash = from_first(digest.hexdigest)
        record.params = found
    return records


@jax.jit
def mean_with(mean: PyTree[Array], new: PyTree[Array], count: Float[Array, ""]) -> PyTree[Array]:
    """The mean of `count` trees, from that of all but the last: a new tree, as a step donates its own."""
    return jax.tree.map(lambda m, p: m + (p - m) / count.astype(p.dtype), mean, new)


def evaluate(
    program: Program, params: PyTree[Array], stream: Batches, *, step: int, tokens: int, probe: Any = None
) -> tuple[tuple[Evaluation, np.ndarray], ...]:
    """Mean validation loss over the stream's fixed part, and those of all its tokens (nats, `(sequences, T)`), one of
    both for every replicate of the program."""
    batches, size = stream.eval_batches(), stream.eval_bytes()
    # Sums in float64: a mean over many tokens has more digits than float32.
    losses = [np.asarray(program.evaluate(params, program.batch(batch)), np.float64) for batch in batches]
    rows = np.concatenate(losses, axis=-2)
    share = (batches[0].shape[1] - 1) / rows.shape[-1]  # 1, but of a model that reads fewer positions than it is given
    found, cosines = [], np.zeros((program.replicates, 0))
    if probe is not None:
        cosines = np.asarray(probe(params, batches[0]), float).reshape(program.replicates, -1)
    for own, layers in zip(rows.reshape(-1, *rows.shape[-2:]), cosines, strict=True):
        means = own.mean(axis=-1)
        bits = float(own.sum()) * share / math.log(2) / size if size else None
        halves = tuple(float(means[start::2].mean()) for start in (0, 1)) if len(means) > 1 else ()
        said = tuple(float(f"{cosine:.6g}") for cosine in layers)
        found.append((Evaluation(step, tokens, float(means.mean()), bits, halves, said), own))
    return tuple(found)
