"""What do eqx_slm's modules cost beside `import equinox`?

    python -m benchmarks import_time

`import eqx_slm` alone loads nothing, so a module and `build` are asked for, in fresh interpreters, alternating; the
ratio is of medians.
"""

import statistics
import subprocess
import sys

from .harness import Row, parser, show

ROUNDS = 15
CODE = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
OURS, THEIRS = "from eqx_slm import LeviathanEmbedding, build", "import equinox"


def seconds(statement: str) -> float:
    """Of an import in a fresh interpreter."""
    ran = subprocess.run([sys.executable, "-c", CODE.format(statement)], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def main() -> None:
    """Prints the ratio."""
    small = parser(__doc__).parse_args().small
    times: dict[str, list[float]] = {THEIRS: [], OURS: []}
    for name in times:
        seconds(name)  # fills the caches of compiled Python
    for _ in range(1 if small else ROUNDS):
        for name, found in times.items():
            found.append(seconds(name))
    medians = {name: statistics.median(found) for name, found in times.items()}
    sides = ", ".join(f"{name} {median:.3f} s" for name, median in medians.items())
    show(Row("import-time", medians[OURS] / medians[THEIRS], "<= 1.2", "x the time", sides), small=small)


if __name__ == "__main__":
    main()
