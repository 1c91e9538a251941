"""The host process: memory that a step has freed, and programs compiled before."""

import ctypes
import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Any, cast

import jax

from .programs import keep_verified

# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@functools.cache
def keep_freed_memory() -> bool:
    """Keeps memory that XLA frees on a CPU in the process, for the next step.

    XLA allocates a step's temporaries at every call. glibc hands large blocks back to the system each time, and the
    next step pays for mapping and clearing every page again: up to a third of a small step. This turns that off,
    for the whole process, whose resident size then stays at its peak.

    Call it before JAX runs anything: threads that JAX has started by then keep heaps of their own, from which blocks
    above 64 MiB are still handed back. `experiments/pair.py` does; `train_run` calls it too.

    **Returns:** whether it applies here: the C library is glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)))


def use_compile_cache(folder: str | os.PathLike[str] | None = None) -> Path:
    """Keeps compiled programs on disk, so that the next process that needs the same one reads it.

    A cache that is set already (JAX_COMPILATION_CACHE_DIR, or `jax_compilation_cache_dir`) stays. `experiments/pair.py`
    calls this.

    **Arguments:**

    - `folder`: None is `$EQX_SLM_CACHE` or `~/.cache/eqx_slm`, and in it a folder for this kind of processor: programs
      compiled for one may not run on another. In either, every program carries a hash (see `keep_verified`).

    **Returns:** the folder in use.
    """
    known = cast(Any, jax.config).jax_compilation_cache_dir
    if known:
        return Path(known)
    if folder is None:
        root = os.environ.get("EQX_SLM_CACHE") or Path.home() / ".cache" / "eqx_slm"
        folder = Path(root) / "programs" / hashlib.sha256(_processor()).hexdigest()[:12]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The many small programs that build a model take longer together than the step.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    keep_verified(Path(folder))
    return Path(folder)


def _processor() -> bytes:
    """What tells kinds of processors apart: its name and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
