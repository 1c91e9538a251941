"""The probe: cosines against the blocks' parts written out, and a probed study's rows and section."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LENGTH, tiny_config, tiny_model, tiny_stream

from eqx_slm import ContinuumConfig, MLPConfig, TaperConfig
from eqx_slm.nn.probe import channel_cosines
from eqx_slm.study import Picture, Study, Table, alignment, grid, run_study
from eqx_slm.study.results import Row
from eqx_slm.train import RunConfig

STREAM = tiny_stream()
CHAIN = ContinuumConfig(d_ff=32, periods=(1, 2), multiple=1)


def cosine(a, b):
    return jnp.sum(a * b, -1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("channel", [MLPConfig(d_ff=32), CHAIN], ids=["mlp", "chain"])
def test_cosines_are_those_of_the_parts(placement, channel):
    model = tiny_model(tiny_config(depth=2, placement=placement, channel=channel))
    tokens = jnp.asarray(STREAM.batch(0, 0)[:2, :-1])
    wanted = []
    for sequence in tokens:
        x, own = model.embedding(sequence), []
        for block in model.blocks:
            if placement == "pre":
                stream = x + block.mixer(block.mixer_norm(x))
                after = block(x)
                added = after - stream
            else:
                stream = block.mixer_norm(x + block.mixer(x))
                after = block(x)
                added = block.channel(stream) if channel is not CHAIN else after - stream
            own.append(cosine(stream, added).mean())
            x = after
        wanted.append(own)
    found = channel_cosines(model, tokens)
    assert found.shape == (2,) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.mean(wanted, axis=0), atol=2e-5)


def test_a_channel_that_writes_the_stream_itself_has_a_cosine_of_one():
    model = tiny_model()
    block = model.blocks[0]
    added = block.around_channel(jnp.ones((1, LENGTH, 16)))
    np.testing.assert_allclose(added[0] + added[1], added[2], atol=1e-6)
    # RMSNorm at its start only scales: a channel that hands its input on adds along the stream.
    same = eqx.tree_at(lambda m: m.blocks[0].channel, model, lambda x: x)
    np.testing.assert_allclose(channel_cosines(same, jnp.asarray(STREAM.batch(0, 0)[:, :-1])), 1, atol=1e-5)


def test_a_model_without_blocks_has_none():
    assert channel_cosines(object(), jnp.zeros((1, 2), jnp.int32)).shape == (0,)


def test_a_probed_study_keeps_and_shows_cosines(tmp_path):
    study = Study(
        "probed",
        arms=grid("taper", {"uniform": TaperConfig(), "falling": TaperConfig("linear", 1.5, 0.5)}),
        seeds=2,
        rates=(1e-2,),
        report=(alignment(),),
        model=tiny_config(depth=2),
        run=RunConfig(steps=3, evaluations=2, seeds_at_once=2, probe="cosines"),
    )
    models = {}

    def keep(event):
        if event.kind == "run":
            models[event.arm, event.seed] = event.model

    folder, results = run_study(study, STREAM, out=tmp_path / "probed", on_event=keep)
    tokens = jnp.asarray(STREAM.eval_batches()[0][:, :-1])
    for arm in results.arms.values():
        for run in arm.runs:
            assert [len(each.cosines) for each in run.evals] == [2, 2]
            assert run.evals[0].cosines != run.evals[1].cosines
            found = jax.jit(channel_cosines)(models[arm.name, run.seed], tokens)
            np.testing.assert_allclose(run.evals[-1].cosines, found, atol=1e-4)
    assert [Row.of(line) for line in (folder / "runs.jsonl").read_text().splitlines()][0] == results.arms[
        "uniform"
    ].runs[0]
    blocks = alignment()(results)
    table = next(block for block in blocks if isinstance(block, Table))
    assert table.header == ["arm", "tokens", "layer 0", "layer 1"] and len(table.rows) == 4
    mean = np.mean([run.evals[-1].cosines[1] for run in results.arms["falling"].runs])
    assert table.rows[-1][0] == "falling" and table.rows[-1][-1] == f"{mean:.3f}"
    assert any(isinstance(block, Picture) and block.files["png"] for block in blocks)
    plain = {name: dataclasses.replace(arm, runs=()) for name, arm in results.arms.items()}
    assert alignment()(dataclasses.replace(results, arms=plain)) == []
