"""The matched pair: own modules, identical arms, sweeps, pairing, and what a result repeats."""

import copy
import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import GENERATOR, LENGTH, ROWS, VOCAB, WIDTH, tiny_config, tiny_stream

from eqx_slm import OptimizerConfig, TokenEmbedding, UserError, build, cooccurrence_order, frequency_order, pair
from eqx_slm.model import side_for

STREAM = tiny_stream()
DENSE = tiny_config()
OPTIONS = {"seeds": 2, "steps": 6, "learning_rates": (1e-2,), "evaluations": 3}


def study(arms, stream=STREAM, **options):
    return pair(arms, stream, **{**OPTIONS, **options})


class Shifted(TokenEmbedding):
    """A user's own token embedding: a table and a vector that is added to every row."""

    table: jax.Array
    shift: jax.Array
    vocab_size: int = eqx.field(static=True, default=VOCAB)
    d_model: int = eqx.field(static=True, default=WIDTH)

    def __call__(self, ids):
        return self.table[ids] + self.shift.reshape((1,) * ids.ndim + (-1,))


def make_shifted(key):
    model = build(DENSE, key=key)
    mine = Shifted(model.embedding.table, jnp.full(WIDTH, 0.5))
    return eqx.tree_at(lambda m: m.embedding, model, mine)


@pytest.fixture(scope="module")
def result():
    return study({"mine": make_shifted, "dense": DENSE}, sample_tokens=4)


def test_a_module_of_ones_own_against_a_config(result):
    data = result.data
    assert data["reference"] == "mine" and list(data["arms"]) == ["mine", "dense"]
    (comparison,) = result.comparisons
    assert (comparison["arm"], comparison["reference"]) == ("dense", "mine")
    assert comparison["config_difference"] is None
    assert result.verdicts == {"dense": comparison["verdict"]}
    mine, dense = data["arms"]["mine"], data["arms"]["dense"]
    assert mine["parameters"]["total"] == dense["parameters"]["total"] + WIDTH
    assert mine["config"] is None and dense["config"]["d_model"] == WIDTH
    assert mine["flops_per_token"]["total"] > 0 and mine["memory_bytes"]["activations"] is None
    finals = [[run["final_nll"] for run in arm["runs"]] for arm in (dense, mine)]
    np.testing.assert_allclose(comparison["differences"], np.subtract(*finals))
    assert all(difference != 0 for difference in comparison["differences"])


def test_a_result_is_plain_json_and_prints_its_verdict(result):
    assert json.loads(json.dumps(result.data, allow_nan=False)) == result.data
    assert result.comparisons[0]["verdict"] in str(result)
    assert "⟦…⟧" in result.data["arms"]["dense"]["runs"][0]["sample"]
    settings = result.data["settings"]
    assert settings["seeds"] == [0, 1] and settings["tokens"] == 6 * ROWS * LENGTH
    assert settings["eval_tokens"] == 2 * ROWS * LENGTH and settings["swept"] is False


def test_every_run_of_a_seed_saw_the_same_tokens(result):
    hashes = result.data["stream"]["stream_hash"]
    assert set(hashes) == {"0", "1"} and hashes["0"] != hashes["1"]
    other = study({"dense": DENSE}, tiny_stream(seed=9))
    assert not set(other.data["stream"]["stream_hash"].values()) & set(hashes.values())
    assert other.comparisons == []


def without_times(data):
    data = copy.deepcopy(data)
    for name in ("created", "seconds", "sha256"):
        del data[name]
    for arm in data["arms"].values():
        del arm["compile_seconds"]
        for run in arm["runs"] + arm["all_runs"]:
            del run["train_seconds"], run["tokens_per_second"], run["compile_seconds"]
    for comparison in data["comparisons"]:
        del comparison["time_ratio"]
        comparison["worth"] = [each for each in comparison["worth"] if each["what"] != "time"]
    return data


def test_the_same_call_gives_the_same_result(result):
    again = study({"mine": make_shifted, "dense": DENSE}, sample_tokens=4)
    assert without_times(again.data) == without_times(result.data)
    assert again.data["seconds"] != result.data["seconds"]


@pytest.mark.parametrize("arm", [DENSE, make_shifted], ids=["config", "function"])
def test_an_arm_against_itself_differs_by_exactly_nothing(arm):
    result = study({"one": arm, "two": arm}, seeds=[3, 5, 8])
    (comparison,) = result.comparisons
    assert comparison["differences"] == [0.0, 0.0, 0.0]
    assert (comparison["low"], comparison["mean"], comparison["high"]) == (0.0, 0.0, 0.0)
    assert comparison["verdict"] == "identical arms" and comparison["config_difference"] == []
    assert all(point["mean"] == 0.0 for point in comparison["curve"])


