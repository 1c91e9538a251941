"""Is data ever what a run waits for? A made Pile-like set, prepared, streamed and read, beside named peers.

    python benchmarks/data.py --megabytes 1000 --rounds 1
    python benchmarks/data.py --megabytes 64 --rounds 3

The set is made of the text at hand (this Python's sources and installed packages, and with --data-root the prose of
wikitext-2): pieces of log-normal length as JSON lines with `text` and `meta.pile_set_name`, in .jsonl.zst files of
about 64 MB of text. Four questions, each a ratio of medians over interleaved rounds:

1. `python -m eqx_slm.data prepare` (reading, splitting, hashing, writing and the start of Python included) against
   tiktoken's own `encode_ordinary_batch` on texts that are in memory, on the same cores; and the peak memory of all
   its processes together.
2. Streaming against the training speed of the default pair's dense arm.
3. Reading prepared batches, in tokens a second.
4. Seconds until the next batch after a state is restored.
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tiktoken
import zstandard

from eqx_slm.data import StreamState, load_corpus, make_tokenizer, open_data, open_prepared, open_source
from eqx_slm.data.corpora import Corpus
from eqx_slm.data.documents import Document
from eqx_slm.data.workers import cores
from eqx_slm.errors import UserError

SHARD = 64 << 20  # bytes of text a file


def base_texts(data_root: str | None) -> dict[str, str]:
    """The text at hand, by set."""
    texts = {}
    wanted = [("stdlib", None), ("site-packages", None), ("wikitext-2", data_root)]
    for name, root in wanted:
        with contextlib.suppress(UserError):
            texts[name] = "\n".join(load_corpus(name, data_root=root).train)
    return texts


def make_set(folder: Path, megabytes: int, data_root: str | None) -> int:
    """Writes the set; returns its bytes of text."""
    rng = np.random.default_rng(0)
    bases = base_texts(data_root)
    names, total, number = list(bases), 0, 0
    folder.mkdir(parents=True)
    while total < megabytes * 10**6:
        lines, size = [], 0
        while size < min(SHARD, megabytes * 10**6 - total):
            name = names[rng.integers(len(names))]
            length = int(np.clip(rng.lognormal(7.7, 1.3), 100, 400_000))  # mean about 5 kB, as the Pile's 5.9
            start = int(rng.integers(max(1, len(bases[name]) - length)))
            text = bases[name][start : start + length]
            if text.strip():
                lines.append(json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n")
                size += len(text.encode())
        packed = zstandard.ZstdCompressor(level=3).compress("".join(lines).encode())
        (folder / f"{number:05d}.jsonl.zst").write_bytes(packed)
        total, number = total + size, number + 1
    return total


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


def streaming_speed(folder: Path, name: str, seconds: float) -> tuple[float, float, float, int]:
    """Tokens a second once the buffer is full; seconds to the first batch; seconds to restore; bytes of state."""
    stream = open_data(f"stream:{folder}", name, sequence_length=512, batch_size=16)
    started = time.perf_counter()
    iterator = stream.batches(0)
    next(iterator)
    first = time.perf_counter() - started
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += next(iterator)[:, 1:].size
    speed = count / (time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as place:
        iterator.state().save(place)
        expected = next(iterator)
        del iterator  # ends its processes
        size = sum(path.stat().st_size for path in Path(place).iterdir())
        started = time.perf_counter()
        resumed = stream.resume(StreamState.load(place))
        batch = next(resumed)
        restored = time.perf_counter() - started
    assert np.array_equal(batch, expected)
    return speed, first, restored, size


def training_speed(steps: int = 60) -> float:
    """Tokens a second of the default pair's dense arm."""
    from eqx_slm.build import build
    from eqx_slm.study.arms import make_arm
    from eqx_slm.study.config import QUICK
    from eqx_slm.train.step import compile_step, make_program

    stream = QUICK.stream.open()
    model = build(make_arm("dense", QUICK.model, QUICK.tuned).config, key=jax.random.key(0))
    program = make_program(model, QUICK.optimizer)
    program = compile_step(program, model, stream.batch(0, 0)).program
    state, times = program.start(model), []
    for batch in itertools.islice(stream.batches(0), steps + 3):
        started = time.perf_counter()
        state, metrics = program.step(state, batch, np.float32(1e-3))
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - started)
    return stream.batch_size * stream.sequence_length / statistics.median(times[3:])


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
    """Prints every figure and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="of text in the made set")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds; ratios are of medians")
    parser.add_argument("--tokenizer", default="o200k_base", help="a tiktoken name")
    parser.add_argument("--data-root", default=None, help="holds wikitext-2, for prose beside the code")
    parser.add_argument("--folder", default=None, help="where the set is made (a temporary folder by default)")
    parser.add_argument("--parts", nargs="+", default=["prepare", "stream", "read"], help="prepare, stream, read")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        place = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        folder, out = Path(place, f"set-{options.megabytes}"), Path(place, f"prepared-{options.megabytes}")
        if not folder.exists():
            make_set(folder, options.megabytes, options.data_root)
        print(json.dumps(run(folder, out, options)))


def run(folder: Path, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """The measurements that `--parts` names."""
    make_tokenizer(options.tokenizer, Corpus("", (), (), (), split_rule="", hash=""))  # a clear error where it is not
    result: dict[str, float] = {"cores": cores(), "megabytes": options.megabytes, "rounds": options.rounds}
    if "prepare" in options.parts:
        peers, ours, peaks = [], [], []
        for _ in range(options.rounds):
            peers.append(peer_seconds(folder, options.tokenizer, cores()))
            seconds, peak = prepare_seconds(folder, out, options.tokenizer)
            ours.append(seconds)
            peaks.append(peak)
        size = sum(
            json.loads((out / "manifest.json").read_text())["counts"][s]["bytes"] for s in ("train", "valid", "test")
        )
        peer, our = statistics.median(peers), statistics.median(ours)
        result |= {"peer_MB_s": size / peer / 1e6, "prepare_MB_s": size / our / 1e6, "prepare_ratio": peer / our}
        result["peak_MB"] = max(peaks) / 1e6
        speeds = f"prepare {size / our / 1e6:.1f} MB/s, encode_ordinary_batch {size / peer / 1e6:.1f} MB/s"
        print(f"{speeds}, ratio {peer / our:.2f}")
        print(f"peak memory of all processes {max(peaks) / 1e6:.0f} MB for {size / 1e6:.0f} MB of text")
    if "stream" in options.parts:
        rounds = [(streaming_speed(folder, options.tokenizer, 4.0), training_speed()) for _ in range(options.rounds)]
        speed, train = (statistics.median(values) for values in zip(*((s[0], t) for s, t in rounds), strict=True))
        first, restored = (statistics.median(s[i] for s, _ in rounds) for i in (1, 2))
        result |= {"stream_tokens_s": speed, "train_tokens_s": train, "stream_ratio": speed / train}
        result |= {"first_batch_s": first, "restore_s": restored, "state_MB": rounds[0][0][3] / 1e6}
        print(f"streaming {speed:,.0f} tokens/s, training {train:,.0f}, ratio {speed / train:.1f}")
        print(f"first batch {first:.2f} s, restored {restored:.2f} s, state {rounds[0][0][3] / 1e6:.1f} MB")
    if "read" in options.parts:
        for length, batch in ((512, 512), (512, 16), (128, 8)):
            with contextlib.suppress(UserError):  # too little text for such a batch
                speeds = [reading_speed(out, length, batch) for _ in range(options.rounds)]
                speed, opened = (statistics.median(values) for values in zip(*speeds, strict=True))
                result[f"read_{batch}x{length}_tokens_s"] = speed
                print(f"reading {batch} x {length}: {speed / 1e6:.0f}M tokens/s; opened and verified in {opened:.2f} s")
    return result


if __name__ == "__main__":
    main()
