"""A generator in the place of a trained model's token table, fitted by the loss of the model or by regression."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..checks import one_of, whole
from ..errors import UserError
from ..nn.head import Head
from ..nn.lm import LanguageModel
from .loop import train_run
from .optimizer import OptimizerConfig
from .step import make_program

RECIPE = OptimizerConfig(weight_decay=0.0, floor=0.0)


class Fitted(NamedTuple):
    """`model`, with the generator; the validation loss in nats a token with the table (`before`) and with the generator
    (`after`); `error`, |rows - table| / |table| by the Frobenius norm."""

    model: LanguageModel
    before: float
    after: float
    error: float


class _Inside(eqx.Module):
    """A model whose embedding alone is parameters: the rest stands in a function, where no optimizer sees it."""

    embedding: Any
    join: Callable[[Any], LanguageModel] = eqx.field(static=True)
    lr_multipliers: str = eqx.field(static=True, default="")

    def batch_features(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        return self.join(self.embedding).batch_features(tokens)

    def read_out(self) -> Any:
        return self.join(self.embedding).read_out()


def fit_generator(
    model: LanguageModel,
    generator: Any,
    stream: Any,
    *,
    by: Literal["loss", "rows"] = "loss",
    steps: int = 1000,
    learning_rate: float = 3.5e-3,
    optimizer: OptimizerConfig = RECIPE,
    lr_multipliers: str = "",
    seed: int = 0,
    key: PRNGKeyArray,
) -> Fitted:
    """Puts a generator where a trained model has its token table, everything else kept as it is.

    Regression on the rows (`by="rows"`) weighs every row alike and reads no text; trained by the loss of the frozen
    model on text (`by="loss"`), the generator finds vectors that the blocks can use, whatever the rows were. Neither
    gives the table's loss back where the generator is half as large (experiments/LOG.md). A tied model keeps its table
    as the head.

    **Arguments:**

    - `model`: trained, with a table.
    - `generator`: the config of what takes its place, such as `LeviathanConfig(...)`; or a module to go on with, such
      as the embedding of another `Fitted`.
    - `stream`: the text, as for training; its validation part gives `before` and `after`.
    - `by`: "loss" for the model's loss on the stream, "rows" for the mean square of the difference to the table.
    - `steps`, `learning_rate` (the peak), `optimizer`, `seed` (of the order of batches): as in `train_run`.
    - `lr_multipliers`: of the generator's leaves, "codebooks=0.3".
    - `key`: for the generator's initial values, where it is a config.

    **Returns:** a `Fitted`. **Raises:** `UserError` for a model without a table.
    """
    one_of("by", by, ("loss", "rows"))
    whole("steps", steps)
    table = getattr(model.embedding, "table", None)
    if table is None:
        raise UserError(f"the model's embedding is a {type(model.embedding).__name__}: only a table is replaced")
    vocab_size, d_model = table.shape
    fixed = eqx.tree_at(lambda m: m.head, model, _own_head(model), is_leaf=lambda leaf: leaf is None)
    started = generator if isinstance(generator, eqx.Module) else generator.build(vocab_size, d_model, key=key)

    def join(embedding: Any) -> LanguageModel:
        return eqx.tree_at(lambda m: m.embedding, fixed, embedding)

    def judged(embedding: Any) -> float:
        inside = _Inside(embedding, join)
        program = make_program(inside, optimizer)
        params = eqx.filter(inside, eqx.is_inexact_array)
        return float(np.mean([np.asarray(program.evaluate(params, batch)).mean() for batch in stream.eval_batches()]))

    if by == "loss":
        inside = _Inside(started, join, lr_multipliers and _below("embedding", lr_multipliers))
        program = make_program(inside, optimizer)
        how: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate, "optimizer": optimizer}
        record = train_run(program, inside, stream, seed=seed, evaluate_at=[steps], **how)
        found = program.model(record.params).embedding
    else:
        found = _regressed(started, table, steps, learning_rate)
    rows = found.materialize()
    error = float(jnp.linalg.norm(rows - table) / jnp.linalg.norm(table))
    return Fitted(join(found), judged(model.embedding), judged(found), error)


def _own_head(model: LanguageModel) -> Any:
    """The model's head; of a tied one its table, which stays."""
    if model.head is not None:
        return model.head
    weight = model.read_out().weight
    head = Head(*weight.shape, key=jax.random.key(0))
    return eqx.tree_at(lambda h: h.weight, head, weight)


def _below(part: str, multipliers: str) -> str:
    return ", ".join(f"{part}.{each.strip()}" for each in multipliers.split(","))


def _regressed(embedding: Any, table: Array, steps: int, rate: float) -> Any:
    """The generator after steps of Adam on the mean square of all rows, in units of the table's variance."""
    import optax

    params, static = eqx.partition(embedding, eqx.is_inexact_array)
    adam = optax.adam(optax.linear_schedule(rate, 0.0, steps))
    scale = jnp.square(table).mean()

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            return jnp.square(eqx.combine(params, static).materialize() - table).mean() / scale

        updates, state = adam.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    with jax.numpy_dtype_promotion("standard"):  # as optax wants it
        for _ in range(steps):
            params, state = step(params, state)
    return eqx.combine(params, static)
