"""What interrupts `prepare`: crashes at any step, SIGKILL at any moment, a full disk. The bytes are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from text_files import json_line, some_texts, write_texts

from eqx_slm.data import open_source, prepare, split_rule
from eqx_slm.data.tokenizer import ByteTokenizer


def contents(folder):
    """Every file of a prepared folder but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def jsonl(folder, count=60):
    """A folder of JSON lines; returns its source and rule."""
    texts = some_texts(count)
    for i in range(3):
        write_texts(folder / f"{i}.jsonl.zst", texts[i::3])
    source = open_source(str(folder))
    return source, split_rule(source, valid=0.2, test=0.1)


class Crash(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize("call", ["replace", "fsync", "write"])
def test_a_crash_at_any_step_leaves_a_folder_to_go_on_from(tmp_path, monkeypatch, call):
    """Every rename, every fsync and every tenth write fails in turn; the run that follows ends in the same bytes."""
    source, rule = jsonl(tmp_path / "in")
    options = {"rule": rule, "workers": 0, "shard_tokens": 300, "commit_bytes": 500}
    monkeypatch.setattr("eqx_slm.data.tokenizing.CHUNK_BYTES", 64)
    prepare(source, ByteTokenizer(), tmp_path / "whole", **options)
    whole = contents(tmp_path / "whole")
    assert len(whole) > 7
    from eqx_slm.data import shards

    counter = {"left": 0}

    def failing(function):
        def wrapped(*args, **kwargs):
            counter["left"] -= 1
            if counter["left"] == 0:
                raise Crash
            return function(*args, **kwargs)

        return wrapped

    if call == "write":
        monkeypatch.setattr(shards.ShardWriter, "_append", failing(shards.ShardWriter._append))
    else:
        monkeypatch.setattr(os, call, failing(getattr(os, call)))
    crashes = 0
    for step in range(1, 400, 3 if call == "fsync" else 1):
        folder = tmp_path / f"out-{step}"
        counter["left"] = step
        try:
            prepare(source, ByteTokenizer(), folder, **options)
            counter["left"] = -1
            break
        except Crash:
            crashes += 1
        counter["left"] = -1
        if not (folder / "manifest.json").exists():
            final = {path.name for path in folder.glob("*.bin")}
            assert all(whole[name] == (folder / name).read_bytes() for name in final & whole.keys())
        prepare(source, ByteTokenizer(), folder, **options)
        assert contents(folder) == whole
    assert crashes > 8


# A process that forks: its children start in milliseconds, and each is killed at a random moment of its run. It exits
# with code 1 and one line where `prepare` says why it cannot go on.
SCRIPT = """
import os, random, resource, signal, sys, time
from pathlib import Path
from eqx_slm.data import open_source, prepare, split_rule
from eqx_slm.data.tokenizer import ByteTokenizer

folder, kills, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
source = open_source(str(folder / "in"))

def run(out):
    prepare(source, ByteTokenizer(), folder / out, rule=split_rule(source), workers=1, shard_tokens=9_000,
            commit_bytes=6_000)

def killed(out, seconds):
    child = os.fork()
    if not child:
        run(out)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
started = time.perf_counter()
try:
    run("whole")
except ValueError as error:
    sys.exit(str(error))
seconds, chance, out, progress = time.perf_counter() - started, random.Random(4), 0, set()
for number in range(kills):
    killed(f"out-{out}", chance.uniform(0, 0.5) * seconds)
    progress |= {path.read_bytes() for path in (folder / f"out-{out}").glob(".progress.json")}
    out += (folder / f"out-{out}" / "manifest.json").exists()  # this one got to the end: begin another
run(f"out-{out}")
print(out + 1, len(progress))
"""


def script(folder, kills=0, limit=0):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(kills), str(limit)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


def test_killed_at_twenty_random_moments(tmp_path):
    (tmp_path / "in").mkdir()
    text = " ".join(some_texts(600))
    for i in range(3):
        lines = [json_line(f"{j} {text[j * 40 : j * 40 + 900]}") for j in range(i, 270, 3)]
        (tmp_path / "in" / f"{i}.jsonl").write_bytes(b"".join(lines))
    done = script(tmp_path, kills=20)
    assert (done.returncode, done.stderr) == (0, "")
    folders, moments = map(int, done.stdout.split())
    assert moments >= 5  # most were killed on their way
    whole = contents(tmp_path / "whole")
    assert len(whole) > 20
    assert all(contents(tmp_path / f"out-{number}") == whole for number in range(folders))


def test_a_full_disk(tmp_path):
    """Against the real error of the system: no file may grow beyond a limit, which is below a shard's size."""
    (tmp_path / "in").mkdir()
    lines = [json_line(f"{i} " + "word " * 100) for i in range(100)]
    (tmp_path / "in" / "a.jsonl").write_bytes(b"".join(lines))
    full = script(tmp_path, limit=12_000)
    assert (full.returncode, full.stdout, full.stderr.count("\n")) == (1, "", 1)
    assert all(part in full.stderr for part in ("cannot write", "Make room", "File too large"))
    assert not [path for path in (tmp_path / "whole").glob("*.bin") if path.stat().st_size >= 18_000]
    assert not (tmp_path / "whole" / "manifest.json").exists()
    half = contents(tmp_path / "whole")
    assert json.loads(half[".progress.json"])["state"]
    # With room again the same command goes on, to what an undisturbed run gives.
    assert script(tmp_path).returncode == 0
    source = open_source(str(tmp_path / "in"))
    options = {"workers": 0, "shard_tokens": 9_000}
    prepare(source, ByteTokenizer(), tmp_path / "other", rule=split_rule(source), **options)
    assert contents(tmp_path / "whole") == contents(tmp_path / "other")
