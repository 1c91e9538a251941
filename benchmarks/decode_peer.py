"""How fast is greedy decoding beside transformers' `generate`, with the same weights on the same cores?

    python -m benchmarks decode_peer

A prompt of 16 ids and 112 new ones, one sequence, float32, a cache on both sides; at 128x2 and at 512x8 (V = 8,192).
The model is exported to transformers, and both sides have to give the same ids. Each has a process of its own.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from eqx_slm.infer import generate
from eqx_slm.infer.hugging_face import export_llama
from eqx_slm.model import ModelConfig, build
from eqx_slm.nn import AttentionConfig

from .harness import Row, Worker, cores, interleave, need, parser, serve, show

PROMPT, TOKENS, ROUNDS = 16, 112, 12


def shape(name: str) -> ModelConfig:
    """A config by its name, d_model x depth."""
    d_model, depth = map(int, name.split("x"))
    mixer = AttentionConfig(n_heads=max(1, d_model // 64))
    return ModelConfig(vocab_size=8192, d_model=d_model, depth=depth, context=128, mixer=mixer)


def serve_side(side: str, name: str, tokens: int, folder: str) -> None:
    """One side in this process; every turn decodes once and says the ids."""
    config, prompt = shape(name), np.arange(100, 100 + PROMPT)
    run: Any
    if side == "ours":
        model = build(config, key=jax.random.key(0))
        key = jax.random.key(1)
        run = lambda: generate(model, prompt, tokens=tokens, context=config.context, temperature=0.0, key=key)  # noqa: E731
    else:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(cores())
        peer: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.tensor(prompt)[None]
        how = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        run = lambda: peer.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, PROMPT:]  # noqa: E731
    serve({}, lambda: np.asarray(run()).tolist())


def main() -> None:
    """Prints a ratio a shape; with `--side`, one side, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--side", nargs=3, metavar=("SIDE", "SHAPE", "FOLDER"))
    arguments = options.parse_args()
    need("torch", "transformers")
    small = arguments.small
    tokens, rounds = (8, 2) if small else (TOKENS, ROUNDS)
    if arguments.side:
        side, name, folder = arguments.side
        serve_side(side, name, tokens, folder)
        return
    rows = []
    for name in ("64x1",) if small else ("128x2", "512x8"):
        with tempfile.TemporaryDirectory() as folder:
            place, extra = str(Path(folder) / "peer"), ["--small"] if small else []
            export_llama(place, build(shape(name), key=jax.random.key(0)), shape(name))
            workers = {
                side: Worker("decode_peer", "--side", side, name, place, *extra) for side in ("ours", "transformers")
            }
            said: dict[str, list[int]] = {}

            def turn(side: str, workers: dict[str, Worker] = workers, said: dict[str, list[int]] = said) -> None:
                said[side] = workers[side].turn()

            seconds = interleave({side: lambda side=side: turn(side) for side in workers}, rounds=rounds, warm=2)
            for worker in workers.values():
                worker.close()
        if said["ours"] != said["transformers"]:
            raise SystemExit(f"{name}: the two sides decode other ids, so the models differ")
        sides = ", ".join(f"{side} {tokens / value:,.0f} tokens/s" for side, value in seconds.items())
        ratio = seconds["transformers"] / seconds["ours"]
        rows.append(Row(f"decode-peer-{name}", ratio, ">= 2.0", "x tokens/s", f"{sides}; the same ids"))
    show(*rows, small=small)


if __name__ == "__main__":
    main()
