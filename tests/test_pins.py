"""What may not change unnoticed: batches, prepared bytes, ledgers and initial values, pinned to `pins.json`.

A pin that moves means that results from before cannot be compared with results from now. Where that is wanted, say what
and why in experiments/LOG.md and write the pins anew: `python tests/test_pins.py`.
"""

import dataclasses
import gzip
import hashlib
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from eqx_slm import build, open_data, parameter_ledger
from eqx_slm.data import open_source, prepare, split_rule
from eqx_slm.data.tokenizer import ByteTokenizer
from eqx_slm.study.arms import RECIPES
from eqx_slm.study.presets import preset

PINS = Path(__file__).with_name("pins.json")
STDLIB_HASH = "dd40c712"  # of the corpus that the quick pair reads under Python 3.11.7
WORDS = "the a of and model token naïve 日本 🙂 layer\n width\t budget, pair. 12 3.5".split(" ")


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [f"{i} " + " ".join(rng.choice(WORDS, rng.integers(1, 60))) for i in range(count)]


def write_lines(path, documents):
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)
    path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)
    os.utime(path, ns=(0, 0))  # a source's identity holds the time of change
    return path


def prepared(folder, name, seed):
    source = open_source(str(write_lines(folder / f"{name}.jsonl", texts(600, seed))))
    rule = split_rule(source, valid=0.1, test=0.1)
    prepare(source, ByteTokenizer(), folder / name, rule=rule, workers=0, shard_tokens=9_000)
    return folder / name


def shard_bytes(folder):
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.bin")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def stdlib_batches():
    stream = open_data("stdlib", "bpe:2048", sequence_length=128, batch_size=8, eval_tokens=8192)
    if not stream.info["corpus_hash"].startswith(STDLIB_HASH):
        return None
    return {"train": [stream.digest(seed, 240) for seed in (0, 1)], "valid": digest_of(stream.eval_batches())}


def ptb_batches(data_root):
    stream = open_data("ptb", "word", data_root=data_root, sequence_length=64, batch_size=16)
    return {"train": [stream.digest(seed, 1200) for seed in (0, 1)], "valid": digest_of(stream.eval_batches())}


def mixture_batches(folder):
    one, two = prepared(folder, "one", 1), prepared(folder, "two", 2)
    stream = open_data(f"mix:0.7={one},0.3={two}", sequence_length=32, batch_size=8)
    batches = {"train": [stream.digest(seed, 400) for seed in (0, 1)], "valid": digest_of(stream.eval_batches())}
    return {**batches, "shards": [shard_bytes(one), shard_bytes(two)]}


def streamed_batches(folder):
    (folder / "lines").mkdir()
    for part in range(3):
        write_lines(folder / "lines" / f"{part}.jsonl.gz", texts(500, 10 + part))
    stream = open_data(f"stream:{folder / 'lines'}", "byte", sequence_length=32, batch_size=8, workers=0)
    return {"train": [stream.digest(seed, 600) for seed in (0, 1)], "valid": digest_of(stream.eval_batches())}


def digest_of(batches):
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(np.ascontiguousarray(batch, "<i4").tobytes())
    return digest.hexdigest()


def ledgers():
    found = {}
    for shape, vocab in (("quick", 2048), ("768x12", 200_019)):
        config = dataclasses.replace(preset(shape), arms=tuple(RECIPES))
        for name, arm in config.resolve(vocab).items():
            ledger = parameter_ledger(arm.config)
            entries = hashlib.sha256(json.dumps([list(map(str, entry)) for entry in ledger.entries]).encode())
            found[f"{shape}/{name}"] = [ledger.total, entries.hexdigest()[:16]]
    return found


def initial_values():
    """The sum of all magnitudes of a small model of every kind: a leaf's path decides its key, so names count."""
    config = preset("quick")
    model = dataclasses.replace(config.model, d_model=16)
    names = ("dense", "low-rank", "compositional", "leviathan", "gated", "hope", "titans")
    config = dataclasses.replace(config, model=model, arms=names)
    found = {}
    for name, arm in config.resolve(64).items():
        shallow = dataclasses.replace(arm.config, depth=1)
        leaves = jax.tree.leaves(build(shallow, key=jax.random.key(0)))
        found[name] = float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in leaves))
    return found


def pinned(name):
    return json.loads(PINS.read_text("utf-8"))[name]


def test_batches_of_the_standard_library():
    found = stdlib_batches()
    if found is None:
        pytest.skip("another Python's standard library: its text differs")
    assert found == pinned("stdlib")


def test_batches_of_ptb(data_root):
    assert ptb_batches(data_root) == pinned("ptb")


def test_batches_of_a_prepared_mixture(tmp_path):
    assert mixture_batches(tmp_path) == pinned("mixture")


def test_batches_of_a_stream(tmp_path):
    assert streamed_batches(tmp_path) == pinned("streamed")


def test_ledgers_of_all_arms():
    assert ledgers() == pinned("ledgers")


def test_initial_values():
    found, expected = initial_values(), pinned("initial")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-5), name


if __name__ == "__main__":
    import tempfile

    root = Path(os.environ.get("EQX_SLM_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    old = json.loads(PINS.read_text("utf-8")) if PINS.exists() else {}
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        new = {
            "stdlib": stdlib_batches() or old.get("stdlib"),
            "ptb": ptb_batches(root) if root.is_dir() else old.get("ptb"),
            "mixture": mixture_batches(Path(first)),
            "streamed": streamed_batches(Path(second)),
            "ledgers": ledgers(),
            "initial": initial_values(),
            "quick_pair": old.get("quick_pair"),  # from a run of experiments/pair.py: see experiments/LOG.md
        }
    PINS.write_text(json.dumps(new, indent=1) + "\n", "utf-8")
