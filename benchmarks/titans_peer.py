"""Is Titans' memory faster than titans-pytorch's (lucidrains') on the same cores?

    python -m benchmarks titans_peer

Forward and backward of one memory layer, context 512, d_model 256, four heads, chunks of 16 and 64, one sequence. Every
side has a process of its own, and they take turns; ours keeps freed memory, as training does.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from eqx_slm.train.host import keep_freed_memory

from .harness import Row, Worker, cores, interleave, need, parser, serve, show
from .titans_chunks import CHUNKS, CONTEXT, HEADS, WIDTH, memory


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
    """One side in this process, which takes turns: `ours-16`, or `theirs-SIZE-BATCH` (0: None)."""
    name, size, *batch = side.split("-")
    run = ours_side(int(size), context) if name == "ours" else theirs_side(int(size), int(batch[0]) or None, context)
    run()
    rounds = 1 if size == "1" else 5  # chunks of one token take them seconds
    serve(None, lambda: interleave({"it": run}, rounds=rounds)["it"])


def peer(context: int, *, slow: bool) -> list[Row]:
    """Forward and backward of one memory layer: ours and titans-pytorch's, same sizes, same cores, one sequence.

    Theirs has momentum and forgetting once a `chunk_size`, and takes gradients at the weights before the last
    `batch_size` tokens. So `chunk_size=1, batch_size=C` updates and reads token by token with gradients a chunk, as
    ours does; `chunk_size=C` is coarser, cheaper, and another function. Their layer has no convolutions and a gate a
    head where ours has a full one: less work on their side.
    """
    sides: dict[str, list[str]] = {"titans-peer": [], "titans-peer-coarse": []}
    worst = {name: float("inf") for name in sides}
    small = [] if slow else ["--small"]
    for chunk in CHUNKS:
        asked = {"ours": f"ours-{chunk}", "coarse": f"theirs-{chunk}-{chunk}", "coarsest": f"theirs-{chunk}-0"}
        asked |= {"same": f"theirs-1-{chunk}"} if slow else {}
        workers = {name: Worker("titans_peer", "--side", side, *small) for name, side in asked.items()}
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
    """Prints the rows; without titans-pytorch, what to install."""
    options = parser(__doc__)
    options.add_argument("--side", help="one side, for the process that asked")
    given = options.parse_args()
    context = 64 if given.small else CONTEXT
    if given.side:
        serve_side(given.side, context)
        return
    need("titans-pytorch")
    show(*peer(context, slow=not given.small), small=given.small)


if __name__ == "__main__":
    main()
