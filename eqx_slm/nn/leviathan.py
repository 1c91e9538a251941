"""Leviathan's generator: digits pick codebook rows, splines and separable products make an embedding of them."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from ..checks import check_choices, check_whole, configured, real
from ..pytree import Fixed
from .chunks import chunk_size, chunked_sum
from .digits import coordinate_base, to_coordinates
from .embedding import (
    ConfiguredEmbedding,
    EmbeddingDefaults,
    OrderKind,
    check_ids,
    check_order,
    known_or_nan,
    position_of,
)
from .init import normal
from .leviathan_fast import fast_spline_product, spline_product
from .ops import inner_dtype, standardize
from .spline import check_knots

# LayerNorm's epsilon. Pre-activations start below 0.01: the usual 1e-5 would not be small beside their variance.
EPS = 1e-6


@dataclass(frozen=True)
class LeviathanConfig(EmbeddingDefaults):
    """What the generator is made of; the defaults are the published recipe (see `LeviathanEmbedding`).

    **Arguments:**

    - `coordinates`: digits a token id is written in (k).
    - `seed_size`: width of the codebooks and of every head's input.
    - `n_heads`, `knots`, `rank`: heads (h), spline knots (at least 3), separable modes a head (r).
    - `skip`: "linear" adds `z @ w_skip` to the result (seed_size x d_model parameters; v1's "residual").
    - `output_std`: std of W_out's entries at the start; None is the published 0.02 / sqrt(n_heads).
    - `codebook_std`, `input_std`, `spline_std`: of the codebooks', W_in's and the spline offsets' entries. The norm
      behind W_in makes the function blind to the size of the first two: larger ones learn more slowly.
    - `order`: which order of the ids is written in digits; one that depends on a stream, `build` is given.
    """

    kind: Literal["leviathan"] = "leviathan"
    coordinates: int = 3
    seed_size: int = 128
    n_heads: int = 8
    knots: int = 16
    rank: int = 64
    skip: Literal["none", "linear"] = "none"
    output_std: float | None = None
    codebook_std: float = 0.02
    input_std: float = 0.02
    spline_std: float = 0.1
    order: OrderKind = "tokenizer"
    tieable: ClassVar[bool] = False

    def __post_init__(self):
        check_choices(self)
        check_knots(self.knots)
        check_whole(self, "coordinates", "seed_size", "n_heads", "knots", "rank")
        for name in ("output_std", "codebook_std", "input_std", "spline_std"):
            if name != "output_std" or self.output_std is not None:
                real(name, getattr(self, name))

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """k b s + h s^2 + 2 h s + h s kappa r + h r D, and s D for a linear skip."""
        base, heads, seed = coordinate_base(vocab_size, self.coordinates), self.n_heads, self.seed_size
        codebooks = self.coordinates * base * seed
        heads_in = heads * seed * seed + 2 * heads * seed
        modes = heads * seed * self.knots * self.rank
        skip = seed * d_model if self.skip == "linear" else 0
        return codebooks + heads_in + modes + heads * self.rank * d_model + skip

    def buffer_bytes(self, vocab_size: int) -> int:
        """Four bytes a token for an order other than the tokenizer's."""
        return 0 if self.order == "tokenizer" else 4 * vocab_size

    def flops(self, vocab_size: int, d_model: int) -> int:
        """2 (h s^2 + h s 3 r + h r D) an evaluation, three active knots, whatever the kernel really does."""
        heads, seed, rank = self.n_heads, self.seed_size, self.rank
        skip = 2 * seed * d_model if self.skip == "linear" else 0
        return 2 * (heads * seed * seed + heads * seed * 3 * rank + heads * rank * d_model) + skip

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array | np.ndarray, " v"] | None = None, key: PRNGKeyArray
    ) -> "LeviathanEmbedding":
        """The module."""
        return LeviathanEmbedding(vocab_size, d_model, self, order=order, key=key)


