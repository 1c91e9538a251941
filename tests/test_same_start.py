"""What `build` promises of equal starts: a leaf of the same path and shape is the same draw in every config."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest

from eqx_slm import (
    AttentionConfig,
    ContinuumConfig,
    GatedAttentionConfig,
    MLPConfig,
    ModelConfig,
    TitansConfig,
    TitansMAGConfig,
    build,
)
from eqx_slm.pytree import path_name

PLAIN = ModelConfig(
    vocab_size=7, d_model=8, depth=1, context=8, mixer=AttentionConfig(n_heads=2), channel=MLPConfig(d_ff=16)
)
OTHERS = {
    "gated": dict(mixer=GatedAttentionConfig(n_heads=2)),
    "titans": dict(mixer=TitansConfig(n_heads=2)),
    "mag": dict(mixer=TitansMAGConfig(memory=TitansConfig(n_heads=2))),
    "hope": dict(channel=ContinuumConfig(d_ff=32, multiple=16)),
    "depth": dict(residual_init="depth", mixer=GatedAttentionConfig(n_heads=2)),
}
SCALED = {("gated", "titans", "blocks.0.mixer.w_gate")}


def leaves(config):
    model = build(config, key=jax.random.key(3))
    flat = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_inexact_array))[0]
    return {path_name(path): np.asarray(leaf) for path, leaf in flat}


@pytest.fixture(scope="module")
def models():
    configs = {"plain": PLAIN} | {name: dataclasses.replace(PLAIN, **changes) for name, changes in OTHERS.items()}
    return {name: leaves(config) for name, config in configs.items()}


def test_shared_leaves_start_equal_but_for_the_scale_of_their_module(models):
    """Equal to the bit between mixers, but for `w_gate`; proportional everywhere."""
    shared, scaled = 0, set()
    for one, first in models.items():
        for other, second in models.items():
            for path in first.keys() & second.keys():
                a, b = first[path], second[path]
                if one >= other or a.shape != b.shape:
                    continue
                shared += 1
                factor = (a * b).sum() / (b * b).sum() if b.any() else 1.0
                np.testing.assert_allclose(a, factor * b, rtol=1e-5, atol=1e-7, err_msg=f"{one}, {other}: {path}")
                if "depth" not in (one, other) and not np.array_equal(a, b):
                    scaled.add((one, other, path))
    assert shared > 50 and scaled == SCALED
    ratio = models["gated"]["blocks.0.mixer.w_gate"] / models["titans"]["blocks.0.mixer.w_gate"]
    np.testing.assert_allclose(ratio, 0.02 * np.sqrt(8), rtol=1e-5)