def test_equal_functions_that_are_not_the_same_still_do_not_differ():
    """Two compiled programs of the same model: nobody knows that the arms are equal, but the numbers are."""
    result = study({"one": make_shifted, "two": lambda key: make_shifted(key)})
    assert result.comparisons[0]["differences"] == [0.0, 0.0]
    assert result.comparisons[0]["config_difference"] is None


def runs_of(result, name, key="all_runs"):
    return result.data["arms"][name][key]


def test_a_sweep_judges_every_arm_at_its_own_best_rate():
    rates = (1e-5, 1e-1, 3e-2, 1e30)
    events = []
    result = study(
        {"dense": DENSE, "mine": make_shifted}, learning_rates=rates, sample_tokens=2, on_event=events.append
    )
    assert result.data["settings"]["swept"] and result.data["settings"]["learning_rates"] == list(rates)
    for name in ("dense", "mine"):
        arm = result.data["arms"][name]
        assert len(arm["all_runs"]) == 2 * len(rates)
        means = {}
        for rate in rates:
            # On the sequences with even number; those with odd number judge.
            finals = [run["evals"][-1]["halves"][0] for run in arm["all_runs"] if run["learning_rate"] == rate]
            means[rate] = np.inf if None in finals else np.mean(finals)
        assert arm["learning_rate"] == min(means, key=means.get)
        assert [run["learning_rate"] for run in arm["runs"]] == 2 * [arm["learning_rate"]]
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        diverged = [run["learning_rate"] for run in arm["all_runs"] if run["diverged"]]
        assert diverged == [1e30, 1e30]
        assert all((run["final_nll"] is None) == run["diverged"] for run in arm["all_runs"])
    ends = [[run["evals"][-1]["halves"][1] for run in runs_of(result, name, "runs")] for name in ("mine", "dense")]
    np.testing.assert_allclose(result.comparisons[0]["differences"], np.subtract(*ends))
    # One compile an arm for all rates and seeds.
    assert [event.arm for event in events if event.kind == "compiled"] == ["dense", "mine"]


def test_the_sample_is_of_the_best_rates_model():
    """The sample that a sweep shows is that of a study with its best rate alone."""
    rates = (1e-5, 1e-1, 1e-4)
    options = {"steps": 30, "seeds": 1, "sample_tokens": 12}
    swept = study({"dense": DENSE}, learning_rates=rates, **options)
    best = swept.data["arms"]["dense"]["learning_rate"]
    assert best == 1e-1
    alone = {rate: study({"dense": DENSE}, learning_rates=(rate,), **options) for rate in (best, 1e-5)}
    samples = {rate: runs_of(result, "dense", "runs")[0]["sample"] for rate, result in alone.items()}
    assert samples[best] != samples[1e-5]
    assert runs_of(swept, "dense", "runs")[0]["sample"] == samples[best]


def test_pairing_decides_whether_arms_start_alike():
    """At a rate that moves nothing, the losses are those of the initial values."""

    def finals(pairing):
        result = study({"one": DENSE, "two": DENSE}, learning_rates=(1e-30,), pairing=pairing)
        return [[run["final_nll"] for run in runs_of(result, name, "runs")] for name in ("one", "two")], result

    (one, two), result = finals("full")
    assert one == two and one[0] != one[1] and result.verdicts["two"] == "identical arms"
    (one, two), result = finals("data-only")
    assert one != two and result.data["settings"]["pairing"] == "data-only"
    assert result.data["stream"]["stream_hash"] == study({"one": DENSE}).data["stream"]["stream_hash"]


def test_a_reference_that_diverges_leaves_the_verdict_open():
    result = study({"dense": DENSE, "mine": make_shifted}, learning_rates=(1e30,))
    assert all(run["diverged"] for arm in result.data["arms"].values() for run in arm["runs"])
    assert result.verdicts == {"mine": "not resolved"}


def test_events_tell_the_whole_story():
    events = []
    study({"dense": DENSE}, on_event=events.append)
    kinds = [event.kind for event in events]
    assert kinds[0] == "compiled" and kinds.count("run") == 2 and kinds[-1] == "run"
    told = [event.progress.evaluation for event in events if event.kind == "progress"]
    assert len([evaluation for evaluation in told if evaluation]) == 2 * 3
    (first, second) = (event.model for event in events if event.kind == "run")
    assert first.head.weight.shape == (VOCAB, WIDTH) and (first.head.weight != second.head.weight).any()


