"""Does a mixer learn associative recall, at which chunk lengths, and does training stay stable?

    python -m benchmarks.recall                       chunks of 4, 16 and 64 tokens, five seeds each
    python -m benchmarks.recall --chunks 16 --seeds 0

A sequence of 128 tokens begins with 12 pairs (key, value) from fresh random draws of 32 keys and 32 values; the other
52 pairs repeat known keys in random order, and the loss and the accuracy are of the values there. Two layers, d_model
64, two heads, AdamW, batch 16, gradients clipped at norm 1. One line of JSON a seed.
"""

import json
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqx_slm import (
    AttentionConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    TableConfig,
    TitansConfig,
    build,
    cross_entropy,
)
from eqx_slm.nn.head import HeadConfig
from eqx_slm.train import keep_freed_memory
from eqx_slm.train.optimizer import make_optimizer

from .harness import Row, parser, show

PAIRS, HALF, LENGTH, ROWS = 12, 32, 128, 16


def sequences(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Token ids (rows, 129): keys below 32, values from 32 on, in turn; the last token is not used as an input."""
    tokens = np.zeros((rows, LENGTH + 1), np.int32)
    for row in tokens:
        keys = rng.choice(HALF, PAIRS, replace=False)
        values = HALF + rng.choice(HALF, PAIRS, replace=True)
        asked = np.concatenate([np.arange(PAIRS), rng.integers(0, PAIRS, LENGTH // 2 - PAIRS)])
        row[:-1:2], row[1::2] = keys[asked], values[asked]
    return tokens


# Values of repeated keys: after each even position from the end of the pairs on.
ASKED = np.where((np.arange(LENGTH) % 2 == 0) & (np.arange(LENGTH) >= 2 * PAIRS), 1.0, 0.0)


def train(config: ModelConfig, *, seed: int, steps: int, rate: float) -> dict[str, Any]:
    """Trains one seed; accuracy on 256 fresh sequences, the largest gradient norm, and whether all was finite."""
    model = build(config, key=jax.random.key(seed))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    schedule = OptimizerConfig(weight_decay=0.01)
    optimizer = make_optimizer(schedule, params)

    def loss(params, tokens):
        model = eqx.combine(params, static)
        weights = jnp.broadcast_to(jnp.asarray(ASKED)[None], (tokens.shape[0], LENGTH))
        features = model.batch_features(tokens[:, :-1])
        return cross_entropy(features, model.read_out(), tokens[:, 1:], weights=weights).loss

    @jax.jit
    def step(params, state, tokens, rate):
        value, gradient = jax.value_and_grad(loss)(params, tokens)
        updates, state = optimizer.update(gradient, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, value, optax.tree.norm(gradient)

    @jax.jit
    def accuracy(params, tokens):
        model = eqx.combine(params, static)
        right = jax.vmap(model.logits)(model.batch_features(tokens[:, :-1])).argmax(axis=-1) == tokens[:, 1:]
        return (right * jnp.asarray(ASKED)[None]).sum() / (ASKED.sum() * tokens.shape[0])

    rng, fresh = np.random.default_rng(seed), np.random.default_rng(10_000 + seed)
    tests = [sequences(fresh, 64) for _ in range(4)]
    state, curve, norms, losses = optimizer.init(params), {}, [], []
    started = time.perf_counter()
    for i in range(steps):
        now = np.float32(rate * schedule.multiplier(i, steps))
        params, state, value, norm = step(params, state, sequences(rng, ROWS), now)
        losses.append(float(value))
        norms.append(float(norm))
        if (i + 1) % 100 == 0 or i + 1 == steps:
            curve[i + 1] = round(float(np.mean([accuracy(params, tokens) for tokens in tests])), 4)
    return {
        "seed": seed,
        "steps": steps,
        "rate": rate,
        "accuracy": curve[steps],
        "curve": curve,
        "largest_gradient_norm": round(max(norms), 3),
        "finite": bool(np.isfinite(losses).all() and np.isfinite(norms).all()),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """One line of JSON a seed, and a row a chunk length: the median accuracy over the seeds."""
    options = parser(__doc__)
    options.add_argument("--mixer", choices=("titans", "attention"), default="titans")
    options.add_argument("--chunks", type=int, nargs="+", default=[4, 16, 64])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options.add_argument("--steps", type=int, default=800)
    options.add_argument("--rate", type=float, default=2e-3)
    options.add_argument("--std", type=float, default=1.0, help="of the token table's initial values")
    given = options.parse_args()
    keep_freed_memory()
    steps, seeds = (2, given.seeds[:1]) if given.small else (given.steps, given.seeds)
    rows = []
    for chunk in given.chunks:
        config = ModelConfig(
            vocab_size=2 * HALF,
            d_model=64,
            depth=2,
            context=LENGTH,
            positions="rotary" if given.mixer == "attention" else "none",
            mixer=TitansConfig(n_heads=2, chunk=chunk) if given.mixer == "titans" else AttentionConfig(n_heads=2),
            channel=MLPConfig(d_ff=176),
            embedding=TableConfig(std=given.std),
            head=HeadConfig("untied"),
        )
        found = []
        for seed in seeds:
            found.append(train(config, seed=seed, steps=steps, rate=given.rate))
            print(json.dumps({"mixer": given.mixer, "chunk": chunk, **found[-1]}), flush=True)
        accuracies = [run["accuracy"] for run in found]
        side = (
            f"{steps} steps, seeds {', '.join(map(str, seeds))}: {', '.join(f'{a:.3f}' for a in accuracies)}; "
            f"largest gradient norm {max(run['largest_gradient_norm'] for run in found):.1f}, "
            + ("all finite" if all(run["finite"] for run in found) else "NOT all finite")
        )
        name = f"recall-{given.mixer}-{chunk}"
        target = ">= 0.95" if given.mixer == "titans" and chunk <= 16 else ""
        rows.append(Row(name, float(np.median(accuracies)), target, "median accuracy", side))
    show(*rows, small=given.small)


if __name__ == "__main__":
    main()
