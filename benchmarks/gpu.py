"""The table for one accelerator: tokens a second, MFU, Leviathan over dense, and peak memory of published shapes.

    python -m benchmarks.gpu                          # 256x6, 256x52 and 768x12, bfloat16, o200k_base's vocabulary
    python -m benchmarks.gpu --shapes 768x12 --rows 32
    python -m benchmarks.gpu --small                  # a trial on any machine

Every figure comes from a process of its own (peak memory never falls within one): 20 steps dispatched without waiting,
after 3 that are not counted, the median of 3 such stretches. MFU is 3 x the forward matmul FLOPs of
`eqx_slm.flops` (the generator charged to each distinct token of a batch) over the device's peak in bfloat16 without
sparsity; a device that is not in the list has none. Tokens are drawn with Zipf frequencies. Where PyTorch is installed,
the dense arm is put beside transformers' Llama of the same shapes with `torch.compile`, SDPA and autocast to bfloat16.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np

from eqx_slm.account import flops
from eqx_slm.model import ModelConfig, build
from eqx_slm.nn import AttentionConfig, LeviathanConfig
from eqx_slm.study.presets import preset
from eqx_slm.train import make_program

from .harness import Row, fresh, parser, show
from .llama import llama_stepper
from .training import zipf_batches

SHAPES = ("256x6", "256x52", "768x12")
ROWS, STEPS, WARM, STRETCHES = 64, 20, 3, 3
ARMS = ("dense", "leviathan")
# Dense bfloat16 FLOPs a second from the makers' data sheets, by the start of jax's `device_kind`; the longest fits.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(kind: str) -> float | None:
    """The peak of a device, None where it is not known. "NVIDIA L40" is not an "NVIDIA L4": whole words only."""
    fits = [name for name in PEAKS if kind == name or kind.startswith((f"{name} ", f"{name}-"))]
    return PEAKS[max(fits, key=len)] if fits else None


def config_of(shape: str, arm: str, *, small: bool) -> ModelConfig:
    """The model of a shape such as "256x6" and an arm."""
    config = dataclasses.replace(preset(shape).model, vocab_size=200_019)
    if small:
        config = dataclasses.replace(config, vocab_size=512, context=32, mixer=AttentionConfig(n_heads=1))
    return config if arm == "dense" else dataclasses.replace(config, embedding=LeviathanConfig())


def measure(config: ModelConfig, rows: int, steps: int) -> dict[str, Any]:
    """Speed, MFU and peak memory of training in this process."""
    device = jax.devices()[0]
    model = build(config, key=jax.random.key(0))
    batches = [jax.device_put(batch) for batch in zipf_batches(config.vocab_size, rows, config.context, 4)]
    options: dict[str, Any] = {"compute_dtype": "bfloat16", "loop": "runs"}
    program = make_program(model, preset("256x6").optimizer, **options)
    started = time.perf_counter()
    state = program.start(model)
    del model
    state, metrics = program.step(state, batches[0], np.float32(1e-3))
    jax.block_until_ready(metrics)
    compiled = time.perf_counter() - started

    def run(count: int) -> None:
        nonlocal state, metrics
        for index in range(count):
            state, metrics = program.step(state, batches[index % len(batches)], np.float32(1e-3))
        jax.block_until_ready((state, metrics))

    speed = rows * config.context / seconds_a_step(run, steps)
    share = statistics.mean(np.unique(batch[:, :-1]).size / batch[:, :-1].size for batch in batches)
    count = flops(config, distinct_share=share).total_distinct
    peak = peak_flops(device.device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "device": device.device_kind,
        "speed": speed,
        "mfu": None if peak is None or count is None else speed * count / peak,
        "memory": memory,
        "compiled": compiled,
    }


def seconds_a_step(run: Callable[[int], None], steps: int) -> float:
    """The median of stretches of `steps` steps, after a few that are not counted."""
    run(WARM)
    seconds = []
    for _ in range(STRETCHES):
        begun = time.perf_counter()
        run(steps)
        seconds.append((time.perf_counter() - begun) / steps)
    return statistics.median(seconds)


def measure_llama(config: ModelConfig, rows: int, steps: int) -> dict[str, Any]:
    """The same of transformers' Llama in PyTorch, by our count of FLOPs."""
    import torch

    on_gpu = torch.cuda.is_available()
    batches = [np.asarray(batch) for batch in zipf_batches(config.vocab_size, rows, config.context, 4)]
    optimizer = preset("256x6").optimizer
    step, _ = llama_stepper(config, batches, optimizer=optimizer, device="cuda" if on_gpu else "cpu", compiled=True)

    def run(count: int) -> None:
        for _ in range(count):
            step()
        if on_gpu:
            torch.cuda.synchronize()

    started = time.perf_counter()
    run(1)
    compiled = time.perf_counter() - started
    speed = rows * config.context / seconds_a_step(run, steps)
    kind = torch.cuda.get_device_name() if on_gpu else "cpu"
    peak = peak_flops(kind)
    return {
        "device": kind,
        "speed": speed,
        "mfu": None if peak is None else speed * flops(config).total / peak,
        "memory": torch.cuda.max_memory_allocated() if on_gpu else None,
        "compiled": compiled,
    }


