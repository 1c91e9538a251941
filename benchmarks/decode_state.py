"""What does decoding from a mixer's state save, against running the window again for every token?

    python -m benchmarks decode_state

The shape of `mixers` (context 512, d = 256, 2 layers), 448 tokens after a prompt of 64, one sequence.
"""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp

from eqx_slm import build
from eqx_slm.infer import generate
from eqx_slm.nn.lm import LanguageModel

from .harness import Row, parser, show
from .mixers import BASE, MIXERS


class WithoutState(LanguageModel):
    """The same model, which `generate` runs over its window for every token."""

    @property
    def decodes(self) -> bool:
        """Not."""
        return False


def generation(name: str, tokens: int) -> Row:
    """Tokens a second from the decode state and over the window, and their ratio."""
    config = dataclasses.replace(BASE, **MIXERS[name])
    model = build(config, key=jax.random.key(0))
    window = WithoutState(model.embedding, model.positions, model.blocks, model.norm, model.head)

    def seconds(model: LanguageModel, times: int) -> float:
        spent = []
        for turn in range(times + 1):
            started = time.perf_counter()
            prompt = jnp.arange(64, dtype=jnp.int32)
            jax.block_until_ready(generate(model, prompt, tokens=tokens, context=config.context, key=jax.random.key(1)))
            if turn:  # the first compiles
                spent.append(time.perf_counter() - started)
        return statistics.median(spent)

    fast, slow = seconds(model, 7), seconds(window, 3)
    sides = f"from the state {tokens / fast:,.0f} tokens/s, over the window {tokens / slow:,.0f} tokens/s"
    return Row(f"decode-state-{name}", slow / fast, "", "x tokens/s", sides)


def main() -> None:
    """Prints a row for the Transformer, gated attention and a window."""
    small = parser(__doc__).parse_args().small
    show(*(generation(name, 16 if small else 448) for name in ("transformer", "gated", "window-64")), small=small)


if __name__ == "__main__":
    main()
