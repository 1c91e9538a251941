"""What one run leaves and tells: its evaluations, its record, its progress."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree


@dataclass(frozen=True)
class Evaluation:
    """Validation loss after `tokens` training tokens: nats a token and, where no byte is lost, bits a byte.

    `halves` are the losses on the sequences with even and with odd number: what chooses does not have to judge.
    `cosines` are the layers' `channel_cosines` on the first validation batch, where the run was to be probed.
    """

    step: int
    tokens: int
    nll: float
    bits_per_byte: float | None
    halves: tuple[float, ...] = ()
    cosines: tuple[float, ...] = ()

    @staticmethod
    def of(data: Mapping[str, Any]) -> "Evaluation":
        """From JSON, where None stands for what is not finite."""
        nll, *halves = (math.nan if value is None else value for value in (data["nll"], *data.get("halves", ())))
        cosines = tuple(math.nan if value is None else value for value in data.get("cosines", ()))
        return Evaluation(**{**data, "nll": nll, "halves": tuple(halves), "cosines": cosines})


@dataclass
class RunRecord:
    """What one run leaves: its evaluations, its speed, the hash of the batches it saw, its final parameters.

    `losses`: of every validation token at the last evaluation, nats, `(sequences, T)`; `averaged_nll`: the loss of the
    mean of the last steps' weights, where one was asked for; `skipped`: how many steps had no finite gradient and
    changed nothing.
    """

    seed: int
    learning_rate: float
    evals: list[Evaluation] = field(default_factory=list)
    losses: np.ndarray | None = None
    averaged_nll: float | None = None
    train_seconds: float = 0.0
    tokens_per_second: float = 0.0
    stream_hash: str = ""
    skipped: int = 0
    params: PyTree[Array] | None = None

    @property
    def sequences(self) -> tuple[float, ...]:
        """The mean loss of every validation sequence at the last evaluation, nats a token."""
        # Nine digits say all of a float32.
        return () if self.losses is None else tuple(float(f"{mean:.9g}") for mean in self.losses.mean(axis=-1))

    def end_diverged(self, step: int, tokens: int) -> None:
        """Ends the record of a run whose last steps had no finite gradient: no loss of its weights is a result."""
        parts = (math.nan,) * (len(self.evals[-1].halves) if self.evals else 2)
        if self.evals and self.evals[-1].step == step:
            self.evals.pop()
        self.evals.append(Evaluation(step, tokens, math.nan, None, parts))
        self.losses = None

    @property
    def diverged(self) -> bool:
        """Whether the last loss is not a finite number."""
        return bool(self.evals) and not math.isfinite(self.evals[-1].nll)


@dataclass(frozen=True)
class Progress:
    """What a run reports as it goes: the step just done, its training loss (of an earlier step), tokens a second.

    `gradient_norm`, `norms` ("gradient", "update" and "parameter", by group of leaves) and `skipped` are of the loss'
    step.
    """

    step: int
    tokens: int
    loss: float
    tokens_per_second: float
    evaluation: Evaluation | None = None
    gradient_norm: float = math.nan
    norms: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: int = 0


def of_each(metrics: Any, replicates: int) -> list[dict[str, Any]]:
    """What `Progress` tells of a step's metrics, for each of the replicates that it trained."""

    def numbers(value: Any) -> list[Any]:
        return np.atleast_1d(np.asarray(value)).tolist()

    norms = {"gradient": metrics.gradient_norms, "update": metrics.update_norms, "parameter": metrics.parameter_norms}
    by_group = {kind: {name: numbers(norm) for name, norm in own.items()} for kind, own in norms.items()}
    whole = {"loss": metrics.loss, "gradient_norm": metrics.gradient_norm, "skipped": metrics.skipped}
    plain = {name: numbers(value) for name, value in whole.items()}
    return [
        {name: values[i] for name, values in plain.items()}
        | {"norms": {kind: {name: values[i] for name, values in own.items()} for kind, own in by_group.items()}}
        for i in range(replicates)
    ]
