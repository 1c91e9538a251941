"""What does Leviathan's generator cost a training step? Same body, against the dense untied table.

    python -m benchmarks overhead

(a) D = 256, 6 layers, V = 200,019, 8 x 512 tokens; (b) the shape of `experiments/pair.py`'s quick preset, where no
large head hides the generator. The paper reports 0.49 to 0.77 of the dense model's throughput. Tokens of (a) are drawn
with Zipf frequencies; those of (b) are the preset's own text.
"""

import dataclasses

from eqx_slm.model import ModelConfig
from eqx_slm.nn import AttentionConfig, LeviathanConfig
from eqx_slm.study.arms import make_arm
from eqx_slm.study.presets import QUICK

from .harness import Row, interleave, show
from .training import stepper, zipf_batches


def main() -> None:
    """Prints both ratios of tokens a second."""
    stream = QUICK.stream.open()
    batches = [stream.batch(0, index) for index in range(32)]
    quick = {
        name: stepper(make_arm(name, QUICK.model, QUICK.tuned).config, batches, optimizer=QUICK.optimizer)[0]
        for name in ("dense", "leviathan", "leviathan-deep", "dense-tied-deep")
    }
    seconds = interleave(quick, rounds=200, warm=10)
    milliseconds = ", ".join(f"{name} {1e3 * value:.2f} ms a step" for name, value in seconds.items())
    rows = [
        Row("leviathan-overhead-quick", seconds["dense"] / seconds["leviathan"], ">= 0.80", "x tokens/s", milliseconds)
    ]
    dense = ModelConfig(vocab_size=200_019, d_model=256, depth=6, context=512, mixer=AttentionConfig(n_heads=4))
    generated = dataclasses.replace(dense, embedding=LeviathanConfig())
    batches = zipf_batches(dense.vocab_size, 8, 512, 4)
    large = {"dense": stepper(dense, batches)[0], "leviathan": stepper(generated, batches)[0]}
    seconds = interleave(large, rounds=3)
    sides = ", ".join(f"{name} {value:.2f} s a step" for name, value in seconds.items())
    rows.append(Row("leviathan-overhead", seconds["dense"] / seconds["leviathan"], ">= 0.95", "x tokens/s", sides))
    show(*rows)


if __name__ == "__main__":
    main()
