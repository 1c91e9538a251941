"""A module of eqx_slm inside of a Flax NNX model: its parameters are `nnx.Param`s, everything else is as it was."""

from typing import Any

import equinox as eqx
import jax
from flax import nnx


class Wrapped(nnx.Module):
    """An Equinox module whose floating-point leaves are `nnx.Param`s, named by their paths."""

    def __init__(self, module: Any):
        params, static = eqx.partition(module, eqx.is_inexact_array)
        leaves, tree = jax.tree_util.tree_flatten_with_path(params)
        names = [jax.tree_util.keystr(path)[1:] for path, _ in leaves]
        self.params = nnx.Dict({name: nnx.Param(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)})
        # A function, so that what is no parameter (a coordinate order) is no state of the model.
        self.join = lambda found: eqx.combine(jax.tree.unflatten(tree, [found[name] for name in names]), static)

    def module(self) -> Any:
        """The Equinox module with the parameters as they are now."""
        return self.join({name: param[...] for name, param in self.params.items()})

    def __call__(self, *arguments: Any) -> Any:
        return self.module()(*arguments)


if __name__ == "__main__":
    import jax.numpy as jnp
    import optax

    from eqx_slm import LeviathanEmbedding

    key, ids = jax.random.key(0), jnp.arange(32)
    embedding = LeviathanEmbedding(1000, 16, seed_size=8, n_heads=2, rank=4, order=jnp.arange(1000)[::-1], key=key)
    model = Wrapped(embedding)
    assert jnp.array_equal(model(ids), embedding(ids))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: Wrapped, optimizer: nnx.Optimizer) -> Any:
        loss, gradient = nnx.value_and_grad(lambda model: ((model(ids) - 1) ** 2).mean())(model)
        optimizer.update(model, gradient)
        return loss

    first, *_, last = [float(step(model, optimizer)) for _ in range(20)]
    assert last < 0.9 * first
    print(f"{len(model.params)} parameters, loss {first:.3f} to {last:.3f}")
