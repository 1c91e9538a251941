"""Splits of documents: official ones, else by the hash of the content or of the path, never by position."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from .corpus import _SALT, TEST_SHARE, VALID_SHARE
from .documents import Document, Source

SplitKind = Literal["official", "content", "path"]


@dataclass(frozen=True)
class SplitRule:
    """Which split a document is in.

    - `kind`: "official" takes the document's own; "content" hashes the text, so that equal texts meet in one split;
        "path" hashes the path of the file.
    - `valid`, `test`: their shares of the hashes.
    """

    kind: SplitKind
    valid: float = VALID_SHARE
    test: float = TEST_SHARE
    note: str = "official"  # how a corpus in memory came by its splits

    def __post_init__(self) -> None:
        if not (0 < self.valid < 1 and 0 <= self.test < 1 and self.valid + self.test < 1):
            raise UserError(
                f"split shares {self.valid:g} valid and {self.test:g} test: both are shares of one, and training needs "
                "what they leave"
            )

    def __str__(self) -> str:
        if self.kind == "official":
            return self.note
        what = "each document's text" if self.kind == "content" else "each file's path"
        return f"sha256 of {what}, {self.valid:.4g} valid, {self.test:.4g} test"

    def __call__(self, document: Document) -> str:
        """ "train", "valid" or "test"."""
        if self.kind == "official":
            return document.split
        key = hashlib.sha256(_SALT.encode())
        key.update(document.data if self.kind == "content" else document.name.encode("utf-8", "surrogateescape"))
        share = int.from_bytes(key.digest()[:8], "big") / 2**64
        if share < self.valid:
            return "valid"
        return "test" if share < self.valid + self.test else "train"


def split_rule(
    source: Source, kind: str = "auto", *, valid: float = VALID_SHARE, test: float = TEST_SHARE
) -> SplitRule:
    """The rule for a source: "auto" is official where the source has splits, path where documents are files, else
    content.

    **Raises:** `UserError` for an unknown kind, and where official splits are asked for and there are none.
    """
    if kind == "auto":
        # Of records; a tree of text files may have a test.py and a train.py.
        records = not source.official and not source.whole_files
        if records and {"train", "test"} <= getattr(source, "named_splits", set()):
            raise UserError(
                f"{source.name}: files are named train and test, but not every file train, valid or test with some of "
                "each of the first two; split anew, the test text would be trained on: add valid files, name the "
                "files to train on alone, or prepare them with --split content"
            )
        kind = "official" if source.official else "path" if source.whole_files else "content"
    if kind == "official":
        if not source.official:
            raise UserError(
                f"{source.name} has no official splits: its files' names do not say train, valid and test; "
                "give --split content or --split path"
            )
        return SplitRule("official", valid, test, getattr(source, "split_rule", "official"))
    if kind == "content":
        return SplitRule("content", valid, test)
    if kind == "path":
        return SplitRule("path", valid, test)
    raise UserError(f"--split {kind!r}: allowed is auto, official, content or path")
