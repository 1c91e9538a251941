"""A batch sharded over devices: each shard works on its own tokens, and the sums over shards are the whole's."""

import os
import subprocess
import sys

# A process of its own: the number of devices is fixed when jax starts.
PROGRAM = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from eqx_slm import LeviathanEmbedding, ReadOut, cross_entropy, embed_batch

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

for function, first, total in ((embedded, params, jax.lax.psum), (loss, head, jax.lax.pmean)):
    sharded = jax.shard_map(
        lambda *a: total(function(*a), "data"), mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()
    )
    got, wanted = (jax.jit(jax.value_and_grad(f, (0, 2)))(first, tokens, weights) for f in (sharded, function))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, wanted)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(got[1])) > 0
print("same")
"""


def test_shards_add_up():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip() == "same"
