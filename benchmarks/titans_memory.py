"""How does the memory of Titans' gradient grow with the context? At four times the tokens against once.

    python -m benchmarks titans_memory

Temporary bytes as XLA plans them, d_model 256, four heads, chunks of 16 and 64, with rematerialised groups of chunks
and (the peer) without. Nothing runs.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from eqx_slm import TitansConfig

from .harness import Row, parser, show
from .titans_chunks import CHUNKS, WIDTH, memory


def temporaries(short: int) -> Row:
    """Temporary bytes of the mixer's gradient, as XLA plans them; nothing runs."""

    def temporary(config: TitansConfig, context: int) -> int:
        shapes = eqx.filter_eval_shape(lambda key: config.build(WIDTH, key=key), jax.random.key(0))
        params, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

        def loss(params: Any, x: Any) -> Any:
            return eqx.combine(params, static)(x).sum()

        x = jax.ShapeDtypeStruct((context, WIDTH), jnp.float32)
        analysis = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]

    sides, worst = [], 0.0
    for chunk in CHUNKS:
        for remat in ("groups", "none"):
            config = dataclasses.replace(memory(chunk), remat=remat)
            few, many = (temporary(config, context) for context in (short, 4 * short))
            worst = max(worst, many / few) if remat == "groups" else worst
            sides.append(
                f"chunk {chunk}, remat {remat}: {few / 2**20:.0f} MiB, {many / 2**20:.0f} MiB, {many / few:.2f} x"
            )
            print(sides[-1], flush=True)
    unit = f"x the temporaries at {4 * short:,} tokens of those at {short:,} (most, in groups)"
    return Row("titans-memory", worst, "<= 3", unit, "; ".join(sides))


def main() -> None:
    """Prints the row."""
    small = parser(__doc__).parse_args().small
    show(temporaries(128 if small else 1024), small=small)


if __name__ == "__main__":
    main()
