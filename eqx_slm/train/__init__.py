"""Training: the chunked loss, AdamW with explicit groups, the compiled step, one run, and model files."""

from .checkpoint import load_model, save_model
from .host import keep_freed_memory, use_compile_cache
from .loop import RunConfig, eval_steps, train_run, train_runs
from .loss import CrossEntropy, cross_entropy, token_losses
from .mesh import Layout, place_on
from .optimizer import OptimizerConfig, make_optimizer, parameter_groups
from .record import Evaluation, RunRecord
from .resume import Checkpoints, Stopped
from .step import Metrics, Program, TrainState, make_program

__all__ = [
    "Checkpoints",
    "CrossEntropy",
    "Evaluation",
    "Layout",
    "Metrics",
    "OptimizerConfig",
    "Program",
    "RunConfig",
    "RunRecord",
    "Stopped",
    "TrainState",
    "cross_entropy",
    "eval_steps",
    "keep_freed_memory",
    "load_model",
    "make_optimizer",
    "make_program",
    "parameter_groups",
    "place_on",
    "save_model",
    "token_losses",
    "train_run",
    "train_runs",
    "use_compile_cache",
]
