"""Configs as JSON, single fields from text, and what differs."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refuses

from eqx_slm import (
    AttentionConfig,
    BigramConfig,
    BinaryConfig,
    ComposedConfig,
    CompositionalConfig,
    ContinuumConfig,
    GatedAttentionConfig,
    HeadConfig,
    HybridConfig,
    LeviathanConfig,
    LowRankConfig,
    MLPConfig,
    ModelConfig,
    OptimizerConfig,
    PairConfig,
    SpelledConfig,
    TableConfig,
    TaperConfig,
    TitansConfig,
    TitansMACConfig,
    TitansMAGConfig,
    UserError,
)
from eqx_slm.configs import differences, from_dict, set_field, to_dict
from eqx_slm.study.arms import RECIPES, Tuned
from eqx_slm.study.config import StreamConfig
from eqx_slm.study.presets import preset

count = st.integers(1, 2**40)
share = st.floats(0, 1)
scale = st.floats(1e-6, 10)
orders = st.sampled_from(["tokenizer", "random", "frequency", "co-occurrence"])
KINDS = ["attention", "gated-attention", "titans", "titans-mag", "titans-mac"]
generators = st.builds(LeviathanConfig, seed_size=count, rank=count, output_std=st.none() | scale, order=orders)
tables = st.builds(TableConfig, std=scale) | st.builds(LowRankConfig, rank=count, std=scale)
tables |= st.builds(CompositionalConfig, coordinates=st.integers(1, 5), order=orders)
tables |= st.builds(BinaryConfig, std=scale) | st.builds(ComposedConfig, pieces=st.integers(2, 2**40), longest=count)
tables |= st.builds(SpelledConfig, code=st.sampled_from(["kronecker", "fourier"]), longest=count, std=scale)
tables |= st.builds(HybridConfig, rows=st.integers(0, 1), generator=generators)
tapers = st.builds(
    TaperConfig,
    schedule=st.sampled_from(["uniform", "cosine", "step-late"]),
    start=share,
    end=st.none() | share,
    multiple=count,
)


@st.composite
def model_configs(draw):
    embedding = draw(tables | generators)
    kinds = ["untied", "low-rank", "tied" if embedding.tieable else "generated"]
    heads = draw(st.integers(1, 8))
    softmax = draw(st.sampled_from([AttentionConfig, GatedAttentionConfig]))(
        n_heads=heads,
        n_kv_heads=draw(st.none() | st.just(heads)),
        rotary_fraction=draw(share),
        bias=draw(st.sampled_from(["none", "all"])),
    )
    memory = TitansConfig(n_heads=heads, chunk=draw(count), chunk_train=draw(st.none() | count), step_size=draw(scale))
    mixers = [softmax, memory, TitansMAGConfig(memory=memory, window=draw(count)), TitansMACConfig(memory=memory)]
    mlps = st.builds(MLPConfig, d_ff=st.none() | count, activation=st.sampled_from(["swiglu", "relu"]))
    # As below: a run-time type checker looks at random items of tuples, which a strategy must not.
    state = random.getstate()
    levels = ContinuumConfig(periods=draw(st.sampled_from([(1,), (1, 4), (3, 2, 1)])), multiple=draw(count))
    random.setstate(state)
    return ModelConfig(
        vocab_size=draw(count),
        d_model=2 * heads * draw(st.integers(1, 100)),
        embedding=embedding,
        head=HeadConfig(draw(st.sampled_from(kinds)), std=draw(scale)),
        mixer=draw(st.sampled_from(mixers)),
        channel=draw(mlps | st.just(levels)),
        positions=draw(st.sampled_from(["rotary", "learned", "none"])),
        taper=draw(tapers),
        norm=draw(st.sampled_from(["rms", "layer"])),
        bigrams=BigramConfig(draw(st.integers(0, 2**40)), rank=draw(st.none() | count)),
    )


# Its fields, not itself: a run-time type checker looks at random items of its tuples, which a strategy must not.
pair_fields = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[\w.+-]{0,9}\w[\w.+-]{0,9}", fullmatch=True),
        "arms": st.lists(st.sampled_from(sorted(RECIPES)), min_size=1).map(tuple),
        "settings": st.lists(st.text()).map(tuple),
        "model": model_configs(),
        "tuned": st.builds(Tuned, generator=generators),
        "stream": st.builds(
            StreamConfig, data=st.text().filter(str.strip), vocab_size=st.none() | st.integers(1, 2**31 - 1)
        ),
        "optimizer": st.builds(OptimizerConfig, weight_decay=scale, floor=share),
        "seeds": st.integers(1, 10_000),
        "learning_rates": st.lists(scale, min_size=1, unique=True).map(tuple),
        "pairing": st.sampled_from(["full", "data-only"]),
    }
)


def through_json(config):
    return from_dict(type(config), json.loads(json.dumps(to_dict(config), allow_nan=False)))


@given(model_configs() | pair_fields)
def test_every_config_comes_back_through_json(config):
    config = PairConfig(**config) if isinstance(config, dict) else config
    back = through_json(config)
    assert back == config
    assert differences(config, back) == []
    assert repr(back) == repr(config)  # 1 == 1.0 == True, but they do not print alike


def test_fields_left_out_of_json_have_their_defaults():
    assert from_dict(PairConfig, {}) == PairConfig()
    assert from_dict(PairConfig, {"model": {"embedding": {"kind": "leviathan"}}}).model.embedding == LeviathanConfig()


CONFIG = ModelConfig(d_model=64, embedding=LeviathanConfig())


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("depth", "7", 7),
        ("channel.d_ff", "128", 128),
        ("channel.d_ff", "none", None),
        ("embedding.output_std", "0.25", 0.25),
        ("embedding.output_std", ".25", 0.25),
        ("embedding.output_std", "1e-3", 1e-3),
        ("embedding.output_std", "2", 2.0),
        ("embedding.output_std", "None", None),
        ("embedding.output_std", "null", None),
        ("embedding.order", "random", "random"),
        ("head.kind", "low-rank", "low-rank"),
        ("taper.start", "1.25", 1.25),
        ("norm", "layer", "layer"),
    ],
)
def test_a_field_is_set_from_text(path, text, value):
    changed = set_field(CONFIG, path, text)
    for name in path.split("."):
        there = changed = getattr(changed, name)
    assert there == value and type(there) is type(value)
    (difference,) = differences(CONFIG, set_field(CONFIG, path, text)) or [None]
    assert difference is None or difference[0] == path


def test_only_that_field_changes_and_nothing_in_place():
    changed = set_field(CONFIG, "channel.d_ff", "96")
    assert differences(CONFIG, changed) == [("channel.d_ff", "-", "96")]
    assert CONFIG.channel.d_ff is None


@pytest.mark.parametrize("text", ["0.001,0.003", "1e-3 3e-3", "0.001, 3e-3"])
def test_a_tuple_is_set_from_text(text):
    assert set_field(PairConfig(), "learning_rates", text).learning_rates == (1e-3, 3e-3)
    assert set_field(PairConfig(), "arms", "dense tapered").arms == ("dense", "tapered")


def test_a_kind_brings_its_defaults():
    for kind, config in [("table", TableConfig()), ("low-rank", LowRankConfig()), ("leviathan", LeviathanConfig())]:
        assert set_field(ModelConfig(), "embedding.kind", kind).embedding == config
    changed = set_field(set_field(ModelConfig(), "embedding.kind", "low-rank"), "embedding.rank", "3")
    assert changed.embedding == LowRankConfig(rank=3)


def n_heads(mixer):
    return getattr(mixer, "memory", mixer).n_heads


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_another_kind_of_mixer_keeps_the_heads(before, after):
    """Wherever a mixer has them: 18 channels are no multiple of the default's four heads."""
    base = ModelConfig(d_model=18, mixer=AttentionConfig(n_heads=3))
    config = set_field(set_field(base, "mixer.kind", before), "mixer.kind", after)
    assert config.mixer.kind == after and n_heads(config.mixer) == 3
    rest = set_field(ModelConfig(), "mixer.kind", after).mixer
    fields = {field for field, _, _ in differences(rest, config.mixer)}
    assert fields == {"memory.n_heads" if hasattr(rest, "memory") else "n_heads"}


