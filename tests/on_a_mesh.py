"""Trains tiny models on meshes of eight devices and holds them against one device; run by test_mesh.py.

python tests/on_a_mesh.py NAME...       # configs, in one process of eight devices
python tests/on_a_mesh.py --process I PORT OUT   # a study as process I of two, four devices each, stopped on its way
python tests/on_a_mesh.py --go-on OUT            # the same in one process of eight, which goes on, and begins another
"""

import itertools
import sys

import equinox as eqx
import jax
import numpy as np
from tiny import GENERATOR, tiny_config, tiny_stream

from eqx_slm import HeadConfig, OptimizerConfig, Study, build, make_program, run_study
from eqx_slm.nn.ladder import FlatConfig
from eqx_slm.nn.titans import TitansConfig
from eqx_slm.train import RunConfig
from eqx_slm.train.mesh import device_bytes, place_on
from eqx_slm.train.processes import any_of, bytes_from_first, from_first, join
from eqx_slm.train.resume import TOGETHER, Stopped
from eqx_slm.train.step import batch_loss, compile_step

CONFIGS = {
    "dense": tiny_config(),
    "tied": tiny_config(head=HeadConfig("tied")),
    "leviathan": tiny_config(embedding=GENERATOR),
    "titans": tiny_config(mixer=TitansConfig(n_heads=2, chunk=4)),
}
MESHES = ("data=8", "fsdp=8", "model=4", "data=2,fsdp=2,model=2")
FEWER = {"leviathan": MESHES[1::2], "titans": MESHES[1:2]}  # of what compiles slowly
STREAM = tiny_stream(batch_size=8)
OPTIMIZER = OptimizerConfig()


def trained(config, mesh, steps=3):
    """Losses of training, a mean of evaluation, parameters in public form, the state and its layout."""
    model, placed = build(config, key=jax.random.key(0)), place_on(mesh)
    program = make_program(model, OPTIMIZER, placed=placed)
    program = compile_step(program, model, STREAM.batch(0, 0)).program
    state, losses = program.start(model), []
    for index in range(steps):
        state, metrics = program.step(state, program.batch(STREAM.batch(0, index)), np.float32(1e-3))
        losses.append(float(metrics.loss))
    losses.append(float(np.mean(np.asarray(program.evaluate(state.params, program.batch(STREAM.batch(0, 0)))))))
    return losses, eqx.filter(program.model(state.params), eqx.is_array), state, placed


def check(name):
    config = CONFIGS[name]
    losses, params, _, _ = trained(config, "")
    for mesh in FEWER.get(name, MESHES):
        own, found, state, placed = trained(config, mesh)
        np.testing.assert_allclose(own, losses, rtol=2e-6)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            # AdamW's first steps are near the sign of the gradient: what is nearly zero may turn by 1e-3 a step.
            np.testing.assert_allclose(a, b, atol=2e-4)
        kept = state.params, state.optimizer
        first = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(kept)]
        assert sum(first) == device_bytes(kept, placed.layout)


def drawn():
    """Dropout on eight devices, of eight rows that are equal: each share draws by its own key."""
    model = FlatConfig(vocab_size=8, context=4, d_model=8, hidden=(16,), dropout=0.5)(jax.random.key(0))
    batch = np.tile(np.array([[1, 2, 3, 4, 5]], np.int32), (8, 1))
    for mesh, shares in (("data=8", 8), ("data=2,fsdp=2", 4), ("data=1", 1)):
        program = make_program(model, OPTIMIZER, placed=place_on(mesh))
        state = program.start(model)
        key = jax.random.fold_in(state.key, 0)
        keys = [key] if shares == 1 else [jax.random.fold_in(key, i) for i in range(shares)]
        expected = [float(batch_loss(model, batch[: 8 // shares], own)) for own in keys]
        _, metrics = program.step(state, program.batch(batch), np.float32(1e-3))
        np.testing.assert_allclose(float(metrics.loss), np.mean(expected), rtol=1e-6)
        assert shares == 1 or np.ptp(expected) > 1e-3


RUN = RunConfig(steps=TOGETHER + 3, evaluations=2, probe="cosines", mesh="data=2,fsdp=4", average=0.5)
STUDY = Study("tiny", {"tied": CONFIGS["tied"]}, seeds=1, rates=(1e-2,), run=RUN)


def process(index, port, out):
    join(f"127.0.0.1:{port},2,{index}")
    assert [bytes_from_first(bytes([int(index)]) * size) for size in (0, 1, 7)] == [b"", b"\0", b"\0" * 7]
    assert from_first(lambda: ["first", int(index)]) == ["first", 0]
    asked, read = itertools.count(), []
    windows = STREAM.splits[0]["train"].windows
    STREAM.splits[0]["train"].windows = lambda starts, length: read.append(len(starts)) or windows(starts, length)
    try:  # the second process alone is told to stop, before the run and twice at its steps: the first step is over
        run_study(STUDY, STREAM, out=out, stop=lambda: index == "1" and next(asked) > 0)
    except Stopped:
        print("stopped")
    # The first, which hashes all batches, makes whole ones; the second its own half.
    assert set(read[-TOGETHER + 1 :]) == ({8} if index == "0" else {4}), read
    assert any_of(index == "1") and not any_of(False)


def go_on(out):
    said = []
    ends = [run_study(STUDY, STREAM, out=at, on_event=lambda event: said.append(event.text))[1] for at in (out, None)]
    assert f"goes on after step {TOGETHER}" in said, said
    one, other = (results.arms["tied"].runs[0] for results in ends)
    assert one.stream_hash == other.stream_hash and one.key == other.key
    np.testing.assert_allclose([e.nll for e in one.evals], [e.nll for e in other.evals], rtol=2e-6)
    np.testing.assert_allclose(one.averaged_nll, other.averaged_nll, rtol=2e-6)


if __name__ == "__main__":
    if sys.argv[1] == "--process":
        process(*sys.argv[2:])
    elif sys.argv[1] == "--go-on":
        go_on(*sys.argv[2:])
    else:
        for name in sys.argv[1:]:
            drawn() if name == "drawn" else check(name)
    print("same")
