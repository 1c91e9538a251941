"""A finished run put to use: its tokenizer with it, text from a prompt, the loss on a text as training has it."""

import dataclasses
import gzip
import json
import shutil

import equinox as eqx
import jax
import numpy as np
import pytest
from tiny import tiny_config

from eqx_slm import UserError, load_run, make_stream
from eqx_slm.__main__ import main
from eqx_slm.study import Study, frequency_classes, open_run, paired, text_by_frequency, text_loss
from eqx_slm.study.study import run_study
from eqx_slm.study.text_loss import ids_losses, read_text
from eqx_slm.train import RunConfig

LENGTH = 16
WORDS = ["the", "cat", "sat", "on", "a", "mat", "dogs", "ran", "and", "then"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(the run folder, its stream, its results): two arms on a text by characters, some ids of padding."""
    folder, rng = tmp_path_factory.mktemp("text"), np.random.default_rng(0)
    for name, size in (("train", 3000), ("valid", 600), ("test", 100)):
        (folder / f"{name}.txt").write_text(" ".join(rng.choice(WORDS, size)))
    stream = make_stream(str(folder), "char", sequence_length=LENGTH, batch_size=4, eval_tokens=512, vocab_size=32)
    arms = {name: tiny_config(vocab_size=32, norm=norm) for name, norm in (("one", "rms"), ("two", "layer"))}
    run = RunConfig(steps=30, evaluations=2, frequency=4)
    plan = Study("text", arms, 1, (1e-2,), (paired("one"),), report=(), run=run)
    out, results = run_study(plan, stream, out=folder / "run")
    return out, stream, results


def test_a_run_carries_its_tokenizer(study):
    folder, stream, _ = study
    run = open_run(folder, arm="two")
    text = "the cat sat on a mat"
    np.testing.assert_array_equal(run.encode(text), stream.encode(text))
    assert run.decode(run.encode(text)) == text and run.config.norm == "layer"
    inside = open_run(folder / "one" / "seed-0" / "lr-0.01")
    assert inside.config.norm == "rms" and inside.tokenizer.hash == stream.tokenizer.hash


def test_the_loss_on_a_text_is_what_training_measured(study):
    """The very tokens of the validation batches, one window after the other: the same loss and the same bits."""
    folder, stream, results = study
    for name, arm in results.arms.items():
        rows = np.concatenate(stream.eval_batches())
        run, losses = open_run(folder, arm=name), []
        for row in rows:
            losses.append(text_loss(run, stream.decode(row)))
        assert all(loss.tokens == LENGTH for loss in losses)
        last = arm.runs[0].evals[-1]
        np.testing.assert_allclose(np.mean([loss.nll for loss in losses]), last.nll, rtol=1e-5)
        np.testing.assert_allclose(np.mean([loss.bits_per_byte for loss in losses]), last.bits_per_byte, rtol=1e-5)
        assert losses[0].perplexity == pytest.approx(np.exp(losses[0].nll))


def test_the_loss_on_a_text_by_frequency_is_that_of_its_tokens(study, capsys, tmp_path):
    folder, stream, results = study
    run = open_run(folder)
    np.testing.assert_array_equal(run.counts, stream.token_counts())
    text = "the cat sat on a mat and the dogs ran then " * 3
    ids, nats = run.encode(text), ids_losses(run, np.asarray(run.encode(text)))
    split = text_by_frequency(run, text, classes=4)
    assert split.keys() == results.arms["one"].runs[0].by_frequency.keys()
    for kind, found in split.items():
        of = frequency_classes(run.counts, kind.split()[-1], 4)[ids[:-1] if kind.startswith("input") else ids[1:]]
        for number, (mean, size) in enumerate(found):
            assert size == (of == number).sum()
            assert mean is None if size == 0 else mean == pytest.approx(nats[of == number].mean(), rel=1e-6)
    whole = sum(mean * size for mean, size in split["target by mass"] if mean is not None) / len(nats)
    assert whole == pytest.approx(text_loss(run, text).nll, rel=1e-6)
    rarest = text_by_frequency(run, text, classes=4, counts=np.zeros(32, int))["target by rank"]
    assert [size for _, size in rarest] == [0, 0, 0, 0, len(nats)]  # nothing of it occurs
    (tmp_path / "book.txt").write_text(text)
    assert main(["eval", str(folder), str(tmp_path / "book.txt"), "--frequency", "4"]) == 0
    told = capsys.readouterr().out
    assert "target by rank" in told and f"{split['target by mass'][0][0]:.4f}" in told
    assert main(["eval", str(folder), str(tmp_path / "book.txt"), "--frequency", "-4"]) == 2
    with pytest.raises(UserError, match="one is needed for each"):
        text_by_frequency(run, text, counts=[1, 2])
    with pytest.raises(UserError, match="frequency=0"):
        text_by_frequency(dataclasses.replace(run, counts=None), text)


def test_damaged_counts_are_one_line(study, tmp_path):
    shutil.copytree(study[0], tmp_path / "run")
    file = tmp_path / "run" / "counts.json"
    file.write_text(file.read_text().replace("[", "[1, ", 1))
    with pytest.raises(UserError, match="counts.json"):
        open_run(tmp_path / "run")
    file.unlink()
    assert open_run(tmp_path / "run").counts is None


@pytest.mark.parametrize("length", [2, 3, LENGTH, LENGTH + 1, LENGTH + 2, 3 * LENGTH, 200])
@pytest.mark.parametrize("stride", [None, 1, 5, LENGTH])
def test_every_token_but_the_first_is_a_target_once(study, length, stride):
    run = open_run(study[0])
    text = ("the cat sat on a mat and then dogs ran " * 8)[:length]
    assert text_loss(run, text, stride=stride).tokens == length - 1


def test_a_stride_of_one_gives_every_target_all_the_context_there_is(study):
    run = open_run(study[0])
    text = "the cat sat on a mat and then dogs ran "
    ids, model = run.encode(text), eqx.filter_jit(run.model)
    losses = [-jax.nn.log_softmax(model(ids[max(0, i - LENGTH) : i])[-1])[ids[i]] for i in range(1, len(ids))]
    np.testing.assert_allclose(text_loss(run, text, stride=1).nll, np.mean(losses), rtol=1e-5)


def test_generated_text_has_no_padding(study):
    run = open_run(study[0])
    texts = {run.generate("the ", tokens=40, seed=seed, temperature=5.0) for seed in range(3)}
    assert len(texts) == 3 and all(len(text) == 40 and "\ufffd" not in text for text in texts)
    assert run.generate("the ", tokens=8, temperature=0.0) == run.generate("the ", tokens=8, temperature=0.0, seed=7)


def test_text_ends_before_a_stop_string_wherever_tokens_begin(study):
    run = open_run(study[0])
    how = {"tokens": 60, "seed": 3, "temperature": 1.0}
    whole = run.generate("the ", **how)
    for stop in ("t", whole[8:11], whole[5:9], ["zzz", whole[20:23]], [whole[30:33], whole[31:32]]):
        stops = [stop] if isinstance(stop, str) else stop
        cut = run.generate("the ", stop=stop, **how)
        assert whole.startswith(cut) and not any(each in cut for each in stops)
        assert any(whole[len(cut) :].startswith(each) for each in stops) or cut == whole
    assert run.generate("the ", stop=["zzz"], **how) == whole
    with pytest.raises(UserError, match="strings that are not empty"):
        run.generate("the ", stop=["a", ""], **how)


@pytest.mark.parametrize("stop", [(), ("at", "zz"), ("cat ",)])
def test_streamed_text_is_the_whole_text(study, stop):
    run = open_run(study[0])
    for seed in range(6):
        how = {"tokens": 50, "seed": seed, "temperature": 1.0, "stop": stop}
        pieces = list(run.stream("the ", **how))
        assert "".join(pieces) == run.generate("the ", **how) and all(pieces)
    assert len(list(run.stream("the ", tokens=50))) > 2


def test_several_prompts_are_continued_together(study):
    run = open_run(study[0])
    prompts = ["the cat", "a", "and then dogs ran "]
    texts = run.generate(prompts, tokens=20, temperature=0.0)
    assert texts == [run.generate(each, tokens=20, temperature=0.0) for each in prompts]
    cut = run.generate(prompts, tokens=20, temperature=0.0, stop=" ")
    assert cut == [text.split(" ")[0] for text in texts]
    with pytest.raises(UserError, match="no tokens"):
        run.generate(["the", ""], tokens=3)
    with pytest.raises(UserError, match="no prompt"):
        run.generate([], tokens=3)


def test_the_commands(study, tmp_path, capsys):
    folder = str(study[0])
    assert main(["generate", folder, "the cat", "--tokens", "12", "--temperature", "0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("the cat") and len(out.rstrip("\n")) >= len("the cat") + 10
    assert main(["generate", folder, "the cat", "--tokens", "30", "--temperature", "0", "--stop", "zz", " "]) == 0
    assert capsys.readouterr().out == out.rstrip("\n")[: out.find(" ", len("the cat"))] + "\n"
    (tmp_path / "t.txt").write_text("the cat sat on a mat")
    assert main(["eval", folder, str(tmp_path / "t.txt"), "--arm", "two"]) == 0
    loss = text_loss(open_run(folder, arm="two"), "the cat sat on a mat")
    assert capsys.readouterr().out.startswith(f"{loss.nll:.4f} nats a token over 19 tokens, perplexity ")


def test_eval_reads_a_file_as_training_does(study, tmp_path, capsys):
    """Line ends, byte-order marks, records and packed files give the loss of their text."""
    folder, text = str(study[0]), "the cat sat on a mat"
    (tmp_path / "plain.txt").write_text(text)
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "crlf.txt").write_bytes(b"a\r\nb\r\n")
    assert read_text(tmp_path / "crlf.txt") == "a\nb\n"
    (tmp_path / "records.jsonl").write_text(json.dumps({"text": text, "id": 1}) + "\n")
    (tmp_path / "packed.jsonl.gz").write_bytes(gzip.compress((json.dumps({"text": text}) + "\n").encode()))
    (tmp_path / "body.jsonl").write_text(json.dumps({"body": text}) + "\n")
    said, field = set(), {"body.jsonl": ["--text-field", "body"]}
    for name in ("plain.txt", "mark.txt", "records.jsonl", "packed.jsonl.gz", "body.jsonl"):
        assert main(["eval", folder, str(tmp_path / name), *field.get(name, [])]) == 0, name
        said.add(capsys.readouterr().out)
    assert len(said) == 1
    (tmp_path / "two").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "two" / name).write_text("the cat")
    assert read_text(tmp_path / "two") == "the cat\n\nthe cat"


def test_a_model_goes_out_and_comes_back(study, tmp_path, capsys):
    folder, out, plain, back = str(study[0]), *(str(tmp_path / name) for name in ("hf", "plain", "back"))
    assert main(["export", folder, out, "--arm", "one"]) == 0 and main(["import", out, back]) == 0
    assert main(["export", folder, plain, "--arm", "two", "--to", "safetensors"]) == 0
    assert capsys.readouterr().out.split() == [out, back, plain]
    ids = np.arange(10, dtype=np.int32)
    one, two = (eqx.filter_jit(open_run(folder, arm=arm).model)(ids) for arm in ("one", "two"))
    np.testing.assert_allclose(eqx.filter_jit(load_run(back))(ids), one, rtol=1e-4, atol=1e-5)
    again = open_run(plain)
    np.testing.assert_array_equal(eqx.filter_jit(again.model)(ids), two)
    assert again.decode(again.encode("the cat")) == "the cat"
    assert main(["export", folder, out]) == 2 and "is there already" in capsys.readouterr().err
    assert main(["export", folder, str(tmp_path / "no"), "--arm", "two"]) == 2
    assert "Llama's layout has no place for norm 'layer'" in capsys.readouterr().err


def test_what_cannot_be_is_one_line(study, tmp_path, capsys):
    folder = str(study[0])
    (tmp_path / "one.txt").write_text("t")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "cut.jsonl").write_text('{"text": "the c')
    empty = shutil.copytree(folder, tmp_path / "empty")
    (empty / "runs.jsonl").write_text("")
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "vocabulary.json").unlink()
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    told = json.loads((damaged / "vocabulary.json").read_text())
    (damaged / "vocabulary.json").write_text(json.dumps({**told, "hash": "0"}))
    for words, said in (
        (["generate", str(tmp_path / "no"), "x"], "holds no run"),
        (["generate", folder, ""], "the prompt has no tokens"),
        (["generate", folder, "the", "--top-p", "0"], "top_p=0.0: it must be a share above 0"),
        (["generate", folder, "the", "--arm", "three"], "has no model three/seed-0; there are: one/seed-0"),
        (["generate", str(bare), "the"], "holds no tokenizer (vocabulary.json): run its study again"),
        (["generate", str(damaged), "the"], "is damaged"),
        (["generate", folder, "the", "--tokens", "1e9"], "tokens=1000000000: it must be at most"),
        (["generate", folder, "the", "--sample", "9" * 20], "(--sample)=99999999999999999999: it must be at most"),
        (["generate", folder, "the", "--rate", "1"], "none is of learning rate 1; say which of one/seed-0/lr-"),
        (["generate", str(empty), "the"], "has lost its runs.jsonl: say which arm"),
        (["eval", folder, str(tmp_path / "no.txt")], "no file matches"),
        (["eval", folder, str(tmp_path / "bad.txt")], "this is UTF-16, not text in UTF-8"),
        (["eval", folder, str(tmp_path / "cut.jsonl")], "cut.jsonl, line 1 (byte 0): not JSON"),
        (["eval", folder, str(tmp_path / "one.txt")], "the text has 1 tokens: at least two are needed"),
        (["eval", folder, str(tmp_path / "one.txt"), "--stride", "99"], "stride=99: it must be at most 16"),
    ):
        assert main(words) == 2
        output = capsys.readouterr()
        assert output.err.count("\n") == 1 and said in output.err and output.out == "", output.err
    with pytest.raises(UserError, match="at most 16"):
        text_loss(open_run(folder), "the cat", stride=17)
