"""A synthetic result of a study, shaped like a real one, for the tests of the comparisons and the report."""

import dataclasses
import math
import random

from eqx_slm.account.facts import Facts
from eqx_slm.study.compare import CONTROLS, paired
from eqx_slm.study.results import ArmResult, Results, Row
from eqx_slm.train.loop import Evaluation

TOKENS = (20480, 30720, 43008, 61440, 88064, 126976, 184320, 266240, 382976, 550912, 819200)


def make_run(seed, offset, slope, *, arm="arm", noise=0.004, diverge_at=None):
    """One run: a shared power law, a seed effect that all arms share, `offset + slope * progress` and small noise."""
    own, shared = random.Random(f"{seed} {offset} {slope}"), random.Random(seed)
    evals = []
    for index, tokens in enumerate(TOKENS):
        nll = 3.2 + 4.9 * (tokens / TOKENS[0]) ** -0.45 + shared.gauss(0, 0.03)
        nll += offset + slope * index / (len(TOKENS) - 1) + own.gauss(0, noise)
        gone = diverge_at is not None and index >= diverge_at
        evals.append(Evaluation(tokens // 2048, tokens, math.nan if gone else nll, None if gone else nll / 2.6))
    return Row(
        key=f"{seed:016x}",
        arm=arm,
        seed=seed,
        learning_rate=0.003,
        evals=tuple(evals),
        stream_hash="c0ffee",
        train_seconds=20.0 + seed,
        tokens_per_second=40000.0,
        compile_seconds=2.1,
        sample="def f(x):\n    ```return``` | x\n" if seed == 0 else "",
    )


def make_arm(offset, slope, *, name="arm", seeds=(0, 1, 2), parameters=1_000_000, made_of=None, levels=None, **run):
    """One arm with a run a seed; `made_of` two strings that differ unless it is said."""
    kinds = {"token_embedding": parameters // 4, "head": parameters // 4, "blocks": parameters // 2, "norms": 640}
    flops = {"total": 3.0 * parameters, "embedding": 0.0, "blocks": 2e6, "head": 1e6, "total_distinct": 3e6}
    held = {"parameters": 4 * parameters, "optimizer": 8 * parameters, "activations": 30_000_000, "temporary": None}
    facts = Facts(
        parameters={"total": parameters, **kinds},
        ledger=(("embedding", parameters // 4), ("blocks.0.mixer", parameters // 2), ("head", parameters // 4)),
        embedding_tax=0.5,
        flops_per_token=flops,
        memory_bytes=held,
    )
    runs = tuple(make_run(seed, offset, slope, arm=name, **run) for seed in seeds)
    return ArmResult(name, facts, 0.003, runs, levels=levels or {"arm": name}, made_of=made_of)


def named(arms):
    """Arms that know their names."""
    return {
        name: dataclasses.replace(arm, name=name, runs=tuple(dataclasses.replace(run, arm=name) for run in arm.runs))
        for name, arm in arms.items()
    }


def make_result(arms, *, margin=0.01, against=None, **changes):
    """A whole result around some arms, the first the reference."""
    arms = named(arms)
    reference = next(iter(arms))
    seeds = [run.seed for run in arms[reference].runs]
    controls = [dataclasses.replace(control, margin=margin) for control in CONTROLS]
    stream = {"corpus": "stdlib", "corpus_hash": "ab" * 32, "tokens": {"train": 6_000_000, "valid": 300_000}}
    settings = {"seeds": seeds, "steps": 400, "batch_size": 16, "sequence_length": 128, "tokens": TOKENS[-1]}
    settings |= {"margin": margin, "confidence": 0.95, "pairing": "full", "learning_rates": [0.003], "swept": False}
    results = Results(
        name="quick",
        arms=arms,
        settings=settings,
        stream={**stream, "stream_hash": {str(seed): "c0ffee" * 4 for seed in seeds}},
        machine={"python": "3.11.7", "jax": "0.10.2", "platform": "cpu", "cores": 2},
        comparisons=tuple(paired(against or reference, margin=margin)(arms)),
        controls=tuple(each for control in controls for each in control(arms)),
        config={"steps": 400},
        version="0.1.0",
        created="2026-01-01T00:00:00Z",
        seconds=281.2,
    )
    return dataclasses.replace(results, **changes)


def four_arms():
    """The study that the picture was made for: a reference, two arms that change sides, and a control."""
    return named(
        {
            "dense": make_arm(0.0, 0.0),
            "leviathan": make_arm(0.35, -0.30, parameters=700_000),
            "leviathan-deep": make_arm(0.28, -0.33, parameters=1_019_000),
            "dense-tied-deep": make_arm(0.12, -0.11, parameters=1_004_000),
        }
    )
