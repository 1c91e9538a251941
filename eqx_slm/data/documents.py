"""What a source yields: documents, and the places where there should have been one."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

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
    """Documents in a fixed order."""

    @property
    def name(self) -> str:
        """A short name for reports."""
        ...

    @property
    def spec(self) -> dict:
        """What is read, as JSON: equal specs are equal text."""
        ...

    @property
    def official(self) -> bool:
        """Whether documents carry the split they belong to."""
        ...

    @property
    def whole_files(self) -> bool:
        """Whether a document is a file (it is then split by its path, else by its content)."""
        ...

    def items(self, start: Position = START) -> Iterator[Item]:
        """Documents and problems from a position on."""
        ...


@dataclass
class Skipped:
    """How many records were left out, by kind, and the first few in words."""

    policy: OnError = "stop"
    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.policy not in ("stop", "skip"):
            raise UserError(f"on_error={self.policy!r}: allowed is 'stop' or 'skip'")

    def see(self, problem: Problem) -> None:
        """Counts a problem; raises `UserError` where the policy is to stop."""
        if self.policy == "stop":
            raise UserError(f"{problem.message}; mend it, or leave such records out with --on-error skip")
        self.counts[problem.kind] += 1
        if len(self.first) < 10:
            self.first.append(problem.message)

    def state(self) -> dict:
        """As JSON."""
        return {"counts": dict(sorted(self.counts.items())), "first": list(self.first)}

    @classmethod
    def of(cls, policy: OnError, state: dict | None) -> Skipped:
        """From `state()`."""
        state = state or {"counts": {}, "first": []}
        return cls(policy, Counter(state["counts"]), list(state["first"]))


@dataclasses.dataclass(frozen=True)
class MemorySource:
    """A corpus in memory as a source: its splits are kept.

    **Arguments:** `name`; `splits`: the documents of each split by its name; `digest`: sha256 of the text;
    `split_rule`: a line on how it was split; `note`: what a reader of a report should know.
    """

    name: str
    splits: dict[str, tuple[str, ...]]
    digest: str
    split_rule: str = "official"
    note: str = ""
    official: bool = True
    whole_files: bool = False

    @property
    def spec(self) -> dict:
        """The name and the hash."""
        return {"kind": "memory", "name": self.name, "sha256": self.digest}

    def items(self, start: Position = START) -> Iterator[Item]:
        """Documents from a position on; `file` counts splits, `offset` documents."""
        for number, (split, texts) in enumerate(self.splits.items()):
            path = f"{self.name}/{split}"
            for i, text in enumerate(texts):
                if (at := Position(number, i, i + 1)) >= start[:2]:
                    yield Document(text, text.encode("utf-8"), at, path, path, split=split)
