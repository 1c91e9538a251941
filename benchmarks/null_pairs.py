"""How often is a difference called where there is none? Pairs of equal arms that share only their data.

    python -m benchmarks null_pairs

60 pairs of five seeds, tiny models really trained: both arms have one config, each its own initial values
(`--pairing data-only`). A pair is called falsely where its verdict is "better" or "worse"; beside it the share of
intervals that do not hold zero, which is what a margin of nothing would call.
"""

import dataclasses
from typing import Any

import numpy as np

from eqx_slm import AttentionConfig, MLPConfig, ModelConfig
from eqx_slm.data import TokenStream
from eqx_slm.study import Study, paired, run_study
from eqx_slm.train import RunConfig

from .harness import Row, parser, show

SEEDS, MARGIN = 5, 0.01


def stream() -> TokenStream:
    """Text of a second-order Markov chain over 64 tokens: something to learn, at once."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 64, (64, 64, 4))
    tokens = [0, 1]
    for choice in rng.integers(0, 4, 60_000):
        tokens.append(int(table[tokens[-2], tokens[-1], choice]))
    ids = np.asarray(tokens, np.int32)
    sizes: dict[str, Any] = {"sequence_length": 16, "batch_size": 8, "eval_tokens": 4096}
    return TokenStream.from_tokens(ids[:50_000], ids[50_000:], vocab_size=64, **sizes)


def main() -> None:
    """Prints a line, and the rows."""
    from scipy.stats import binomtest

    small = parser(__doc__).parse_args().small
    pairs, steps = (3, 20) if small else (60, 200)
    mixer, channel = AttentionConfig(n_heads=2), MLPConfig(d_ff=48)
    config = ModelConfig(vocab_size=64, context=16, d_model=24, depth=1, mixer=mixer, channel=channel)
    run = RunConfig(steps=steps, evaluations=1, pairing="data-only")
    study = Study("null-pairs", {"one": config, "other": config}, pairs * SEEDS, (1e-2,), run=run, report=())
    arms = run_study(study, stream(), runs=None)[1].arms
    called, beyond, spreads = 0, 0, []
    for first in range(0, pairs * SEEDS, SEEDS):
        some = {name: dataclasses.replace(a, runs=a.runs[first : first + SEEDS]) for name, a in arms.items()}
        (found,) = paired("one", margin=MARGIN)(some)
        called += found.verdict in ("better", "worse")
        assert found.low is not None and found.high is not None
        beyond += not found.low <= 0 <= found.high
        spreads.append(found.sd or 0.0)
    told = f"{pairs} pairs, {SEEDS} seeds, {steps} steps, paired SD {np.median(spreads):.4f} nat in the median"
    rows = []
    for name, count, goal in (("null-called", called, "<= 0.08"), ("null-without-zero", beyond, "")):
        ends = binomtest(count, pairs).proportion_ci(0.95)
        said = f"{count} of {pairs}, 95% interval {ends.low:.3f} to {ends.high:.3f}; {told}"
        print(f"{name}: {said}", flush=True)
        rows.append(Row(name, count / pairs, goal, "of null pairs", said))
    show(*rows, small=small)


if __name__ == "__main__":
    main()
