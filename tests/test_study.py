"""Studies as they are written: grids of arms, a study at its stream's sizes, its rows and its report."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from refusals import refuses
from tiny import tiny_config, tiny_stream

from eqx_slm import AttentionConfig, LowRankConfig, ModelConfig, TaperConfig, UserError, count_parameters
from eqx_slm.study import PAIR, Heading, Paragraph, Study, budgets, forest, grid, paired, run_study, scope, verdicts
from eqx_slm.train import RunConfig

ROOT = Path(__file__).resolve().parents[1]
STREAM = tiny_stream()
MIXERS = {"attention": "attention", "gated": "gated-attention"}
TAPERS = {"uniform": TaperConfig(), "falling": TaperConfig("step-early", start=1.5)}
BASE = ModelConfig(vocab_size=8, d_model=16, depth=2, mixer=AttentionConfig(n_heads=2))


def arms(made, base=BASE):
    return {name: (config, levels) for name, config, levels in made.arms(base)}


def test_a_grid_is_every_pair_of_levels():
    made = arms(grid("mixer.kind", MIXERS) * grid("taper", TAPERS))
    assert list(made) == ["attention-uniform", "attention-falling", "gated-uniform", "gated-falling"]
    config, levels = made["gated-falling"]
    assert levels == {"mixer": "gated", "taper": "falling"}
    assert config.mixer.kind == "gated-attention" and config.mixer.n_heads == 2  # as --set does it
    assert config.taper == TAPERS["falling"] and made["attention-uniform"][0] == BASE


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (grid("depth", (2, 4)), ["depth=2", "depth=4"]),
        (grid("mixer.n_heads", (1, 2)), ["n_heads=1", "n_heads=2"]),
        (grid("norm", ("rms", "layer")), ["rms", "layer"]),
        (
            grid("embedding", {"low": LowRankConfig(rank=2)}) * grid("embedding.rank", (1, 3)),
            ["low-rank=1", "low-rank=3"],
        ),
        (grid("depth", (2,)) + grid("depth", (4,)) * grid("norm", ("layer",)), ["depth=2", "depth=4-layer"]),
    ],
)
def test_levels_are_texts_numbers_or_parts(made, names):
    found = arms(made)
    assert list(found) == names
    assert len({config for config, _ in found.values()}) == len(found)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: grid("depth", ()), "has no levels"),
        (lambda: arms(grid("dept", (1,))), "unknown field 'dept'"),
        (lambda: arms(grid("tapr", TAPERS)), "unknown field 'tapr'"),
        (lambda: arms(grid("depth", (0,))), "depth=0"),
        (lambda: arms(grid("mixer.kind", ("atention",))), "kind='atention'"),
        (lambda: arms(grid("head", {"tied": TaperConfig()})), "head"),
        (lambda: arms(grid("depth", {"a": 2, "b": 3}) * grid("d_model", {"": 16})), "d_model"),
        (lambda: arms(grid("depth", (2,)) + grid("depth", (2,))), "two arms of the grid are called depth=2"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_one_line(made, told):
    if told == "d_model":  # an empty label is only a short name
        assert list(made()) == ["a-", "b-"]
        return
    with pytest.raises((UserError, TypeError), match=told) as error:
        made()
    assert "\n" not in str(error.value) or isinstance(error.value, TypeError)


def tiny_study(**changes):
    return dataclasses.replace(
        Study(
            "tiny-grid",
            arms=grid("mixer.kind", MIXERS) * grid("positions", ("rotary", "none")),
            seeds=2,
            rates=(1e-2,),
            analyses=(paired(against={"positions": "rotary"}, within="mixer", margin=0.5),),
            report=(verdicts, forest(by="mixer"), budgets, scope, lambda results: [Heading("Mine"), Paragraph("own")]),
            model=tiny_config(),
            run=RunConfig(steps=2, evaluations=2),
        ),
        **changes,
    )


def test_a_study_runs_reports_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("eqx_slm.study.plot.render", lambda *arguments: {"png": b"", "svg": b""})  # takes longer
    events = []
    folder, results = run_study(tiny_study(), STREAM, out=tmp_path / "study", on_event=events.append)
    assert [(c.arm, c.reference, c.margin) for c in results.comparisons] == [
        ("attention-none", "attention-rotary", 0.5),
        ("gated-none", "gated-rotary", 0.5),
    ]
    text = (folder / "report.md").read_text()
    assert text.startswith("# tiny-grid: attention-none, gated-none against attention-rotary and gated-rotary")
    assert text.rstrip().endswith("## Mine\n\nown") and "](forest.png)" in text and (folder / "forest.svg").exists()
    data = json.loads((folder / "result.json").read_text())
    assert data["arms"]["gated-none"]["levels"] == {"mixer": "gated", "positions": "none"}
    assert data["config"]["arms"]["gated-none"]["vocab_size"] == 64 and data["settings"]["margin"] == 0.5
    assert [e.kind for e in events].count("run") == 8
    events.clear()
    more = tiny_study(arms=tiny_study().arms + grid("norm", ("layer",)), analyses=(), report=(budgets,))
    with pytest.raises(UserError, match="another config .*analyses"):
        run_study(more, STREAM, out=folder)
    more = tiny_study(seeds=3)
    _, again = run_study(more, STREAM, out=folder, on_event=events.append)
    kinds = [event.kind for event in events]
    assert kinds.count("kept") == 8 and kinds.count("run") == 4 and len(again.comparisons[0].seeds) == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "../up"}, "name="),
        ({"arms": {}}, "no arms"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": 10**12}, "seeds=1000000000000: it must be at most"),
        ({"seeds": (1, 1)}, "twice"),
        ({"seeds": (-1,)}, "seed=-1"),
        ({"seeds": (2**32,)}, "seed=4294967296"),
        ({"rates": ()}, "at least one"),
        ({"rates": (1e-60,)}, "in float32"),
        ({"rates": (1e39,)}, "in float32"),
        ({"run": RunConfig(seeds_at_once=3)}, "seeds_at_once"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(changes, told):
    with refuses(told):
        tiny_study(**changes)


def test_a_study_without_its_reference_is_refused_before_training(tmp_path):
    study = tiny_study(analyses=(paired(against={"positions": "learned"}),))
    with pytest.raises(UserError, match="positions has no level .learned."):
        run_study(study, STREAM, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_the_taper_study_is_a_study(tmp_path, monkeypatch, capsys):
    """A script's study resolves at its stream's sizes, costs the same in every arm, and its command plans it."""
    monkeypatch.setattr("eqx_slm.study.dry_run.matmul_rate", lambda dtype: 1e9)
    studies = runpy.run_path(str(ROOT / "experiments" / "taper.py"))["STUDIES"]
    assert {name: len(each.resolve(2048, 128)[0]) for name, each in studies.items()} == {
        "mixers": 2 * 3,
        "grid": 4 * (1 + 3 * 5),
        "profiles": 4 * (1 + 8),
    }
    for study in studies.values():
        made, levels = study.resolve(2048, 128)
        assert {tuple(its) for its in levels.values()} == {("arm", "taper")}
        for mixer in {its["arm"] for its in levels.values()}:  # one budget, and no profile twice
            own = [made[name] for name, its in levels.items() if its["arm"] == mixer]
            assert len({count_parameters(arm) for arm in own}) == 1 and len({arm.widths for arm in own}) == len(own)
    assert len((ROOT / "experiments" / "taper.py").read_text().splitlines()) <= 70
    study = studies["mixers"]
    from test_command import write_text

    from eqx_slm.study import study_main

    monkeypatch.chdir(tmp_path)
    small = dataclasses.replace(study, stream=dataclasses.replace(study.stream, tokenizer="byte", sequence_length=16))
    text = write_text(tmp_path / "text.txt")
    assert study_main(small, ["--data", text, "--dry-run", "--seeds", "2", "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert (
        "gated-wide-rising" in out and "4 runs of about" in out and list(tmp_path.iterdir()) == [tmp_path / "text.txt"]
    )
    options = ["--data", text, "--tokenizer", "byte", "--sequence-length", "8", "--dry-run"]
    assert study_main(small, options) == 0 and "tokenizer byte" in capsys.readouterr().out
    run = ["--seeds", "2", "--seeds-at-once", "2", "--accumulate", "2", "--loop", "runs", "--compute-dtype", "bfloat16"]
    with monkeypatch.context() as patch:
        patch.setattr("eqx_slm.study.command._run", lambda study, *rest: seen.append(study.run) or 0)
        seen = []
        assert study_main(small, ["--batch-size", "4", *run]) == 0
    how = {"seeds_at_once": 2, "accumulate": 2, "loop": "runs", "compute_dtype": "bfloat16"}
    assert seen == [dataclasses.replace(small.run, **how)]
    assert study_main(small, ["--mesh", "data=99"]) == 2 and "--mesh data=99: 99 devices" in capsys.readouterr().err
    assert study_main(small, ["--processes", "here"]) == 2 and "--processes 'here'" in capsys.readouterr().err
    assert study_main({"one": small}, ["--help"]) == 0 and "  one  " in capsys.readouterr().out
    assert study_main({"one": small}, ["two"]) == 2 and "STUDY being one of one" in capsys.readouterr().err
    assert study_main({"one": small}, ["one", "--seeds", "0"]) == 2 and "seeds=0" in capsys.readouterr().err
    assert study_main(small, ["--seeds", "0"]) == 2 and "seeds=0" in capsys.readouterr().err
    assert PAIR  # the sections that a study has by default
