"""What a study shows while it runs: one live line on a terminal, plain lines elsewhere."""

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

from ..train.loop import Progress as Step
from ..visible import visible
from .results import Row
from .sentences import human

PLAIN_SECONDS = 10.0
NAME, STATUS = 20, 46  # columns of the live line; the bar has what is left of the terminal's


@dataclass(frozen=True)
class Event:
    """Something that happened in a study.

    "kept" (a run that was there), "compiled", "progress", "sampling", "run" (with the model and its row), "growing"
    (`runs` more from `seed` on), "said" (a line, `text`, of a run that stops or goes on). `seconds`: what compiling or
    training took; `runs`: how many runs, one a seed, are at the step that "progress" tells of.
    """

    kind: Literal["kept", "compiled", "progress", "sampling", "run", "growing", "said"]
    arm: str
    seed: int = 0
    learning_rate: float = 0.0
    progress: Step | None = None
    seconds: float = 0.0
    model: Any = None
    row: Row | None = None
    runs: int = 1
    text: str = ""


class Progress:
    """Turns events into lines on a rich console: arm, seed, loss, tokens a second, time left of the whole study."""

    def __init__(self, arms: int, runs: int, steps: int, console: Any):
        """**Arguments:** how many `arms`, `runs` of them in all and `steps` a run; a `rich.console.Console`."""
        self.arms, self.runs, self.steps, self.console = arms, runs, steps, console
        self.done: dict[str, int] = defaultdict(int)
        self.compiled: dict[str, float] = {}
        self.spent: dict[str, float] = defaultdict(float)  # seconds between two reports of one run: steps, evaluations
        self.trained: dict[str, float] = defaultdict(float)  # and the runs, in parts of one, that they brought forward
        self.mark: tuple[int, float] | None = None  # the step that was told last, and when
        self.told, self.live = -math.inf, None

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            bar = BarColumn(bar_width=min(40, max(6, self.console.width - NAME - STATUS - 2)))
            texts = (TextColumn("{task." + name + "}", markup=False) for name in ("description", "fields[status]"))
            self.live = Bar(next(texts), bar, next(texts), console=self.console)
            self.live.start()
            self.task = self.live.add_task("compiling", total=self.runs * self.steps, status="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, event: Event) -> None:
        """Shows an event."""
        name = visible(f"{event.arm} seed {event.seed}")
        if event.progress is not None:
            self._step(name, event, event.progress)
            return
        self.mark = None
        if event.kind == "compiled":
            self.compiled[event.arm] = event.seconds
            self._print(f"{visible(event.arm)}: step compiled in {event.seconds:.1f} s")
        elif event.kind == "said":
            run = f"{name}, lr {event.learning_rate:g}: " if event.arm else ""
            self._print(run + visible(event.text))
        elif event.kind == "growing":
            self.runs += event.runs
            if self.live:
                self.live.update(self.task, total=self.runs * self.steps)
            self._print(f"not resolved: seed {event.seed} is next, {event.runs} more runs")
        elif event.kind == "sampling":
            self._show(name, "writing a sample of text")
        else:
            self.done[event.arm] += 1
            done, run = sum(self.done.values()), f"{name}, lr {event.learning_rate:g}"
            said = f"was there: {run}" if event.kind == "kept" else f"done: {run}: {event.seconds:.0f} s"
            self._print(f"run {done}/{self.runs} {said}")
            self._show(name, "comparing and writing the report" if done == self.runs else "starting the next run")

    def left(self, event: Event) -> float | None:
        """Seconds until the last run ends; None until steps have told how long one takes. Compiling is no step."""
        known = {arm: self.spent[arm] / share for arm, share in self.trained.items() if share > 0}
        if not known or event.progress is None:
            return None
        usual = sum(known.values()) / len(known)
        each, left = self.runs / self.arms, 0.0
        for arm in {*self.done, *self.compiled, event.arm}:
            now = event.runs * event.progress.step / self.steps if arm == event.arm else 0.0
            left += (each - self.done[arm] - now) * known.get(arm, usual)
        others = self.arms - len({*self.done, *self.compiled, event.arm})
        compiling = sum(self.compiled.values()) / max(1, len(self.compiled))
        return left + others * (each * usual + compiling)

    def _step(self, name: str, event: Event, progress: Step) -> None:
        now, step = time.perf_counter(), progress.step
        if self.mark is None or self.mark[0] < step:
            if self.mark is not None:
                self.spent[event.arm] += now - self.mark[1]
                self.trained[event.arm] += event.runs * (step - self.mark[0]) / self.steps
            self.mark = step, now
        left = self.left(event)
        val = f" val {progress.evaluation.nll:.3f}" if progress.evaluation else ""
        speed = "" if math.isnan(progress.tokens_per_second) else f" {human(progress.tokens_per_second)} tok/s"
        bad = f" {progress.skipped} skipped" if progress.skipped else ""
        status = f"loss {progress.loss:.3f}{val}{speed}{bad}" + ("" if left is None else f" {_clock(left)} left")
        if self.live or now - self.told >= PLAIN_SECONDS or step == self.steps:
            self.told = now
            done = int((sum(self.done.values()) + event.runs * step / self.steps) * self.steps)
            self._show(name, status, done)
            if not self.live:
                self._print(f"{name}: step {step}/{self.steps}, {status}")

    def _show(self, name: str, status: str, completed: int | None = None) -> None:
        if self.live:
            name = name if len(name) <= NAME else f"{name[: NAME - 10]}..{name[-8:]}"
            self.live.update(self.task, completed=completed, description=name, status=status)

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"
