"""A series of studies and its report: laws from rows whose constants are known, passes, and a series that goes on."""

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from study_result import make_arm, make_result
from test_command import write_text
from tiny import tiny_config

from eqx_slm import UserError
from eqx_slm.study import Study, grid, losses, named_arms, paired, preset, series_main
from eqx_slm.study.blocks import Heading, Paragraph, Picture, Table
from eqx_slm.study.config import StreamConfig
from eqx_slm.study.finished import main as finished_main
from eqx_slm.study.scaling import ladders, laws, passes, rungs
from eqx_slm.train import RunConfig

ROOT = Path(__file__).resolve().parents[1]
SCALES = {"dense": 1.0, "other": 0.8}


def ended(arm, loss):
    """An arm whose runs end at these losses."""

    def with_end(run, nll):
        return dataclasses.replace(run, evals=(*run.evals[:-1], dataclasses.replace(run.evals[-1], nll=nll)))

    runs = tuple(with_end(run, loss + 0.002 * (run.seed - 1)) for run in arm.runs)
    return dataclasses.replace(arm, runs=runs)


def made(tokens, train=None, widths=(16, 32, 64, 128), diverged=()):
    """The results of one length: two arms at some widths, by L = (400 N^-0.3 + 500 D^-0.3) scale + 1.5."""
    arms = {}
    for width in widths:
        for name, scale in SCALES.items():
            size = 1000 * width
            loss = scale * (400 * size**-0.3 + 500 * tokens**-0.3) + 1.5
            nll = float("nan") if (name, width) in diverged else loss
            levels = {"d_model": str(width), "arm": name}
            arms[f"{width}-{name}"] = ended(make_arm(0.0, 0.0, parameters=size, levels=levels), nll)
    results = make_result(arms, against={"arm": "dense"})
    stream = results.stream | ({} if train is None else {"train_tokens": train})
    return dataclasses.replace(results, stream=stream, settings=results.settings | {"tokens": tokens})


def test_rungs_are_the_laws_own():
    series = {f"{n}": made(n) for n in (250_000, 500_000, 1_000_000, 7_000_000)} | {"cut": made(1_000_000, 500_000)}
    found = rungs(series)
    assert {rung.passes for rung in found if rung.tokens == 7_000_000} == {2}  # of 6 million
    assert {(rung.passes, rung.cut) for rung in rungs({"": series["cut"]})} == {(2, True)}
    by_size, by_tokens, both = (ladders(found, axes) for axes in ("N", "D", "ND"))
    assert list(by_size) == list(SCALES)
    assert [n for (n,) in by_size["dense"].at] == [16_000, 32_000, 64_000, 128_000]
    assert by_size["other"].losses.shape == (3, 4)
    assert [d for (d,) in by_tokens["dense"].at] == [250_000, 500_000, 1_000_000]
    assert len(both["dense"].at) == 12
    np.testing.assert_allclose(by_size["dense"].losses[1, 0], 400 * 16_000**-0.3 + 500 * 1e6**-0.3 + 1.5)
    gone = ladders(rungs({"": made(250_000, diverged=[("other", 32)])}), "N")
    assert len(gone["dense"].at) == 4 and [n for (n,) in gone["other"].at] == [16_000, 64_000, 128_000]


def test_the_report_has_the_constants_and_what_was_refused():
    series = {f"{n}": made(n) for n in (250_000, 500_000, 1_000_000, 2_000_000)}
    blocks = laws(floors=("shared", 90.0))(series)
    tables = [block for block in blocks if isinstance(block, Table)]
    joint = next(table for table in tables if "beta" in table.header and "A" in table.header)
    arm, a, alpha, b, beta, floor = joint.rows[0][1:]
    assert arm == "dense" and alpha.startswith("0.3 (") and beta.startswith("0.3 (") and floor.startswith("1.5 (")
    assert float(a.split()[0]) == pytest.approx(400, rel=0.02) and float(b.split()[0]) == pytest.approx(500, rel=0.02)
    refused = [block.text for block in blocks if isinstance(block, Paragraph) and "floor=90.0" in block.text]
    assert len(refused) == 3 and all("\n" not in text for text in refused)
    found = {(row[0], row[4].split()[-1]): row for row in tables[-1].rows}
    # The same loss at 0.8 of both parts: of L(N) the rest of D is in the floor, so only its own law is compared.
    assert float(found["L(D)", "tokens"][4].split("x")[0]) > 1 and found["L(D)", "tokens"][6] == "extrapolated"
    picture = next(block for block in blocks if isinstance(block, Picture))
    assert picture.files["png"].startswith(b"\x89PNG")
    assert [block.text for block in blocks if isinstance(block, Heading)][0] == "Scaling laws"


