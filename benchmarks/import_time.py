"""What does `import eqx_slm` cost beside `import equinox`?

    python -m benchmarks import_time

Both are imported in fresh interpreters, alternating; the ratio is of medians.
"""

import statistics
import subprocess
import sys

from .harness import Row, parser, show

ROUNDS = 15
CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """Import time of a module in a fresh interpreter."""
    ran = subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def main() -> None:
    """Prints the ratio."""
    small = parser(__doc__).parse_args().small
    times: dict[str, list[float]] = {"equinox": [], "eqx_slm": []}
    for name in times:
        seconds(name)  # fills the caches of compiled Python
    for _ in range(1 if small else ROUNDS):
        for name, found in times.items():
            found.append(seconds(name))
    medians = {name: statistics.median(found) for name, found in times.items()}
    sides = ", ".join(f"import {name} {median:.3f} s" for name, median in medians.items())
    show(Row("import-time", medians["eqx_slm"] / medians["equinox"], "<= 1.2", "x the time", sides), small=small)


if __name__ == "__main__":
    main()
