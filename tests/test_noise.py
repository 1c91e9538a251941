"""The table of noise: where its entries come from, which one speaks for a study, and what it is told of a study."""

import dataclasses
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest
from study_result import four_arms, make_arm, make_result
from tiny import tiny_config

from eqx_slm import UserError, parameter_ledger
from eqx_slm.study import Study, paired
from eqx_slm.study.anytime import anytime_quantile
from eqx_slm.study.blocks import markdown
from eqx_slm.study.noise import Noise, measured, merged, nearest, noise_table, outlook, table_text
from eqx_slm.study.spread import half_width, seeds_for
from eqx_slm.train import RunConfig

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "noise.py"
CONFIG = tiny_config()
SIZE = parameter_ledger(CONFIG).total
ENTRY = Noise(64, SIZE, 10_000, "tied", "dense", sd=0.02, seeds=4)


def test_the_table_is_in_order_and_says_where_it_is_from():
    table = noise_table()
    assert table and all(e.sd > 0 and e.seeds > 1 and e.source and e.recipe for e in table)
    text = (Path(__file__).resolve().parents[1] / "eqx_slm" / "study" / "noise.json").read_text("utf-8")
    assert text == table_text(table)


def results(**changes):
    arms = four_arms() if not changes else changes
    arms["dense"] = dataclasses.replace(arms["dense"], made_of=CONFIG)
    found = make_result(arms)
    found.settings["optimizer"] = {"beta1": 0.9, "schedule": "cosine"}
    return json.loads(json.dumps(found.to_json()))


def test_entries_come_from_a_result():
    found = measured(results(), "here")
    assert [entry.arm for entry in found] == ["leviathan", "leviathan-deep", "dense-tied-deep"]
    for entry, each in zip(found, results()["comparisons"], strict=True):
        mean = math.fsum(each["differences"]) / 3
        sd = math.sqrt(math.fsum((value - mean) ** 2 for value in each["differences"]) / 2)
        assert entry.sd == pytest.approx(sd, rel=1e-3) and (entry.seeds, entry.source) == (3, "here")
        assert (entry.vocab_size, entry.parameters, entry.tokens) == (64, 1_000_000, 819_200)
        assert entry.recipe == "rate 0.003, 16 x 128 tokens a step, beta1 0.9, schedule cosine"
    gone = results(dense=make_arm(0.0, 0.0), gone=make_arm(0.1, 0.0, diverge_at=0))
    assert measured(gone, "here") == []
    for wrong in ({}, {"settings": {}, "arms": {}}, {**results(), "comparisons": [{"reference": "dense"}]}):
        with pytest.raises(UserError, match="here: this is no result"):
            measured(wrong, "here")


def test_a_new_entry_takes_the_place_of_an_old_one():
    again, other = dataclasses.replace(ENTRY, sd=0.03, seeds=9), dataclasses.replace(ENTRY, tokens=20_000)
    assert merged([ENTRY, other], [again]) == [again, other]


def test_the_nearest_entry_speaks():
    shape = {"vocab_size": 64, "parameters": SIZE}
    far, noisy = dataclasses.replace(ENTRY, tokens=80_000, sd=0.001), dataclasses.replace(ENTRY, arm="new", sd=0.5)
    entries = [ENTRY, far, noisy, dataclasses.replace(ENTRY, parameters=2 * SIZE, sd=9.0)]
    for tokens, wanted in ((9_000, ENTRY), (28_000, ENTRY), (29_000, far), (10**9, far)):
        assert nearest(entries, **shape, tokens=tokens, arm="tied", reference="dense") == (wanted, True)
    assert nearest(entries, **shape, tokens=9_000, arm="unknown", reference="dense") == (noisy, False)
    assert nearest(entries, vocab_size=65, parameters=SIZE, tokens=1, arm="tied", reference="dense") == (None, False)


def test_what_a_study_is_told(monkeypatch):
    monkeypatch.setattr("eqx_slm.study.noise.noise_table", lambda: (ENTRY,))
    arms = {"dense": CONFIG, "tied": CONFIG, "other": CONFIG, "own": lambda key: None}
    study = Study("s", arms, seeds=5, analyses=(paired("dense", margin=0.05),), run=RunConfig(steps=100))
    text = markdown(outlook(study, 64, 16, 4))
    level = 1 - 0.05 / 3
    half, needed = half_width(0.02, 5, confidence=level), seeds_for(0.05, 0.02, confidence=level)
    assert f"| tied minus dense | 0.0200 | 10k tokens, 4 seeds | {half:.4f} | {needed} |" in text
    assert "| other minus dense | 0.0200 | tied minus dense, 10k tokens" in text and "half-width at 5 seeds" in text
    grows = markdown(outlook(dataclasses.replace(study, until=9), 64, 16, 4))
    assert f"| {half_width(0.02, 9, confidence=level, quantile=anytime_quantile):.4f} |" in grows
    unknown = markdown(outlook(dataclasses.replace(study, analyses=(paired("own"),)), 64, 16, 4))
    assert "never measured at this shape" in unknown
    assert outlook(dataclasses.replace(study, analyses=()), 64, 16, 4) == []


def test_the_script_collects_from_folders(tmp_path, monkeypatch, capsys):
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "result.json").write_text(json.dumps(results()))
    table = tmp_path / "table.json"
    options = ["--folders", str(tmp_path / "done"), "--write", str(table)]
    monkeypatch.setattr(sys, "argv", ["noise.py", *options])
    main = runpy.run_path(str(SCRIPT))["main"]
    assert main() == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed) == 3 and len(json.loads(table.read_text())) == 3 + len(noise_table())
    monkeypatch.setattr(sys, "argv", ["noise.py", "--folders", str(tmp_path)])
    assert main() == 2 and re.fullmatch("error: cannot read .*\n", capsys.readouterr().err)
