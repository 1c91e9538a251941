"""The dry run: what every arm would cost, before anything is trained."""

import time
from typing import Any

import jax
import jax.numpy as jnp

from ..account import CONVENTIONS
from ..data.stream import TokenStream
from .config import PairConfig
from .run import plan
from .sentences import human

# Share of the measured matmul rate that a training step of a small model reaches.
EFFICIENCY = 0.35


def print_plan(config: PairConfig, stream: TokenStream, console: Any) -> None:
    """Prints ledger, FLOPs, memory and a rough time per arm."""
    from rich.table import Table

    rate = matmul_rate(config.compute_dtype)
    runs = config.seeds * len(config.learning_rates)
    plans = plan(config, stream)
    parameters = Table(title="parameters")
    columns = ("total", "token_embedding", "positions", "mixers", "channels", "norms", "head")
    for heading in ("arm", *columns, "in tables"):
        short = heading.replace("token_embedding", "embedding")
        parameters.add_column(short, justify="left" if heading == "arm" else "right", no_wrap=True)
    costs = Table(title=f"costs: {human(config.tokens)} tokens a run, {runs} runs an arm")
    for heading in ("arm", "FLOPs/token", "embedding", "blocks", "head", "distinct", "memory", "about"):
        costs.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    total = 0.0
    for name, p in plans.items():
        summary, tax = p.ledger.summary(), p.ledger.embedding_tax
        share = "?" if tax is None else f"{tax:.0%}"
        parameters.add_row(name, *(f"{summary[c]:,}" for c in columns), share)
        seconds = runs * p.training_flops / (rate * EFFICIENCY)
        total += seconds
        f = p.flops
        numbers = (f.total, f.embedding, sum(f.blocks), f.head, f.total_distinct or f.total)
        costs.add_row(name, *(human(x) for x in numbers), f"{p.memory.total / 2**20:,.0f} MiB", f"{seconds:,.0f} s")
    console.print(parameters)
    console.print(costs)
    for name, p in plans.items():
        if p.arm.match_note:
            console.print(f"{name}: {p.arm.match_note}", highlight=False, soft_wrap=True)
    console.print(CONVENTIONS, highlight=False)
    console.print(
        f"time: about {total / 60:,.1f} min, from {rate / 1e9:,.0f} GFLOP/s measured on one matmul, of which a "
        f"training step is taken to reach {EFFICIENCY:.0%}; evaluation and compilation not counted",
        highlight=False,
    )


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a 1024-square matmul here and now; the best of five."""
    x = jnp.ones((1024, 1024), dtype)
    multiply = jax.jit(lambda a: a @ a)
    jax.block_until_ready(multiply(x))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(multiply(x))
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best
