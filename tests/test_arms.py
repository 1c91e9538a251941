"""Named arms: valid at the presets, matched to their budgets, and equal where the rules say so."""

import dataclasses

import jax
import numpy as np
import pytest
from refusals import refuses

from eqx_slm import (
    CompositionalConfig,
    LeviathanConfig,
    LowRankConfig,
    MLPConfig,
    PairConfig,
    UserError,
    build,
    count_parameters,
    flops,
    parameter_ledger,
)
from eqx_slm.configs import differences
from eqx_slm.model import side_like
from eqx_slm.study.arms import RECIPES, make_arm
from eqx_slm.study.presets import preset
from eqx_slm.train.checkpoint import named_arrays

QUICK = preset("quick")
BASE = QUICK.model
CODES = ("binary", "binary-free", "spelled", "composed", "hybrid")
ARMS = {name: make_arm(name, BASE, QUICK.tuned) for name in RECIPES}


def resolve(arms, settings=(), vocab_size=2048, **changes):
    return dataclasses.replace(QUICK, arms=arms, settings=settings, **changes).resolve(vocab_size)


@pytest.mark.parametrize("name", RECIPES)
def test_every_arm_is_a_model_of_the_quick_preset(name):
    arm = ARMS[name]
    model = jax.eval_shape(lambda: build(arm.config, key=jax.random.key(0), **side_like(arm.config)))
    assert count_parameters(model) == parameter_ledger(arm.config).total
    assert arm.name == name and arm.config.vocab_size == BASE.vocab_size and arm.config.d_model == BASE.d_model
    assert (name == "dense") == (differences(BASE, arm.config) == [])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("dense-tied", {"head", "embedding", "lr_multipliers"}),
        ("dense-tied-deep", {"head", "embedding", "lr_multipliers", "depth"}),
        ("low-rank", {"embedding"}),
        ("low-rank-deep", {"embedding", "depth"}),
        ("compositional", {"embedding"}),
        ("leviathan", {"embedding", "lr_multipliers"}),
        ("leviathan-deep", {"embedding", "lr_multipliers", "depth"}),
        ("leviathan-flop", {"embedding", "lr_multipliers", "channel"}),
        *((name, {"embedding"}) for name in ("binary", "binary-free", "spelled", "composed")),
        *((f"{name}-deep", {"embedding", "depth"}) for name in ("binary", "binary-free", "spelled", "composed")),
        ("hybrid", {"embedding", "lr_multipliers"}),
        ("hybrid-deep", {"embedding", "lr_multipliers", "depth"}),
        ("bigrams", {"bigrams", "channel"}),
        ("bigrams-wide", {"bigrams"}),
        ("tapered", {"taper"}),
        ("rising", {"taper"}),
        ("gated", {"mixer", "channel"}),
        ("gated-wide", {"mixer"}),
        ("hope", {"channel"}),
        ("titans", {"mixer", "channel"}),
        ("titans-wide", {"mixer"}),
    ],
)
def test_an_arm_changes_its_named_fields_only(name, fields):
    assert {field.split(".")[0] for field, _, _ in differences(BASE, ARMS[name].config)} == fields


def test_matched_arms_tell_their_residual():
    for name, recipe in RECIPES.items():
        match, note = ARMS[name].match, ARMS[name].match_note
        assert (match is None) == (recipe.match is None) == (note is None)
        if match is None or note is None:
            continue
        achieved = count_parameters(ARMS[name].config) if recipe.match == "parameters" else match.achieved
        assert match.achieved == achieved and note.startswith(f"{recipe.match} matched to the base by {match.vary}")
        assert f"{match.residual:+.3%}" in note
        assert abs(match.residual) < 0.2


def test_deep_arms_take_the_nearest_depth():
    target = count_parameters(BASE)
    for name in ("dense-tied-deep", "low-rank-deep", "leviathan-deep"):
        config = ARMS[name].config
        assert config.depth > BASE.depth
        misses = [
            abs(count_parameters(dataclasses.replace(config, depth=config.depth + by)) - target) for by in (-1, 0, 1)
        ]
        assert misses[1] == min(misses)


def test_the_flop_arm_is_within_one_percent():
    dense, arm = flops(BASE), flops(ARMS["leviathan-flop"].config)
    assert abs(arm.total / dense.total - 1) < 0.01
    assert arm.embedding > 0 and arm.head == dense.head
    assert ARMS["leviathan-flop"].config.depth == BASE.depth


