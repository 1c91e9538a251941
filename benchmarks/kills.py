"""Does a study that is killed again and again end as if it had not been? The default arms, SIGKILL at random moments.

    python -m benchmarks kills                  # 30 kills over text in memory and text on the fly; then SIGTERM, SIGINT

The quick preset's three arms, 120 steps, one seed, saved after every evaluation or second, in processes that start with
an empty compile cache and share it: a kill falls on imports, compilation, steps, evaluations, writes. A folder is given
again until it is finished, and its rows, models and losses are held against those of a run that nobody disturbed.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .harness import Row, parser, show

SCRIPT = """
import sys
from eqx_slm.commandline import STOPPED
from eqx_slm.study.stopping import Stopping
stopping = Stopping()
with stopping.signals():  # as the command does, before anything that takes long
    import dataclasses
    from eqx_slm.study.presets import QUICK
    from eqx_slm.study.pair import run_pair
    from eqx_slm.train import use_compile_cache
    from eqx_slm.train.resume import Stopped
    data, out = sys.argv[1:]
    use_compile_cache()
    stream = dataclasses.replace(QUICK.stream, data=data, tokenizer="byte", eval_tokens=1024)
    config = dataclasses.replace(QUICK, stream=stream, steps=120, seeds=1, frequency=0, sample_tokens=0)
    try:
        run_pair(config, out=out, checkpoint_seconds=1.0, stop=stopping)
    except (Stopped, KeyboardInterrupt):
        sys.exit(STOPPED)
"""
SAME = ("key", "arm", "seed", "evals", "stream_hash", "sequences", "averaged_nll")  # of a row: all but its seconds


def process(data: str, out: Path, cache: Path) -> subprocess.Popen[bytes]:
    """The study in a process of its own."""
    environment = os.environ | {"EQX_SLM_CACHE": str(cache), "MPLBACKEND": "Agg"}
    words = [sys.executable, "-c", SCRIPT, data, str(out)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def told(out: Path) -> tuple[list[object], dict[str, bytes]]:
    """What a finished folder says: of every row what is no time, and every model."""
    rows = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    models = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("model.safetensors"))}
    return [[row[name] for name in SAME] for row in rows], models


def disturbed(data: str, out: Path, cache: Path, number: int, most: float, chance: random.Random, limit: int) -> int:
    """Runs the study, killed at random moments at most `limit` times, until it is finished; how often it was."""
    kills = 0
    while True:
        running = process(data, out, cache)
        if kills < limit:
            time.sleep(chance.uniform(0.3, most))
            running.send_signal(number)
        said = running.communicate()[1].decode()
        if running.returncode == 0:
            return kills
        expected = -9 if number == signal.SIGKILL else 75
        if running.returncode != expected or "Traceback" in said:
            raise SystemExit(f"exit code {running.returncode} after {number!r}: {said[-2000:]}")
        kills += 1


def main() -> None:
    """Prints a row for each signal and each way to the data."""
    small = parser(__doc__).parse_args().small
    with tempfile.TemporaryDirectory() as folder:
        here, chance = Path(folder), random.Random(0)
        text = here / "text.txt"
        words = "the cat sat on a mat while nine dogs ran past it".split()
        lines = (" ".join(chance.choices(words, k=12)) + f" {i}." for i in range(12_000))
        text.write_text("\n\n".join(lines))
        counts = {signal.SIGKILL: 15, signal.SIGTERM: 5, signal.SIGINT: 5}
        for source in (str(text), f"stream:{text}"):
            name = "on the fly" if source.startswith("stream:") else "in memory"
            straight, cache = here / f"straight-{name}", here / f"cache-{name}"
            began = time.perf_counter()
            if process(source, straight, cache).wait():
                raise SystemExit("the run that nobody disturbed did not end well")
            whole = time.perf_counter() - began
            for number, wanted in counts.items():
                wanted = 1 if small else wanted
                done = equal = folders = 0
                while done < wanted:
                    folders += 1
                    out, cold = (here / f"{what}-{name}-{number.name}-{folders}" for what in ("run", "cold"))
                    kills = disturbed(source, out, cold, number, whole, chance, wanted - done)
                    done += kills
                    equal += kills if told(out) == told(straight) else 0
                sides = f"{done} at random moments, {folders} folders, {whole:.0f} s undisturbed"
                row = Row(
                    f"kills-{number.name.lower()}-{name.replace(' ', '-')}",
                    equal / done,
                    ">= 1",
                    "ended to the bit",
                    sides,
                )
                show(row, small=small)


if __name__ == "__main__":
    main()
