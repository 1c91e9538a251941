"""Arms of one's own on the command line."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm.configs import from_dict, to_dict
from eqx_slm.study.command import Options, resolve
from eqx_slm.study.config import PairConfig


@given(
    st.lists(st.sampled_from(["8", "16", "4"]), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(["2", "3"]), min_size=1, max_size=2, unique=True),
)
def test_a_grid_of_own_arms_is_every_pair(ranks, depths):
    text = f"mine=low-rank,embedding.rank={'/'.join(ranks)},depth={'/'.join(depths)}"
    config = resolve(Options(arm=(text,)))
    arms = config.resolve(2048)
    assert list(arms)[0] == "dense" and len(arms) == 1 + len(ranks) * len(depths)
    found = {(arm.config.embedding.rank, arm.config.depth) for arm in list(arms.values())[1:]}
    assert found == {(int(rank), int(depth)) for rank in ranks for depth in depths}
    assert from_dict(PairConfig, to_dict(config)).resolve(2048) == arms  # config.json replays it


def test_own_arms_join_those_that_are_named():
    texts = ("learned=dense,positions=learned", "m=dense,lr_multipliers=embedding=2, head=3,depth=3")
    one = resolve(Options(arm=texts))
    assert one.labels() == ("dense", "learned", "m") and one.recipes == ("dense", "dense", "dense")
    arms = one.resolve(2048)
    assert arms["learned"].config.positions == "learned" and arms["learned"].name == "learned"
    assert (arms["m"].config.lr_multipliers, arms["m"].config.depth) == ("embedding=2, head=3", 3)
    two = resolve(Options(arms=("dense", "low-rank"), arm=("x=low-rank-deep,embedding.rank=4",), set=("x.norm=layer",)))
    assert two.labels() == ("dense", "low-rank", "x")
    found = two.resolve(2048)["x"]
    assert found.config.norm == "layer" and found.config.embedding.rank == 4
    assert found.match is not None  # the budget is matched with the fields set


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (("x",), "write --arm NAME=ARM,FIELD=VALUE"),
        (("=dense",), "write --arm NAME=ARM"),
        (("a.b=dense",), "a name has letters"),
        (("all=dense",), "is not 'all'"),
        (("a=nothing",), "no arm 'nothing' to begin with"),
        (("a=dense,depth",), "'depth' is no FIELD=VALUE"),
        (("a=dense", "a=dense,depth=3"), "--arm a: two arms have this name"),
        (("dense=low-rank",), "two arms are called 'dense'"),
        (("a=dense,nothing=3",), "unknown field 'nothing'"),
    ],
)
def test_an_own_arm_that_cannot_be_is_one_line(texts, told):
    with refuses(re.escape(told)):
        resolve(Options(arm=texts)).resolve(2048)
