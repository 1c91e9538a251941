"""Closed forms against the leaves that `build` makes, and against the published totals."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eqx_slm import (
    AttentionConfig,
    CompositionalConfig,
    HeadConfig,
    LeviathanConfig,
    LowRankConfig,
    MLPConfig,
    ModelConfig,
    TaperConfig,
    build,
    count_parameters,
    parameter_ledger,
)
from eqx_slm.account.ledger import component
from eqx_slm.testing import model_configs, vocab_sizes, width_schedules

DENSE = ModelConfig(vocab_size=200_376, d_model=256, depth=6, mixer=AttentionConfig(n_heads=8), channel=MLPConfig())
LEVIATHAN = dataclasses.replace(DENSE, depth=52, embedding=LeviathanConfig())
DEEP = dataclasses.replace(
    DENSE,
    depth=64,
    embedding=LeviathanConfig(skip="linear"),
    head=HeadConfig("low-rank", rank=7),
    positions="learned",
    mixer=AttentionConfig(n_heads=8, n_kv_heads=2, qk_norm="rms", bias="all"),
    channel=MLPConfig(d_ff=37 * 16, bias="all", activation="relu"),
    taper=TaperConfig("cosine", 1.5, 0.5, 16),
    norm="layer",
)


def shapes(config):
    """The model that `build` would make, as shapes: nothing is allocated."""
    return eqx.filter_eval_shape(lambda key: build(config, key=key), jax.random.key(0))


@settings(max_examples=8)
@given(model_configs(max_depth=8))
@example(DEEP)
def test_closed_forms_equal_the_leaves_entry_by_entry(config):
    model = shapes(config)
    closed, counted = parameter_ledger(config), parameter_ledger(model)
    without_leaves = {("embedding", 0)} - set(counted.entries)  # a fixed code of the ids
    assert dict(closed.entries) == dict(counted.entries) | dict(without_leaves & set(closed.entries))
    assert len(dict(closed.entries)) == len(closed.entries)
    assert closed.total == counted.total == count_parameters(config) == count_parameters(model)
    assert closed.buffer_bytes == counted.buffer_bytes
    # And without this library's own walk over the tree: shapes of inexact leaves, in Python integers.
    leaves = [leaf for leaf in jax.tree.leaves(model) if np.issubdtype(leaf.dtype, np.floating)]
    assert closed.total == sum(int(np.prod(leaf.shape, dtype=object)) for leaf in leaves)


@given(model_configs())
def test_parts_add_up(config):
    ledger = parameter_ledger(config)
    summary = ledger.summary()
    assert ledger.total == sum(count for _, count in ledger.entries)
    assert summary["total"] == ledger.total == sum(n for name, n in summary.items() if name != "total")
    assert summary["other"] == 0
    assert ledger["blocks"] == sum(ledger[f"blocks.{i}"] for i in range(config.depth))
    ends = ("embedding", "bigrams", "positions", "norm", "head")
    assert ledger["blocks"] + sum(ledger[name] for name in ends) == ledger.total
    assert 0 <= ledger.embedding_tax <= 1
    assert ledger["head"] == 0 or config.head.kind in ("untied", "low-rank")


def test_published_totals():
    dense = parameter_ledger(DENSE)
    assert dense.total == 108_887_296
    assert dense["embedding"] == dense["head"] == 200_376 * 256
    assert dense["blocks.0.mixer"] == 4 * 256**2 and dense["blocks.5.channel"] == 12 * 256**2
    leviathan = parameter_ledger(LEVIATHAN)
    # 52 layers with the published generator; its head is dense and untied.
    assert leviathan.total == 107_184_512
    assert leviathan["embedding"] == 1_204_352 + 512 * 256
    assert leviathan["head"] == 200_376 * 256


def test_embedding_tax():
    table = 200_376 * 256
    assert parameter_ledger(DENSE).embedding_tax == 2 * table / 108_887_296  # 94% of the published dense model
    tied = parameter_ledger(dataclasses.replace(DENSE, head=HeadConfig("tied")))
    assert tied.total == 108_887_296 - table and tied.embedding_tax == table / tied.total
    assert parameter_ledger(LEVIATHAN).embedding_tax == table / 107_184_512
    generated = dataclasses.replace(LEVIATHAN, head=HeadConfig("generated"))
    assert parameter_ledger(generated).embedding_tax == 0
    low_rank = dataclasses.replace(DENSE, embedding=LowRankConfig(rank=8), head=HeadConfig("low-rank", rank=4))
    assert parameter_ledger(low_rank).token_tables == 200_376 * 12
    assert parameter_ledger(shapes(dataclasses.replace(DENSE, depth=1))).embedding_tax is None  # leaves cannot tell


@pytest.mark.parametrize("embedding", [CompositionalConfig(order="random"), LeviathanConfig(order="random")])
def test_a_coordinate_order_is_bytes_and_not_parameters(embedding):
    config = dataclasses.replace(DENSE, vocab_size=1009, depth=1, embedding=embedding)
    plain = dataclasses.replace(config, embedding=dataclasses.replace(embedding, order="tokenizer"))
    for count in (lambda c: c, shapes):
        ledger, without = parameter_ledger(count(config)), parameter_ledger(count(plain))
        assert (ledger.buffer_bytes, without.buffer_bytes) == (4 * 1009, 0)
        assert ledger.entries == without.entries


def test_any_tree_can_be_counted():
    tree = {"a": np.zeros((3, 4), np.float32), "b": [np.zeros(5, np.int32), "text", 7], "c": np.zeros((), np.float64)}
    ledger = parameter_ledger(tree)
    assert dict(ledger.entries) == {"a": 12, "c": 1}
    assert ledger.buffer_bytes == 20
    assert count_parameters(tree) == 13
    assert parameter_ledger({}).total == 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embedding.w_in", "embedding"),
        ("blocks.17.mixer.q_norm.weight", "blocks.17.mixer"),
        ("blocks.17.channel.up", "blocks.17.channel"),
        ("blocks.3.mixer_norm.bias", "blocks.3.norms"),
        ("blocks.3.channel_norm.weight", "blocks.3.norms"),
        ("norm.weight", "norm"),
    ],
)
def test_components(name, expected):
    assert component(name) == expected


def test_a_taper_moves_parameters_and_adds_none():
    flat = parameter_ledger(dataclasses.replace(DEEP, taper=TaperConfig()))
    tapered = parameter_ledger(DEEP)
    assert tapered.total == flat.total
    assert tapered["blocks.0.channel"] > flat["blocks.0.channel"] > tapered["blocks.63.channel"]


@given(width_schedules())
def test_strategy_of_schedules_is_reachable(schedule):
    assert len(schedule.widths) == schedule.depth
    assert sum(schedule.widths) == schedule.depth * schedule.width
    assert all(width % schedule.taper.multiple == 0 for width in schedule.widths) or len(set(schedule.widths)) == 1


@given(st.integers(1, 200), st.integers(0, 200), st.data())
def test_strategy_of_vocabularies_keeps_its_bounds(low, more, data):
    assert low <= data.draw(vocab_sizes(low + more, min_value=low)) <= low + more


@pytest.mark.parametrize(
    ("name", "near"),
    [("misspelt", "embedding"), ("embeding", "embedding"), ("blocks.0.mixr", "blocks.0.mixer"), ("blocks.6", "blocks")]
    + [("", "embedding"), ("block", "blocks"), ("blocks.", "blocks")],
)
def test_a_component_that_is_not_there_is_named(name, near):
    with pytest.raises(KeyError, match=near):
        parameter_ledger(DENSE)[name]


def test_a_ledger_in_print():
    lines = str(parameter_ledger(dataclasses.replace(DEEP, depth=3, padding_ids=2))).splitlines()
    assert [line.split()[0] for line in lines] == (
        ["embedding", "positions", "blocks.0", "blocks.1", "blocks.2", "norm", "head", "total", "of"]
    )
    assert str(parameter_ledger(DENSE)).splitlines() == [
        "embedding        51,296,256   47.1%",
        "blocks.0-5        6,294,528    5.8%",
        "norm                    256    0.0%",
        "head             51,296,256   47.1%",
        "total           108,887,296  100.0%",
    ]