def test_the_low_rank_control_has_the_generators_size():
    generator, factors = (parameter_ledger(ARMS[name].config)["embedding"] for name in ("leviathan", "low-rank"))
    assert abs(factors - generator) <= (BASE.vocab_size + BASE.d_model) / 2
    assert isinstance(ARMS["low-rank"].config.embedding, LowRankConfig)
    assert isinstance(ARMS["compositional"].config.embedding, CompositionalConfig)


def test_tapers_keep_the_budget_and_mirror_each_other():
    falling, rising = ARMS["tapered"].config, ARMS["rising"].config
    assert falling.widths == tuple(reversed(rising.widths)) and falling.widths[0] > falling.widths[-1]
    assert count_parameters(falling) == count_parameters(rising) == count_parameters(BASE)


# ---------------------------------------------------------------------------------------------------------------------
# Leaves that arms share


@pytest.fixture(scope="module")
def leaves():
    """The initial values of some arms, small in vocabulary and depth, at one seed."""
    base = dataclasses.replace(BASE, vocab_size=1024, depth=3, channel=MLPConfig(d_ff=32))
    generator = LeviathanConfig(seed_size=8, n_heads=2, knots=4, rank=4)
    tuned = dataclasses.replace(QUICK.tuned, generator=generator, tied_std=None)
    arms = ("dense", "dense-tied", "leviathan-deep", "tapered")
    made = {name: make_arm(name, base, tuned).config for name in arms}
    made["of its own std"] = make_arm("dense-tied", base, dataclasses.replace(tuned, tied_std=0.3)).config
    return {name: named_arrays(build(config, key=jax.random.key(7))) for name, config in made.items()}


def shared(leaves, name):
    """(paths that are equal, paths in both that differ, paths of the reference alone, of the arm alone)."""
    dense, arm = leaves["dense"], leaves[name]
    both = dense.keys() & arm.keys()
    equal = {path for path in both if np.array_equal(dense[path], arm[path])}
    return equal, both - equal, dense.keys() - arm.keys(), arm.keys() - dense.keys()


def test_a_tied_model_shares_everything_but_the_head(leaves):
    assert shared(leaves, "dense-tied") == (leaves["dense-tied"].keys(), set(), {"head.weight"}, set())


def test_a_tied_table_of_its_own_std_is_the_same_table_on_another_scale(leaves):
    assert shared(leaves, "of its own std")[1] == {"embedding.table"}
    dense, tied = (leaves[name]["embedding.table"] for name in ("dense", "of its own std"))
    np.testing.assert_allclose(tied * (BASE.embedding.std / 0.3), dense, rtol=1e-6)


def test_a_deeper_generator_shares_the_body_and_the_head(leaves):
    equal, differ, gone, new = shared(leaves, "leviathan-deep")
    assert not differ and gone == {"embedding.table"}
    assert equal == {path for path in leaves["dense"] if not path.startswith("embedding.")}
    deeper = {path for path in new if path.startswith("blocks.")}
    assert deeper and min(int(path.split(".")[1]) for path in deeper) == 3
    assert all(path.startswith("embedding.") for path in new - deeper)


def test_a_taper_shares_all_leaves_of_equal_shape(leaves):
    equal, differ, gone, new = shared(leaves, "tapered")
    assert not gone and not new
    assert differ == {f"blocks.{i}.channel.{part}" for i in (0, 2) for part in ("gate", "up", "down")}
    assert {"blocks.1.channel.up", "blocks.0.mixer.w_q", "embedding.table", "head.weight"} <= equal
    shapes = {path: (leaves["dense"][path].shape, leaves["tapered"][path].shape) for path in differ}
    assert all(one != other for one, other in shapes.values())


def test_no_two_drawn_leaves_are_alike(leaves):
    """Equal values at one path would mean little if every path had the same ones."""
    drawn = {path: leaf for path, leaf in leaves["dense"].items() if leaf.ndim == 2}
    firsts = {np.asarray(leaf / np.std(leaf)).ravel()[0] for leaf in drawn.values()}
    assert len(firsts) == len(drawn)


# ---------------------------------------------------------------------------------------------------------------------
# Settings, labels, presets


def test_settings_of_an_arm_come_before_its_match():
    plain, small = (
        resolve(("dense", "leviathan-deep"), settings)["leviathan-deep"]
        for settings in ((), ("leviathan-deep.channel.activation=relu",))
    )
    # Layers of two matrices instead of three: the match finds room for more of them, in the same budget.
    assert small.config.depth > plain.config.depth
    assert small.match.target == plain.match.target == count_parameters(BASE)


