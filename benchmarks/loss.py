"""What does a large vocabulary's loss cost? `cross_entropy` against all logits at once, and chunks with remat.

    python -m benchmarks loss

Forward and backward, gradients of features and read-out, V = 200,019, D = 256, 4,096 tokens, float32. FLOPs are XLA's
count of one chunk's program, which has no loop (a loop's body would count once), times the number of chunks, over
the 6 N V D of three matmuls.

Each side has a process of its own, and they take turns: ours keeps freed memory, as `train_run` does; the peers are
JAX as it is without the library. The row also tells the ratio in one process, where the peer is spared its page faults.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from eqx_slm.nn.head import ReadOut
from eqx_slm.train import cross_entropy, keep_freed_memory
from eqx_slm.train.loss import CHUNK_TOKENS

from .harness import Row, Worker, interleave, parser, serve, show
from .training import temporaries

VOCAB, D_MODEL, TOKENS, ROUNDS = 200_019, 256, 4096, 3
SMALL = 5_003, 64, 512, 2


def chunked(x_td: jax.Array, weight_vd: jax.Array, targets: jax.Array) -> jax.Array:
    """Ours."""
    return cross_entropy(x_td, ReadOut(weight_vd), targets).loss


def full(x_td: jax.Array, weight_vd: jax.Array, targets: jax.Array) -> jax.Array:
    """What one writes first: all logits, then log-softmax at the targets."""
    logits = x_td @ weight_vd.T
    picked = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def remat(x_td: jax.Array, weight_vd: jax.Array, targets: jax.Array) -> jax.Array:
    """What one writes next: the same over chunks, whose logits the backward pass makes again."""
    part = jax.checkpoint(lambda x, y: full(x, weight_vd, y))
    chunks = x_td.reshape(-1, CHUNK_TOKENS, x_td.shape[1]), targets.reshape(-1, CHUNK_TOKENS)
    return jnp.mean(jax.lax.map(lambda xy: part(*xy), chunks))


LOSSES = {"ours": chunked, "full": full, "remat": remat}


def inputs(vocab: int, d_model: int, tokens: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Features, read-out and targets; the same in every process."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(tokens, d_model)), jnp.float32)
    weight = jnp.asarray(0.02 * random.normal(size=(vocab, d_model)), jnp.float32)
    return x, weight, jnp.asarray(random.integers(0, vocab, tokens), jnp.int32)


def compile_side(side: str, arguments: tuple[jax.Array, jax.Array, jax.Array]) -> jax.stages.Compiled:
    """The loss and its gradients with respect to features and read-out."""
    return jax.jit(jax.value_and_grad(LOSSES[side], argnums=(0, 1))).lower(*arguments).compile()


def serve_side(side: str, arguments: tuple[jax.Array, jax.Array, jax.Array]) -> None:
    """One side in this process, which takes turns."""
    compiled = compile_side(side, arguments)
    value = float(compiled(*arguments)[0])

    def turn() -> None:
        jax.block_until_ready(compiled(*arguments))

    serve({"value": value, "temporaries": temporaries(compiled)}, turn)


def in_one_process(arguments: tuple[jax.Array, jax.Array, jax.Array], rounds: int) -> str:
    """The ratio where both sides run in this process, in words."""
    compiled = {side: compile_side(side, arguments) for side in ("ours", "full")}
    seconds = interleave(
        {side: lambda run=run: jax.block_until_ready(run(*arguments)) for side, run in compiled.items()}, rounds=rounds
    )
    return f"{seconds['ours'] / seconds['full']:.3f} in one process that keeps freed memory for both"


def main() -> None:
    """Prints the three ratios; with `--side`, one side, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--side", choices=LOSSES)
    chosen = options.parse_args()
    small = chosen.small
    vocab, d_model, tokens, rounds = SMALL if small else (VOCAB, D_MODEL, TOKENS, ROUNDS)
    if chosen.side in (None, "ours"):
        keep_freed_memory()
    if chosen.side:
        serve_side(chosen.side, inputs(vocab, d_model, tokens))
        return
    workers = {side: Worker("loss", "--side", side, *(["--small"] if small else [])) for side in LOSSES}
    values = [worker.ready["value"] for worker in workers.values()]
    np.testing.assert_allclose(values, values[0], rtol=1e-4)
    memory = {side: worker.ready["temporaries"] for side, worker in workers.items()}
    seconds = interleave({side: worker.turn for side, worker in workers.items()}, rounds=rounds, warm=0)
    for worker in workers.values():
        worker.close()
    arguments = x, weight, targets = inputs(vocab, d_model, tokens)
    gibibytes = ", ".join(f"{name} {size / 2**30:.3f} GiB" for name, size in memory.items())
    times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    times += f", each in its own process; {in_one_process(arguments, rounds)}"
    counted = chunk_flops(chunked, x[:CHUNK_TOKENS], weight, targets[:CHUNK_TOKENS]) * tokens / CHUNK_TOKENS
    three = 6 * tokens * vocab * d_model
    flops = f"{counted:.4g} FLOPs for {three:.4g}: {tokens // CHUNK_TOKENS} chunks of {CHUNK_TOKENS} tokens"
    show(
        Row("loss-memory", memory["ours"] / memory["full"], "<= 0.125", "x the temporaries", gibibytes),
        Row("loss-time", seconds["ours"] / seconds["full"], "<= 0.8", "x the time", times),
        Row("loss-flops", counted / three, "<= 1.05", "x 6 N V D", flops),
        small=small,
    )


def chunk_flops(loss: Callable[..., jax.Array], x_td: jax.Array, weight_vd: jax.Array, targets: jax.Array) -> float:
    """XLA's count of the FLOPs of a loss and its gradient over one chunk's tokens."""
    lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(x_td, weight_vd, targets)
    if "while" in lowered.as_text():
        raise SystemExit("one chunk's program holds a loop, whose body would be counted once")
    return (lowered.compile().cost_analysis() or {})["flops"]


if __name__ == "__main__":
    main()
