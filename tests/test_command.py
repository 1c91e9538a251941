"""The command line in this process: one line and exit code 2 for bad input, a dry run, a real one."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from eqx_slm.commandline import parse
from eqx_slm.study.command import Options, main

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "pair.py"
WORDS = "the cat sat on a mat while nine dogs ran past it and all of them were loud".split()


def write_text(path, blocks=400):
    """Blocks of words, all different, so that each split gets some."""
    lines = (" ".join(WORDS[(i * i + 3 * j) % len(WORDS)] for j in range(12)) + f" {i}" for i in range(blocks))
    path.write_text("\n\n".join(lines) + "\n")
    return str(path)


TINY = ["--tokenizer", "byte", "--sequence-length", "16", "--batch-size", "4", "--steps", "4", "--seeds", "2"]
SMALL = ["all.d_model=16", "all.channel.d_ff=32", "all.depth=1"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory; what lies beside it is not the command's."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    return folder


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def refused(arguments, capsys):
    """The one line that the command leaves on standard error."""
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.endswith("\n") and line.count("\n") == 1
    return line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seeds", "abc"], r"--seeds.*'abc' \(see pair.py --help\)"),
        (["--nosuch", "1"], r"--nosuch, 1 \(see"),
        (["--step", "5"], "--step, 5; is '--steps' meant"),
        (["--steps", "5", "--seed=2"], "--seed.*; is '--seeds' meant"),
        (["--pairing", "no"], "'no'.*'data-only'"),
        (["--steps", "3", "--seeds", "2", "--steps=4"], r"--steps is given twice: give it once \(see pair.py --help\)"),
        (["--data-root", "a", "--data_root", "b"], "--data-root is given twice.*"),
    ],
)
def test_options_that_cannot_be_read_are_refused_in_one_line(arguments, told, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    line = capsys.readouterr().err
    assert stop.value.code == 2 and re.fullmatch(f"error: .*{told}.*\n", line)


def test_an_option_of_several_values_may_be_given_several_times():
    """The parser alone would keep the last, and the run would be another one than was asked for."""
    given = ["--set", "a.b=1", "--steps", "3", "--set", "c.d=2", "e.f=x=y", "--lr", "1e-3", "--set=g.h=3", "--lr=2e-3"]
    options = parse(Options, given, "pair.py")
    assert options.set == ("a.b=1", "c.d=2", "e.f=x=y", "g.h=3")
    assert options.lr == (1e-3, 2e-3) and options.steps == 3


def told_before_reading(arguments):
    """Data that does not exist shows that the arguments were refused before it was looked for."""
    return [*([] if "--data" in arguments else ["--data", "no/such/folder"]), *arguments]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--arms", "dense", "leviathn"], "unknown arm 'leviathn'; allowed: dense, .*-deep.*; is 'leviathan' meant"),
        (["--init-from", "nothere"], "--init-from nothere: there is no such folder"),
        (["--go-on-from", "."], r"--go-on-from \.: .*no runs.jsonl"),
        (["--set", "denes.depth=3"], "no arm 'denes'.*; is 'dense' meant"),
        (["--set", "all.context=8"], "arm dense: .*context=8.* set them with --vocab-size and --sequence-length"),
        (["--set", "dense.vocab_size=8"], "arm dense: vocab_size=8, .*the same for all arms"),
        (["--arms"], "no arms"),
        (["--preset", "slow"], "unknown preset 'slow'; allowed: quick, cpu"),
        (["--preset", "quik"], "unknown preset 'quik'.*; is 'quick' meant"),
        (["--set", "dense.depht=3"], "unknown field 'depht'.*; is 'depth' meant"),
        (["--set", "dense.depth=three"], "depth='three'.*an integer"),
        (["--set", "depth=3"], "ARM.FIELD=VALUE"),
        (["--set", "tapered.depth=3"], "no arm 'tapered' in this study; allowed: all, dense"),
        (["--set", "all.d_model=63"], "d_model=63 is not divisible by n_heads=2"),
        (["--set", "leviathan-deep.embedding.knots=2"], "knots=2.*at least 3"),
        (["--arms", "dense", "tapered", "--set", "tapered.taper.multiple=48"], "arm tapered: .*48"),
        (["--vocab-size", "0"], r"\(--vocab-size\)=0: it must be at least 1"),
        (["--vocab-size", "-3"], r"\(--vocab-size\)=-3"),
        (["--batch-size", "0"], r"\(--batch-size\)=0"),
        (["--sequence-length", "-1"], r"\(--sequence-length\)=-1"),
        (["--sequence-length", str(10**12)], r"\(--sequence-length\)=1000000000000: it must be at most"),
        (["--batch-size", "100000", "--sequence-length", "100000"], "at most 2.31 tokens"),
        (["--pad-vocab-to", "0"], r"\(--pad-vocab-to\)=0"),
        (["--data", ""], "data='': it is empty"),
        (["--data", " "], "data=' ': it is empty"),
        (["--data-root", ""], "data_root='': it is empty"),
        (["--tokenizer", ""], "tokenizer='': it is empty"),
        (["--text-field", ""], "text_field='': it is empty"),
        (["--name", ""], "name=''"),
        (["--name", ".."], r"name='\.\.'"),
        (["--name", "a/b"], "name='a/b'"),
        (["--name", "x" * 300], "name='x+'.*at most 100"),
        (["--out", ""], "--out is empty"),
        (["--out", "/dev/null"], "/dev/null is a file"),
        (["--out", "/dev/null/x"], "cannot make the run folder"),
        (["--steps", str(10**30)], "steps=1000.*at most"),
        (["--steps", str(2**31)], "steps=2147483648: it must be at most"),
        (["--tokens", str(10**30)], "steps=.*at most"),
        (["--seeds", str(10**12)], "seeds=1000000000000: it must be at most 10,000"),
        (["--seeds", "2", "--seeds-at-once", "3"], r"\(--seeds-at-once\)=3: of seeds there are only 2"),
        (["--seeds-at-once", "0"], r"\(--seeds-at-once\)=0"),
        (["--lr", "1e-60"], "lr.*float32"),
        (["--lr", "1e39"], "lr.*float32"),
        (["--lr", "inf"], "lr.*positive and finite"),
        (["--margin", "inf"], "margin=inf"),
        (["--config", ""], "--config is empty"),
        (["--set", "dense.depth=3", "dense.depth=4"], "dense.depth=3 has no effect: dense.depth=4 comes after it"),
        (["--arms", "dense", "tapered", "--set", "all.taper.schedule=linear"], "does not reach the arm tapered"),
        (["--arms", "dense", "rising", "--set", "all.taper.start=1.25"], "does not reach the arm rising"),
        (["--arms", "dense", "leviathan", "--set", "all.embedding.std=0.1"], "does not reach the arm leviathan"),
        (["--arms", "dense", "gated-wide", "--set", "all.mixer.kind=titans"], "does not reach the arm gated-wide"),
        (["--arms", "dense", "gated", "--set", "all.mixer.kind=titans-mag"], "does not reach the arm gated"),
        (["--arms", "dense", "titans", "--set", "all.mixer.window=8"], "does not reach the arm titans"),
        (["--set", "dense.taper.start=2"], "dense.taper.start=2 has no effect: dense.taper.schedule is uniform"),
        (["--steps", "3", "--tokens", "1000"], "--steps and --tokens are both given"),
        (["--steps", "0"], "steps=0"),
        (["--preset", "200x6"], "preset 200x6, .*d_model=200 is not divisible"),
        (["--tokens", "0"], "--tokens 0: it must be at least 1"),
        (["--seeds", "0"], "seeds=0"),
        (["--lr", "0.01", "-0.01"], r"lr\)=-0.01: it must be positive"),
        (["--lr", "nan"], "lr.*positive"),
        (["--lr", "0.01", "0.01"], "lr.*twice"),
        (["--margin", "-1"], "margin=-1"),
        (["--margin", "nan"], "margin=nan"),
        (["--config", "nowhere.json"], "cannot read nowhere.json"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, told, here, capsys):
    assert re.search(told, refused(told_before_reading(arguments), capsys))
    assert list(here.iterdir()) == []


def test_a_setting_that_reaches_every_arm_is_taken():
    """By its match too, whatever that comes out at: a base of one layer where the matched depth is one either way."""
    from eqx_slm.study.presets import preset

    for settings in (SMALL, ["all.depth=3", "dense.depth=4"], ["all.taper.schedule=cosine"], ["all.depth=2"]):
        config = dataclasses.replace(preset("quick"), settings=tuple(settings))
        assert set(config.resolve(2048)) == set(config.arms)


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--pairing", "none"], ["--levithan"], ["--lr", "x"]])
def test_what_cannot_be_parsed_ends_with_the_same_code(arguments, here, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    output = capsys.readouterr()
    assert output.err and not output.out
    assert list(here.iterdir()) == []


def test_help_names_every_option_with_what_holds_without_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words, held in (([], "(quick: 1,120)"), (["--preset", "256x6"], "(256x6: 4,096)")):
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        output = capsys.readouterr()
        assert stop.value.code == 0 and output.err == "" and held in output.out
        for option in dataclasses.fields(Options):
            assert f"--{option.name.replace('_', '-')}" in output.out
        assert "None" not in output.out and output.out.rstrip().splitlines()[-5].strip().startswith("pair.py")
        assert max(map(len, output.out.splitlines())) <= 120


def bad_utf8(folder):
    (folder / "bad.txt").write_bytes(b"good\n\nbad \xff here")
    return [str(folder / "bad.txt")], r"bad\.txt, line 3 \(byte 10\): not UTF-8"


def missing(folder):
    return [str(folder / "nothing")], "no corpus '.*nothing'"


def empty(folder):
    (folder / "empty").mkdir()
    return [str(folder / "empty")], "empty holds no text"


def short(folder):
    # Batches of training windows, and not one of validation.
    long = ["512" if option == "16" else option for option in TINY]
    return [write_text(folder / "short.txt"), *long], r"valid split has .* tokens.* needs 2,049"


def vocabulary(folder):
    return [write_text(folder / "t.txt"), *TINY, "--vocab-size", "255"], "vocab_size is 255.* byte has 256 ids"


def named_corpus(folder):
    return ["ptb"], "no corpus 'ptb'"


@pytest.mark.parametrize("case", [bad_utf8, missing, empty, short, vocabulary, named_corpus])
def test_bad_data_is_refused_in_one_line(case, here, tmp_path, capsys):
    data, told = case(tmp_path)
    assert re.search(told, refused(["--data", *data], capsys))
    assert list(here.iterdir()) == []


def test_an_encoding_without_a_network_says_what_to_set(here, text, tmp_path, monkeypatch, capsys):
    import tiktoken
    import tiktoken.load
    import tiktoken.registry

    def no_network(path):
        raise OSError("no route to host")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-ranks"))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(tiktoken.load, "read_file", no_network)
    assert "set TIKTOKEN_CACHE_DIR" in refused(["--data", text, "--tokenizer", "o200k_base"], capsys)
    assert list(here.iterdir()) == []


def test_a_folder_that_holds_something_else_is_refused_before_data_is_read(here, capsys):
    (here / "out").mkdir()
    (here / "out" / "letter.txt").write_text("dear")
    assert "holds files that are no run" in refused(told_before_reading(["--out", "out"]), capsys)
    for known in ([], ["--vocab-size", "300"]):  # what a real run would refuse, a plan does
        plan = ["--dry-run", "--data", "nowhere", *known]
        assert "holds files that are no run" in refused([*plan, "--out", "out"], capsys)
        assert "--out out/letter.txt is a file" in refused([*plan, "--out", "out/letter.txt"], capsys)
        assert "--init-from gone: there is no such folder" in refused([*plan, "--init-from", "gone"], capsys)
        (here / "out" / "runs.jsonl").write_text("")
        assert "a run by schedule cosine cannot go on" in refused([*plan, "--go-on-from", "out"], capsys)
        (here / "out" / "runs.jsonl").unlink()
    assert [path.name for path in here.rglob("*")] == ["out", "letter.txt"]


@pytest.mark.parametrize("known", [True, False], ids=["vocabulary given", "vocabulary from data"])
def test_a_dry_run_trains_nothing_and_writes_nothing(known, here, text, monkeypatch, capsys):
    monkeypatch.setattr("eqx_slm.study.dry_run.matmul_rate", lambda dtype: 1e9)
    monkeypatch.setattr("eqx_slm.study.study.run_study", lambda *a, **k: pytest.fail("it trained"))
    vocabulary = ["--vocab-size", "300"] if known else []
    assert main(["--data", text, *TINY, *vocabulary, "--dry-run", "--arms", "dense", "leviathan-flop"]) == 0
    output = capsys.readouterr()
    assert list(here.iterdir()) == [] and output.err == ""
    size = 300 if known else 256
    assert f"{64 * size:,}" in output.out  # the dense table's parameters
    assert "leviathan-flop: flops matched to the base by d_ff" in output.out and "about" in output.out


def test_a_real_run_ends_with_a_verdict(here, text, monkeypatch, capsys):
    options = ["--arms", "dense", "dense", "--lr", "0.01", "--name", "mine", "--set", *SMALL]
    assert main(["--data", text, *TINY, *options]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    (folder,) = (here / "runs").iterdir()
    assert re.fullmatch(r"mine-[0-9a-f]{8}-0", folder.name)
    data = json.loads((folder / "result.json").read_text())
    assert [c["verdict"] for c in data["comparisons"]] == ["identical arms"]
    assert data["stream"]["corpus"] == "text.txt" and data["config"]["settings"] == SMALL
    lines = output.out.splitlines()
    assert lines[0].startswith("reading ") and lines[-1].startswith(f"runs/{folder.name}/report.md")
    assert any(line.startswith(" dense-2") and "identical arms" in line for line in lines)
    assert any(re.match(r"run 4/4 done: dense-2 seed 1, lr 0.01: \d+ s", line) for line in lines)
    assert not re.search(r"[\x1b\r]", output.out)  # plain lines: this is no terminal

    # The same command again has the next number; its config.json replays it to the same numbers.
    monkeypatch.setattr("eqx_slm.study.plot.render", lambda *arguments: {})
    assert main(["--config", str(folder / "config.json"), "--out", "again"]) == 0
    again = json.loads(Path("again/result.json").read_text())
    assert again["comparisons"][0]["curve"] == data["comparisons"][0]["curve"]
    assert again["stream"] == data["stream"] and again["config"] == data["config"]
    finals = [[run["final_nll"] for run in d["arms"]["dense"]["runs"]] for d in (data, again)]
    assert finals[0] == finals[1] and None not in finals[0]
    capsys.readouterr()
    assert main(["--config", "again/config.json", "--out", "again"]) == 0  # nothing is left to run
    assert "run 4/4 was there: dense-2 seed 1" in capsys.readouterr().out
    assert "steps 4 -> 5" in refused(["--config", "again/config.json", "--out", "again", "--steps", "5"], capsys)


def test_options_change_a_preset_or_a_config():
    from eqx_slm.study.command import Options, resolve
    from eqx_slm.study.presets import preset

    assert resolve(Options()) == preset("quick")
    changed = resolve(Options(tokens=1000, batch_size=2, sequence_length=100, lr=(0.1, 0.2), schedule="wsd", seeds=5))
    assert changed.steps == 5 and changed.tokens == 1000  # rounded up to whole steps
    assert resolve(Options(tokens=1001, batch_size=2, sequence_length=100)).steps == 6
    assert changed.learning_rates == (0.1, 0.2) and changed.seeds == 5
    assert changed.optimizer.schedule == "wsd" and changed.optimizer.beta2 == preset("quick").optimizer.beta2
    assert changed.stream.tokenizer == preset("quick").stream.tokenizer


def changed(tmp_path, text, name="config.json"):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--config", str(tmp_path / name)]


@pytest.fixture(scope="module")
def config():
    from eqx_slm.configs import to_dict
    from eqx_slm.study.presets import preset

    return to_dict(preset("quick"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: {}, "is no config of a study"),
        (lambda data: [], "an object with the fields of PairConfig"),
        (lambda data: "quick", "an object with the fields of PairConfig"),
        (
            lambda data: {"comparisons": [], "machine": {}},
            "is a study's result, not a study's config: give the config.json",
        ),
        (lambda data: data["model"], "is a model's config"),
        (lambda data: {k: v for k, v in data.items() if k != "arms"}, "is no config of a study"),
        (lambda data: data | {"stepz": 3}, "unknown field 'stepz'"),
        (lambda data: data | {"steps": "many"}, "steps='many': allowed is an integer"),
        (lambda data: data | {"steps": True}, "steps=True"),
        (lambda data: data | {"sample_tokens": -1}, "sample_tokens=-1"),
        (lambda data: data | {"evaluations": 0}, "evaluations=0"),
        (lambda data: data | {"compute_dtype": "float16"}, "compute_dtype='float16'"),
        (lambda data: data | {"optimizer": data["optimizer"] | {"beta2": 1.0}}, "optimizer.beta2=1.0: .*below 1"),
        (lambda data: data | {"optimizer": data["optimizer"] | {"eps": 0}}, "optimizer.eps=0.0: it must be positive"),
        (lambda data: data | {"stream": data["stream"] | {"eval_tokens": 0}}, r"eval_tokens \(--eval-tokens\)=0"),
        (lambda data: data | {"model": data["model"] | {"depth": [2]}}, r"model.depth=\[2\]"),
        (lambda data: data | {"model": data["model"] | {"depth": 0}}, "model.depth=0: it must be at least 1"),
    ],
)
def test_a_file_that_is_no_config_says_what_it_is(change, told, config, here, tmp_path, capsys):
    line = refused(told_before_reading(changed(tmp_path, json.dumps(change(config)))), capsys)
    assert re.search(told, line) and "config.json" in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('"margin": 0.01', '"margin": NaN'), "config.json: margin is NaN"),
        (('"margin": 0.01', '"margin": -Infinity'), "config.json: margin is -Infinity"),
        (('"floor": [0-9.]+', '"floor": 1e999'), "config.json: optimizer.floor is inf"),
        (('"depth": 2', '"depth": 2, "depth": 3'), "config.json: model.depth is given twice"),
        (('"margin": 0.01', '"margin": 0.01, "margin": 0.01'), "config.json: margin is given twice"),
        ((r'"learning_rates": \[', '"learning_rates": [0.01, NaN, '), r"config.json: learning_rates\[1\] is NaN"),
        (("{", "{{"), "config.json is not JSON"),
        (("quick", "\udcff"), "config.json is not JSON"),
        (('"steps": [0-9]+', '"steps": ' + "9" * 5000), "config.json is not JSON"),
    ],
)
def test_json_that_python_reads_and_nobody_means_is_refused(change, told, config, here, tmp_path, capsys):
    text, times = re.subn(*change, json.dumps(config), count=1)
    assert times == 1
    written = changed(tmp_path, text.encode("utf-8", "surrogateescape"))
    assert re.search(told, refused(told_before_reading(written), capsys))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_before_a_config_is_none(mark, config, tmp_path):
    from eqx_slm.study.config import read_config
    from eqx_slm.study.presets import preset

    _, path = changed(tmp_path, mark + json.dumps(config).encode())
    assert read_config(Path(path)) == preset("quick")


def test_a_setting_given_again_replaces_that_of_the_config(config, tmp_path):
    from eqx_slm.study.command import Options, resolve

    _, path = changed(tmp_path, json.dumps(config | {"settings": ["all.depth=3", "dense.d_model=32"]}))
    assert resolve(Options(config=path, set=("all.depth=4",))).settings == ("dense.d_model=32", "all.depth=4")


def test_losses_are_split_by_frequency_where_it_is_known():
    from eqx_slm.study.command import Options, resolve

    asked = (Options(), Options(data="stream:x"), Options(data="stream:x", frequency=4))
    assert [resolve(each).frequency for each in asked] == [10, 0, 4]


def test_the_text_field_reaches_the_data(monkeypatch):
    from eqx_slm.study.command import Options, resolve

    given = {}

    def open_data(data="stdlib", tokenizer=None, *, text_field=None, **options):
        given.update(data=data, text_field=text_field)

    monkeypatch.setattr("eqx_slm.data.open.open_data", open_data)
    resolve(Options(data="lines.jsonl", text_field="body")).stream.open()
    assert given == {"data": "lines.jsonl", "text_field": "body"}
    resolve(Options(data="lines.jsonl")).stream.open()
    assert given["text_field"] is None


def test_compiled_programs_are_needed(here, capsys):
    import jax

    with jax.disable_jit():
        assert "JAX_DISABLE_JIT is set" in refused(told_before_reading([]), capsys)
    assert list(here.iterdir()) == []


def test_gathering_keeps_flags_and_values_that_begin_with_a_dash():
    @dataclasses.dataclass
    class Options:
        seeds: tuple[int, ...] = ()
        rounds: bool = True
        out: str = ""

    got = parse(Options, ["--seeds", "1", "--no-rounds", "--seeds=2", "--out=-x"], "x.py")
    assert got == Options((1, 2), False, "-x")
