"""The dry run: what every arm would cost, before anything is trained."""

import math
import os
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from ..model import ModelConfig, build, side_like
from ..train.mesh import Layout, device_bytes
from .blocks import Block, Paragraph
from .noise import outlook
from .report import budgets, parameters, what_differs
from .results import ArmResult, Results
from .sentences import plural, size
from .study import Study, facts_of, settings_of

# Share of the measured matmul rate that a training step of a small model reaches.
EFFICIENCY = 0.35


def plan(study: Study, vocab_size: int, padding: int, share: float | None) -> list[Block]:
    """Every arm's parameters, budgets, match and a rough time, nothing allocated.

    **Arguments:** the sizes and, if known, `distinct_share` of the study's stream.
    """
    batch_size, context = study.stream.batch_size, study.stream.sequence_length
    arms = {
        name: ArmResult(
            name,
            facts_of(study.run, _counted(arm), study.stream, share=share),
            study.rates[0],
            match=study.notes.get(name),
            made_of=arm,
        )
        for name, arm in study.resolve(vocab_size, context, padding)[0].items()
    }
    planned = Results(study.name, arms, settings_of(study, batch_size, context))
    rate, runs, total = matmul_rate(study.run.compute_dtype), len(study.which) * len(study.rates), 0.0
    blocks = [*parameters(planned)[1:2], *budgets(planned)[1:], *what_differs(planned)[1:]]
    for name, arm in arms.items():
        flops = arm.facts.flops_per_token or {}
        a_run = (
            planned.settings["tokens"]
            * (flops.get("total_distinct") or flops.get("total") or math.nan)
            / (rate * EFFICIENCY)
        )
        total += runs * a_run
        blocks.append(Paragraph(f"{name}: {plural(runs, 'run')} of about {duration(a_run)} each"))
        blocks += _on_a_device(study, arm)
    rough = f"from {rate / 1e9:,.0f} GFLOP/s measured on one matmul, of which a step is taken to reach {EFFICIENCY:.0%}"
    expected = outlook(study, vocab_size, context, batch_size, padding)
    return [
        *blocks,
        *expected[1:],
        Paragraph(f"time: about {duration(total)}, {rough}; evaluation and compilation not counted"),
    ]


def _on_a_device(study: Study, arm: ArmResult) -> list[Block]:
    """What one device holds of an arm on the study's mesh, and whether any here can."""
    layout, held = Layout.of(study.run.mesh or "data=1"), {k: v or 0 for k, v in arm.facts.memory_bytes.items()}
    kept = held["parameters"] + held["optimizer"]
    if study.run.mesh and isinstance(arm.made_of, ModelConfig):
        config = arm.made_of
        side = side_like(config)
        shapes = eqx.filter_eval_shape(lambda key: build(config, key=key, **side), jax.random.key(0))
        kept = round(kept * device_bytes(shapes, layout) / (held["parameters"] or 1))
    needs = kept + held["gradients"] + held["activations"] // layout.batch_shards
    there = device_memory()
    said = []
    if study.run.mesh:
        said.append(f"{arm.name}, a device of {layout}: {size(needs)}, {size(kept)} of it parameters and moments")
    if there is not None and needs > there:
        said.append(f"{arm.name} does not fit: about {size(needs)} a device, which has {size(there)} here")
    return [Paragraph(line) for line in said]


def device_memory() -> int | None:
    """Bytes of a device here: an accelerator's own, of a CPU the machine's memory; None where nobody says."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if jax.default_backend() == "cpu" else None
    except (ValueError, OSError):
        return None


def _counted(arm: Any) -> Any:
    """What is counted of an arm: its config, or of a function the model that it makes."""
    return arm if isinstance(arm, ModelConfig) else arm(jax.random.key(0))


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a 1024-square matmul here and now; the best of five."""
    x, multiply, seconds = jnp.ones((1024, 1024), dtype), jax.jit(lambda a: a @ a), []
    for _ in range(6):  # the first compiles
        started = time.perf_counter()
        jax.block_until_ready(multiply(x))
        seconds.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(seconds)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} s"
