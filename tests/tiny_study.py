"""A tiny study that is trained once a process, and read by every test that needs a finished run."""

import dataclasses
import functools
import os
from pathlib import Path

from tiny import GENERATOR, tiny_config, tiny_stream

from eqx_slm import PairConfig, run_pair
from eqx_slm.study.arms import Tuned
from eqx_slm.study.config import StreamConfig

STREAM = tiny_stream()
CONFIG = PairConfig(
    name="tiny",
    arms=("dense", "leviathan"),
    settings=("leviathan.embedding.order=random",),
    model=tiny_config(),
    tuned=Tuned(generator=GENERATOR),
    stream=StreamConfig(data="none: given", sequence_length=STREAM.sequence_length, batch_size=STREAM.batch_size),
    seeds=2,
    steps=4,
    learning_rates=(1e-2,),
    evaluations=2,
    sample_tokens=3,
)


class Finished:
    """A run: its folder, its result, and what it told: events, the trained models by arm, seed and rate."""

    def __init__(self, folder, **changes):
        self.events, self.folders, config = [], [], dataclasses.replace(CONFIG, **changes)
        self.folder, self.result = run_pair(
            config, out=folder, stream=STREAM, on_event=self.events.append, on_folder=self.folders.append
        )
        runs = [event for event in self.events if event.kind == "run"]
        self.models = {(event.arm, event.seed, event.learning_rate): event.model for event in runs}
        self.kinds = [event.kind for event in self.events]


@functools.cache
def finished():
    return Finished(Path(os.environ["EQX_SLM_TEST_SESSION"]) / f"study-{os.getpid()}")
