"""How many cores this process may use: losses on a CPU depend on it, in the order of sums."""

import os


def usable_cores() -> int:
    """Cores that the process may run on, not those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
