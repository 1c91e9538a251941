"""Muon: which matrices it updates, and its update against the published iteration written out in NumPy."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest
from tiny import GENERATOR, LENGTH, VOCAB, tiny_config, tiny_model

from eqx_slm import OptimizerConfig, TitansConfig, make_program
from eqx_slm.train.checkpoint import named_arrays
from eqx_slm.train.optimizer import make_optimizer, matrix_groups, parameter_groups

MUON = OptimizerConfig(kind="muon", clip_norm=1e9, weight_decay=0.1, muon_lr=0.5)
CONFIG = tiny_config(embedding=GENERATOR, depth=2)


def test_hidden_matrices_are_muons_and_everything_is_in_one_group():
    groups = matrix_groups(tiny_model(CONFIG))
    assert groups.keys() == parameter_groups(tiny_model(CONFIG)).keys()
    matrices = [f"mixer.w_{which}" for which in "qkvo"] + [f"channel.{which}" for which in ("gate", "up", "down")]
    wanted = {f"blocks.{i}.{name}" for i in range(2) for name in matrices}
    assert {name for name, kind in groups.items() if kind == "muon"} == wanted


def test_filters_and_learned_memories_are_not_matrices():
    groups = matrix_groups(tiny_model(tiny_config(mixer=TitansConfig(n_heads=2, chunk=8))))
    adam = {name for name, kind in groups.items() if kind == "adamw" and name.startswith("blocks.0.mixer")}
    assert {"blocks.0.mixer.conv", "blocks.0.mixer.initial.0"} <= adam
    assert groups["blocks.0.mixer.w_q"] == "muon"


def orthogonalized(matrix):
    """Five steps of the quintic Newton-Schulz iteration (Keller Jordan's Muon)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def test_two_updates_are_those_of_numpy():
    model = tiny_model(CONFIG)
    params = named_arrays(model)
    groups, decay = matrix_groups(model), parameter_groups(model)
    rng = np.random.default_rng(0)
    leaves, form = jax.tree.flatten(jax.tree.map(lambda x: x, _arrays(model)))
    optimizer, adam = (make_optimizer(c, _arrays(model)) for c in (MUON, dataclasses.replace(MUON, kind="adamw")))
    state, adams = optimizer.init(_arrays(model)), adam.init(_arrays(model))
    momentum = {name: 0.0 for name in params}
    for step in (1, 2):
        gradients = jax.tree.unflatten(form, [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])
        updates, state = optimizer.update(gradients, state, _arrays(model))
        others, adams = adam.update(gradients, adams, _arrays(model))
        found, plain, given = named_arrays(updates), named_arrays(others), named_arrays(gradients)
        for name, kind in groups.items():
            if kind == "adamw":
                np.testing.assert_array_equal(found[name], plain[name])
                continue
            g = np.asarray(given[name], np.float64)
            momentum[name] = 0.95 * momentum[name] + 0.05 * g
            ahead = 0.95 * momentum[name] / (1 - 0.95 ** (step + 1)) + 0.05 * g / (1 - 0.95**step)
            assert decay[name] == "decay"
            wanted = 0.2 * max(g.shape) ** 0.5 * orthogonalized(ahead) + 0.1 * np.asarray(params[name])
            np.testing.assert_allclose(found[name], 0.5 * wanted, rtol=1e-3, atol=1e-4)


def _arrays(model):
    return eqx.filter(model, eqx.is_inexact_array)


@pytest.mark.parametrize("options", [{"loop": "runs"}, {"replicates": 2}], ids=str)
def test_scanned_layers_and_seeds_are_updated_one_by_one(options):
    model = tiny_model(CONFIG)
    batch = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH + 1), np.int32)
    count = options.get("replicates", 1)
    plain, other = make_program(model, MUON), make_program(model, MUON, **options)
    wanted, _ = plain.step(plain.start(model), batch, np.float32(1e-2))
    found, _ = other.step(
        other.start(*[model] * count), np.stack([batch] * count) if count > 1 else batch, np.float32(1e-2)
    )
    params = jax.tree.map(lambda x: x[0], found.params) if count > 1 else found.params
    wanted, params = named_arrays(plain.model(wanted.params)), named_arrays(other.model(params))
    for name, kind in matrix_groups(model).items():
        if kind == "muon":
            np.testing.assert_allclose(params[name], wanted[name], atol=1e-4)
