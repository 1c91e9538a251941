"""Runs the benchmarks, each in a process of its own, and writes benchmarks/results.json.

    python -m benchmarks                  # all of them, one after another, on an otherwise idle machine
    python -m benchmarks loss decode      # some

`results.json` keeps the rows of benchmarks that were not run this time. Those of the generator and of data read text
from `--data-root` (a folder with `wikitext-2/train.txt`; default: EQX_SLM_DATA) and do without where it has none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from .harness import machine

HERE = Path(__file__).parent
SCRIPTS = (
    "generator",
    "loss",
    "overhead",
    "step_small",
    "compile_depth",
    "warm_start",
    "decode",
    "decode_peer",
    "input_wait",
    "data_prepare",
    "data_streaming",
    "seeds",
    "import_time",
    "titans_chunks",
    "titans_memory",
    "titans_peer",
    "mixers",
    "decode_state",
    "recall",
    "fit_coverage",
    "null_pairs",
    "weak_scaling",
    "soak",
    "kills",
)


def main() -> int:
    """Exit code 1 where a script failed; a target not met is a result, not a failure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *SCRIPTS], help="which (default: all)")
    parser.add_argument("--data-root", help="folder of named corpora")
    arguments = parser.parse_args()
    environment = dict(os.environ)
    if arguments.data_root:
        environment["EQX_SLM_DATA"] = arguments.data_root
    failed = []
    for name in arguments.names or SCRIPTS:
        print(f"== {name}", flush=True)
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as rows:
            environment["EQX_SLM_BENCHMARK_ROWS"] = rows.name
            code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent, env=environment)
            record([json.loads(line) for line in rows])
        if code.returncode:
            failed.append(name)
    table()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def record(rows: list[dict]) -> None:
    """Puts rows into results.json, whole or not at all."""
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for row in rows:
        results[row.pop("name")] = row | {"date": str(date.today()), "machine": machine()}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def table() -> None:
    """Prints what results.json holds, as Markdown."""
    path = HERE / "results.json"
    if path.exists():
        print("\n| question | ratio | target | | both sides |\n|---|---:|---:|---|---|")
        print("\n".join(lines(json.loads(path.read_text()))))


def lines(results: dict[str, dict]) -> list[str]:
    """A line of the table for every row."""
    verdicts = {True: "met", False: "**not met**", None: "reported"}
    return [
        f"| {name} | {row['ratio']:.3f} {row['unit']} | {row['target'] or '-'} | {verdicts[row['ok']]} "
        f"| {row['sides']} |"
        for name, row in results.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
