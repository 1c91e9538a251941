"""What does `import eqx_slm` cost beside `import equinox`? Target: at most 1.2 times.

    python benchmarks/import_time.py

Both are imported in fresh interpreters, alternating; the ratio is of medians.
"""

import platform
import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def seconds(module: str) -> float:
    """Import time of a module in a fresh interpreter."""
    ran = subprocess.run([sys.executable, "-c", CODE.format(module)], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def main() -> None:
    """Prints both medians and their ratio."""
    times: dict[str, list[float]] = {"equinox": [], "eqx_slm": []}
    for name in times:
        seconds(name)  # fills the caches of compiled Python
    for _ in range(15):
        for name, found in times.items():
            found.append(seconds(name))
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"python {platform.python_version()}, {platform.machine()}")
    print(", ".join(f"import {name} {median:.3f} s" for name, median in medians.items()))
    print(f"ratio {medians['eqx_slm'] / medians['equinox']:.3f} (target <= 1.2)")


if __name__ == "__main__":
    main()
