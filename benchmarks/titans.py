"""What does Titans' memory cost beside its step form, at four times the context, and beside a peer?

    python benchmarks/titans.py --part forms      chunk form against one token at a time
    python benchmarks/titans.py --part memory     temporary bytes of the gradient at context 1,024 and 4,096
    python benchmarks/titans.py --part peer       lucidrains' titans-pytorch, where it is installed

Context 512, d_model 256, four heads, one sequence. Medians, in one process.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_slm import (
    TitansConfig,
)
from eqx_slm.study.pair import machine

CONTEXT, WIDTH, HEADS = 512, 256, 4


def memory(chunk: int) -> TitansConfig:
    """The memory that is measured."""
    return TitansConfig(n_heads=HEADS, chunk=chunk)


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int, rest: float = 0.0) -> dict[str, float]:
    """Median seconds of each, taken in turn after one call that compiles, `rest` seconds apart."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(rest)
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def forms(repeats: int) -> None:
    """One sequence through the mixer in chunks, and by steps in a loop: forward, and with the gradient."""
    x = jax.random.normal(jax.random.key(1), (CONTEXT, WIDTH))
    for chunk in (16, 64):
        params, static = eqx.partition(memory(chunk).build(WIDTH, key=jax.random.key(0)), eqx.is_inexact_array)

        def chunks(params: Any, static: Any = static) -> Any:
            return eqx.combine(params, static)(x)

        def one_by_one(params: Any, static: Any = static) -> Any:
            mixer = eqx.combine(params, static)
            return jax.lax.scan(lambda state, x: tuple(mixer.step(x, state))[::-1], mixer.start(CONTEXT), x)[1]

        for name, wrap in (("forward", lambda f: f), ("gradient", lambda f: jax.grad(lambda p: jnp.sin(f(p)).sum()))):
            both = [jax.jit(wrap(form)) for form in (chunks, one_by_one)]
            runs = {str(i): lambda run=run, p=params: jax.block_until_ready(run(p)) for i, run in enumerate(both)}
            # Each by itself: right after the steps' gigabytes are given back, memory is slow for whoever is next.
            parallel, stepped = (interleaved({i: run}, repeats)[i] for i, run in runs.items())
            print(
                f"chunk {chunk}, {name}: {1e3 * parallel:.1f} ms in chunks, {1e3 * stepped:.1f} ms by steps, "
                f"{stepped / parallel:.1f} x",
                flush=True,
            )


def temporaries() -> None:
    """Temporary bytes of the mixer's gradient, as XLA plans them; nothing runs."""

    def temporary(config: TitansConfig, context: int) -> int:
        shapes = eqx.filter_eval_shape(lambda key: config.build(WIDTH, key=key), jax.random.key(0))
        params, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

        def loss(params: Any, x: Any) -> Any:
            return eqx.combine(params, static)(x).sum()

        x = jax.ShapeDtypeStruct((context, WIDTH), jnp.float32)
        analysis = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]

    for chunk in (16, 64):
        for remat in ("groups", "none"):
            config = dataclasses.replace(memory(chunk), remat=remat)
            short, long = (temporary(config, context) for context in (1024, 4096))
            print(
                f"chunk {chunk}, remat {remat}: {short / 2**20:.1f} MiB at 1,024 tokens, {long / 2**20:.1f} MiB at "
                f"4,096, {long / short:.2f} x"
            )


def peer(repeats: int) -> None:
    """Forward and backward of one memory layer: ours and titans-pytorch's, same sizes, same cores, one sequence.

    Theirs has momentum and forgetting once a `chunk_size`, and takes gradients at the weights before the last
    `batch_size` tokens. So `chunk_size=1, batch_size=C` is our rule at chunk C; `chunk_size=C` is coarser and cheaper.
    """
    import torch
    from titans_pytorch import NeuralMemory

    x = np.random.default_rng(0).normal(size=(1, CONTEXT, WIDTH)).astype(np.float32)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for chunk in (16, 64):
        params, static = eqx.partition(memory(chunk).build(WIDTH, key=jax.random.key(0)), eqx.is_inexact_array)
        gradient = jax.jit(jax.grad(lambda p, x, s=static: eqx.combine(p, s).batch(x).sum(), argnums=(0, 1)))
        runs: dict[str, Callable[[], Any]] = {
            f"ours, chunk {chunk}": lambda run=gradient, p=params: jax.block_until_ready(run(p, x))
        }
        for size, batch in ((1, chunk), (chunk, chunk), (chunk, None)):
            # Their default memory: two layers, expansion 4, momentum.
            theirs = NeuralMemory(dim=WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, chunk_size=size, batch_size=batch)

            def run(theirs: Any = theirs) -> None:
                given = torch.from_numpy(x).requires_grad_()
                theirs.zero_grad()
                theirs(given)[0].sum().backward()

            runs[f"titans-pytorch, chunk_size {size}, batch_size {batch}"] = run
        medians = interleaved(runs, repeats, rest=0.3)  # torch's threads spin on for a while
        for name, median in medians.items():
            ratio = median / medians[f"ours, chunk {chunk}"]
            print(f"{name:46s} {1e3 * median:8.1f} ms, {ratio:5.1f} x", flush=True)


def main() -> None:
    """Prints one part's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--part", choices=("forms", "memory", "peer"), required=True)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    print(machine())
    parts = {"forms": forms, "memory": lambda _: temporaries(), "peer": peer}
    parts[given.part](given.repeats)


if __name__ == "__main__":
    main()
