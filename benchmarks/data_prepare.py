"""How fast is text prepared, and how fast is it read again, beside tiktoken's own tokenizing of texts in memory?

    python -m benchmarks data_prepare
    python -m benchmarks.data_prepare --megabytes 256

`python -m eqx_slm.data prepare` (reading, splitting, hashing, writing and the start of Python included) against
tiktoken's `encode_ordinary_batch` on texts that are in memory, on the same cores, in interleaved rounds; the peak
memory of its process; and tokens a second of prepared batches.
"""

import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import tiktoken

from eqx_slm.cores import usable_cores
from eqx_slm.data import open_prepared, open_source
from eqx_slm.data.documents import Document
from eqx_slm.errors import UserError

from .data_set import made_set, options
from .harness import Row, show


def batches_of_texts(folder: Path, size: int = 8 << 20) -> Iterator[list[str]]:
    """The documents again, a few megabytes at a time: as lists of numbers all of them would not fit in memory."""
    texts, held = [], 0
    for item in open_source(str(folder)).items():
        assert isinstance(item, Document)
        texts.append(item.text)
        held += len(item.data)
        if held >= size:
            yield texts
            texts, held = [], 0
    yield texts


def peer_seconds(folder: Path, name: str, threads: int) -> float:
    """Seconds inside `encode_ordinary_batch`; reading is not counted."""
    encoding = tiktoken.get_encoding(name)
    seconds = 0.0
    for texts in batches_of_texts(folder):
        started = time.perf_counter()
        encoding.encode_ordinary_batch(texts, num_threads=threads)
        seconds += time.perf_counter() - started
    return seconds


def prepare_seconds(folder: Path, out: Path, name: str) -> tuple[float, int]:
    """Wall seconds of the command, and the peak of all its processes' resident memory, in bytes."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "eqx_slm.data", "prepare", str(folder), "--tokenizer", name, "--out", str(out)]
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, tree_memory(process.pid))
            time.sleep(0.05)
        if process.returncode:
            raise SystemExit(f"prepare failed with code {process.returncode}")
    return time.perf_counter() - started, peak


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and its children (Linux)."""
    total = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_memory(int(child)) for child in (task / "children").read_text().split())
    return total


def reading_speed(out: Path, sequence_length: int, batch_size: int) -> tuple[float, float]:
    """Tokens a second of prepared batches in shuffled order over an epoch or 3 seconds, and seconds to open."""
    started = time.perf_counter()
    stream = open_prepared(out, sequence_length=sequence_length, batch_size=batch_size)
    opened = time.perf_counter() - started
    iterator = stream.batches(0)
    next(iterator)  # makes the epoch's order
    started, count = time.perf_counter(), 0
    for batch in itertools.islice(iterator, max(2, stream.steps_per_epoch - 1)):
        count += batch[:, 1:].size
        if time.perf_counter() - started > 3:
            break
    return count / (time.perf_counter() - started), opened


def main() -> None:
    """Prints the ratio, the peak, and how fast what was prepared is read."""
    chosen = options(__doc__)
    threads, peers, ours, peaks = usable_cores(), [], [], []
    with made_set(chosen) as folder:
        out = folder.with_name(f"prepared-{chosen.megabytes}")
        for _ in range(chosen.rounds):
            peers.append(peer_seconds(folder, chosen.tokenizer, threads))
            seconds, peak = prepare_seconds(folder, out, chosen.tokenizer)
            ours.append(seconds)
            peaks.append(peak)
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        reading = {}
        for length, batch in ((512, 512), (512, 16), (128, 8)):
            with contextlib.suppress(UserError):  # too little text for such a batch
                speeds = [reading_speed(out, length, batch) for _ in range(chosen.rounds)]
                reading[f"{batch} x {length}"] = [statistics.median(values) for values in zip(*speeds, strict=True)]
    megabytes = sum(counts[split]["bytes"] for split in ("train", "valid", "test")) / 1e6
    peer, our = statistics.median(peers), statistics.median(ours)
    sides = f"prepare {megabytes / our:.1f} MB/s, encode_ordinary_batch {megabytes / peer:.1f} MB/s"
    size = f"{megabytes:.0f} MB of text in {chosen.tokenizer}, {threads} threads"
    told = [f"{shape}: {speed / 1e6:.0f}M, opened in {opened:.2f} s" for shape, (speed, opened) in reading.items()]
    show(
        Row("prepare", peer / our, ">= 0.8", "x MB/s", f"{sides}; {size}"),
        Row("prepare-memory", max(peaks) / 1e9, "<= 1", "GB resident at most, of all its processes", size),
        Row("prepared-reading", max(speed for speed, _ in reading.values()) / 1e6, "", "M tokens/s", "; ".join(told)),
        small=chosen.small,
    )


if __name__ == "__main__":
    main()
