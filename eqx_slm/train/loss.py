"""Read-out and cross entropy in one, over chunks of tokens: all logits are never held at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks import real, whole
from ..errors import UserError
from ..nn.embedding import check_ids
from ..nn.head import ReadOut
from ..nn.ops import inner_dtype, sum_of_outer_products, varying_like

# Logits held at once. A CPU is fastest when a chunk stays near its second-level cache (2 ** 20 numbers are 4 MiB in
# float32); an accelerator wants large matmuls. A chunk has at least CHUNK_TOKENS tokens, because every chunk also reads
# and writes the whole gradient of the read-out.
CHUNK_LOGITS = {"cpu": 2**20}
CHUNK_LOGITS_ACCELERATOR = 2**27
CHUNK_TOKENS = 512


class _Form(NamedTuple):
    """What is static of a loss: tokens a chunk, the logits' cap, the weight of the squared log normaliser, and which
    rows there are: the mesh axis that they are split over, and how many are ids of the vocabulary."""

    size: int
    soft_cap: float | None = None
    z_loss: float = 0.0
    vocab_axis: str | None = None
    vocab_size: int | None = None


class CrossEntropy(NamedTuple):
    """`loss`: weighted mean of the negative log likelihood, nats a token; `tokens`: the sum of the weights."""

    loss: Float[Array, ""]
    tokens: Float[Array, ""]


def cross_entropy(
    features: Float[Array, "*t d"],
    read_out: ReadOut | Float[Array, "v d"],
    targets: Int[Array, "*t"],
    *,
    weights: Float[Array, "*t"] | None = None,
    chunk: int | None = None,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    vocab_axis: str | None = None,
    vocab_size: int | None = None,
) -> CrossEntropy:
    r"""Mean negative log likelihood of `targets`, without ever holding all logits.

    The gradient of a chunk is taken while its logits are at hand: three matmuls a chunk instead of the four of
    rematerialisation. Undifferentiated calls compute no gradient. Reverse mode only (`token_losses` has no custom
    gradient).

    With more than one device the read-out's rows may be split. Inside `jax.shard_map` with `vocab_axis`, each device
    makes the logits of its own rows; a chunk's maxima, sums and target logits are put together over the axis, the
    gradient of its rows stays on the device, and the gradient of the features is summed over the axis. Targets,
    weights and the loss are the same along the axis; other axes may split the tokens, each with a mean of its own.
    Under plain `jax.jit` nothing has to be said: with a weight placed by `NamedSharding(mesh, P("model", None))` the
    compiler splits chunks and gradient the same way, and never gathers the weight. See docs/sharding.md.

    **Arguments:**

    - `features`: what the read-out sees, any leading shape.
    - `read_out`: `model.read_out()`, or a matrix of a row an id.
    - `targets`: ids of the same leading shape.
    - `weights`: a weight a token, constants as far as gradients go; None is 1 everywhere.
    - `chunk`: tokens a chunk; None chooses by backend and vocabulary.
    - `soft_cap`: replaces a logit l by cap tanh(l / cap) (Gemma 2, arXiv 2408.00118); None leaves it.
    - `z_loss`: adds this times (log of the softmax's normaliser)^2 to every token's loss (PaLM, arXiv 2204.02311).
    - `vocab_axis`: the mesh axis over which `read_out.weight` is split by rows: device i has slice i, all of one size.
    - `vocab_size`: how many of all rows are ids; the ones from it on pad the vocabulary to a multiple of the devices,
      get no probability and no gradient. None: all are.

    **Returns:** `CrossEntropy(loss, tokens)`, in at least float32; the loss is 0 where all weights are 0, and infinite
    where a target is no id, unless its weight is 0: `weights=targets != -100` leaves the usual padding out.

    **Raises:** `ValueError` for targets or weights of another shape than the features', a cap that is not positive, a
    chunk below one token, a `vocab_size` that the rows do not hold, or a weight that is not split over `vocab_axis`.
    """
    targets = check_ids(targets)
    flat, weight, target = _flatten(features, read_out, targets)
    if weights is not None and weights.shape != targets.shape:
        raise ValueError(f"weights have shape {weights.shape}, targets {targets.shape}: give one weight a target")
    _check_rows(weight, vocab_axis, vocab_size)
    wide = inner_dtype(flat)
    share = jnp.ones(target.shape, wide) if weights is None else weights.reshape(-1).astype(wide)
    tokens = share.sum()
    share = share / jnp.where(tokens == 0, 1, tokens)  # of the mean; 0 where nothing counts, not 0 / 0
    size = _chunk_size(flat.shape[0], weight.shape[0], chunk)
    real("z_loss", z_loss)
    form = _Form(size, _checked_cap(soft_cap), z_loss, vocab_axis, vocab_size)
    weight, flat = varying_like(weight, flat), varying_like(flat, weight)
    share = varying_like(
        share, flat if vocab_axis is None else jax.lax.psum(jnp.zeros_like(flat, shape=()), vocab_axis)
    )
    loss = _weighted_nll(form, flat, weight, target, jax.lax.stop_gradient(share))
    return CrossEntropy(loss, jax.lax.stop_gradient(tokens))


def token_losses(
    features: Float[Array, "*t d"],
    read_out: ReadOut | Float[Array, "v d"],
    targets: Int[Array, "*t"],
    *,
    chunk: int | None = None,
    soft_cap: float | None = None,
    vocab_axis: str | None = None,
    vocab_size: int | None = None,
) -> Float[Array, "*t"]:
    """Negative log likelihood of every token, nats; arguments as in `cross_entropy`, with the automatic gradient."""
    targets = check_ids(targets)
    flat, weight, target = _flatten(features, read_out, targets)
    _check_rows(weight, vocab_axis, vocab_size)
    size = _chunk_size(flat.shape[0], weight.shape[0], chunk)
    x, y, _ = _chunked(size, flat, target, None)
    form = _Form(size, _checked_cap(soft_cap), vocab_axis=vocab_axis, vocab_size=vocab_size)
    losses = jax.lax.map(lambda xy: _chunk_nll(form, xy[0], weight, xy[1]).loss, (x, y))
    return losses.reshape(-1)[: target.shape[0]].reshape(targets.shape)


def _flatten(features: Array, read_out: Any, targets: Array) -> tuple[Array, Array, Array]:
    if not hasattr(read_out, "project"):
        shape = getattr(read_out, "shape", None)
        if shape is None or len(shape) != 2 or shape[1] != features.shape[-1]:
            given = f"of shape {shape}" if shape is not None else f"of type {type(read_out).__name__}"
            raise UserError(
                f"read_out {given}: give model.read_out(), or a matrix of a row an id, (v, {features.shape[-1]})"
            )
        read_out = ReadOut(read_out)
    if features.shape[:-1] != targets.shape:
        raise ValueError(f"features have shape {features.shape}, targets {targets.shape}: give each row a target")
    x = read_out.project(features).reshape(targets.size, read_out.weight.shape[1])
    return x, read_out.weight, targets.reshape(-1)


def _chunk_size(tokens: int, vocab: int, chunk: int | None) -> int:
    logits = CHUNK_LOGITS.get(jax.default_backend(), CHUNK_LOGITS_ACCELERATOR)
    allowed = max(CHUNK_TOKENS, logits // vocab) if chunk is None else whole("chunk", chunk)
    chunks = -(-max(tokens, 1) // allowed)
    return -(-max(tokens, 1) // chunks)  # equal chunks: the least padding


def _chunked(size: int, x: Array, targets: Array, share: Array | None) -> tuple[Array, Array, Array]:
    """Pads to whole chunks (with weight 0) and folds them into a leading axis."""
    padding = -x.shape[0] % size
    share = jnp.ones(targets.shape, inner_dtype(x)) if share is None else share
    x = jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, size, x.shape[1])
    return x, jnp.pad(targets, (0, padding)).reshape(-1, size), jnp.pad(share, (0, padding)).reshape(-1, size)


class _ChunkLoss(NamedTuple):
    """Of one chunk: the tokens' losses, exp(logits - their maximum), its sum, and the log of the normaliser."""

    loss: Float[Array, " t"]
    powers: Float[Array, "t v"]
    total: Float[Array, " t"]
    log_normaliser: Float[Array, " t"]
    logits: Float[Array, "t v"]


def _checked_cap(soft_cap: float | None) -> float | None:
    if soft_cap is not None:
        real("soft_cap", soft_cap, positive=True)
    return soft_cap


def _check_rows(weight: Array, vocab_axis: str | None, vocab_size: int | None) -> None:
    devices = 1 if vocab_axis is None else jax.lax.axis_size(vocab_axis)
    rows = devices * weight.shape[0]
    if vocab_size is not None and not 0 < whole("vocab_size", vocab_size, least=0) <= rows:
        raise ValueError(f"vocab_size={vocab_size}: the read-out has {rows} rows ({devices} x {weight.shape[0]})")
    if devices == 1:
        return
    try:
        jax.lax.pcast(weight, vocab_axis, to="varying")
    except ValueError:  # it varies already, as it should
        return
    raise ValueError(
        f"the read-out's weight is not split over the mesh axis {vocab_axis!r}: give shard_map an in_spec of "
        f"P({vocab_axis!r}) for it, and leave check_vma on (gradients would be wrong without)"
    )


def _places(form: _Form, weight: Array, targets: Array) -> tuple[Array, Array]:
    """The rows of the targets in `weight`, and which of them are there: not another device's, and ids at all."""
    rows = weight.shape[0]
    # A gather clamps what is out of range, silently: `here` tells what it gave for an id that is none.
    places = targets if form.vocab_axis is None else targets - jax.lax.axis_index(form.vocab_axis) * rows
    return jnp.clip(places, 0, rows - 1), (places >= 0) & (places < rows)


def _without_padding(form: _Form, logits: Array) -> Array:
    if form.vocab_size is None:
        return logits
    first = 0 if form.vocab_axis is None else jax.lax.axis_index(form.vocab_axis) * logits.shape[-1]
    rows = first + jnp.arange(logits.shape[-1])[None]
    return jnp.where(rows < form.vocab_size, logits, -jnp.inf)


def _chunk_nll(form: _Form, x: Array, weight: Array, targets: Array) -> _ChunkLoss:
    """One exponential a logit."""
    logits = ReadOut(weight).logits(x)
    if form.soft_cap is not None:
        logits = form.soft_cap * jnp.tanh(logits / form.soft_cap)
    shown = _without_padding(form, logits)
    places, here = _places(form, weight, targets)
    picked = jnp.take_along_axis(shown, places[:, None], axis=-1)[:, 0]
    # The maximum is never below a target's logit. Saying so makes XLA read that logit before the exponentials, which
    # can then take the logits' own place: one matrix at once instead of two.
    highest = jax.lax.stop_gradient(jnp.maximum(shown.max(axis=-1), picked))
    if form.vocab_axis is not None:
        highest = jax.lax.pmax(highest, form.vocab_axis)
    powers = jnp.exp(shown - highest[:, None])
    total = powers.sum(axis=-1)
    if form.vocab_axis is not None:
        parts = jnp.stack([total, jnp.where(here, picked, 0), here.astype(total.dtype)])
        total, picked, found = jax.lax.psum(parts, form.vocab_axis)
        here = found > 0
    picked = jnp.where(here, picked, -jnp.inf)
    log_normaliser = jnp.log(total) + highest
    loss = log_normaliser - picked + form.z_loss * jnp.square(log_normaliser)
    return _ChunkLoss(loss, powers, total, log_normaliser, logits)


def _weighted(share: Float[Array, " t"], loss: Float[Array, " t"]) -> Float[Array, ""]:
    """Sum of share * loss; a share of 0 leaves out a loss that is infinite, too."""
    return jnp.sum(jnp.where(share == 0, 0, share * loss))


def _weighted_nll_plain(form: _Form, x: Array, weight: Array, targets: Array, share: Array) -> Array:
    """Sum of share * loss: what `_weighted_nll` computes, with nothing kept for a gradient."""

    def body(total: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + _weighted(part[2], _chunk_nll(form, part[0], weight, part[1]).loss), None

    chunks = _chunked(form.size, x, targets, share)
    return jax.lax.scan(body, varying_like(jnp.zeros((), chunks[2].dtype), share), chunks)[0]


def _weighted_nll_forward(
    form: _Form, x: Array, weight: Array, targets: Array, share: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The loss, and its gradients with respect to x and weight as residuals."""
    wide = inner_dtype(x)

    def chunk_gradients(part: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array], Array]:
        # d loss / d logits is share ((1 + 2 z log Z) softmax - one hot), times the cap's slope. The softmax's division
        # scales rows of the small matrices and the one hot touches one row a token, so that the logits are passed over
        # as seldom as possible.
        x_c, targets_c, share_c = part
        chunk = _chunk_nll(form, x_c, weight, targets_c)
        places, here = _places(form, weight, targets_c)
        powers, row_share = chunk.powers, jnp.where(here, share_c, 0)[:, None]
        if form.soft_cap is not None:
            slope = 1 - jnp.square(chunk.logits / form.soft_cap)
            powers, row_share = powers * slope, row_share * jnp.take_along_axis(slope, places[:, None], axis=-1)
        powers = powers.astype(x_c.dtype)
        scale = share_c / chunk.total
        if form.z_loss:
            scale = scale * (1 + 2 * form.z_loss * chunk.log_normaliser)
        scale, x_wide = scale[:, None], x_c.astype(wide)
        mean_row = jnp.einsum("tv,vr->tr", powers, weight.astype(x_c.dtype), preferred_element_type=wide)
        grad_x = mean_row * scale - weight[places].astype(wide) * row_share
        scaled = (x_wide * scale).astype(x_c.dtype)
        # By columns: of the two factors only the small one is transposed.
        columns = sum_of_outer_products(scaled, powers, preferred_element_type=wide)
        return _weighted(share_c, chunk.loss), (grad_x.astype(x_c.dtype), row_share[:, 0]), columns

    chunks = _chunked(form.size, x, targets, share)
    if chunks[0].shape[0] == 1:  # one chunk: no accumulator to add to
        total, rows, columns = chunk_gradients((chunks[0][0], chunks[1][0], chunks[2][0]))
    else:

        def body(carry: tuple[Array, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], tuple]:
            nll, rows, columns = chunk_gradients(part)
            return (carry[0] + nll, carry[1] + columns), rows

        zeros = varying_like(jnp.zeros(weight.shape[::-1], inner_dtype(weight, x)), x)
        start = varying_like(jnp.zeros((), wide), share), zeros
        (total, columns), rows = jax.lax.scan(body, start, chunks)
    grad_x, row_share = rows[0].reshape(-1, x.shape[1])[: x.shape[0]], rows[1].reshape(-1, 1)[: x.shape[0]]
    # The one hot's part: a row a token.
    grad_weight = columns.T.at[_places(form, weight, targets)[0]].add(-x.astype(wide) * row_share)
    return total, (grad_x, grad_weight.astype(weight.dtype))


def _weighted_nll_backward(form: _Form, residuals: tuple[Array, Array], cotangent: Array) -> tuple:
    # All work is done: the loss is one number, and its cotangent a factor.
    grad_x, grad_weight = residuals
    return (grad_x * cotangent.astype(grad_x.dtype), grad_weight * cotangent.astype(grad_weight.dtype), None, None)


_weighted_nll = jax.custom_vjp(_weighted_nll_plain, nondiff_argnums=(0,))
_weighted_nll.defvjp(_weighted_nll_forward, _weighted_nll_backward)
