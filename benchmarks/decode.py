"""Does a generator, evaluated once into a table, sample text at a table's speed?

    python -m benchmarks decode

Tokens a second of `generate`, the materialized Leviathan model against the table model of the same body (V = 8,192,
D = 128, 2 layers, a window of 128 tokens), in many short turns.
"""

import dataclasses

import jax
import jax.numpy as jnp

from eqx_slm.infer import generate, materialize
from eqx_slm.model import ModelConfig, build
from eqx_slm.nn import AttentionConfig, LeviathanConfig

from .harness import Row, interleave, parser, show

CONFIG = ModelConfig(vocab_size=8192, d_model=128, depth=2, context=128, mixer=AttentionConfig(n_heads=2))
TOKENS, ROUNDS = 64, 60
SMALL = ModelConfig(vocab_size=512, d_model=32, depth=1, context=16, mixer=AttentionConfig(n_heads=1))


def main() -> None:
    """Prints the ratio."""
    small = parser(__doc__).parse_args().small
    config, tokens, rounds = (SMALL, 8, 3) if small else (CONFIG, TOKENS, ROUNDS)
    generated = dataclasses.replace(config, embedding=LeviathanConfig())
    models = {
        "materialized": materialize(build(generated, key=jax.random.key(0))),
        "table": build(config, key=jax.random.key(0)),
    }
    prompt, key = jnp.arange(8), jax.random.key(1)
    seconds = interleave(
        {
            name: lambda model=model: jax.block_until_ready(
                generate(model, prompt, tokens=tokens, context=config.context, key=key)
            )
            for name, model in models.items()
        },
        rounds=rounds,
        warm=2,
    )
    sides = ", ".join(f"{name} {tokens / value:,.0f} tokens/s" for name, value in seconds.items())
    ratio = seconds["table"] / seconds["materialized"]
    show(Row("decode", ratio, "1.00 +- 0.03", "x tokens/s", sides), small=small)


if __name__ == "__main__":
    main()
