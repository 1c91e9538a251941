"""The memory of a training step in closed form, beside what XLA plans for the compiled one."""

import jax
import numpy as np
import pytest

from eqx_slm import AttentionConfig, ModelConfig, OptimizerConfig, build, make_program, memory
from eqx_slm.train import RunConfig
from eqx_slm.train.stack import loop_of
from eqx_slm.train.step import compile_step


@pytest.mark.parametrize(
    ("loop", "remat"), [("unrolled", "none"), ("runs", "none"), ("runs", "full"), ("runs", "dots")]
)
def test_memory_is_near_what_xla_plans(loop, remat):
    """Within 15% at 256x6 (experiments/LOG.md); a shape that compiles in a moment has more that is not counted."""
    config = ModelConfig(vocab_size=256, d_model=64, depth=6, context=256, mixer=AttentionConfig(n_heads=2))
    model, batch = build(config, key=jax.random.key(0)), np.zeros((8, 257), np.int32)
    report = compile_step(make_program(model, OptimizerConfig(), loop=loop, remat=remat), model, batch).report
    needs = memory(config, batch_size=8, scanned=loop == "runs", remat=remat)
    assert 0.75 < (needs.activations + needs.gradients) / report.temporary_bytes < 1.25


def test_what_is_scanned_is_what_the_step_scans():
    for depth in (2, 8):
        config = ModelConfig(vocab_size=16, d_model=8, depth=depth, mixer=AttentionConfig(n_heads=1))
        model = jax.eval_shape(lambda config=config: build(config, key=jax.random.key(0)))
        for loop in ("auto", "unrolled", "runs"):
            for remat in ("none", "full"):
                form = loop_of(model, remat) if loop == "auto" else loop
                assert RunConfig(loop=loop, remat=remat).scans(config.widths) == (form == "runs")
