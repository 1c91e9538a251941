"""Continuum memory: the channel as several MLP levels, each with its own period of updates."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..checks import check_each_whole, check_whole, one_of, whole
from ..errors import UserError
from .block import Channel, Placement, add_branch
from .init import subkey
from .mlp import MLP, Activation, MLPConfig
from .norm import LayerNorm, NormKind, RMSNorm, make_norm, norm_parameters

Form = Literal["chain", "independent"]


@dataclass(frozen=True)
class ContinuumConfig:
    """What a continuum memory is made of: MLP levels, in the order of `periods`.

    **Arguments:**

    - `d_ff`: the levels' total hidden width; None: `4 d_model`. A taper acts on the total, so that all levels of a
      layer are scaled alike.
    - `activation`, `bias`: of every level's MLP, as in `MLPConfig`.
    - `periods`: level s is updated every `periods[s]` optimizer steps; 1 is at each.
    - `form`: "chain", one level after the other, or "independent", their sum.
    - `shares`: the levels' shares of the width, whole numbers; None: equal ones.
    - `multiple`: every level's width is a multiple of this (see `level_widths`).
    - `norm`: the kind of the norms that a chain's levels have of their own.
    """

    kind: Literal["continuum"] = "continuum"
    d_ff: int | None = None
    activation: Activation = "swiglu"
    bias: Literal["none", "all"] = "none"
    periods: tuple[int, ...] = (1, 4)
    form: Form = "chain"
    shares: tuple[int, ...] | None = None
    multiple: int = 8
    norm: NormKind = "rms"

    keeps: ClassVar[tuple[str, ...]] = MLPConfig.keeps

    def __post_init__(self):
        check_each_whole(self, "periods", "one for each level, each at least 1 optimizer step")
        if self.shares is not None:
            check_each_whole(self, "shares", "give each level one, at least 1, or none")
            if len(self.shares) != len(self.periods):
                raise UserError(f"shares={self.shares} for {len(self.periods)} levels: give each level one, or none")
        check_whole(self, "multiple")
        one_of("form", self.form, ("chain", "independent"))
        one_of("norm", self.norm, ("rms", "layer", "zero-centred"))
        self._mlp(self.d_ff)

    @property
    def branches(self) -> int:
        """Residual branches: a chain has one a level."""
        return len(self.periods) if self.form == "chain" else 1

    def width(self, d_model: int) -> int:
        """The total hidden width in numbers."""
        return self._mlp(self.d_ff).width(d_model)

    def level_widths(self, d_model: int) -> tuple[int, ...]:
        """The width of every level: multiples of `multiple` by largest remainders (ties to the earlier level).

        What a total that is no multiple leaves over goes to the first level, so that the sum is always the total.

        **Raises:** `ValueError` where a level would have no unit.
        """
        total, levels = self.width(d_model), len(self.periods)
        if levels == 1:
            return (total,)
        shares = (1,) * levels if self.shares is None else self.shares
        # Largest remainders in whole numbers: a float quota would decide ties by its rounding.
        units, left = divmod(total, self.multiple)
        widths = [units * share // sum(shares) for share in shares]
        remainders = sorted(range(levels), key=lambda s: (-(units * shares[s] % sum(shares)), s))
        for s in remainders[: units - sum(widths)]:
            widths[s] += 1
        if min(widths) < 1:
            raise ValueError(
                f"a layer of width {total} is too narrow for {levels} levels in multiples of {self.multiple}: give it "
                f"{levels * self.multiple} or more (a larger d_ff, a gentler taper), a smaller multiple or fewer levels"
            )
        return tuple(self.multiple * width + (left if s == 0 else 0) for s, width in enumerate(widths))

    def parameters(self, d_model: int) -> int:
        """The levels' MLPs; a chain's norms (the block's is the first); a factor a level if independent."""
        levels = len(self.periods)
        own = (levels - 1) * norm_parameters(self.norm, d_model) if self.form == "chain" else levels
        return own + sum(self._mlp(width).parameters(d_model) for width in self.level_widths(d_model))

    def flops(self, d_model: int, context: int) -> int:
        """Forward matmul FLOPs a token: those of one MLP of the total width."""
        return sum(self._mlp(width).flops(d_model, context) for width in self.level_widths(d_model))

    def activations(self, d_model: int, context: int) -> int:
        """Numbers kept a token: each level's, and the input of each norm."""
        own = (self.branches - 1) * d_model
        return own + sum(self._mlp(width).activations(d_model, context) for width in self.level_widths(d_model))

    def accumulated(self, d_model: int) -> int:
        """Numbers of gradient that wait for their level's update."""
        norm = norm_parameters(self.norm, d_model) if self.form == "chain" else 0
        return sum(
            self._mlp(width).parameters(d_model) + (norm if s else 0)
            for s, (width, period) in enumerate(zip(self.level_widths(d_model), self.periods, strict=True))
            if period > 1
        )

    def build(self, d_model: int, *, output_scale: float = 1.0, key: PRNGKeyArray) -> "ContinuumMemory":
        """The module; `output_scale` multiplies the start of every level's `down`."""
        return ContinuumMemory(
            d_model,
            self.level_widths(d_model),
            periods=self.periods,
            form=self.form,
            activation=self.activation,
            bias=self.bias,
            norm=self.norm,
            output_scale=output_scale,
            key=key,
        )

    def _mlp(self, width: int | None) -> MLPConfig:
        return MLPConfig(d_ff=width, activation=self.activation, bias=self.bias)


class Level(eqx.Module):
    """One MLP of a continuum, its norm (None where the block's serves), and how often the optimizer updates them."""

    norm: RMSNorm | LayerNorm | None
    mlp: MLP
    update_period: int = eqx.field(static=True)


class ContinuumMemory(Channel):
    r"""A chain $z_s = z_{s-1} + \mathrm{MLP}_s(\mathrm{norm}_s(z_{s-1}))$ from the stream $z_0$, or independent levels
    $z_0 + \sum_s \beta_s \mathrm{MLP}_s(\mathrm{norm}(z_0))$ with learned $\beta_s$, 1 at the start.

    The forward pass is static; what makes levels differ is `Level.update_period`, which the optimizer obeys: gradients
    of the task are summed over that many steps, then applied. With one level it is the MLP, bit for bit. The first
    level's norm is the block's, and its key is the channel's own, so that it starts as the MLP in its place would.

    From Nested Learning (arXiv 2512.24695): eq. 70 with norms and residuals, eq. 71 and eq. 74.
    """

    levels: tuple[Level, ...]
    beta: Float[Array, " levels"] | None
    d_model: int = eqx.field(static=True)
    form: Form = eqx.field(static=True)
    no_decay: ClassVar[tuple[str, ...]] = ("beta",)

    def __init__(
        self,
        d_model: int,
        widths: tuple[int, ...],
        *,
        periods: tuple[int, ...],
        form: Form = "chain",
        norm: NormKind = "rms",
        output_scale: float = 1.0,
        key: PRNGKeyArray,
        **mlp: Any,
    ):
        """**Arguments:** `widths` and update `periods`, one a level; `form` and `norm` as in `ContinuumConfig`;
        `output_scale`, which multiplies the start of every `down`; `key`; the levels' `activation` and `bias`.

        **Raises:** `ValueError` for a value out of its range.
        """
        one_of("form", form, ("chain", "independent"))
        if not widths or len(widths) != len(periods):
            raise UserError(f"{len(widths)} widths and {len(periods)} periods: give one of each a level")
        levels = []
        for s, (width, period) in enumerate(zip(widths, periods, strict=True)):
            # The first level takes the channel's own key and no norm of its own: with one level the leaves, their draws
            # and the arithmetic are then those of the MLP in this place.
            level_key = key if s == 0 else subkey(subkey(key, "levels"), s)
            level_mlp = MLP(d_model, width, output_scale=output_scale, key=level_key, **mlp)
            own = make_norm(norm, d_model) if s and form == "chain" else None
            levels.append(Level(own, level_mlp, whole(f"periods[{s}]", period)))
        self.levels = tuple(levels)
        self.beta = jnp.ones(len(levels)) if form == "independent" else None
        self.d_model = whole("d_model", d_model)
        self.form = form

    def __call__(self, x: Float[Array, "t {self.d_model}"]) -> Float[Array, "t {self.d_model}"]:
        """What the levels add, for an input that is normed already; a block gives a chain the stream instead."""
        # In a chain a level sees what the levels before it added, as `stream` would show it.
        total = jnp.zeros_like(x)
        for s, level in enumerate(self.levels):
            if self.beta is not None:
                total = total + self.beta[s].astype(x.dtype) * level.mlp(x)
            else:
                total = total + level.mlp(x if level.norm is None else level.norm(x + total))
        return total

    def stream(
        self, x: Float[Array, "t {self.d_model}"], norm: Any, placement: Placement
    ) -> Float[Array, "t {self.d_model}"]:
        """The stream after all levels, given the block's norm."""
        if self.form == "independent":
            return add_branch(x, self, norm, placement)
        for level in self.levels:
            x = add_branch(x, level.mlp, norm if level.norm is None else level.norm, placement)
        return x
