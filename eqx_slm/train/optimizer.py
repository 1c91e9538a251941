"""AdamW and Muon with explicit groups, clipping, and schedules that multiply a traced peak learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
import optax
import optax.contrib

from ..checks import check_choices, check_number, lr_factors
from ..errors import UserError
from ..pytree import path_name
from .stack import first_blocks

Schedule = Literal["cosine", "linear", "wsd", "constant"]
Kind = Literal["adamw", "muon"]

# Axes of a matrix whose others are layers of a scan or heads: each is orthogonalised by itself.
LAST_TWO = optax.contrib.MuonDimensionNumbers(-2, -1)
RMS = 0.2  # of AdamW's updates, which Muon's are scaled to


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101). `warmup` and `decay` are shares of the run; `floor` is the last rate over the peak.

    "cosine" and "linear" fall from the end of warm-up; "wsd" stays at the peak and falls linearly over the last `decay`
    share. `kind` "muon" updates the hidden matrices (`matrix_groups`) by Muon with momentum `momentum`, at `muon_lr`
    times the rate, and everything else by AdamW. Its updates have the RMS of AdamW's (0.2 sqrt(max(in, out)) times an
    orthogonal matrix, arXiv 2502.16982), so that both take one rate.
    """

    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    decay: float = 0.2
    floor: float = 0.1
    kind: Kind = "adamw"
    momentum: float = 0.95
    muon_lr: float = 1.0

    def __post_init__(self):
        check_choices(self)
        # As float32, which the step computes in: there 1 - 1e-9 is 1, and Adam divides by 1 - beta2^t.
        for name in ("beta1", "beta2", "momentum"):
            check_number(name, getattr(self, name), "at least 0 and below 1 in float32", _is_average)
        check_number("eps", self.eps, "positive, also in float32", lambda eps: np.float32(eps) > 0)
        check_number("weight_decay", self.weight_decay, "at least 0", lambda decay: decay >= 0)
        check_number("muon_lr", self.muon_lr, "positive and finite, a factor of the rate", lambda factor: factor > 0)
        check_number("clip_norm", self.clip_norm, "positive and finite, a norm", lambda norm: norm > 0)
        for name in ("warmup", "decay", "floor"):
            check_number(name, getattr(self, name), "a share from 0 to 1", lambda share: 0 <= share <= 1)
        if self.warmup == 1 or (self.schedule == "wsd" and not 0 < self.decay <= 1 - self.warmup):
            raise UserError(
                f"warmup={self.warmup}, decay={self.decay}: warm-up and decay are shares of the run that fit into it"
            )

    def multiplier(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 0) of `steps`, over the peak; in (0, 1], 0 only at a `floor` of 0.

        Warm-up of w steps takes `(step + 1) / (w + 1)`, from which the schedule goes on: no step is lost at 0, and the
        last one is still below the peak (8/9 of it for w = 8). So step i here is step i + 1 of
        `optax.linear_schedule(0, 1, w + 1)`; optax's own warm-up of w steps begins with a step at 0 and ends at 1.
        """
        warmup = max(1, round(self.warmup * steps)) if self.warmup else 0
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "wsd":
            falling = max(1, round(self.decay * steps))
            progress = max(0.0, (step + 1 - (steps - falling)) / falling)
            return 1 - (1 - self.floor) * min(1.0, progress)
        progress = (step + 1 - warmup) / max(1, steps - warmup)
        if self.schedule == "linear":
            return 1 - (1 - self.floor) * min(1.0, progress)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def branch(self, steps: int) -> int | None:
        """After how many of its `steps` a run can become a longer one, its rate still the peak's; None for never.

        A run by "cosine" or "linear" has fallen by then as the longer one had not.
        """
        if self.schedule == "constant":
            return steps
        return steps - max(1, round(self.decay * steps)) if self.schedule == "wsd" else None


def _is_average(beta: float) -> bool:
    return 0 <= beta and bool(np.float32(beta) < 1)


def parameter_groups(model: Any) -> dict[str, Literal["decay", "no decay"]]:
    """The group of every parameter, by its dotted path.

    A module's `no_decay` (norm weights, biases, gates' biases, learned initial memories) is not decayed; every other
    parameter is, a spline's offset from 1 included: that decays it towards coefficient 1. Modules that do not say
    are decayed from two axes on.
    """
    groups: dict[str, Literal["decay", "no decay"]] = {}

    def visit(node: Any, prefix: str, names: tuple[str, ...] | None) -> None:
        if isinstance(node, eqx.Module):
            declared = getattr(node, "no_decay", None)
            for name in type(node).__dataclass_fields__:
                child = getattr(node, name, None)
                exempt = None if declared is None else (("",) if name in declared else ())
                visit(child, f"{prefix}.{name}" if prefix else name, exempt)
        elif eqx.is_inexact_array(node) or isinstance(node, jax.ShapeDtypeStruct):
            exempt = len(node.shape) < 2 if names is None else names == ("",)
            groups[prefix] = "no decay" if exempt else "decay"
        else:
            leaves = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
            for path, child in leaves:
                if child is not node:
                    visit(child, f"{prefix}.{path_name(path)}" if prefix else path_name(path), names)

    visit(model, "", None)
    return groups


def matrix_groups(model: Any) -> dict[str, Kind]:
    """Which optimizer updates every parameter where `kind` is "muon", by its dotted path.

    Muon: what is in `blocks` or in a flat model's `layers`, has two axes or more, is decayed, and is no `filters` of
    its module (a convolution's taps a channel, which map nothing). AdamW: all else, so embeddings, generators, heads,
    norms, biases, initial memories.
    """
    decay, filters = parameter_groups(model), set(_filters(model, ""))

    def kind(name: str, shape: tuple[int, ...]) -> Kind:
        hidden = name.startswith(("blocks.", "layers.")) and len(shape) >= 2
        return "muon" if hidden and decay[name] == "decay" and name not in filters else "adamw"

    leaves = [(path_name(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]]
    groups: dict[str, Kind] = {name: kind(name, leaf.shape) for name, leaf in leaves if name in decay}
    assert groups.keys() == decay.keys()
    return groups


def _filters(node: Any, prefix: str) -> list[str]:
    found = [f"{prefix}{name}" for name in getattr(type(node), "filters", ())]
    for path, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]:
        if path:
            found += _filters(child, f"{prefix}{path_name(path)}.")
    return found


def update_periods(model: Any) -> dict[str, int]:
    """How many steps each parameter's gradient is summed over before it is updated, by its dotted path.

    That is the `update_period` of the module it is in (the innermost that has one), and 1 where none has.
    """
    periods: dict[str, int] = {}

    def visit(node: Any, prefix: str, period: int) -> None:
        if isinstance(node, eqx.Module):
            period = getattr(node, "update_period", period)
        children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
        for path, child in children:
            name = f"{prefix}.{path_name(path)}" if path else prefix
            if path:
                visit(child, name.lstrip("."), period)
            else:
                periods[prefix] = period

    visit(model, "", 1)
    return periods


def lr_multipliers(model: Any) -> dict[str, float]:
    """The learning-rate multiplier of every parameter, by its dotted path: what the model's `lr_multipliers` say, or 1.

    One that names a part without parameters, such as the head of a tied model, is passed over.

    **Raises:** `UserError` for one that fits no parameter and no part.
    """
    leaves = jax.tree_util.tree_flatten_with_path(model)[0]
    factors = {path_name(path): 1.0 for path, leaf in leaves if hasattr(leaf, "dtype")}
    for path, factor in lr_factors(getattr(model, "lr_multipliers", "")).items():
        wanted = path.split(".")
        fit = [name for name in factors if _begins(name.split("."), wanted)]
        if not fit and not _is_part(model, wanted):
            raise UserError(
                f"lr_multipliers: no parameter's path begins with {path}; there are {', '.join(factors)[:300]}"
            )
        factors |= dict.fromkeys(fit, factor)
    return factors


def _is_part(node: Any, names: list[str]) -> bool:
    for name in names:
        if not hasattr(node, name):
            return False
        node = getattr(node, name)
    return True


def _begins(names: list[str], wanted: list[str]) -> bool:
    return len(names) >= len(wanted) and all(w in ("*", n) for n, w in zip(names, wanted, strict=False))


def update_every(inner: optax.GradientTransformation, periods: Callable[[str], int]) -> optax.GradientTransformation:
    r"""`inner` for every parameter at its own period P: nothing for P - 1 steps, then an update by the summed gradient.

    $\theta_{i+1} = \theta_i - \eta_i\, u(\sum_{t = i - P + 1}^{i} g_t)$ if P divides i, else $\theta_i$, steps counted
    from 1. What `inner` counts, moments and decay included, happens once an update. Where all periods are 1 this is
    `inner` itself.

    **Arguments:**

    - `inner`: any transformation that treats each parameter by itself.
    - `periods`: the period of a parameter, given its dotted path.

    Nested Learning (arXiv 2512.24695), eq. 71.
    """

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: periods(path_name(path)), params)

    def parts(params: Any) -> optax.GradientTransformation:
        used = sorted({period for period in jax.tree.leaves(labels(params))})
        if used in ([], [1]):
            return inner
        every = {
            period: inner
            if period == 1
            else optax.MultiSteps(inner, period, use_grad_mean=False).gradient_transformation()
            for period in used
        }
        return optax.partition(every, labels)

    return optax.GradientTransformation(
        lambda params: parts(params).init(params),
        lambda updates, state, params=None: parts(updates).update(updates, state, params),
    )


def make_optimizer(config: OptimizerConfig, model: Any, *, plain: Any = None) -> optax.GradientTransformation:
    """Clipping by global norm, Adam or Muon, decoupled weight decay of the "decay" group; each level at its own period.

    The learning rate is not in it: the step subtracts the update times a traced rate, so that a sweep compiles once.
    An update that comes every P steps takes the rate of the step it comes at. A leaf's update, decay included, is
    multiplied by what the model's `lr_multipliers` say. For a `model` in stacked form (see
    `stack_blocks`) give the `plain` one too: it says what belongs to which group.
    """
    plain = model if plain is None else plain
    groups, periods, factors, kinds = (
        _by_stacked_name(of(plain), model, plain)
        for of in (parameter_groups, update_periods, lr_multipliers, matrix_groups)
    )

    def decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: groups[path_name(path)] == "decay", params)

    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
    decay = optax.add_decayed_weights(config.weight_decay, mask=decayed)
    rule = (adam, decay)
    if config.kind == "muon":
        muon = optax.contrib.scale_by_muon(beta=config.momentum, eps=config.eps, weight_dimension_numbers=_last_two)
        scale = optax.stateless(_to_rms)
        matrices = optax.chain(muon, scale, decay, optax.scale(config.muon_lr))

        def labels(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(lambda path, _: kinds[path_name(path)], params)

        rule = (optax.partition({"adamw": optax.chain(adam, decay), "muon": matrices}, labels),)
    clip = optax.clip_by_global_norm(config.clip_norm)
    if set(periods.values()) <= {1}:
        chain = optax.chain(clip, *rule)
    else:
        chain = optax.chain(clip, update_every(optax.chain(*rule), periods.__getitem__))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer array, which "strict" refuses
            updates, state = chain.update(updates, state, params)
        # After decay, so that a factor is a learning rate: a leaf at 0 stays as it began.
        if set(factors.values()) - {1.0}:
            updates = jax.tree_util.tree_map_with_path(lambda path, u: factors[path_name(path)] * u, updates)
        return updates, state

    return optax.GradientTransformation(chain.init, update)


def _last_two(params: Any) -> Any:
    return jax.tree.map(lambda _: LAST_TWO, params)


def _to_rms(updates: Any, params: Any) -> Any:
    return jax.tree.map(lambda u: RMS * math.sqrt(max(u.shape[-2:])) * u, updates)


def _by_stacked_name(values: dict[str, Any], model: Any, plain: Any) -> dict[str, Any]:
    """Values by a plain model's paths, as values by the paths of its stacked form: a run's are its first block's.

    **Raises:** `UserError` where the blocks of a run have different values.
    """
    if model is plain:
        return values
    starts = first_blocks(model)
    for name in values:
        parts = name.split(".")
        if parts[0] == "blocks":
            start = max(first for first in starts if first <= int(parts[1]))
            if values[name] != values.get(".".join(["blocks", str(start), *parts[2:]])):
                raise UserError(
                    f'{name} is trained unlike block {start}, with which it is scanned: use loop="unrolled"'
                )

    def plain_name(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "blocks":
            run, rest = int(parts[1]), parts[3:] if parts[2] == "block" else parts[2:]
            return ".".join(["blocks", str(starts[run]), *rest])
        return name

    paths = jax.tree_util.tree_flatten_with_path(model)[0]
    names = [path_name(path) for path, leaf in paths if hasattr(leaf, "dtype")]
    return {name: values[plain_name(name)] for name in names if plain_name(name) in values}
