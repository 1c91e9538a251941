"""What constructors, configs and accounts are given is refused in one line that says what, or taken as it is meant."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eqx_slm import TitansConfig, TitansMACConfig, TitansMAGConfig


@pytest.fixture(scope="module")
def answers():
    """Of all cases: without the run-time type checks that this process has, and a user's has not."""
    script = Path(__file__).with_name("bad_sizes.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_sizes_that_are_none_are_refused_in_one_line(answers):
    """Zero, negative numbers, fractions, floats as JSON has them, booleans, text, NaN, lists: in every place."""
    sizes, _, _ = answers
    silent = [case for case, line in sizes.items() if line is None or " instead: " in line]
    assert silent == []
    for case, line in sizes.items():
        value = case.split(": ")[1]
        assert "\n" not in line and len(line) < 250 and (value in line), (case, line)


def test_other_values_are_refused_by_name(answers):
    _, others, _ = answers
    for named, line in others.items():
        assert line is not None and line.startswith(named) and "\n" not in line, (named, line)


def test_what_is_clear_is_taken(answers):
    assert {name for name, taken in answers[2].items() if not taken} == set()


@pytest.mark.parametrize("config", [TitansMAGConfig, TitansMACConfig])
@pytest.mark.parametrize(("heads", "d_model"), [(4, 6), (4, 12), (3, 9), (1, 7), (5, 5), (2, 1)])
def test_the_widths_that_a_hybrid_names_fit(config, heads, d_model):
    mixer = config(memory=TitansConfig(n_heads=heads))
    with pytest.raises(ValueError, match="take d_model") as caught:
        mixer.check(d_model)
    for width in re.findall(r"\d+", str(caught.value).split("take d_model")[1]):
        mixer.check(int(width))
