"""A program of four devices: losses of read-outs whose rows are split over a mesh axis, against the definition.

`test_sharding.py` starts it, in a process of its own because the number of devices is fixed when jax starts.

    python tests/sharded_vocabulary.py EXAMPLES
"""

import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from eqx_slm import ReadOut, cross_entropy, token_losses

WIDTH, RANK = 5, 3


def mesh_of(data, model):
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def full_losses(x, weight, targets, cap, z_loss):
    """The definition, with all logits at once."""
    logits = x @ weight.T
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return normaliser - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0] + z_loss * normaliser**2


def draw_parameters(seed, kind, rows):
    random = np.random.default_rng(seed)
    made = {"mix": random.normal(size=(WIDTH, WIDTH)), "table": random.normal(size=(rows, WIDTH))}
    if kind != "tied":
        made["head"] = random.normal(size=(rows, RANK if kind == "low-rank" else WIDTH))
    if kind == "low-rank":
        made["projection"] = random.normal(size=(WIDTH, RANK))
    return jax.tree.map(jnp.asarray, made)


def rows_over_devices(table, ids):
    """An embedding of split rows: each device gives the rows that it has, and the sum is the embedding."""
    places = ids - jax.lax.axis_index("model") * len(table)
    here = (places >= 0) & (places < len(table))
    found = table[jnp.clip(places, 0, len(table) - 1)]
    return jax.lax.psum(jnp.where(here[..., None], found, 0), "model")


def head_of(parameters):
    return parameters.get("head", parameters["table"]), parameters.get("projection")


kinds = st.sampled_from(["untied", "tied", "low-rank"])
shares = st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=12, max_size=12).filter(any)


@settings(deadline=None, database=None, max_examples=int(sys.argv[1]), derandomize="CI" in os.environ)
@given(
    st.integers(0, 99),
    kinds,
    st.sampled_from([(1, 4), (2, 2), (4, 1), (1, 2), (2, 1)]),
    st.integers(1, 17),
    st.none() | st.integers(1, 5),
    st.none() | st.floats(0.5, 8),
    st.sampled_from([0.0, 0.3]),
    shares,
)
def losses_and_gradients(seed, kind, split, vocab, chunk, cap, z_loss, weights):
    """Every number equals that of the definition on one device, padded rows (filled with noise) or not."""
    data, model = split
    rows = -(-vocab // model) * model
    parameters = draw_parameters(seed, kind, rows)
    random = np.random.default_rng(seed + 100)
    tokens, targets = (jnp.asarray(random.integers(0, vocab, (4, 3))) for _ in range(2))
    weights = None if weights is None else jnp.asarray(weights).reshape(4, 3)
    options = {"vocab_axis": "model", "vocab_size": None if rows == vocab else vocab, "chunk": chunk, "soft_cap": cap}

    def sharded(parameters, tokens, targets, weights):
        x = rows_over_devices(parameters["table"], tokens) @ parameters["mix"]
        head = ReadOut(*head_of(parameters))
        mean = cross_entropy(x, head, targets, weights=weights, z_loss=z_loss, **options)
        losses = token_losses(x, head, targets, **options)
        share = jnp.ones(losses.shape) if weights is None else weights
        count = jax.lax.psum(mean.tokens, "data")
        return jax.lax.psum(mean.loss * mean.tokens, "data") / count, jax.lax.psum((losses * share).sum(), "data")

    def whole(parameters, tokens, targets, weights):
        weight, projection = head_of(parameters)
        x = parameters["table"][tokens] @ parameters["mix"]
        x, weight = x if projection is None else x @ projection, weight[:vocab]
        share = jnp.ones(targets.shape) if weights is None else weights
        both = [full_losses(x, weight, targets, cap, z) * share for z in (z_loss, 0.0)]
        return both[0].sum() / share.sum(), both[1].sum()

    specs = {name: P("model") if name in ("table", "head") else P() for name in parameters}
    on_mesh = jax.shard_map(
        sharded, mesh=mesh_of(*split), in_specs=(specs, P("data"), P("data"), P("data")), out_specs=P()
    )

    @jax.jit
    def compare(*arguments):
        results = []
        for losses in (on_mesh, whole):
            (mean, total), pull = jax.vjp(lambda p, f=losses: f(p, *arguments[1:]), arguments[0])
            # Not a unit cotangent: what is upstream of the loss reaches the gradients.
            squared = [pull((5 * mean, jnp.zeros_like(total))), pull((jnp.zeros_like(mean), 5 * total))]
            results.append((mean, total, squared))
        return results

    got, wanted = compare(parameters, tokens, targets, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), got, wanted)


