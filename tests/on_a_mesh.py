"""Trains tiny models on meshes of eight devices and holds them against one device; run by test_mesh.py.

python tests/on_a_mesh.py NAME...       # configs, in one process of eight devices
python tests/on_a_mesh.py --process I PORT OUT   # as process I of two, four devices each; losses go to OUT
"""

import json
import sys

import equinox as eqx
import jax
import numpy as np
from tiny import GENERATOR, tiny_config, tiny_stream

from eqx_slm import HeadConfig, OptimizerConfig, build, make_program
from eqx_slm.nn.titans import TitansConfig
from eqx_slm.train import train_run
from eqx_slm.train.mesh import device_bytes, place_on
from eqx_slm.train.step import compile_step

CONFIGS = {
    "dense": tiny_config(),
    "tied": tiny_config(head=HeadConfig("tied")),
    "leviathan": tiny_config(embedding=GENERATOR),
    "titans": tiny_config(mixer=TitansConfig(n_heads=2, chunk=4)),
}
MESHES = ("data=8", "fsdp=8", "model=4", "data=2,fsdp=2,model=2")
FEWER = MESHES[1::2]  # for what compiles slowly
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


def check(config):
    losses, params, _, _ = trained(config, "")
    for mesh in MESHES if config.mixer.kind == "attention" else FEWER:
        own, found, state, placed = trained(config, mesh)
        np.testing.assert_allclose(own, losses, rtol=2e-6)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
            # AdamW's first steps are near the sign of the gradient: what is nearly zero may turn by 1e-3 a step.
            np.testing.assert_allclose(a, b, atol=2e-4)
        kept = state.params, state.optimizer
        first = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(kept)]
        assert sum(first) == device_bytes(kept, placed.layout)


def process(index, port, out):
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
    model, placed = build(CONFIGS["leviathan"], key=jax.random.key(0)), place_on("data=2,fsdp=4")
    program = make_program(model, OPTIMIZER, placed=placed)
    how = {"seed": 0, "steps": 3, "learning_rate": 1e-3, "optimizer": OPTIMIZER, "evaluate_at": (1, 3)}
    record = train_run(program, model, STREAM, **how)
    told = {"nll": [each.nll for each in record.evals], "hash": record.stream_hash}
    leaves = jax.tree.leaves(eqx.filter(program.model(record.params), eqx.is_array))
    told["norm"] = float(sum(np.square(leaf).sum() for leaf in leaves))
    with open(f"{out}.{index}", "w") as file:
        json.dump(told, file)


if __name__ == "__main__":
    if sys.argv[1] == "--process":
        process(*sys.argv[2:])
    else:
        for name in sys.argv[1:]:
            check(CONFIGS[name])
    print("same")
