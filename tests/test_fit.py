"""A generator in the place of a trained table."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import GENERATOR, LENGTH, VOCAB, tiny_config, tiny_model, tiny_stream

from eqx_slm import HeadConfig, OptimizerConfig, UserError, make_program
from eqx_slm.train import fit_generator, train_run

KEY = jax.random.key(5)


def trained(**changes):
    """A model that has learned the tiny stream a little."""
    model, optimizer = tiny_model(tiny_config(**changes)), OptimizerConfig()
    program = make_program(model, optimizer)
    how = {"seed": 0, "steps": 40, "learning_rate": 1e-2, "optimizer": optimizer, "evaluate_at": [40]}
    record = train_run(program, model, tiny_stream(), **how)
    return program.model(record.params), record.evals[-1].nll


@pytest.mark.parametrize("head", ["untied", "tied"])
def test_only_the_table_is_replaced_and_the_loss_comes_back(head):
    model, nll = trained(head=HeadConfig(head))
    started = fit_generator(model, GENERATOR, tiny_stream(), by="rows", steps=1, learning_rate=1e-9, key=KEY)
    fitted = fit_generator(model, GENERATOR, tiny_stream(), steps=60, learning_rate=1e-2, key=KEY)
    np.testing.assert_allclose(fitted.before, nll, rtol=1e-5)
    assert fitted.after < started.after  # what the steps are for
    assert type(fitted.model.embedding).__name__ == "LeviathanEmbedding"
    for mine, old in zip(jax.tree.leaves(fitted.model.blocks), jax.tree.leaves(model.blocks), strict=True):
        np.testing.assert_array_equal(mine, old)
    np.testing.assert_array_equal(fitted.model.read_out().weight, model.read_out().weight)
    ids = jnp.arange(LENGTH) % VOCAB
    with_table = eqx.tree_at(lambda m: m.embedding, fitted.model, model.embedding)
    np.testing.assert_allclose(eqx.filter_jit(with_table)(ids), eqx.filter_jit(model)(ids), rtol=1e-5, atol=1e-6)


def test_regression_lowers_the_error_of_the_rows():
    model, _ = trained()
    first, more = (
        fit_generator(model, GENERATOR, tiny_stream(), by="rows", steps=steps, learning_rate=1e-2, key=KEY)
        for steps in (1, 200)
    )
    rows = more.model.embedding.materialize()
    table = model.embedding.table
    np.testing.assert_allclose(more.error, np.linalg.norm(rows - table) / np.linalg.norm(table), rtol=1e-5)
    assert more.error < first.error


def test_a_model_without_a_table_is_refused():
    with pytest.raises(UserError, match="only a table is replaced"):
        fit_generator(tiny_model(tiny_config(embedding=GENERATOR)), GENERATOR, tiny_stream(), key=KEY)
