"""The host process: what it does with memory that a step has freed."""

import ctypes
import functools
import platform

import jax

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


@functools.cache
def keep_freed_memory() -> bool:
    """Keeps memory that XLA frees on a CPU in the process, for the next step.

    XLA allocates a step's temporaries at every call. glibc hands large blocks back to the system each time, and the
    next step pays for mapping and clearing every page again: up to a third of a small step. This turns that off, for
    the whole process, whose resident size then stays at its peak. `train_run` calls it.

    **Returns:** whether it applies here: a CPU backend, and glibc.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))
