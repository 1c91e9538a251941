"""What does Titans' memory cost beside its step form, at four times the context, and beside a peer?

    python -m benchmarks.titans                       all three
    python -m benchmarks.titans --parts memory peer   some; the peer is lucidrains' titans-pytorch

Context 512, d_model 256, four heads, chunks of 16 and 64. Medians; ours in processes that keep freed memory, as
training does, and the peer's in ones of its own. The step form is a loop over `step`, with JAX's own gradient.
"""

import dataclasses
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Row, Worker, cores, interleave, parser, serve, show
from eqx_slm import TitansConfig
from eqx_slm.train.host import keep_freed_memory

CONTEXT, WIDTH, HEADS, CHUNKS, PROCESSES = 512, 256, 4, (16, 64), 7


def memory(chunk: int) -> TitansConfig:
    """The memory that is measured."""
    return TitansConfig(n_heads=HEADS, chunk=chunk)


def forward_forms(static: Any, x: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Parameters to outputs of sequences `x`, in chunks, and by steps in a loop."""

    def chunks(params: Any) -> Any:
        return eqx.combine(params, static).batch(x)

    def one_by_one(params: Any) -> Any:
        mixer = eqx.combine(params, static)

        def sequence(x: Any) -> Any:
            return jax.lax.scan(lambda s, x: tuple(mixer.step(x, s))[::-1], mixer.start(x.shape[0]), x)[1]

        return jax.vmap(sequence)(x)

    return chunks, one_by_one


def gradient_of(form: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Of a sum that no output leaves alone."""
    return jax.grad(lambda p: jnp.sin(form(p)).sum())


def check() -> None:
    """Both forms give the same outputs and gradients: over 64 tokens, since float32 drifts apart over many chunks."""
    x = jax.random.normal(jax.random.key(1), (1, 64, WIDTH))
    params, static = eqx.partition(memory(CHUNKS[0]).build(WIDTH, key=jax.random.key(0)), eqx.is_inexact_array)
    for wrap in (lambda form: form, gradient_of):
        both = [jax.jit(wrap(form))(params) for form in forward_forms(static, x)]
        for ours, theirs in zip(*map(jax.tree.leaves, both), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(theirs).max())


def forms(batches: tuple[int, ...], *, processes: int, small: bool) -> Row:
    """Sequences through the mixer in chunks, and by steps in a loop: forward, and with the gradient.

    Medians over processes: one and the same program runs at 46 ms in one process and at 73 ms in the next.
    """
    check()
    sides, worst = [], float("inf")
    for batch in batches:
        for chunk in CHUNKS:
            found: dict[str, list[float]] = {}
            for _ in range(processes):
                worker = Worker("titans", "--side", f"forms-{chunk}-{batch}", *(["--small"] if small else []))
                for name, seconds in worker.turn().items():
                    found.setdefault(name, []).append(seconds)
                worker.close()
            times = {name: float(np.median(seconds)) for name, seconds in found.items()}
            for name in ("forward", "gradient"):
                ratio = times[f"{name} by steps"] / times[f"{name} in chunks"]
                worst = min(worst, ratio) if name == "gradient" else worst
                low, high = (1e3 * f(found[f"{name} in chunks"]) for f in (min, max))
                sides.append(
                    f"{name} at chunk {chunk}, batch {batch}: {1e3 * times[f'{name} in chunks']:.1f} ms ({low:.1f} to "
                    f"{high:.1f}), by steps {1e3 * times[f'{name} by steps']:.0f} ms, {ratio:.1f} x"
                )
                print(sides[-1], flush=True)
    unit = f"x faster (least gradient, medians of {processes} processes)"
    return Row("titans-chunk-form", worst, ">= 20", unit, "; ".join(sides))


def times_of_forms(chunk: int, batch: int, context: int) -> dict[str, float]:
    """Seconds of both forms, forward and gradient, in this process."""
    x = jax.random.normal(jax.random.key(1), (batch, context, WIDTH))
    params, static = eqx.partition(memory(chunk).build(WIDTH, key=jax.random.key(0)), eqx.is_inexact_array)
    times = {}
    for name, wrap in (("forward", lambda form: form), ("gradient", gradient_of)):
        for way, form in zip(("in chunks", "by steps"), forward_forms(static, x), strict=True):
            run = jax.jit(wrap(form))
            # Each by itself: right after the steps' gigabytes, the caches hold nothing of whoever is next.
            side = {"it": lambda run=run: jax.block_until_ready(run(params))}
            times[f"{name} {way}"] = interleave(side, rounds=9 if batch == 1 else 3)["it"]
    return times


def temporaries(short: int) -> Row:
    """Temporary bytes of the mixer's gradient, as XLA plans them; nothing runs."""

    def temporary(config: TitansConfig, context: int) -> int:
        shapes = eqx.filter_eval_shape(lambda key: config.build(WIDTH, key=key), jax.random.key(0))
        params, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

        def loss(params: Any, x: Any) -> Any:
            return eqx.combine(params, static)(x).sum()

        x = jax.ShapeDtypeStruct((context, WIDTH), jnp.float32)
        analysis = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]

    sides, worst = [], 0.0
    for chunk in CHUNKS:
        for remat in ("groups", "none"):
            config = dataclasses.replace(memory(chunk), remat=remat)
            few, many = (temporary(config, context) for context in (short, 4 * short))
            worst = max(worst, many / few) if remat == "groups" else worst
            sides.append(
                f"chunk {chunk}, remat {remat}: {few / 2**20:.0f} MiB, {many / 2**20:.0f} MiB, {many / few:.2f} x"
            )
            print(sides[-1], flush=True)
    unit = f"x the temporaries at {4 * short:,} tokens of those at {short:,} (most, in groups)"
    return Row("titans-memory", worst, "<= 3", unit, "; ".join(sides))


