"""Accounting: how many parameters, FLOPs and bytes each component takes, and configs with equal budgets."""

from .budget import Fit, fit_shape
from .flops import CONVENTIONS, Flops, counted_flops, flops
from .ledger import Ledger, count_parameters, parameter_ledger
from .match import Match, match_flops, match_parameters
from .memory import Memory, memory

__all__ = [
    "CONVENTIONS",
    "Fit",
    "Flops",
    "Ledger",
    "Match",
    "Memory",
    "count_parameters",
    "counted_flops",
    "fit_shape",
    "flops",
    "match_flops",
    "match_parameters",
    "memory",
    "parameter_ledger",
]
