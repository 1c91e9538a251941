"""A run in lm-evaluation-harness: its numbers are our own."""

import importlib.util
import json

import equinox as eqx
import jax
import numpy as np
import pytest
from refusals import refuses
from test_text import LENGTH, study  # noqa: F401  (a fixture)

from eqx_slm.study import harness_model, open_run
from eqx_slm.study.lm_eval import answers, first_id, score
from eqx_slm.study.text_loss import ids_losses

HERE = importlib.util.find_spec("lm_eval") is not None
harness = pytest.mark.skipif(not HERE, reason="lm-eval is not installed (the extra lm-eval)")


@pytest.fixture(scope="module")
def run(study):  # noqa: F811
    return open_run(study[0])


@pytest.mark.skipif(HERE, reason="lm-eval is installed")
def test_without_the_harness_the_extra_is_named(run):
    with refuses(r"eqx_slm\[lm-eval\]"):
        harness_model(run)


def test_scores_are_sums_of_log_probabilities(run):
    """Against the model's own log-softmax; more pairs than a batch, some longer than the context."""
    model = eqx.filter_jit(run.model)
    texts = [("the c", "at"), ("a", " mat and then dogs"), ("the cat sat on a mat and", " then"), ("dogs r", "a")]
    pairs = [(run.encode(a).tolist(), run.encode(b).tolist()) for a, b in texts]
    greedy = int(np.argmax(np.asarray(model(np.asarray(pairs[0][0])))[-1][: run.tokenizer.vocab_size]))
    pairs.append((pairs[0][0], [greedy]))
    found = score(run, pairs, batch_size=2)
    for (before, after), (total, is_greedy) in zip(pairs, found, strict=True):
        ids = np.asarray([*before, *after])[-(LENGTH + 1) :]
        logits = np.asarray(model(ids[:-1]))
        wanted = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(ids) - 1), ids[1:]][-len(after) :]
        np.testing.assert_allclose(total, wanted.sum(), rtol=1e-5)
        assert is_greedy == (logits[:, : run.tokenizer.vocab_size].argmax(-1) == ids[1:])[-len(after) :].all()
    assert found[-1][1]


def test_answers_end_where_they_are_told(run):
    asked = [
        ("the cat", {"until": [" "], "max_gen_toks": 20}),
        ("a mat", {"until": "a", "max_gen_toks": 20}),
        ("the cat", {"max_gen_toks": 5}),
        ("", {"until": [], "max_gen_toks": 4}),
        ("the dogs", {"until": [" "], "max_gen_toks": 20}),
        ("the", {"do_sample": True, "temperature": 3.0, "top_k": 2, "max_gen_toks": 6}),
    ]
    found = answers(run, asked, batch_size=4)
    assert found[0] == run.generate("the cat", tokens=20, temperature=0.0, stop=" ")
    assert " " not in found[0] + found[4] and "a" not in found[1]
    assert found[2] == run.generate("the cat", tokens=5, temperature=0.0) and len(found[3]) == 4


class Request:
    def __init__(self, *args):
        self.args = args


@harness
def test_the_loss_of_a_text_is_our_own(run):
    """Whole windows: the harness gives the last one more context where it is not whole."""
    text = ("the cat sat on a mat and then dogs ran " * 4)[: 4 * LENGTH]
    ids = [first_id(run), *run.encode(text)]
    (found,) = harness_model(run, batch_size=3).loglikelihood_rolling([Request(text)])
    np.testing.assert_allclose(found, -ids_losses(run, np.asarray(ids, np.int32)).sum(), rtol=1e-6)


@harness
def test_a_continuation_after_spaces_and_after_nothing(run):
    model = harness_model(run)
    (spaced, _), (plain, _), (alone, _) = model.loglikelihood(
        [Request("the cat ", "sat"), Request("the cat", " sat"), Request("", "the")]
    )
    np.testing.assert_allclose(spaced, plain, rtol=1e-6)
    ids = np.asarray([first_id(run), *run.encode("the")], np.int32)
    np.testing.assert_allclose(alone, -ids_losses(run, ids).sum(), rtol=1e-5)


@harness
def test_a_task_of_ones_own(run, tmp_path, monkeypatch):
    """A file of questions, offline: the harness' figures are ours."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": "the cat sat on a mat", "end": " and"}, {"text": "a mat", "end": " ran"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "ours.yaml").write_text(
        f"task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "output_type: loglikelihood\ntest_split: test\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{end}}'\n"
        "target_delimiter: ''\nmetric_list:\n  - metric: perplexity\n    aggregation: perplexity\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=harness_model(run), tasks=["ours"], task_manager=manager, bootstrap_iters=0)
    encoded = [(run.encode(row["text"]).tolist(), run.encode(row["end"]).tolist()) for row in rows]
    wanted = np.exp(-np.mean([total for total, _ in score(run, encoded, 8)]))
    np.testing.assert_allclose(found["results"]["ours"]["perplexity,none"], wanted, rtol=1e-6)