def ours_side(chunk: int, context: int) -> Callable[[], Any]:
    """Our forward and backward of one memory layer, of its parameters and of one sequence."""
    keep_freed_memory()
    params, static = eqx.partition(memory(chunk).build(WIDTH, key=jax.random.key(0)), eqx.is_inexact_array)
    gradient = jax.jit(jax.grad(lambda p, x: eqx.combine(p, static).batch(x).sum(), argnums=(0, 1)))
    x = peer_inputs(context)
    return lambda: jax.block_until_ready(gradient(params, x))


def theirs_side(size: int, batch: int | None, context: int) -> Callable[[], Any]:
    """titans-pytorch's. Their default memory has two layers, expansion 4 and momentum, as ours."""
    import torch
    from titans_pytorch import NeuralMemory

    torch.set_num_threads(cores())
    theirs = NeuralMemory(dim=WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, chunk_size=size, batch_size=batch)
    x = peer_inputs(context)

    def run() -> None:
        given = torch.from_numpy(x).requires_grad_()
        theirs.zero_grad()
        theirs(given)[0].sum().backward()

    return run


def peer_inputs(context: int) -> np.ndarray:
    """The same in every process."""
    return np.random.default_rng(0).normal(size=(1, context, WIDTH)).astype(np.float32)


def serve_side(side: str, context: int) -> None:
    """One side in this process, which takes turns: `forms-CHUNK-BATCH`, `ours-16`, or `theirs-SIZE-BATCH` (0: None)."""
    name, size, *batch = side.split("-")
    if name == "forms":
        keep_freed_memory()
        serve(None, lambda: times_of_forms(int(size), int(batch[0]), context))
        return
    run = ours_side(int(size), context) if name == "ours" else theirs_side(int(size), int(batch[0]) or None, context)
    run()
    rounds = 1 if size == "1" else 5  # chunks of one token take them seconds
    serve(None, lambda: interleave({"it": run}, rounds=rounds)["it"])


def peer(context: int, *, slow: bool) -> list[Row]:
    """Forward and backward of one memory layer: ours and titans-pytorch's, same sizes, same cores, one sequence.

    Theirs has momentum and forgetting once a `chunk_size`, and takes gradients at the weights before the last
    `batch_size` tokens. So `chunk_size=1, batch_size=C` updates and reads token by token with gradients a chunk, as
    ours does; `chunk_size=C` is coarser, cheaper, and another function. Their layer has no convolutions and a gate a
    head where ours has a full one: less work on their side. Every side has a process of its own.
    """
    sides: dict[str, list[str]] = {"titans-peer": [], "titans-peer-coarse": []}
    worst = {name: float("inf") for name in sides}
    small = [] if slow else ["--small"]
    for chunk in CHUNKS:
        asked = {"ours": f"ours-{chunk}", "coarse": f"theirs-{chunk}-{chunk}", "coarsest": f"theirs-{chunk}-0"}
        asked |= {"same": f"theirs-1-{chunk}"} if slow else {}
        workers = {name: Worker("titans", "--side", side, *small) for name, side in asked.items()}
        turns: dict[str, list[float]] = {name: [] for name in workers}
        for name, worker in 5 * list(workers.items()):
            turns[name].append(worker.turn())
        for worker in workers.values():
            worker.close()
        times = {name: float(np.median(medians)) for name, medians in turns.items()}
        for row, name in (("titans-peer", "same"), ("titans-peer-coarse", "coarse")):
            if name in times:
                ratio = times[name] / times["ours"]
                worst[row] = min(worst[row], ratio)
                both = f"ours {1e3 * times['ours']:.0f} ms, theirs {1e3 * times[name]:,.0f} ms"
                sides[row].append(f"chunk {chunk}: {both} ({ratio:.1f} x)")
        ratio = times["coarsest"] / times["ours"]
        sides["titans-peer-coarse"].append(
            f"all their gradients at the first weights {1e3 * times['coarsest']:.0f} ms ({ratio:.1f} x)"
        )
        print({name: f"{1e3 * value:.1f} ms" for name, value in times.items()}, flush=True)
    units = {"titans-peer": "updates token by token, as ours", "titans-peer-coarse": "their coarser rule"}
    return [
        Row(name, worst[name], ">= 3", f"x faster (least, {units[name]})", "; ".join(sides[name]))
        for name in sides
        if sides[name] and worst[name] < float("inf")
    ]


def main() -> None:
    """Prints the rows of the parts asked for."""
    options = parser(__doc__)
    options.add_argument("--parts", nargs="*", choices=("forms", "memory", "peer"), default=["forms", "memory", "peer"])
    options.add_argument("--batches", nargs="*", type=int, default=[1], help="by steps, 8 take 24 GiB")
    options.add_argument("--side", help="one side of a comparison, for the process that asked")
    given = options.parse_args()
    context, rows = (64 if given.small else CONTEXT), []
    if given.side:
        serve_side(given.side, context)
        return
    keep_freed_memory()
    if "forms" in given.parts:
        rows.append(forms(tuple(given.batches), processes=2 if given.small else PROCESSES, small=given.small))
    if "memory" in given.parts:
        rows.append(temporaries(128 if given.small else 1024))
    if "peer" in given.parts and find_spec("titans_pytorch") is None:
        print("titans-peer skipped: titans-pytorch is not installed (pip install -e '.[bench]')")
    elif "peer" in given.parts:
        rows += peer(context, slow=not given.small)
    show(*rows, small=given.small)


if __name__ == "__main__":
    main()
