"""Shapes for a budget, and the commands that show where parameters go."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqx_slm import AttentionConfig, ModelConfig, UserError, parameter_ledger
from eqx_slm.__main__ import COMMANDS, main
from eqx_slm.account.budget import fit_shape
from eqx_slm.commandline import count_of
from eqx_slm.configs import to_dict
from eqx_slm.study.presets import preset
from eqx_slm.testing import vocab_sizes


def shape(vocab_size, head):
    def make(d_model, depth):
        mixer = AttentionConfig(n_heads=d_model // head)
        return ModelConfig(vocab_size=vocab_size, d_model=d_model, depth=depth, mixer=mixer)

    return make


@settings(max_examples=8)
@given(vocab_sizes(), st.integers(10_000, 10**8), st.sampled_from([8, 32, 64]), st.sampled_from([16.0, 64.0, 128.0]))
def test_a_shape_is_near_its_budget(vocab_size, target, head, aspect):
    make = shape(vocab_size, head)
    try:
        fit = fit_shape(make, target, multiple=head, aspect=aspect)
    except UserError as error:
        assert "the smallest shape" in str(error) and parameter_ledger(make(head, 1)).total > 2 * target
        return
    config = fit.config
    assert fit.achieved == parameter_ledger(config).total and config.d_model % head == 0
    # What is taken is no further off than the same depth at the next width on either side, or within the tolerance.
    others = [make(config.d_model + step, config.depth) for step in (-head, head) if config.d_model + step > 0]
    least = min(abs(parameter_ledger(other).total - target) for other in others)
    assert abs(fit.residual) <= max(0.05, least / target)


def test_of_shapes_within_the_tolerance_the_wanted_proportion_is_taken():
    deep, wide = (fit_shape(shape(8192, 32), 20_000_000, multiple=32, aspect=aspect) for aspect in (16, 256))
    assert deep.config.depth > 2 * wide.config.depth and deep.config.d_model < wide.config.d_model
    assert 8 < deep.aspect < 32 and 128 < wide.aspect < 512
    assert abs(deep.residual) < 0.003 and abs(wide.residual) < 0.003  # d_ff takes up what widths of 32 leave


@pytest.mark.parametrize("values", [{"aspect": 0.0}, {"aspect": float("nan")}, {"tolerance": -1.0}, {"multiple": 0}])
def test_what_is_no_size_is_refused(values):
    with pytest.raises(UserError, match=next(iter(values))):
        fit_shape(shape(64, 8), 100_000, **values)


@given(st.integers(1, 10**15))
def test_numbers_as_people_write_them(number):
    ways = [str(number), f"{number:,}", f"{number:_}", f" {number} ", f"{number}e0"]
    for power, letter in ((3, "k"), (6, "M"), (9, "G"), (9, "b"), (12, "T")):
        if number % 10**power == 0:
            ways += [f"{number // 10**power}{letter}", f"{number // 10**power}e{power}"]
    if number % 100_000 == 0:
        ways.append(f"{number // 1_000_000}.{number // 100_000 % 10}M")
    assert {count_of("n", way) for way in ways} == {number}


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "3q", "nan", "inf", "1e-3", "0.0001k", "1e999", "2M3", "M"])
def test_what_is_no_count_is_one_line(text):
    with pytest.raises(UserError, match="a whole number of at least 1, such as"):
        count_of("--vocab", text)


def test_budget_shows_and_draws_what_fits(tmp_path, capsys):
    png = tmp_path / "budget.png"
    assert main(["budget", "30M", "--vocab", "50257", "--png", str(png)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if re.match(r" (dense|levi|low)", line)]
    assert [row[0] for row in rows] == ["dense", "dense-tied", "leviathan", "low-rank"]
    for _, d_model, depth, d_ff, total, off, *_ in rows:
        assert int(d_model) % 64 == 0 and int(depth) >= 1 and int(d_ff) % 16 == 0
        assert abs(int(total.replace(",", "")) / 30e6 - 1) < 0.01 and abs(float(off[:-1])) < 1
    assert png.read_bytes()[:4] == b"\x89PNG"


def test_ledger_of_presets_studies_and_models(tmp_path, capsys):
    assert main(["ledger", "quick"]) == 0
    out = capsys.readouterr().out
    for name, arm in preset("quick").resolve(2048).items():
        assert name in out and f"{parameter_ledger(arm.config).total:,}" in out
    config = dataclasses.replace(shape(100, 8)(16, 2), context=32)
    (tmp_path / "model.json").write_text(json.dumps(to_dict(config)))
    assert main(["ledger", str(tmp_path / "model.json")]) == 0
    assert f"{parameter_ledger(config).total:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budgt"], "no command 'budgt': it is one of budget, "),
        (["budget", "3q"], "parameters '3q': a whole number"),
        (["budget", "1M"], "the smallest shape, d_model 64 and depth 1, has 6,498,624"),
        (["budget", "30M", "--arms", "no"], "unknown arm 'no'; allowed: dense"),
        (["budget", "30M", "--png", "/nowhere/b.png"], "/nowhere/b.png cannot be written: No such file"),
        (["ledger", "256"], "unknown preset '256'"),
        (["budget", "30M", "--multiple", "7"], "--multiple 7: heads have this width"),
        (["budget", "1e30"], "parameters=1000000000000000000000000000000: it must be at most"),
        (["ledger", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_what_cannot_be_is_one_line(words, said, capsys):
    assert main(words) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and said in output.err


def test_every_command_answers_for_itself():
    """By the words of a shell: the list, the version, and each command's help under its own name."""
    run = [sys.executable, "-m", "eqx_slm"]
    for words, said in ([[], "budget"], [["--version"], "eqx_slm 0"], [["pair", "--help"], "usage: eqx-slm pair"]):
        done = subprocess.run([*run, *words], capture_output=True, text=True, cwd=Path(__file__).parents[1])
        assert done.returncode == 0 and said in done.stdout and done.stderr == ""
    assert {"budget", "ledger", "pair", "report", "compare", "data"} <= COMMANDS.keys()