def test_a_size_that_is_set_is_not_matched_again():
    arm = resolve(("dense", "leviathan-deep"), ("leviathan-deep.depth=9",))["leviathan-deep"]
    assert arm.config.depth == 9 and arm.match is None
    other = resolve(("dense", "leviathan-deep"), ("leviathan-deep.channel.d_ff=128",))["leviathan-deep"]
    assert other.config.channel.d_ff == 128 and other.match.target == count_parameters(BASE)


def test_settings_of_all_arms_change_the_base():
    arms = resolve(("dense", "leviathan-deep", "tapered"), ("all.depth=4", "all.norm=layer"))
    assert {arm.config.norm for arm in arms.values()} == {"layer"}
    assert arms["dense"].config.depth == arms["tapered"].config.depth == 4 < arms["leviathan-deep"].config.depth
    assert arms["leviathan-deep"].match.target == count_parameters(arms["dense"].config)


def test_the_same_arm_twice_has_two_labels():
    arms = resolve(("dense", "dense", "tapered", "dense"), ("dense-2.depth=5",))
    assert list(arms) == ["dense", "dense-2", "tapered", "dense-3"]
    assert [arm.config.depth for arm in arms.values()] == [BASE.depth, 5, BASE.depth, BASE.depth]
    assert [arm.name for arm in arms.values()] == list(arms)


@pytest.mark.parametrize(
    ("arms", "settings", "told"),
    [
        (("dense", "dense-tied"), ("all.embedding.kind=leviathan",), ["arm dense-tied", 'head "tied" needs a table']),
        (("dense", "leviathn"), (), ["'leviathn'", "leviathan-flop", "rising"]),
        (("dense",), ("dense.depht=3",), ["'depht'", "depth"]),
        (("dense",), ("all.depht=3",), ["'depht'", "depth"]),
        (("dense",), ("tapered.depth=3",), ["'tapered'", "all, dense"]),
        (("dense",), ("depth=3",), ["'depth=3'", "ARM.FIELD=VALUE"]),
        (("dense",), ("dense.depth",), ["'dense.depth'", "ARM.FIELD=VALUE"]),
        (("dense",), ("dense.depth=x",), ["depth='x'", "an integer"]),
        (("dense", "tapered"), ("tapered.taper.multiple=96",), ["96"]),
        (("dense", "leviathan"), ("leviathan.embedding.knots=2",), ["knots=2", "at least 3"]),
        (("dense", "leviathan"), ("leviathan.embedding.rank=0",), ["rank=0", "at least 1"]),
        (("dense", "leviathan-deep"), ("leviathan-deep.embedding.seed_size=-3",), ["seed_size=-3"]),
        (("dense", "compositional"), ("compositional.embedding.coordinates=0",), ["coordinates=0"]),
        (("dense", "low-rank"), ("low-rank.embedding.rank=0",), ["rank=0"]),
    ],
)
def test_arms_that_cannot_be_are_refused_before_training(arms, settings, told):
    with refuses() as error:
        resolve(arms, settings)
    for part in told:
        assert part in str(error.value)


def test_presets_by_name():
    assert preset("quick").name == "quick" and preset("cpu").tokens > preset("quick").tokens
    assert preset("cpu").model == preset("quick").model
    for wrong in ("slow", "", "256", "0x6", "256x0", "256x6x2", "-256x6", "256X6"):
        with pytest.raises(UserError, match="unknown preset.*quick, cpu.*256x6"):
            preset(wrong)


@pytest.mark.parametrize("name", ["200x6", "65x2"])
def test_a_shape_that_cannot_be_is_refused(name):
    with pytest.raises(UserError, match=f"preset {name}, heads of about 64: "):
        preset(name)


@pytest.mark.parametrize(("name", "d_model", "depth", "heads"), [("256x6", 256, 6, 4), ("768x12", 768, 12, 12)])
def test_shapes_are_the_published_ones(name, d_model, depth, heads):
    config = preset(name)
    dense = config.resolve(200_376)["dense"].config
    assert (dense.d_model, dense.depth, dense.mixer.n_heads, dense.context) == (d_model, depth, heads, 512)
    assert set(dense.widths) == {4 * d_model} and config.stream.batch_size == 512
    assert config.tuned.generator == LeviathanConfig()
    assert set(config.resolve(200_376)) == set(PairConfig().arms)


def test_the_published_total():
    assert parameter_ledger(preset("256x6").resolve(200_376)["dense"].config).total == 108_887_296