def test_an_order_comes_from_the_streams_training_split():
    """For a vocabulary that is larger than the stream's, too."""
    models = []
    config = tiny_config(vocab_size=80, embedding=dataclasses.replace(GENERATOR, order="frequency"))
    result = study({"padded": config}, seeds=1, on_event=lambda event: models.append(event.model))
    trained = next(model for model in models if model)
    wanted = frequency_order(np.bincount(STREAM.training_tokens(), minlength=80))
    np.testing.assert_array_equal(trained.embedding.order, wanted)
    assert result.data["arms"]["padded"]["buffers_bytes"] == 4 * 80
    known = side_for(
        dataclasses.replace(config, embedding=dataclasses.replace(GENERATOR, order="co-occurrence")), STREAM
    )
    np.testing.assert_array_equal(known.pop("order"), cooccurrence_order(STREAM.training_tokens(), 80))
    assert known == side_for(DENSE, STREAM) == {}


@pytest.mark.parametrize(
    ("arms", "options", "told"),
    [
        ({}, {}, "no arms"),
        ({"small": tiny_config(vocab_size=63)}, {}, "arm small .*63.*at least 64"),
        ({"small": lambda key: build(tiny_config(vocab_size=63), key=key)}, {}, "arm small .*63.*64"),
        ({"dense": DENSE}, {"seeds": 0}, "seeds=0: .*at least 1"),
        ({"dense": DENSE}, {"steps": 0}, "steps=0: .*at least 1"),
        ({"dense": DENSE}, {"learning_rates": ()}, "at least one"),
        ({"dense": DENSE}, {"margin": float("nan")}, "margin"),
        ({"dense": DENSE}, {"margin": -1.0}, "margin"),
        ({"dense": DENSE}, {"confidence": 1.0}, "confidence"),
        ({"dense": DENSE}, {"learning_rates": (1e-2, 1e-2)}, "learning_rates"),
        ({"dense": DENSE}, {"learning_rates": (float("nan"),)}, "learning_rates"),
        ({"dense": DENSE}, {"seeds": (1, 1)}, "seeds"),
        ({"dense": DENSE}, {"seeds_at_once": 0}, "seeds_at_once .*=0.*at least 1"),
        ({"dense": DENSE}, {"seeds_at_once": 3}, "seeds_at_once .*=3: of seeds there are only 2"),
        ({"dense": DENSE}, {"seeds": 10**12}, "seeds=1000000000000: it must be at most 10,000"),
        ({"dense": DENSE}, {"seeds": range(10**12)}, "seeds=1000000000000"),
        ({"dense": DENSE}, {"sample_tokens": -1}, "sample_tokens=-1"),
        ({"dense": DENSE}, {"evaluations": 0}, "evaluations=0"),
        ({"dense": DENSE}, {"steps": 10**30}, "steps=.*at most"),
        ({"dense": DENSE}, {"learning_rates": (1e-60,)}, "in float32"),
    ],
)
def test_what_cannot_be_paired_is_refused_before_training(arms, options, told):
    trained = []
    with pytest.raises(UserError, match=told):
        study(arms, on_event=trained.append, **options)
    assert not trained


def test_the_optimizer_is_the_one_that_is_given():
    cosine, constant = (
        study({"dense": DENSE}, seeds=1, optimizer=OptimizerConfig(schedule=schedule))
        for schedule in ("cosine", "constant")
    )
    assert constant.data["settings"]["optimizer"]["schedule"] == "constant"
    assert runs_of(cosine, "dense", "runs")[0]["final_nll"] != runs_of(constant, "dense", "runs")[0]["final_nll"]


def test_seeds_at_once_give_the_same_result_as_one_after_the_other():
    """Three seeds two at once: a pair, and one that is left."""
    alone, in_pairs = (study({"it": tiny_config(embedding=GENERATOR)}, seeds=3, seeds_at_once=n) for n in (1, 2))
    assert [result.data["arms"]["it"]["seeds_at_once"] for result in (alone, in_pairs)] == [1, 2]
    wanted, found = ([run["final_nll"] for run in runs_of(result, "it", "runs")] for result in (alone, in_pairs))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_buffers_that_depend_on_the_seed_are_that_seeds():
    """A program holds what is not a parameter: a seed with another order must not run in the first seed's program."""

    def make(key):
        order = jax.random.permutation(jax.random.fold_in(key, 1), VOCAB).astype(jnp.int32)
        config = tiny_config(embedding=dataclasses.replace(GENERATOR, order="random"))
        return build(config, order=order, key=key)

    models = []
    study({"mine": make}, seeds=2, on_event=lambda e: models.append((e.seed, e.model)) if e.kind == "run" else None)
    for seed, model in models:
        np.testing.assert_array_equal(model.embedding.order, make(jax.random.key(seed)).embedding.order)
    assert not np.array_equal(models[0][1].embedding.order, models[1][1].embedding.order)
