"""A synthetic result of a study, shaped like a real one, for the tests of the comparisons and the report."""

import random
from typing import Any

from eqx_slm.study.compare import compare, control_comparisons

TOKENS = (20480, 30720, 43008, 61440, 88064, 126976, 184320, 266240, 382976, 550912, 819200)


def make_run(
    seed: int, offset: float, slope: float, *, noise: float = 0.004, diverge_at: int | None = None
) -> dict[str, Any]:
    """One run: a shared power law, a seed effect that all arms share, `offset + slope * progress` and small noise."""
    own = random.Random(f"{seed} {offset} {slope}")
    shared = random.Random(seed)
    evals: list[dict[str, Any]] = []
    for index, tokens in enumerate(TOKENS):
        progress = index / (len(TOKENS) - 1)
        nll = 3.2 + 4.9 * (tokens / TOKENS[0]) ** -0.45 + shared.gauss(0, 0.03)
        nll += offset + slope * progress + own.gauss(0, noise)
        gone = diverge_at is not None and index >= diverge_at
        evals.append(
            {
                "step": tokens // 2048,
                "tokens": tokens,
                "nll": None if gone else nll,
                "bits_per_byte": None if gone else nll / 2.6,
            }
        )
    return {
        "seed": seed,
        "learning_rate": 0.003,
        "evals": evals,
        "final_nll": evals[-1]["nll"],
        "final_bits_per_byte": evals[-1]["bits_per_byte"],
        "train_seconds": 20.0 + seed,
        "tokens_per_second": 40000.0,
        "sample": "def f(x):\n    ```return``` | x\n",
        "diverged": diverge_at is not None,
    }


def make_arm(offset: float, slope: float, *, seeds=(0, 1, 2), parameters: int = 1_000_000, **run) -> dict[str, Any]:
    """One arm with a run a seed."""
    runs = [make_run(seed, offset, slope, **run) for seed in seeds]
    return {
        "parameters": {
            "total": parameters,
            "token_embedding": parameters // 4,
            "head": parameters // 4,
            "blocks": parameters // 2,
            "norms": 640,
            "other": 0,
        },
        "ledger": [["embedding", parameters // 4], ["blocks.0.mixer", parameters // 2], ["head", parameters // 4]],
        "embedding_tax": 0.5,
        "buffers_bytes": 0,
        "flops_per_token": {
            "total": 3.0 * parameters,
            "embedding": 0.0,
            "blocks": 2e6,
            "head": 1e6,
            "total_distinct": 3e6,
        },
        "memory_bytes": {
            "parameters": 4 * parameters,
            "optimizer": 8 * parameters,
            "gradients": 4 * parameters,
            "activations": 30_000_000,
            "temporary": None,
        },
        "learning_rate": 0.003,
        "compile_seconds": 2.1,
        "match": None,
        "note": "",
        "runs": runs,
        "all_runs": runs,
    }


def make_result(
    arms: dict[str, Any], *, reference: str = "dense", margin: float = 0.01, differences=None
) -> dict[str, Any]:
    """A whole result around some arms."""
    differences = differences or {name: [["depth", "2", "5"]] for name in arms if name != reference}
    seeds = [run["seed"] for run in arms[reference]["runs"]]
    return {
        "format": 1,
        "name": "quick",
        "version": "0.1.0",
        "created": "2026-01-01T00:00:00Z",
        "seconds": 281.2,
        "config": {"steps": 400},
        "stream": {
            "corpus": "stdlib",
            "corpus_hash": "ab" * 32,
            "tokenizer": "bpe:8192",
            "tokens": {"train": 6_000_000, "valid": 300_000},
            "stream_hash": {str(seed): "c0ffee" * 4 for seed in seeds},
        },
        "machine": {
            "python": "3.11.7",
            "jax": "0.10.2",
            "equinox": "0.13",
            "platform": "cpu",
            "device": "cpu",
            "cores": 2,
        },
        "settings": {
            "seeds": seeds,
            "steps": 400,
            "batch_size": 16,
            "sequence_length": 128,
            "tokens": TOKENS[-1],
            "margin": margin,
            "confidence": 0.95,
            "pairing": "full",
            "learning_rates": [0.003],
            "swept": False,
        },
        "arms": arms,
        "comparisons": compare(arms, reference, margin=margin, config_differences=differences),
        "controls": control_comparisons(arms, reference, margin=margin),
        "reference": reference,
    }


def four_arms() -> dict[str, Any]:
    """The study that the picture was made for: a reference, two arms that change sides, and a control."""
    return {
        "dense": make_arm(0.0, 0.0),
        "leviathan": make_arm(0.35, -0.30, parameters=700_000),
        "leviathan-deep": make_arm(0.28, -0.33, parameters=1_019_000),
        "dense-tied-deep": make_arm(0.12, -0.11, parameters=1_004_000),
    }