def features_that_differ_by_device():
    """What a device adds to its copy of the features has the gradient of that copy: nothing is summed twice."""
    mesh = mesh_of(1, 4)
    random = np.random.default_rng(0)
    x, weight, targets = random.normal(size=(8, 5)), random.normal(size=(12, 5)), random.integers(0, 12, 8)

    def gathered(x, weight):
        x = jax.lax.all_gather(x, "model", tiled=True)  # in type it varies over the axis
        return cross_entropy(x, ReadOut(weight), jnp.asarray(targets), chunk=3, vocab_axis="model").loss

    on_mesh = jax.shard_map(gathered, mesh=mesh, in_specs=(P("model"), P("model")), out_specs=P())
    got = jax.jit(jax.value_and_grad(on_mesh, (0, 1)))(x, weight)
    wanted = jax.jit(
        jax.value_and_grad(lambda x, w: full_losses(x, w, jnp.asarray(targets), None, 0.0).mean(), (0, 1))
    )(x, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), got, wanted)


def bfloat16_features():
    """Sums stay float32, as on one device."""
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(16, 32)), jnp.bfloat16)
    weight, targets = jnp.asarray(random.normal(size=(24, 32)), jnp.float32), jnp.asarray(random.integers(0, 24, 16))

    def loss(x, weight, **options):
        return cross_entropy(x, ReadOut(weight), targets, chunk=4, **options).loss

    on_mesh = jax.shard_map(
        lambda x, w: loss(x, w, vocab_axis="model"), mesh=mesh_of(1, 4), in_specs=(P(), P("model")), out_specs=P()
    )
    got, wanted = (jax.jit(jax.value_and_grad(f, (0, 1)))(x, weight) for f in (on_mesh, loss))
    assert [leaf.dtype.name for leaf in jax.tree.leaves(got)] == ["float32", "bfloat16", "float32"]
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-6)
    np.testing.assert_allclose(got[1][1], wanted[1][1], rtol=2**-7, atol=1e-4)
    np.testing.assert_allclose(got[1][0].astype("f4"), wanted[1][0].astype("f4"), rtol=2**-6, atol=2e-4)


def targets_that_no_device_has():
    """They are seen in the loss, rather than taken for a target without a logit."""
    x, weight = jnp.ones((3, 2)), jnp.ones((8, 2))
    losses = jax.shard_map(
        lambda y, w: token_losses(x, ReadOut(w), y, vocab_axis="model", vocab_size=7),
        mesh=mesh_of(1, 4), in_specs=(P(), P("model")), out_specs=P(),
    )  # fmt: skip
    assert np.isfinite(losses(jnp.asarray([6, 7, 8]), weight)).tolist() == [True, False, False]


def what_is_refused():
    """A whole head on every device would count its rows four times."""

    def loss(w, **options):
        return cross_entropy(jnp.ones((3, 2)), ReadOut(w), jnp.zeros(3, int), vocab_axis="model", **options).loss

    for spec, check in ((P(), True), (P("model"), False)):
        with pytest.raises(ValueError, match="not split over the mesh axis 'model'"):
            jax.shard_map(loss, mesh=mesh_of(1, 4), in_specs=spec, out_specs=P(), check_vma=check)(jnp.ones((8, 2)))
    split = {"mesh": mesh_of(1, 4), "in_specs": P("model"), "out_specs": P()}
    with pytest.raises(ValueError, match=r"vocab_size=9: the read-out has 8 rows \(4 x 2\)"):
        jax.shard_map(lambda w: loss(w, vocab_size=9), **split)(jnp.ones((8, 2)))


def under_plain_jit():
    """The compiler splits the loss by itself: the same values, a split gradient, and no gather of the weight."""
    vocab, width, tokens = 8 * 251, 16, 64
    random = np.random.default_rng(2)
    x, weight = jnp.asarray(random.normal(size=(tokens, width))), jnp.asarray(random.normal(size=(vocab, width)))
    targets = jnp.asarray(random.integers(0, vocab, tokens))

    def loss(x, weight):
        return cross_entropy(x, ReadOut(weight), targets, chunk=16, soft_cap=5.0, z_loss=1e-2).loss

    wanted = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, weight)
    for split in ((1, 4), (2, 2)):
        mesh = mesh_of(*split)
        rows, by_row = NamedSharding(mesh, P("data")), NamedSharding(mesh, P("model"))
        arguments = jax.device_put(x, rows), jax.device_put(weight, by_row)
        step = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
        got = step(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), got, wanted)
        assert got[1][1].sharding.is_equivalent_to(by_row, 2), got[1][1].sharding
        assert f"f64[{vocab // split[1]},{width}]" in step.as_text()
        whole = [line for line in step.as_text().splitlines() if re.search(rf"f64\[(\d+,)?{vocab},", line)]
        assert not whole, whole[:3]


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    losses_and_gradients()
    features_that_differ_by_device()
    bfloat16_features()
    targets_that_no_device_has()
    what_is_refused()
    under_plain_jit()
    print("same")
