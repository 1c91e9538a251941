"""What does a large vocabulary's loss cost? `cross_entropy` against all logits at once, and chunks with remat.

    python -m benchmarks loss

Forward and backward, gradients of features and read-out, V = 200,019, D = 256, 4,096 tokens, float32. FLOPs are XLA's
count of one chunk's program, which has no loop (a loop's body would count once), times the number of chunks, over
the 6 N V D of three matmuls.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from eqx_slm.nn.head import ReadOut
from eqx_slm.train import cross_entropy, keep_freed_memory
from eqx_slm.train.loss import CHUNK_TOKENS

from .harness import Row, interleave, parser, show
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


def main() -> None:
    """Prints the three ratios."""
    small = parser(__doc__).parse_args().small
    vocab, d_model, tokens, rounds = SMALL if small else (VOCAB, D_MODEL, TOKENS, ROUNDS)
    keep_freed_memory()
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(tokens, d_model)), jnp.float32)
    weight = jnp.asarray(0.02 * random.normal(size=(vocab, d_model)), jnp.float32)
    targets = jnp.asarray(random.integers(0, vocab, tokens), jnp.int32)
    losses = {"ours": chunked, "full": full, "remat": remat}
    compiled = {
        name: jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(x, weight, targets).compile()
        for name, loss in losses.items()
    }
    values = {name: float(run(x, weight, targets)[0]) for name, run in compiled.items()}
    np.testing.assert_allclose(list(values.values()), values["full"], rtol=1e-4)
    seconds = interleave(
        {name: lambda run=run: jax.block_until_ready(run(x, weight, targets)) for name, run in compiled.items()},
        rounds=rounds,
        warm=0,  # each has just run
    )
    memory = {name: temporaries(run) for name, run in compiled.items()}
    gibibytes = ", ".join(f"{name} {size / 2**30:.3f} GiB" for name, size in memory.items())
    times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
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
