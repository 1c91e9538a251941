"""SIGKILL at random moments of a study: a run whose row is there is never trained again, and the end is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

from eqx_slm.study import load_results, load_run
from eqx_slm.study.folder import read_rows

# A process that forks: its children start with everything imported, and are killed a random moment after they have
# written a random number of rows. It tells what runs.jsonl held after each of them. Equal arms share a program.
SCRIPT = r"""
import json, os, random, signal, sys, time
from pathlib import Path
from tiny import tiny_config, tiny_stream
import eqx_slm.study.plot, eqx_slm.study.report, eqx_slm.study.study
from eqx_slm.study.pair import pair

eqx_slm.study.plot.render = lambda *arguments: {"png": b"", "svg": b""}
out, kills, chance = Path(sys.argv[1]), int(sys.argv[2]), random.Random(3)
rows = out / "study" / "runs.jsonl"

def run(*seeds):
    def note(event):
        if event.kind == "run":
            with open(out / "trained.txt", "a") as file:
                file.write(f"{event.arm} {event.seed}\n")
    arms = {"one": tiny_config(), "two": tiny_config()}
    options = {"steps": 30, "evaluations": 2, "learning_rates": (1e-2,), "sample_tokens": 0, "out": out / "study"}
    for count in seeds:
        pair(arms, tiny_stream(), seeds=count, on_event=note, **options)

def child(*seeds):
    number = os.fork()
    if number:
        return number
    try:
        run(*seeds)
        os._exit(0)
    finally:
        os._exit(1)

def held():
    return rows.read_text() if rows.exists() else ""

told, ends = [], []
for _ in range(kills):
    number, wanted = child(4), held().count("\n") + chance.randint(0, 2)
    done = 0
    while not done and not (held().count("\n") >= wanted and (out / "study" / "metrics.jsonl").exists()):
        time.sleep(0.002)
        done = os.waitpid(number, os.WNOHANG)[0]
    if not done:
        time.sleep(chance.uniform(0, 0.1))
        os.kill(number, signal.SIGKILL)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
    told.append(held())
ends.append(os.waitstatus_to_exitcode(os.waitpid(child(4, 5), 0)[1]))
json.dump({"told": [*told, held()], "ends": ends}, sys.stdout)
"""


def test_killed_at_random_moments_and_then_extended(tmp_path):
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["ends"].count(-9) >= 2 and said["ends"][-1] == 0  # killed on their way, and at last left alone
    for before, after in zip(said["told"], said["told"][1:], strict=False):
        whole = before[: before.rfind("\n") + 1]
        assert after.startswith(whole)  # to the byte, times and all: what is there stays
    runs = [(arm, seed) for seed in range(5) for arm in ("one", "two")]
    rows = read_rows(tmp_path / "study" / "runs.jsonl")
    assert [(row.arm, row.seed) for row in rows] == runs
    assert said["told"][-1].count("\n") == len(runs)
    trained = (tmp_path / "trained.txt").read_text().splitlines()
    assert len(set(trained)) == len(trained) and {f"{arm} 4" for arm in ("one", "two")} <= set(trained)
    # Stitched from what the killed ones left, equal arms differ by exactly nothing, and every model is whole.
    (found,) = load_results(tmp_path / "study").comparisons
    assert found.verdict == "identical arms" and found.differences == (0.0,) * 5
    for arm, seed in runs[::3]:
        assert load_run(tmp_path / "study", arm=arm, seed=seed)