def test_heads_of_a_memory_are_set_by_their_own_name():
    config = set_field(ModelConfig(), "mixer.kind", "titans-mag")
    assert set_field(config, "mixer.memory.n_heads", "2").mixer == TitansMAGConfig(memory=TitansConfig(n_heads=2))
    with pytest.raises(UserError, match="'n_heads' is not one of kind, memory, window"):
        set_field(config, "mixer.n_heads", "2")


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("depht", "3", ["depht", "vocab_size", "depth", "taper"]),
        ("channel.width", "3", ["channel.width", "d_ff", "activation"]),
        ("embedding.std", "3", ["embedding.std", "seed_size", "rank"]),  # a table has one, a generator none
        ("depth.more", "3", ["depth.more", "no fields of its own"]),
        ("channel", "mlp", ["channel", "group of fields", "d_ff"]),
        ("", "3", ["''", "depth"]),
        ("depth", "three", ["depth='three'", "an integer"]),
        ("depth", "3.5", ["depth=3.5", "an integer"]),
        ("depth", "true", ["depth", "an integer"]),
        ("depth", "", ["depth=''", "an integer"]),
        ("depth", "none", ["depth='none'", "an integer"]),
        ("channel.d_ff", "wide", ["channel.d_ff='wide'", "an integer or none"]),
        ("taper.start", "nan", ["taper.start='nan'", "a number"]),
        ("taper.start", "Infinity", ["taper.start", "a number"]),
        ("embedding.kind", "tabel", ["embedding.kind='tabel'", "table", "low-rank", "compositional", "leviathan"]),
        ("norm", "batch", ["norm='batch'", "'rms'", "'layer'"]),
        ("depth", "0", ["depth=0", "at least 1"]),
        ("d_model", "66", ["d_model=66", "n_heads=4", "take d_model 64 or 72"]),
        ("head.kind", "tied", ['head "tied"', '"generated"']),
    ],
)
def test_what_cannot_be_set_is_told_with_what_is_allowed(path, text, told):
    with refuses() as error:
        set_field(CONFIG, path, text)
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"seedz": 3}, ["'seedz'", "seeds"]),
        ({"model": {"depth": "3"}}, ["model.depth='3'", "an integer"]),
        ({"model": {"depth": True}}, ["model.depth=True", "an integer"]),
        ({"model": {"embedding": {"kind": "leviathan", "knot": 3}}}, ["model.embedding.knot", "knots"]),
        ({"model": {"embedding": {"rank": 3}}}, ["model.embedding.kind=None", "table"]),
        ({"model": {"embedding": {"kind": ["table"]}}}, ["model.embedding.kind=['table']", "leviathan"]),
        ({"model": 3}, ["model=3", "ModelConfig"]),
        ({"arms": "dense"}, ["arms='dense'"]),
        ({"learning_rates": ["x"]}, ["learning_rates='x'", "a number"]),
        ({"seeds": 0}, ["seeds=0"]),
        ({"optimizer": {"warmup": 2}}, ["warmup=2"]),
        ([], ["PairConfig", "an object"]),
    ],
)
def test_json_that_does_not_fit_is_told_with_its_place(data, told):
    with refuses() as error:
        from_dict(PairConfig, data)
    for part in told:
        assert part in str(error.value)


def test_differences_name_every_field_on_either_side():
    assert differences(preset("quick"), preset("quick")) == []
    table, generator = ModelConfig(), ModelConfig(embedding=LeviathanConfig(), depth=3)
    told = {field: (old, new) for field, old, new in differences(table, generator)}
    assert told["depth"] == ("2", "3") and told["embedding.kind"] == ("table", "leviathan")
    assert told["embedding.std"] == ("0.02", "-") and told["embedding.knots"] == ("-", "16")
    assert "d_model" not in told


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-"])
def test_names_that_are_no_folder_are_refused(name):
    with pytest.raises(UserError, match="name="):
        PairConfig(name=name)
