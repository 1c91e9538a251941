"""Leviathan's generator: digits pick codebook rows, splines and separable products make an embedding of them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray

from .coordinates import coordinate_base, to_coordinates
from .embedding import OrderKind, TokenEmbedding, check_sizes, position_of
from .init import normal
from .ops import inner_dtype, standardize
from .separable import Heads, head_rows
from .spline import bspline_basis

# LayerNorm's epsilon. Pre-activations start below 0.01: the usual 1e-5 would not be small beside their variance.
EPS = 1e-6


@dataclass(frozen=True)
class LeviathanConfig:
    """The generator's sizes; the defaults are the published recipe (see `LeviathanEmbedding`)."""

    kind: Literal["leviathan"] = "leviathan"
    coordinates: int = 3
    seed_size: int = 128
    n_heads: int = 8
    knots: int = 16
    rank: int = 64
    skip: Literal["none", "linear"] = "none"
    output_std: float | None = None
    order: OrderKind = "tokenizer"
    tieable: ClassVar[bool] = False

    def __post_init__(self):
        check_sizes(coordinates=self.coordinates, seed_size=self.seed_size, n_heads=self.n_heads, rank=self.rank)
        if self.knots < 3:
            raise ValueError(f"knots={self.knots}: a quadratic B-spline needs at least 3 knots")

    def parameters(self, vocab_size: int, d_model: int) -> int:
        """k b s + h s^2 + 2 h s + h s kappa r + h r D, and s D for a linear skip."""
        base, heads, seed = coordinate_base(vocab_size, self.coordinates), self.n_heads, self.seed_size
        codebooks = self.coordinates * base * seed
        heads_in = heads * seed * seed + 2 * heads * seed
        modes = heads * seed * self.knots * self.rank
        skip = seed * d_model if self.skip == "linear" else 0
        return codebooks + heads_in + modes + heads * self.rank * d_model + skip

    def table_parameters(self, vocab_size: int, d_model: int) -> int:
        """None: no parameter belongs to one token alone."""
        return 0

    def buffer_bytes(self, vocab_size: int) -> int:
        """Four bytes a token for an order other than the tokenizer's."""
        return 0 if self.order == "tokenizer" else 4 * vocab_size

    def flops(self, d_model: int) -> int:
        """2 (h s^2 + h s 3 r + h r D) an evaluation, three active knots, whatever the kernel really does."""
        heads, seed, rank = self.n_heads, self.seed_size, self.rank
        skip = 2 * seed * d_model if self.skip == "linear" else 0
        return 2 * (heads * seed * seed + heads * seed * 3 * rank + heads * rank * d_model) + skip

    def activations(self, d_model: int) -> int:
        """Nothing inside the generator is kept: the backward pass evaluates it again, chunk by chunk."""
        return d_model

    def build(
        self, vocab_size: int, d_model: int, *, order: Int32[Array, " v"] | None = None, key: PRNGKeyArray
    ) -> "LeviathanEmbedding":
        """The module."""
        return LeviathanEmbedding(
            vocab_size,
            d_model,
            coordinates=self.coordinates,
            seed_size=self.seed_size,
            n_heads=self.n_heads,
            knots=self.knots,
            rank=self.rank,
            skip=self.skip,
            output_std=self.output_std,
            order=order,
            key=key,
        )