def main() -> None:
    """Prints a row a shape and question; with `--one`, one measurement as JSON, for the process that asked."""
    options = parser(__doc__)
    options.add_argument("--shapes", nargs="+", default=None, help="d_model x depth, such as 256x6")
    options.add_argument("--rows", type=int, default=None, help=f"sequences of 512 tokens a batch (default {ROWS})")
    options.add_argument("--one", nargs=2, metavar=("SHAPE", "ARM"))
    arguments = options.parse_args()
    small = arguments.small
    rows = arguments.rows or (2 if small else ROWS)
    if arguments.one:
        shape, arm = arguments.one
        config = config_of(shape, "dense" if arm == "llama" else arm, small=small)
        print(json.dumps((measure_llama if arm == "llama" else measure)(config, rows, 2 if small else STEPS)))
        return
    found = []
    for shape in arguments.shapes or (("64x2",) if small else SHAPES):
        sides = {}
        peers = ("llama",) if find_spec("torch") and find_spec("transformers") else ()
        for arm in ARMS + peers:
            flags = ["--small"] if small else []
            sides[arm] = json.loads(fresh("gpu", "--one", shape, arm, "--rows", str(rows), *flags).splitlines()[-1])
            print(f"{shape} {arm}: {words(sides[arm])}", flush=True)
        text = f"{sides['dense']['device']}, {rows} rows; " + "; ".join(f"{arm} {words(sides[arm])}" for arm in ARMS)
        ratio = sides["leviathan"]["speed"] / sides["dense"]["speed"]
        found.append(Row(f"gpu-{shape}-leviathan", ratio, ">= 0.97", "x tokens/s", text))
        for peer in peers:
            ratio = sides["dense"]["speed"] / sides[peer]["speed"]
            text = f"dense {words(sides['dense'])}; {peer} {words(sides[peer])}"
            found.append(Row(f"gpu-{shape}-torch", ratio, "", "x tokens/s of torch.compile", text))
        for arm in ARMS:
            if sides[arm]["mfu"] is not None:
                found.append(Row(f"gpu-{shape}-{arm}-mfu", sides[arm]["mfu"], ">= 0.40", "MFU", words(sides[arm])))
    show(*found, small=small)


def words(side: dict[str, Any]) -> str:
    """One measurement in words."""
    mfu = "MFU unknown for this device" if side["mfu"] is None else f"MFU {100 * side['mfu']:.1f}%"
    memory = "" if side["memory"] is None else f", peak {side['memory'] / 2**30:.1f} GiB"
    return f"{side['speed']:,.0f} tokens/s, {mfu}{memory}, start and first step {side['compiled']:.1f} s"


if __name__ == "__main__":
    main()
