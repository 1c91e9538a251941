"""One mesh: the same model on one device and on eight, in one process and in two; and what is no mesh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_config, tiny_model, tiny_stream

from eqx_slm import OptimizerConfig, UserError, make_program
from eqx_slm.study.pair import pair
from eqx_slm.train import RunConfig, train_run
from eqx_slm.train.mesh import Layout, device_bytes, place_on

SCRIPT = str(Path(__file__).parent / "on_a_mesh.py")


def environment(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join((str(Path(SCRIPT).parents[1]), *sys.path))}


@pytest.mark.parametrize("names", [("dense", "tied"), ("leviathan", "titans")], ids=" ".join)
def test_a_mesh_trains_the_same_model(names):
    ran = subprocess.run([sys.executable, SCRIPT, *names], env=environment(8), capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.strip() == "same", ran.stdout[-2000:] + ran.stderr[-2000:]


def test_two_processes_train_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, SCRIPT, "--process"]
    both = [
        subprocess.Popen(
            [*command, str(i), port, str(tmp_path / "told")], env=environment(4), stderr=subprocess.PIPE, text=True
        )
        for i in (0, 1)
    ]
    ends = [(ran.communicate(timeout=300)[1], ran.returncode) for ran in both]
    assert [code for _, code in ends] == [0, 0], ends[0][0][-2000:] + ends[1][0][-2000:]
    told = [json.loads((tmp_path / f"told.{i}").read_text()) for i in (0, 1)]
    assert told[0] == told[1]
    from on_a_mesh import CONFIGS, OPTIMIZER, STREAM

    model = tiny_model(CONFIGS["leviathan"])
    how = {"seed": 0, "steps": 3, "learning_rate": 1e-3, "optimizer": OPTIMIZER, "evaluate_at": (1, 3)}
    record = train_run(make_program(model, OPTIMIZER), model, STREAM, **how)
    np.testing.assert_allclose(told[0]["nll"], [each.nll for each in record.evals], rtol=2e-6)
    assert told[0]["hash"] == record.stream_hash  # the same batches in the same order
    norm = sum(np.square(x).sum() for x in jax.tree.leaves(record.params))
    np.testing.assert_allclose(told[0]["norm"], norm, rtol=1e-4)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_layout_says_itself(data, fsdp, model):
    layout = Layout(data, fsdp, model)
    assert Layout.of(str(layout)) == layout and layout.devices == data * fsdp * model
    assert Layout.of(f" model = {model} ,fsdp={fsdp},data={data}") == layout


@given(st.lists(st.sampled_from([1, 3, 8, 16, 24]), max_size=3), st.sampled_from([1, 2, 8]), st.sampled_from([1, 2, 4]))
def test_every_split_divides(shape, fsdp, model):
    layout = Layout(fsdp=fsdp, model=model)
    spec = layout.spec("blocks.0.mixer.w_q", tuple(shape))
    assert len(spec) == len(shape) and "model" not in spec and list(spec).count("fsdp") <= 1
    for size, axis in zip(shape, spec, strict=True):
        assert axis is None or size % fsdp == 0
    split = "model" if model > 1 else None
    assert layout.spec("1.0.mu.embedding.table", (8, 24))[0] == split
    assert layout.spec("head.weight", (8, 24))[1] == ("fsdp" if fsdp > 1 else None)
    assert Layout(fsdp=4).spec("blocks.0.block.mixer.w_q", (8, 4, 4))[0] is None  # the axis of a scan


def test_a_device_of_eight_keeps_an_eighth():
    wide, narrow = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((256, 512), (256,)))
    shapes = {"blocks": [{"w": wide}], "norm": narrow}
    whole = device_bytes(shapes, Layout())
    assert whole == 4 * (256 * 512 + 256) and device_bytes(shapes, Layout(fsdp=8)) == whole // 8
    assert device_bytes(shapes, Layout(data=8)) == whole


@pytest.mark.parametrize(
    "text", ["", "data", "data=0", "data=x", "rows=2", "data=2,data=2", "data=2;fsdp=2", "data=-1"]
)
def test_what_is_no_mesh_is_one_line(text):
    with pytest.raises(UserError, match="--mesh .*the axes are data, fsdp, model, each given once"):
        Layout.of(text)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="64 devices, but this process sees"):
        place_on("data=64")
    with pytest.raises(UserError, match="each given once"):
        RunConfig(mesh="rows=2")
    with pytest.raises(UserError, match="6 rows of a batch .* do not divide by 4 shares"):
        Layout(data=2, fsdp=2).check({}, 6)
    with pytest.raises(UserError, match="the 65 rows of embedding.table do not divide by model=2: pad the vocabulary"):
        Layout(model=2).check({"embedding.table": (65, 8)}, 6)
    with pytest.raises(UserError, match="one program trains one seed on a mesh"):
        make_program(tiny_model(), OptimizerConfig(), replicates=2, placed=place_on("data=1"))


def test_the_step_on_a_mesh_lowers_for_tpu_and_gpu():
    model, placed, batch = tiny_model(), place_on("data=1"), tiny_stream().batch(0, 0)
    program = make_program(model, OptimizerConfig(), placed=placed, compute_dtype="bfloat16")
    state = jax.eval_shape(program.start, model)
    state = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), state, placed.shardings(state)
    )
    rows, rate = placed.batch_like(batch.shape, batch.dtype), jax.ShapeDtypeStruct((), np.float32)
    exported = jax.export.export(program.step, platforms=["tpu", "cuda"])(state, rows, rate)
    assert exported.platforms == ("tpu", "cuda")


def test_a_study_of_one_processs_share_is_refused():
    stream = tiny_stream()
    stream.process_count = 2
    with pytest.raises(UserError, match="the share of one of 2 processes"):
        pair({"one": tiny_config(), "two": tiny_config()}, stream, seeds=2, steps=2)


def test_a_study_runs_on_a_mesh_of_one():
    arms = {"one": tiny_config(), "two": tiny_config(norm="layer")}
    how = {"seeds": 1, "steps": 4, "evaluations": 1, "sample_tokens": 4}
    plain, meshed = (pair(arms, tiny_stream(), mesh=mesh, **how) for mesh in ("", "data=1"))
    ends = [[run["final_nll"] for arm in r.data["arms"].values() for run in arm["runs"]] for r in (plain, meshed)]
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-6)
