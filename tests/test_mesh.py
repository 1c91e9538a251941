"""One mesh: the same model on one device and on eight, in one process and in two; and what is no mesh."""

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
from eqx_slm.train import RunConfig
from eqx_slm.train.mesh import Layout, device_bytes, place_on
from eqx_slm.train.processes import join

SCRIPT = str(Path(__file__).parent / "on_a_mesh.py")


def environment(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join((str(Path(SCRIPT).parents[1]), *sys.path))}


@pytest.mark.parametrize("names", [("dense", "tied"), ("leviathan", "titans", "drawn")], ids=" ".join)
def test_a_mesh_trains_the_same_model(names):
    ran = subprocess.run([sys.executable, SCRIPT, *names], env=environment(8), capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.strip() == "same", ran.stdout[-2000:] + ran.stderr[-2000:]


def test_a_study_of_two_processes_goes_on_in_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    out, how = str(tmp_path / "run"), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [[sys.executable, SCRIPT, "--process", str(i), port, out] for i in (0, 1)]
    both = [subprocess.Popen(command, env=environment(4), cwd=tmp_path, **how) for command in commands]
    ends = [(*ran.communicate(timeout=300), ran.returncode) for ran in both]
    for told, wrong, code in ends:
        assert code == 0 and "stopped\nsame" in told, told[-500:] + wrong[-3000:]
    command = [sys.executable, SCRIPT, "--go-on", out]
    ran = subprocess.run(command, env=environment(8), cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-3000:]


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


@pytest.mark.parametrize("text", ["node", "node:1,2", "node:1,2,2", "node:1,0,0", "1,2,node:1", "auto,2,0", " "])
def test_what_is_no_process_is_one_line(text):
    with pytest.raises(UserError, match="write auto, or HOST:PORT,COUNT,INDEX"):
        join(text)


def test_jax_that_has_begun_is_one_line():
    jax.devices()
    with pytest.raises(UserError, match="--processes 127.0.0.1:1,1,0: .*must be called before"):
        join("127.0.0.1:1,1,0")


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
