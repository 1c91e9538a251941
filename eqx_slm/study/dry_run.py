"""The dry run: what every arm would cost, before anything is trained."""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..account import CONVENTIONS, Flops, Ledger, Memory, flops, memory, parameter_ledger
from .arms import Arm
from .config import PairConfig
from .sentences import human

# Share of the measured matmul rate that a training step of a small model reaches.
EFFICIENCY = 0.35


@dataclass(frozen=True)
class Plan:
    """What an arm would cost; `training_flops` is one run's."""

    arm: Arm
    ledger: Ledger
    flops: Flops
    memory: Memory
    training_flops: float


def plan(config: PairConfig, vocab_size: int, *, share: float | None = None, padding: int = 0) -> dict[str, Plan]:
    """Ledger, FLOPs and memory of every arm, nothing allocated; `share` is the stream's `distinct_share`, if known."""
    plans = {}
    for name, arm in config.resolve(vocab_size, padding).items():
        counted = flops(arm.config, distinct_share=share)
        total = counted.total if counted.total_distinct is None else counted.total_distinct
        width = 2 if config.compute_dtype == "bfloat16" else 4
        needs = memory(arm.config, batch_size=config.stream.batch_size, activation_bytes=width)
        plans[name] = Plan(arm, parameter_ledger(arm.config), counted, needs, total * config.tokens)
    return plans


def print_plan(config: PairConfig, plans: dict[str, Plan], console: Any) -> None:
    """Prints ledger, FLOPs, memory and a rough time per arm."""
    from rich.table import Table

    rate = matmul_rate(config.compute_dtype)
    runs = config.seeds * len(config.learning_rates)
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
        numbers = [human(x) for x in (f.total, f.embedding, sum(f.blocks), f.head)]
        distinct = "?" if f.total_distinct is None else human(f.total_distinct)
        costs.add_row(name, *numbers, distinct, f"{p.memory.total / 2**20:,.0f} MiB", _duration(seconds))
    console.print(parameters)
    console.print(costs)
    for name, p in plans.items():
        if p.ledger.padding:
            ids = p.arm.config.padding_ids
            text = f"{name}: {p.ledger.padding:,} of the parameters are for {ids:,} padding ids"
            console.print(text, highlight=False)
    for name, p in plans.items():
        if p.arm.match_note:
            console.print(f"{name}: {p.arm.match_note}", highlight=False, soft_wrap=True)
    console.print(CONVENTIONS, highlight=False)
    console.print(
        f"time: about {_duration(total)}, from {rate / 1e9:,.0f} GFLOP/s measured on one matmul, of which a "
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


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} s"
