"""What a study shows while it runs: one live line on a terminal, plain lines elsewhere."""

import math
import time
from typing import Any

from .config import PairConfig
from .sentences import human
from .trials import Event

PLAIN_SECONDS = 10.0


class Progress:
    """Turns events into lines on a rich console: arm, seed, loss, tokens a second, time left of the whole study."""

    def __init__(self, config: PairConfig, console: Any):
        """**Arguments:** `config`, for the number of runs; `console`, a `rich.console.Console`."""
        self.config = config
        self.console = console
        self.total = len(config.arms) * config.seeds * len(config.learning_rates)
        self.done = 0
        self.started = time.perf_counter()
        self.told = -math.inf
        self.live = None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self.live = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.live.start()
            steps = self.total * self.config.steps
            self.task = self.live.add_task("compiling", total=steps, status="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        if event.kind == "compiled":
            self.console.print(_compiled(event), highlight=False, soft_wrap=True)
        elif event.kind == "run":
            self.done += 1
            self.console.print(self._finished(event), highlight=False, soft_wrap=True)
        elif event.progress is not None:
            self._step(event)

    def _finished(self, event: Event) -> str:
        rate = f", lr {event.learning_rate:g}" if len(self.config.learning_rates) > 1 else ""
        return f"run {self.done}/{self.total} done: {event.arm}, seed {event.seed}{rate}: {event.seconds:.0f} s"

    def _step(self, event: Event) -> None:
        progress = event.progress
        assert progress is not None
        share = (self.done + event.runs * progress.step / self.config.steps) / self.total
        elapsed = time.perf_counter() - self.started
        left = elapsed * (1 - share) / share if share > 0 else math.nan
        validation = f", validation {progress.evaluation.nll:.3f}" if progress.evaluation else ""
        speed = "" if math.isnan(progress.tokens_per_second) else f", {human(progress.tokens_per_second)} tokens/s"
        status = f"loss {progress.loss:.3f}{validation}{speed}, {_clock(left)} left"
        name = f"{event.arm} seed {event.seed}"
        if self.live:
            completed = self.done * self.config.steps + event.runs * progress.step
            self.live.update(self.task, completed=completed, description=name, status=status)
        elif time.perf_counter() - self.told >= PLAIN_SECONDS or progress.step == self.config.steps:
            self.told = time.perf_counter()
            at = f"step {progress.step}/{self.config.steps}"
            self.console.print(f"{name}: {at}, {status}", highlight=False, soft_wrap=True)


def _compiled(event: Event) -> str:
    parts = [f"{event.arm}: step compiled in {event.seconds:.1f} s"]
    if event.report is not None and event.report.temporary_bytes is not None:
        parts.append(f"{event.report.temporary_bytes / 2**20:,.0f} MiB of temporaries")
    if event.report is not None and event.report.flops is not None:
        parts.append(f"{human(event.report.flops)} FLOPs by XLA's count (a loop's body once)")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