class LeviathanEmbedding(TokenEmbedding):
    r"""A generator in place of the V x D token table.

    The base-b digits $(i_1 .. i_k)$ of a token's position, $b = \lceil V^{1/k} \rceil$, pick one row each of k shared
    codebooks; their sum is the seed $z$. Each of h heads turns it into $u = \sigma(\mathrm{LayerNorm}(W_l z) / 2)$,
    expands every coordinate of $u$ in a quadratic B-spline, $\phi_{dr} = \sum_g B_g(u_d) S_{l d g r}$, and multiplies
    over the coordinates, $M_r = \prod_d \phi_{dr}$. The embedding is $E_i = \sum_l M_l W^{out}_l$.

    The splines are stored as their offset from 1, so that weight decay pulls a factor towards 1 (no effect on the
    product) and not towards 0 (which would kill it).

    Calling the module is the plain reference and works in forward and reverse mode; `embed_batch` evaluates each
    distinct token of a batch once, in bounded chunks.

    From Leviathan (arXiv 2601.22040); the arguments' defaults are its published recipe.
    """

    codebooks: Float[Array, "{self.coordinates} {self.base} {self.seed_size}"]
    w_in: Float[Array, "{self.n_heads} {self.seed_size} {self.seed_size}"]
    norm_weight: Float[Array, "{self.n_heads} {self.seed_size}"]
    norm_bias: Float[Array, "{self.n_heads} {self.seed_size}"]
    spline_offset: Float[Array, "{self.n_heads} {self.seed_size} {self.knots} {self.rank}"]
    w_out: Float[Array, "{self.n_heads} {self.rank} {self.d_model}"]
    w_skip: Float[Array, "{self.seed_size} {self.d_model}"] | None
    order: Int32[Array, "{self.vocab_size}"] | None
    vocab_size: int = eqx.field(static=True)
    d_model: int = eqx.field(static=True)
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
        *,
        coordinates: int = 3,
        seed_size: int = 128,
        n_heads: int = 8,
        knots: int = 16,
        rank: int = 64,
        skip: Literal["none", "linear"] = "none",
        output_std: float | None = None,
        order: Int32[Array, " v"] | None = None,
        key: PRNGKeyArray,
    ):
        """**Arguments:**

        - `vocab_size`, `d_model`: the table this stands for is `vocab_size` x `d_model`.
        - `coordinates`: digits a token id is written in (k).
        - `seed_size`: width of the codebooks and of every head's input.
        - `n_heads`, `knots`, `rank`: heads (h), spline knots (at least 3), separable modes a head (r).
        - `skip`: "linear" adds `z @ w_skip` to the result (seed_size x d_model parameters; v1's "residual").
        - `output_std`: std of W_out's entries at the start; None is the published 0.02 / sqrt(n_heads).
        - `order`: an int32 permutation of the ids; None writes the ids themselves in digits.
        - `key`: for the initial values.

        **Raises:** `ValueError` for a size below 1 or fewer than 3 knots.
        """
        check_sizes(vocab_size=vocab_size, d_model=d_model, coordinates=coordinates)
        check_sizes(seed_size=seed_size, n_heads=n_heads, rank=rank)
        if knots < 3:
            raise ValueError(f"knots={knots}: a quadratic B-spline needs at least 3 knots")
        if skip not in ("none", "linear"):
            raise ValueError(f"skip={skip!r}: it is 'none' or 'linear'")
        self.base = coordinate_base(vocab_size, coordinates)
        self.codebooks = normal(key, "codebooks", (coordinates, self.base, seed_size), 0.02)
        self.w_in = normal(key, "w_in", (n_heads, seed_size, seed_size), 0.02)
        self.norm_weight = jnp.ones((n_heads, seed_size))
        self.norm_bias = jnp.zeros((n_heads, seed_size))
        self.spline_offset = normal(key, "spline_offset", (n_heads, seed_size, knots, rank), 0.1)
        std = 0.02 * n_heads**-0.5 if output_std is None else output_std
        self.w_out = normal(key, "w_out", (n_heads, rank, d_model), std)
        self.w_skip = normal(key, "w_skip", (seed_size, d_model), 0.02) if skip == "linear" else None
        self.order = None if order is None else jnp.asarray(order, jnp.int32)
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.coordinates = coordinates
        self.seed_size = seed_size
        self.n_heads = n_heads
        self.knots = knots
        self.rank = rank

    def __call__(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.d_model}"]:
        dtype = inner_dtype(self.codebooks)
        seed = self._seed(ids)
        modes_htr = self._modes(seed.reshape(-1, self.seed_size))
        out = jnp.einsum("htr,hrd->td", modes_htr, self.w_out.astype(dtype))
        if self.w_skip is not None:
            out = out + seed.reshape(-1, self.seed_size) @ self.w_skip.astype(dtype)
        return out.reshape(ids.shape + (self.d_model,)).astype(self.w_out.dtype)

    def rows(self, ids: Int[Array, " n"], count: Int32[Array, ""]) -> Float[Array, "n {self.d_model}"]:
        """`self(ids)` for the first `count` ids, fast: in chunks of bounded memory, with a backward pass by hand.

        The rows beyond `count` mean nothing. Reverse mode only.
        """
        dtype = inner_dtype(self.codebooks)
        seed = self._seed(ids)
        heads = Heads(self.w_in, self.norm_weight, self.norm_bias, self.spline_offset, self.w_out)
        heads = jax.tree.map(lambda x: x.astype(dtype), heads)
        out = head_rows(seed, heads._replace(spline=1 + heads.spline), count, eps=EPS)
        if self.w_skip is not None:
            out = out + seed @ self.w_skip.astype(dtype)
        return out.astype(self.w_out.dtype)

    def _seed(self, ids: Int[Array, "*t"]) -> Float[Array, "*t {self.seed_size}"]:
        digits = to_coordinates(position_of(ids, self.order), self.base, self.coordinates)
        rows = self.codebooks[jnp.arange(self.coordinates), digits]
        return rows.astype(inner_dtype(self.codebooks)).sum(axis=-2)

    def _modes(self, seed_ts: Float[Array, "t {self.seed_size}"]) -> Float[Array, "{self.n_heads} t {self.rank}"]:
        """The separable products of every head; heads and seed axes lead, so that the splines are batched matmuls."""
        dtype = seed_ts.dtype
        pre_hts = jnp.einsum("ts,hsz->htz", seed_ts, self.w_in.astype(dtype))
        weight, bias = self.norm_weight.astype(dtype)[:, None], self.norm_bias.astype(dtype)[:, None]
        u_hst = jax.nn.sigmoid((standardize(pre_hts, EPS) * weight + bias) / 2).transpose(0, 2, 1)
        basis_hstg = bspline_basis(u_hst, self.knots)
        # The basis sums to one, so offsets from 1 give 1 + the spline of the offsets.
        phi_hstr = 1 + jnp.einsum("hstg,hsgr->hstr", basis_hstg, self.spline_offset.astype(dtype))
        return tree_product(phi_hstr)


def tree_product(x: Float[Array, "h s t r"]) -> Float[Array, "h t r"]:
    """The product over the second axis, by halves.

    Exact at zeros and signs (no logarithm), in log2(s) steps; its automatic derivative multiplies the other half and
    never divides.
    """
    while x.shape[1] > 1:
        half, odd = divmod(x.shape[1], 2)
        rest = x[:, 2 * half :]
        x = x[:, :half] * x[:, half : 2 * half]
        x = jnp.concatenate([x, rest], axis=1) if odd else x
    return x[:, 0]
