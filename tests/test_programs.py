"""Compiled programs on disk: a damaged one is compiled again, in silence and with the same numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqx_slm.train.programs import read_verified, write_verified

PROGRAM = """
import jax, jax.numpy as jnp
from eqx_slm.train import use_compile_cache
print(use_compile_cache())
compiled = []
jax.monitoring.register_event_listener(lambda event, **_: compiled.extend([event] * event.endswith("/cache_misses")))
f = jax.jit(lambda x: jax.nn.softmax(x @ x.T, axis=-1).sum(axis=0))
print(jax.random.key_data(jax.random.key(3)).tolist(), f(jnp.arange(12.0).reshape(4, 3)).tolist())
print(len(compiled))
"""


def ran(cache):
    """(folder of the programs, what the program printed, how many programs it compiled)."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"EQX_SLM_CACHE": str(cache)}
    words = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    folder, numbers, count = done.stdout.splitlines()
    return Path(folder), numbers, int(count)


def files(folder):
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_damaged_programs_are_compiled_again(tmp_path):
    folder, numbers, first = ran(tmp_path)
    assert first == len(files(folder)) > 3
    assert ran(tmp_path) == (folder, numbers, 0)  # all are found again
    kept = {path: path.read_bytes() for path in files(folder)}
    for i, (path, data) in enumerate(kept.items()):
        place = (i * 7919) % len(data)
        flipped = data[:place] + bytes([data[place] ^ 1 << i % 8]) + data[place + 1 :]
        path.write_bytes((flipped, data[: len(data) // 2], b"", data + b"x")[i % 4])
    assert ran(tmp_path) == (folder, numbers, first)
    assert {path: len(path.read_bytes()) for path in files(folder)}.keys() == kept.keys()
    assert ran(tmp_path) == (folder, numbers, 0)


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "programs").write_text("a file where the folder should be")
    assert ran(tmp_path)[2] > 3


@given(data=st.binary(max_size=200), change=st.data())
def test_no_change_is_silent(tmp_path_factory, data, change):
    path = tmp_path_factory.mktemp("programs") / "key"
    write_verified(path, data)
    assert read_verified(path) == data and len(list(path.parent.iterdir())) == 1
    whole = path.read_bytes()
    kind = change.draw(st.sampled_from(["flip", "cut", "longer"]))
    place = change.draw(st.integers(0, len(whole) - 1))
    flipped = whole[:place] + bytes([whole[place] ^ change.draw(st.integers(1, 255))]) + whole[place + 1 :]
    path.write_bytes({"flip": flipped, "cut": whole[:place], "longer": whole + b"\0"}[kind])
    assert read_verified(path) is None and not path.exists()
    write_verified(path, data)
    assert read_verified(path) == data


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, as Linux has it")
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    written = Path.write_bytes

    def full(path, data):
        written(path, data[:10])
        return Path("/dev/full").write_bytes(data)  # raises ENOSPC

    monkeypatch.setattr(Path, "write_bytes", full)
    write_verified(tmp_path / "key", b"program" * 1000)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [] and read_verified(tmp_path / "key") is None
