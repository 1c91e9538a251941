"""Gradient accumulation inside the step: one batch in parts gives the step of the whole."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import GENERATOR, LENGTH, VOCAB, tiny_config, tiny_model

from eqx_slm import OptimizerConfig, UserError, make_program, memory
from eqx_slm.study.presets import preset

ROWS = 6
RATE = np.float32(1e-2)
FORMS = {
    "dense": ({}, {}),
    "generator, scanned, rematerialised": ({"embedding": GENERATOR, "depth": 2}, {"loop": "runs", "remat": "full"}),
    "seeds": ({}, {"replicates": 2}),
    "bfloat16": ({}, {"compute_dtype": "bfloat16"}),
}


@functools.cache
def program_of(form, accumulate):
    changes, options = FORMS[form]
    model = tiny_model(tiny_config(**changes))
    return model, make_program(model, OptimizerConfig(), accumulate=accumulate, **options)


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5)
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(form, seed):
    _, options = FORMS[form]
    count = options.get("replicates", 1)
    shape = (count, ROWS, LENGTH + 1) if count > 1 else (ROWS, LENGTH + 1)
    batch = np.random.default_rng(seed).integers(0, VOCAB, shape, np.int32)
    found = {}
    for accumulate in (1, 3):
        model, program = program_of(form, accumulate)
        found[accumulate] = program.step(program.start(*[model] * count), batch, RATE)
    (whole, metrics), (parts, sums) = found[1], found[3]
    close = 2e-2 if form == "bfloat16" else 1e-5
    np.testing.assert_allclose(sums.loss, metrics.loss, rtol=close)
    np.testing.assert_allclose(sums.gradient_norm, metrics.gradient_norm, rtol=close)
    if form != "bfloat16":
        # Adam's first moment is a tenth of the (clipped) gradient: all of it is compared, not its norm alone.
        for one, other in zip(jax.tree.leaves(whole.optimizer), jax.tree.leaves(parts.optimizer), strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)


def test_parts_that_would_not_be_equal_are_refused():
    model, program = tiny_model(), make_program(tiny_model(), OptimizerConfig(), accumulate=4)
    with pytest.raises(UserError, match=r"accumulate.*=4: it must divide the 6 rows"):
        program.step(program.start(model), np.zeros((ROWS, LENGTH + 1), np.int32), RATE)
    with pytest.raises(UserError, match=r"must divide the 2 rows"):
        dataclasses.replace(preset("quick"), accumulate=3)


def test_memory_has_a_parts_activations():
    whole, parts = (memory(tiny_config(), batch_size=ROWS, accumulate=count) for count in (1, 3))
    assert 3 * parts.activations == whole.activations
    assert parts.gradients == 2 * whole.gradients
