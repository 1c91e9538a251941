"""How many cores this process may use: losses on a CPU depend on it, in the order of sums."""

import os

from .errors import UserError


def usable_cores() -> int:
    """Cores that the process may run on, not those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_cores(begun: int | None, now: int | None, allowed: bool, what: str) -> bool:
    """Whether numbers that were begun on so many cores would go on on others; None is a device without that question.

    **Raises:** `UserError` where they would, and that is not `allowed`.
    """
    if None in (begun, now) or begun == now:
        return False
    if not allowed:
        raise UserError(
            f"{what} on {begun} usable cores, and this process has {now}: sums come in another order, and losses can "
            f"differ by some 0.01 nat. Give it {begun} (on Linux: taskset -c), or allow it with --other-cores"
        )
    return True
