"""Several processes of JAX's runtime as one: how they begin, what the first alone reads and writes, what they agree on.

With one process nothing here costs anything. With more, every function is called by all of them, at the same point.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..errors import UserError

PIECE = 2**24  # words of four bytes that travel at once


def join(text: str | None) -> None:
    """Makes this process one of several, before anything else of JAX runs.

    `text`: "auto" where the cluster says who is who (Slurm, Cloud TPU, MPI), or HOST:PORT,COUNT,INDEX, the address of
    the process of index 0 first. Nothing for one process.

    **Raises:** `UserError` for another text, where the others do not come, and where JAX has begun already.
    """
    if not text or jax.distributed.is_initialized():  # a series of studies joins once
        return
    given: dict[str, Any] = {}
    if text != "auto":
        match = re.fullmatch(r"([^,\s]+:\d{1,5}),([1-9]\d{0,5}),(\d{1,6})", text)
        if match is None or int(match[3]) >= int(match[2]):
            raise UserError(
                f"--processes {text!r}: write auto, or HOST:PORT,COUNT,INDEX with an index below the count, such as "
                "node0:1234,2,0"
            )
        given = {"coordinator_address": match[1], "num_processes": int(match[2]), "process_id": int(match[3])}
    if hasattr(jax.config, "jax_enable_preemption_service"):  # it would take SIGTERM from those that listen to it
        jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**given)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--processes {text}: {str(error).splitlines()[0]}") from None


def leads() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def lost(error: RuntimeError) -> bool:
    """Whether an error is of a collective that another process did not take part in."""
    own = str(error).startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
    return isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1 and not own


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental.multihost_utils import process_allgather

    return bool(np.any(process_allgather(np.asarray(flag))))


def together(make: Callable[[], Any]) -> Any:
    """What each process makes for itself; where one of them cannot, all raise: `UserError` in those that could."""
    made, failed = None, None
    try:
        made = make()
    except (UserError, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        failed = error
    if any_of(failed is not None):
        raise failed or UserError("another process could not begin; it says why")
    return made


def same(text: str) -> None:
    """Raises `UserError` in all processes where one has another text than the first."""
    if any_of(from_first(lambda: text) != text):
        raise UserError("the processes were given unlike commands, data or versions: give each the same")


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, JSON, in all of them; the others do not call `make`.

    **Raises:** in the first what `make` raises, and in the others a `UserError` that says it.
    """
    if jax.process_count() == 1:
        return make()
    value, failed = None, None
    if leads():
        try:
            value = make()
        except Exception as error:
            failed = error
    told = json.loads(bytes_from_first(json.dumps({"value": value, "error": failed and str(failed)}).encode()))
    if failed is not None:
        raise failed
    if told["error"] is not None:
        raise UserError(f"the first process: {told['error']}")
    return told["value"]


def bytes_from_first(data: bytes) -> bytes:
    """The first process' bytes, whatever the others give."""
    if jax.process_count() == 1:
        return data
    from jax.experimental.multihost_utils import broadcast_one_to_all

    high, low = (int(part) for part in broadcast_one_to_all(np.array(divmod(len(data), 2**30), np.int32)))
    size = (high << 30) + low
    words = np.zeros(-(-size // 4), np.uint32)
    if leads():
        words = np.frombuffer(data.ljust(4 * len(words), b"\0"), np.uint32)
    pieces = [broadcast_one_to_all(words[at : at + PIECE]) for at in range(0, len(words), PIECE)]
    return b"".join(np.asarray(piece).tobytes() for piece in pieces)[:size]
