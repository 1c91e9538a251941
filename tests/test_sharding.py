"""A batch sharded over devices: each shard works on its own tokens, and the sums over shards are the whole's."""

import os
import subprocess
import sys
from pathlib import Path

from hypothesis import settings

# A process of its own: the number of devices is fixed when jax starts.
PROGRAM = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from eqx_slm import LeviathanEmbedding, ReadOut, TitansConfig, TitansMACConfig, cross_entropy, embed_batch
from eqx_slm.nn import leviathan

mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
tokens = jnp.asarray(np.concatenate([rng.integers(0, 50, (2, 6)), np.full((2, 6), 7)]))  # 12 distinct here, one there
weights = jnp.asarray(rng.normal(size=(4, 6, 8)), jnp.float32)
embedding = LeviathanEmbedding(
    50, 8, seed_size=4, n_heads=2, knots=4, rank=2, skip="linear", output_std=1.0, key=jax.random.key(0)
)
params, static = eqx.partition(embedding, eqx.is_inexact_array)
head = jnp.asarray(rng.normal(size=(50, 8)), jnp.float32)

def embedded(params, tokens, weights):
    return (embed_batch(eqx.combine(params, static), tokens) * weights).sum()

def loss(head, tokens, features):
    return cross_entropy(features, ReadOut(head), tokens, chunk=5).loss

def same(got, wanted):  # sums in another order: what cancels is off by a rounding of the largest
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-6 * max(np.abs(wanted).max(), 1))

def gradients(function, first):
    found = jax.jit(jax.value_and_grad(function, (0, 2)))(first, tokens, weights)
    return jax.tree.map(np.asarray, found)

def check(function, first, total, wanted=None):
    sharded = jax.shard_map(
        lambda *a: total(function(*a), "data"), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()
    )
    got = gradients(sharded, first)
    jax.tree.map(same, got, gradients(function, first) if wanted is None else wanted)
    assert max(np.abs(g).max() for g in jax.tree.leaves(got[1])) > 0

whole = gradients(embedded, params)
for chunk in (4, 16):  # up to three chunks, of which one shard needs one; a single chunk, without a loop
    leviathan.chunk_size = lambda n, numbers: chunk
    jax.clear_caches()
    check(embedded, params, jax.lax.psum, whole)
check(loss, head, jax.lax.pmean)
memory = TitansConfig(n_heads=2, chunk=2)  # three chunks of the six tokens
for config in (memory, TitansMACConfig(memory=memory)):
    params, mixer = eqx.partition(config.build(8, key=jax.random.key(0)), eqx.is_inexact_array)

    def remembered(params, tokens, x):
        return jnp.sin(jax.vmap(eqx.combine(params, mixer))(x)).sum()

    check(remembered, params, jax.lax.psum)
print("same")
"""


def run_on(devices, *command):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    ran = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert ran.stdout.strip() == "same"


def test_shards_add_up():
    run_on(2, "-c", PROGRAM)


def test_read_outs_split_by_rows():
    examples = max(8, settings.default.max_examples // 3)  # every example compiles
    run_on(4, str(Path(__file__).parent / "sharded_vocabulary.py"), str(examples))