class LeviathanEmbedding(ConfiguredEmbedding):
    r"""A generator in place of the V x D token table.

    The base-b digits $(i_1 .. i_k)$ of a token's position, $b = \lceil V^{1/k} \rceil$, pick one row each of k shared
    codebooks; their sum is the seed $z$. Each of h heads turns it into $u = \sigma(\mathrm{LayerNorm}(W_l z) / 2)$,
    expands every coordinate of $u$ in a quadratic B-spline, $\phi_{dr} = \sum_g B_g(u_d) S_{l d g r}$, and multiplies
    over the coordinates, $M_r = \prod_d \phi_{dr}$. The embedding is $E_i = \sum_l M_l W^{out}_l$.

    The splines are stored as their offset from 1, so that weight decay pulls a factor towards 1 (no effect on the
    product) and not towards 0 (which would kill it).

    Calling the module is the plain reference and works in forward and reverse mode; `embed_batch` evaluates each
    distinct token of a batch once, in bounded chunks.

    From Leviathan (arXiv 2601.22040); the config's defaults are its published recipe.
    """

    codebooks: Float[Array, "{self.coordinates} {self.base} {self.seed_size}"]
    w_in: Float[Array, "{self.n_heads} {self.seed_size} {self.seed_size}"]
    norm_weight: Float[Array, "{self.n_heads} {self.seed_size}"]
    norm_bias: Float[Array, "{self.n_heads} {self.seed_size}"]
    spline_offset: Float[Array, "{self.n_heads} {self.seed_size} {self.knots} {self.rank}"]
    w_out: Float[Array, "{self.n_heads} {self.rank} {self.d_model}"]
    w_skip: Float[Array, "{self.seed_size} {self.d_model}"] | None
    order: Fixed | Int32[Array, "{self.vocab_size}"] | None
    config: LeviathanConfig = eqx.field(static=True)
    # The config's sizes once more, so that shapes and formulas read as they do in the paper.
    coordinates: int = eqx.field(static=True)
    base: int = eqx.field(static=True)
    seed_size: int = eqx.field(static=True)
    n_heads: int = eqx.field(static=True)
    knots: int = eqx.field(static=True)
    rank: int = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("norm_weight", "norm_bias")
    distinct_pays: ClassVar[bool] = True

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        config: LeviathanConfig | None = None,
        *,
        order: Int32[Array | np.ndarray, " v"] | None = None,
        key: PRNGKeyArray,
        **fields: Any,
    ):
        """**Arguments:** `vocab_size` and `d_model` of the table that this stands for; a `config`, or its other
        `fields` as keywords; `order`, an int32 permutation of the ids (None: the ids themselves); `key`.

        **Raises:** `UserError` (a `ValueError`) for a value out of its range, and an order that is no permutation.
        """
        config = configured(LeviathanConfig, config, fields)
        super().__init__(vocab_size, d_model, config)
        c, s, n, q, r = config.coordinates, config.seed_size, config.n_heads, config.knots, config.rank
        self.coordinates, self.seed_size, self.n_heads, self.knots, self.rank = c, s, n, q, r
        self.base = coordinate_base(vocab_size, c)
        self.codebooks = normal(key, "codebooks", (c, self.base, s), config.codebook_std)
        self.w_in = normal(key, "w_in", (n, s, s), config.input_std)
        self.norm_weight = jnp.ones((n, s))
        self.norm_bias = jnp.zeros((n, s))
        self.spline_offset = normal(key, "spline_offset", (n, s, q, r), config.spline_std)
        std = 0.02 * n**-0.5 if config.output_std is None else config.output_std
        self.w_out = normal(key, "w_out", (n, r, d_model), std)
        self.w_skip = normal(key, "w_skip", (s, d_model), 0.02) if config.skip == "linear" else None
        self.order = check_order(order, vocab_size)

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        ids = check_ids(ids)
        seed_ts = self._seed(ids.reshape(-1))
        out = head_sum(self._heads(), seed_ts)
        return self._with_skip(out, seed_ts).reshape(*ids.shape, self.d_model)

    def first_rows(self, ids: Int[Array, " n"], count: Int32[Array, ""] | int) -> Float[Array, "n {self.d_model}"]:
        """As everywhere, with a gradient by hand for the splines (`leviathan_fast`). Reverse mode only."""
        seed_ns = self._seed(ids)
        at_once = heads_at_once(self.n_heads)
        heads = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), self._heads())
        chunk = chunk_size(ids.shape[0], at_once * self.seed_size * max(self.knots, self.rank))
        out = chunked_sum(partial(head_sum, splines=fast_spline_product), heads, seed_ns, count, chunk=chunk)
        return self._with_skip(out, seed_ns)

    def _heads(self) -> "Heads":
        """The heads' parameters in the precision that they are computed in, splines as coefficients."""
        dtype = inner_dtype(self.codebooks)
        leaves = (self.w_in, self.norm_weight, self.norm_bias, self.spline_offset, self.w_out)
        heads = Heads(*(leaf.astype(dtype) for leaf in leaves))
        # The basis sums to one, so 1 + the spline of the offsets is the spline of 1 + the offsets.
        return heads._replace(spline=1 + heads.spline)

    def _seed(self, ids: Int[Array, " t"]) -> Float[Array, "t {self.seed_size}"]:
        """The tokens' sums of codebook rows; NaN for what is no token."""
        digits = to_coordinates(position_of(ids, self.order), self.base, self.coordinates)
        rows = self.codebooks[jnp.arange(self.coordinates), digits]
        return known_or_nan(ids, self.vocab_size, rows.astype(inner_dtype(self.codebooks)).sum(axis=-2))

    def _with_skip(self, out: Float[Array, "t d"], seed_ts: Float[Array, "t s"]) -> Float[Array, "t d"]:
        if self.w_skip is not None:
            out = out + seed_ts @ self.w_skip.astype(seed_ts.dtype)
        return out.astype(self.w_out.dtype)


class Heads(NamedTuple):
    """Parameters of the heads, heads first; `spline` holds the coefficients themselves (1 + the stored offset)."""

    w_in: Float[Array, "n s s"]
    norm_weight: Float[Array, "n s"]
    norm_bias: Float[Array, "n s"]
    spline: Float[Array, "n s q r"]
    w_out: Float[Array, "n r d"]


def heads_at_once(n_heads: int) -> int:
    """One on a CPU: what a head makes of a chunk of tokens fits into a core's cache. An accelerator wants large
    matmuls, over all heads."""
    return 1 if jax.default_backend() == "cpu" else n_heads


def head_sum(heads: Heads, seed_ts: Float[Array, "t s"], *, splines: Any = spline_product) -> Float[Array, "t d"]:
    r"""$\sum_l M_l(z) W^{out}_l$. The reference and the fast form differ in `splines` alone."""

    def modes(head: Heads) -> Float[Array, "r t"]:
        pre_ts = standardize(seed_ts @ head.w_in, EPS) * head.norm_weight[None] + head.norm_bias[None]
        return splines(jax.nn.sigmoid(pre_ts / 2).T, head.spline)

    return jnp.einsum("nrt,nrd->td", jax.vmap(modes)(heads), heads.w_out)
