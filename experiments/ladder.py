"""Linear, MLP, attention, transformer: what does each rung buy, by the author's protocol and on every position?

    python experiments/ladder.py flat --data-root DATA    # linear and MLP, 3 epochs, one target a window
    python experiments/ladder.py blocks ...      # one attention block and the transformer, 4 epochs
    python experiments/ladder.py every ...       # both trained on every position, at fewer FLOPs than one target took
    python experiments/ladder.py positions ...   # learned, rotary, none; norm after and before; every position
    python experiments/ladder.py context | hidden | heads | layers ...    # the author's sweeps
    python experiments/ladder.py ptb | wikitext-2 ...                     # words

arXiv 2512.20877: windows of 128 characters, 50,000 an epoch, Adam at 3e-4; test loss on the first 10,000 windows.
"""

import dataclasses
import sys

from eqx_slm.nn.ladder import LADDER, FlatConfig, StackConfig
from eqx_slm.study import PAIR, Study, WindowConfig, on_the_front, paired, study_main
from eqx_slm.train import OptimizerConfig, RunConfig

ADAM = OptimizerConfig(beta2=0.999, weight_decay=0.0, clip_norm=1e9, schedule="constant", warmup=0.0)
FAST = OptimizerConfig(beta2=0.99, weight_decay=0.0, warmup=0.05, floor=0.05)
EPOCH = -(-50_000 // 64)  # steps of 64 windows
SHAKESPEARE = WindowConfig("tiny_shakespeare")


def study(name, arms, steps, *, stream=SHAKESPEARE, optimizer=ADAM, rate=3e-4, seeds=5):
    """The arms against the first one, trained for so many steps."""
    run = RunConfig(steps=steps, optimizer=optimizer, evaluations=4)
    asked = (paired(next(iter(arms)), margin=0.02),) if len(arms) > 1 else ()
    return Study(name, arms, seeds, (rate,), analyses=asked, report=(*PAIR, on_the_front), stream=stream, run=run)


def words(name, size, epochs):
    """A corpus by words: the first 80,000 are trained on, for the epochs after which the author's validation rises."""
    stream = WindowConfig(
        name, tokenizer="word:eos=none", sequence_length=64, batch_size=32, eval_tokens=19_935, train_tokens=80_000
    )
    return study(name, {"transformer": StackConfig(vocab_size=size, context=64)}, epochs * 2498, stream=stream)


EVERY = {name: dataclasses.replace(LADDER[name], targets="every") for name in ("attention", "transformer")}
POSITIONS = {
    f"{where}-{norm}": dataclasses.replace(EVERY["transformer"], positions=where, norm=norm)
    for norm in ("post", "pre")
    for where in ("learned", "rotary", "none")
}
SMALL = dataclasses.replace(SHAKESPEARE, batch_size=32)
SWEEP = -(-30_000 // 64) * 2
STUDIES = [
    study("flat", {name: LADDER[name] for name in ("linear", "mlp")}, 3 * EPOCH),
    study("blocks", {name: LADDER[name] for name in ("attention", "transformer")}, 4 * EPOCH),
    study("every", EVERY, 4200, stream=SMALL, optimizer=FAST, rate=2e-3),
    study("positions", POSITIONS, 4200, stream=SMALL, optimizer=FAST, rate=2e-3),
    study("context", {f"context-{t}": FlatConfig(context=t) for t in (32, 64, 128)}, SWEEP),
    study("hidden", {f"hidden-{h}": FlatConfig(hidden=(h, h)) for h in (128, 256, 512)}, SWEEP),
    study("heads", {f"heads-{n}": StackConfig(depth=1, d_ff=512, n_heads=n) for n in (1, 2, 4)}, SWEEP),
    study("layers", {f"layers-{depth}": StackConfig(depth=depth) for depth in (2, 3, 4)}, SWEEP),
    words("ptb", 9_999, 2),
    words("wikitext-2", 33_205, 1),
]

if __name__ == "__main__":
    sys.exit(study_main({each.name: each for each in STUDIES}))
