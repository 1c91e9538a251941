"""What a source yields: documents, and the places where there should have been one."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from ..errors import UserError

OnError = Literal["stop", "skip"]


@functools.lru_cache(1024)  # the same few names stand in many documents
def shown(name: str) -> str:
    """A name that can be printed and written: what is no character or would break a line stands as its escape."""
    try:
        raw = name.encode("utf-8", "surrogateescape")  # a file's name may be any bytes
    except UnicodeEncodeError:  # half a surrogate pair, from JSON
        raw = name.encode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda c: f"\\x{ord(c[0]):02x}", raw.decode("utf-8", "backslashreplace"))


class Position(NamedTuple):
    """Where a record starts: its file's number, an offset in that file (bytes of text or rows), and its line from 1."""

    file: int = 0
    offset: int = 0
    line: int = 1


START = Position()


class Document(NamedTuple):
    """A text, its UTF-8 bytes, and where it came from.

    - `at`: where the record starts; reading from there gives this document again.
    - `path`: the file, as the user would name it (escaped where that cannot be printed).
    - `name`: the path below the folder or glob that was given; what a split by path hashes.
    - `group`: the set that the document belongs to (the Pile's `meta.pile_set_name`), or "".
    - `split`: the official split, or "" where there is none.
    """

    text: str
    data: bytes
    at: Position
    path: str
    name: str
    group: str = ""
    split: str = ""


class Problem(NamedTuple):
    """Something that is no document: its kind, a line for the user with file and line or byte, and where it is."""

    kind: str
    message: str
    at: Position


Item = Document | Problem


@runtime_checkable
class Source(Protocol):
    """Documents in a fixed order.

    - `name`: a short one, for reports. `spec`: what is read, as JSON; equal specs are equal text.
    - `official`: whether documents carry the split they belong to.
    - `whole_files`: whether a document is a file (it is then split by its path, else by its content).
    """

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> dict[str, Any]: ...

    @property
    def official(self) -> bool: ...

    @property
    def whole_files(self) -> bool: ...

    def items(self, start: Position = START, split: str = "") -> Iterator[Item]:
        """Documents and problems from a position on; of one official split only, where `split` names it."""
        ...


@dataclass
class Skipped:
    """How many records were left out, by kind, and the first few in words."""

    policy: OnError = "stop"
    counts: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.policy not in ("stop", "skip"):
            raise UserError(f"on_error={self.policy!r}: allowed is 'stop' or 'skip'")

    def see(self, problem: Problem) -> None:
        """Counts a problem; raises `UserError` where the policy is to stop."""
        if self.policy == "stop":
            raise UserError(f"{problem.message}; mend it, or leave such records out with --on-error skip")
        self.counts[problem.kind] = self.counts.get(problem.kind, 0) + 1
        if len(self.first) < 10:
            self.first.append(problem.message)

    def state(self) -> dict[str, Any]:
        """As JSON; `Skipped(policy, **state)` goes on with it."""
        return {"counts": dict(sorted(self.counts.items())), "first": list(self.first)}


def no_text(source: Source, skipped: Skipped) -> str:
    """What is said of a source without a document."""
    left = "".join(f" ({first})" for first in skipped.first[:1])
    return f"{source.name} holds no text{left}: give a file, or a folder of files, that is not empty"
