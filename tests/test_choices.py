"""Words in configs: a misspelt one is refused where configs come together."""

import dataclasses

import pytest
from refusals import refuses

from eqx_slm import AttentionConfig, HeadConfig, LeviathanConfig, MLPConfig, ModelConfig, OptimizerConfig, TaperConfig
from eqx_slm.checks import check_choices
from eqx_slm.study.presets import preset

CONFIG = ModelConfig(embedding=LeviathanConfig())
WRONG = {
    "positions": (CONFIG, CONFIG, "rope"),
    "placement": (CONFIG, CONFIG, "Pre"),
    "norm": (CONFIG, CONFIG, "rmsnorm"),
    "residual_init": (CONFIG, CONFIG, "x"),
    "kind": (CONFIG, CONFIG.head, "Tied"),
    "qk_norm": (CONFIG, CONFIG.mixer, "l2"),
    "activation": (CONFIG, CONFIG.channel, "silu"),
    "order": (CONFIG, CONFIG.embedding, "sorted"),
    "schedule": (CONFIG, CONFIG.taper, "cos"),
    "compute_dtype": (preset("quick"), preset("quick"), "bf16"),
    "pairing": (preset("quick"), preset("quick"), "none"),
}


def replaced(outer, inner, name, value):
    """A copy of `outer` with one field of `inner`, which it holds or is, set without its constructor.

    The constructor is type-checked here, and not for a user.
    """
    parts = [outer, *(getattr(outer, field.name) for field in dataclasses.fields(outer))]
    place = next(i for i, part in enumerate(parts) if part is inner)
    changed = object.__new__(type(inner))
    changed.__dict__.update(vars(inner) | {name: value})
    if place == 0:
        return changed
    whole = object.__new__(type(outer))
    whole.__dict__.update(vars(outer) | {dataclasses.fields(outer)[place - 1].name: changed})
    return whole


@pytest.mark.parametrize("name", WRONG)
def test_a_misspelt_word_is_named_with_what_is_allowed(name):
    outer, inner, value = WRONG[name]
    with refuses(f"^{name}='{value}': it is one of \\w"):
        type(outer).__post_init__(replaced(outer, inner, name, value))


def test_an_optimizers_schedule():
    config = object.__new__(OptimizerConfig)
    config.__dict__.update(vars(OptimizerConfig()) | {"schedule": "step"})
    with pytest.raises(ValueError, match="schedule='step': it is one of cosine, linear, wsd, constant"):
        OptimizerConfig.__post_init__(config)


def test_what_is_allowed_passes():
    for config in (CONFIG, preset("cpu"), AttentionConfig(), HeadConfig("tied"), MLPConfig(), TaperConfig("cosine")):
        check_choices(config)