def test_passes_are_a_row_each():
    series = {"fresh": made(250_000)} | {f"{n}": made(1_000_000, 1_000_000 // n, widths=(16,)) for n in (1, 2, 8)}
    _, _, table = passes(series)
    assert [(row[0], row[1]) for row in table.rows][:4] == [
        ("16-dense", "1"),
        ("16-other", "1"),
        ("16-dense", "2"),
        ("16-other", "2"),
    ]
    assert table.rows[-1][1] == "8" and table.rows[-1][-1] == "better" and table.rows[0][-1] == "reference"
    assert passes({"fresh": made(250_000)}) == []


def test_named_arms_are_made_at_every_shape():
    quick = preset("quick")
    found = grid("d_model", (32, 64)) * named_arms(("dense", "dense-tied-deep"), quick.tuned)
    arms = {name: (config, levels) for name, config, levels in found.arms(quick.model)}
    assert list(arms) == [f"d_model={width}-{name}" for width in (32, 64) for name in ("dense", "dense-tied-deep")]
    config, levels = arms["d_model=64-dense-tied-deep"]
    assert config.head.kind == "tied" and config.depth > 2
    assert levels == {"d_model": "d_model=64", "arm": "dense-tied-deep"}
    with pytest.raises(UserError, match="unknown arm 'dens'"):
        list(named_arms(("dens",), quick.tuned).arms(quick.model))


def test_a_series_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path / "text.txt")
    stream = StreamConfig(data=text, tokenizer="byte", sequence_length=8, batch_size=2, eval_tokens=16)

    def study(steps, **part):
        return Study(
            "tiny",
            arms=named_arms(("dense", "dense-tied"), preset("quick").tuned),
            seeds=1,
            rates=(1e-2,),
            analyses=(paired(against={"arm": "dense"}),),
            report=(losses,),
            model=tiny_config(),
            stream=dataclasses.replace(stream, **part),
            run=RunConfig(steps=steps, evaluations=1),
        )

    studies = {"steps-2": study(2), "passes-2": study(2, train_tokens=16)}
    report = (laws(floors=("free",), axes=("N",)), passes)
    assert series_main("tiny", studies, report, ["--dry-run"]) == 0 and not (tmp_path / "runs").exists()
    assert series_main("tiny", studies, report, []) == 0
    told = (tmp_path / "runs" / "tiny-0" / "report.md").read_text()
    assert "1 rungs for the 3 constants A, alpha, b" in told and "## Passes over the data" in told
    assert json.loads((tmp_path / "runs/tiny-0/passes-2/result.json").read_text())["stream"]["train_tokens"] == 16
    capsys.readouterr()
    assert finished_main(["report", "runs/tiny-0/steps-2"]) == 0 and "left out" not in capsys.readouterr().out
    rows = (tmp_path / "runs/tiny-0/steps-2/runs.jsonl").read_text()
    for out in (["--out", "runs/tiny-0"], ["--out=runs/tiny-0"]):
        assert series_main("tiny", studies, report, out) == 0
        assert (tmp_path / "runs/tiny-0/steps-2/runs.jsonl").read_text() == rows  # nothing is run again
    # Some of them again: the report stays one of all.
    assert series_main("tiny", studies, report, ["steps", "--out", "runs/tiny-0"]) == 0
    assert (tmp_path / "runs" / "tiny-0" / "report.md").read_text() == told
    capsys.readouterr()
    assert series_main("tiny", studies, report, ["step", "pass-", "--out", "runs/tiny-0"]) == 2
    assert "no study of tiny begins with 'pass-'" in capsys.readouterr().err
    capsys.readouterr()
    assert series_main("tiny", studies, report, ["--steps", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert series_main("tiny", studies, report, ["--seeds", "0"]) == 2 and not (tmp_path / "runs/tiny-1").exists()


def test_the_scaling_script():
    script = ROOT / "experiments" / "scaling.py"
    assert len(script.read_text().splitlines()) <= 70
    names = runpy.run_path(str(script))
    assert len(names["STUDIES"]) == 8
    for study in names["STUDIES"].values():
        made, levels = study.resolve(2048, 128)
        assert {tuple(its) for its in levels.values()} == {("d_model", "arm")}
        tokens = study.run.steps * study.stream.batch_size * study.stream.sequence_length
        assert study.stream.train_tokens is None or tokens % study.stream.train_tokens == 0
