"""The benchmarks' own bookkeeping: verdicts, the results file, and scripts that load without the peers."""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def row(ratio: float, target: str, name: str = "some"):
    return importlib.import_module("benchmarks.harness").Row(name, ratio, target, "x", "this and that")


ratios = st.floats(0.01, 100)


@given(ratios, ratios)
def test_targets_of_one_side(ratio, bound):
    assert row(ratio, f">= {bound!r}").ok is (ratio >= bound)
    assert row(ratio, f"<= {bound!r}").ok is (ratio <= bound)


@given(ratios, st.floats(0, 1), st.floats(-2, 2))
def test_targets_of_both_sides(middle, width, offset):
    assume(abs(abs(offset) - width) > 1e-6)
    assert row(middle + offset, f"{middle!r} +- {width!r}").ok is (abs(offset) < width)


def test_without_a_target_there_is_no_verdict():
    assert row(3.0, "").ok is None


def test_a_trial_is_never_taken_for_the_figure(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "rows.jsonl"
    monkeypatch.setenv("EQX_SLM_BENCHMARK_ROWS", str(rows))
    harness = importlib.import_module("benchmarks.harness")
    harness.show(row(3.0, ">= 2"), small=True)
    harness.show(row(3.0, ">= 2"))
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [(r["name"], r["target"], r["ok"]) for r in written] == [("some-small", "", None), ("some", ">= 2", True)]
    assert "[some-small] 3.000" in capsys.readouterr().out


@pytest.fixture
def results(tmp_path, monkeypatch):
    main = importlib.import_module("benchmarks.__main__")
    monkeypatch.setattr(main, "HERE", tmp_path)
    return main, tmp_path / "results.json"


def entry(name: str, ratio: float) -> dict:
    return {"name": name, "ratio": ratio, "target": ">= 1", "unit": "x", "sides": "", "ok": ratio >= 1}


def test_results_keep_rows_that_were_not_run_again(results, capsys):
    main, path = results
    main.record([entry("one", 1.0), entry("two", 2.0)])
    main.record([entry("two", 0.5)])
    found = json.loads(path.read_text())
    assert {name: (r["ratio"], r["ok"]) for name, r in found.items()} == {"one": (1.0, True), "two": (0.5, False)}
    assert all(r["machine"] and r["date"] for r in found.values())
    main.table()
    assert "| two | 0.500 x | >= 1 | **not met** |" in capsys.readouterr().out


def test_results_are_written_whole_or_not_at_all(results, monkeypatch):
    main, path = results
    main.record([entry("one", 1.0)])
    before = path.read_text()
    write = Path.write_text

    def full_disk(self, text, *args, **kwargs):
        write(self, text[: len(text) // 2], *args, **kwargs)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError):
        main.record([entry("two", 2.0)])
    assert path.read_text() == before


def test_the_readmes_table_is_results_json():
    main = importlib.import_module("benchmarks.__main__")
    written = (ROOT / "benchmarks" / "README.md").read_text().splitlines()
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    head = written.index("| question | ratio | target | | both sides |")
    assert written[head + 2 : head + 2 + len(results)] == main.lines(results)


def test_scripts_load_without_the_peers_they_compare_with(monkeypatch):
    for peer in ("torch", "transformers", "titans_pytorch"):
        monkeypatch.setitem(sys.modules, peer, None)  # importing it now raises
    for name in [name for name in sys.modules if name.startswith("benchmarks.")]:
        monkeypatch.delitem(sys.modules, name)
    scripts = importlib.import_module("benchmarks.__main__").SCRIPTS
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} >= set(scripts)
    for name in (*scripts, "gpu", "data_set", "llama", "training"):
        module = importlib.import_module(f"benchmarks.{name}")
        assert name in ("data_set", "llama", "training") or callable(module.main)


def test_a_fourth_matmul_fails_the_count_of_flops():
    loss = importlib.import_module("benchmarks.loss")
    tokens, vocab, d_model = 64, 1000, 256
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((tokens, d_model), (vocab, d_model))]
    shapes.append(jax.ShapeDtypeStruct((tokens,), jnp.int32))

    def fourth(x, weight, targets):
        # A product of all sizes of the logits' that nothing can share with them.
        return loss.chunked(x, weight, targets) + jnp.sum(jnp.tanh(jax.lax.stop_gradient((x + 1) @ weight.T)))

    counted = [loss.chunk_flops(f, *shapes) / (6 * tokens * vocab * d_model) for f in (loss.chunked, fourth)]
    assert counted[0] <= 1.05 < counted[1]


def test_a_device_that_is_not_listed_has_no_peak():
    peak_flops = importlib.import_module("benchmarks.gpu").peak_flops
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert [peak_flops(kind) for kind in ("cpu", "NVIDIA L40", "NVIDIA H100 NVL", "NVIDIA A10G")] == [None] * 4
