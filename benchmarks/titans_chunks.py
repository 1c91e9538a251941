"""How much faster is Titans' chunk form than its step form, and does it give the same?

    python -m benchmarks titans_chunks

Context 512, d_model 256, four heads, chunks of 16 and 64, forward and gradient. The peer is a loop over `step`, with
JAX's own gradient. Medians over processes that keep freed memory, as training does.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from eqx_slm import TitansConfig
from eqx_slm.train.host import keep_freed_memory

from .harness import Row, Worker, interleave, parser, serve, show

CONTEXT, WIDTH, HEADS, CHUNKS, PROCESSES = 512, 256, 4, (16, 64), 7


def memory(chunk: int) -> TitansConfig:
    """The memory that is measured; `titans_memory` and `titans_peer` measure the same."""
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
                worker = Worker("titans_chunks", "--side", f"{chunk}-{batch}", *(["--small"] if small else []))
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


def main() -> None:
    """Prints the row."""
    options = parser(__doc__)
    options.add_argument("--batches", nargs="*", type=int, default=[1], help="by steps, 8 take 24 GiB")
    options.add_argument("--side", help="CHUNK-BATCH, for the process that asked")
    given = options.parse_args()
    keep_freed_memory()
    if given.side:
        chunk, batch = map(int, given.side.split("-"))
        serve(None, lambda: times_of_forms(chunk, batch, 64 if given.small else CONTEXT))
        return
    show(forms(tuple(given.batches), processes=2 if given.small else PROCESSES, small=given.small), small=given.small)


if __name__ == "__main__":
    main()
