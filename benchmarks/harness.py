"""What every benchmark shares: interleaved medians, the machine's line, and one row a question."""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One answer: a ratio of medians, its target ("" where it is only reported) and both sides in words."""

    name: str
    ratio: float
    target: str
    unit: str
    sides: str

    @property
    def ok(self) -> bool | None:
        """Whether the ratio meets a target such as ">= 0.95" or "1.00 +- 0.03"; None without a target."""
        if not self.target:
            return None
        if "+-" in self.target:
            middle, width = map(float, self.target.split("+-"))
            return abs(self.ratio - middle) <= width
        sign, number = self.target.split()
        return self.ratio >= float(number) if sign == ">=" else self.ratio <= float(number)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A script's options: `--small`, for a trial of the script at sizes whose figures mean nothing."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--small", action="store_true", help="try the script at small sizes; no target is judged")
    return made


def show(*rows: Row, small: bool = False) -> None:
    """Prints the rows, and leaves them for `python -m benchmarks` where that started the script.

    Rows of a `small` trial are named so, and have no target: they cannot be taken for the real ones.
    """
    print(machine())
    if small:
        rows = tuple(dataclasses.replace(row, name=f"{row.name}-small", target="") for row in rows)
    for row in rows:
        verdict = {True: "met", False: "NOT met", None: "reported"}[row.ok]
        print(f"[{row.name}] {row.ratio:.3f} {row.unit} (target {row.target or 'none'}: {verdict}); {row.sides}")
    path = os.environ.get("EQX_SLM_BENCHMARK_ROWS")
    if path:
        with open(path, "a") as file:
            for row in rows:
                file.write(json.dumps(dataclasses.asdict(row) | {"ok": row.ok}) + "\n")


def machine() -> str:
    """Date, processor, cores and the versions that speed depends on, in one line."""
    packages = ("jax", "jaxlib", "equinox", "optax", "torch", "transformers", "titans-pytorch")
    versions = ", ".join(f"{name} {found}" for name in packages if (found := _version(name)))
    return f"{date.today()}, {_processor()}, {cores()} cores, Python {platform.python_version()}, {versions}"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Its name, and family and model: one name covers generations of very different speed."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                found.setdefault(name.strip(), value.strip())
        return f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    except (OSError, KeyError):
        return found.get("model name", platform.machine())


def interleave(sides: Mapping[str, Callable[[], Any]], *, rounds: int, warm: int = 1) -> dict[str, float]:
    """Median seconds of every side, taken in turns so that a slow moment of the machine falls on all of them."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds + warm):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if index >= warm:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def need(*modules: str) -> None:
    """Stops with one line where a peer to compare with is not installed."""
    missing = [name for name in modules if _version(name) is None]
    if missing:
        print(f"{', '.join(missing)} not installed: pip install -e '.[bench]'", file=sys.stderr)
        raise SystemExit(2)


def fresh(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What `python -m benchmarks.<module> <arguments>` prints, run in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    root, variables = Path(__file__).parents[1], {**os.environ, **(environment or {})}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=root, env=variables)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)} failed with code {ran.returncode}")
    return ran.stdout


class Worker:
    """A process of its own that takes turns: for a peer that must not share this one's allocator or threads.

    It runs `python -m benchmarks.<module> <arguments>`, which calls `serve`.
    """

    def __init__(self, module: str, *arguments: str):
        """Starts it, and waits until it is ready."""
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        root = Path(__file__).parents[1]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, bufsize=1
        )
        self.ready = self._answer()

    def turn(self) -> Any:
        """Lets it run once; returns what it says."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        self.process.communicate()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"a benchmark's process ended with code {self.process.wait()}")


def serve(ready: Any, side: Callable[[], Any]) -> None:
    """Runs `side` once a line of standard input; a `Worker`'s other end."""
    print("answer", json.dumps(ready), flush=True)
    for _ in sys.stdin:
        print("answer", json.dumps(side()), flush=True)


def resident_peak() -> int:
    """The most bytes this process has had in memory so far.

    Linux's own count for this program; `ru_maxrss` would start at what the process that started it held.
    """
    try:
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
