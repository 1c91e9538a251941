"""Splits of documents: official ones by the names of files, else by the hash of the content or of the path."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError
from .documents import Document, Source, shown
from .files import TEXT, InputFile

SplitKind = Literal["official", "content", "path"]
SPLITS = ("train", "valid", "test")
VALID_SHARE = 0.05
TEST_SHARE = 0.05

# The salt was chosen once, by the sizes of the splits of the standard library alone: with it CPython 3.11 to 3.13 have
# 4.5-6.1% of their bytes in each of the two small splits, and no single module makes up half of either.
_SALT = b"split 61/"

_WORDS = {
    "train": re.compile(r"(train(ing)?|trn)(set|data)?\d*"),
    "valid": re.compile(r"(val(id(ation)?)?|vld|dev(el(opment)?)?|eval(uation)?|heldout)(set|data)?\d*"),
    "test": re.compile(r"(dev)?(test(ing)?|tst)(set|data)?\d*"),
}
_NUMBERING = re.compile(r"\d+|of|v\d+|(part|shard|chunk|file|split)\d*")
_NOTES = re.compile(r"(?i)(^|/)training[-_ ]+[a-z][^/]*$")  # training_notes.txt
# Endings of data. A name without one is data, too; a split's word in test.py or test.md says nothing.
_DATA = TEXT | frozenset("gz zst zstd jsonl jsonlines ndjson json parquet pq".split())
_CODE = frozenset(  # programs and what belongs to them: there a split's word may name what one does
    ".py .pyi .ipynb .js .mjs .cjs .jsx .ts .tsx .c .h .cc .cpp .hpp .cu .rs .go .java .kt .scala .rb .php .pl .pm .lua"
    " .jl .r .m .swift .sh .bash .ps1 .sql .html .htm .css .vue .yaml .yml .toml .ini .cfg .conf .mk .xml".split()
)


def hashed_split(key: bytes, valid: float = VALID_SHARE, test: float = TEST_SHARE) -> str:
    """The split of a key by its sha256, whatever else there is."""
    share = int.from_bytes(hashlib.sha256(_SALT + key).digest()[:8], "big") / 2**64
    return "valid" if share < valid else "test" if share < valid + test else "train"


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
        key = document.data if self.kind == "content" else document.name.encode("utf-8", "surrogateescape")
        return hashed_split(key, self.valid, self.test)


def split_rule(
    source: Source, kind: str = "auto", *, valid: float = VALID_SHARE, test: float = TEST_SHARE
) -> SplitRule:
    """The rule for a source: "auto" is official where the source has splits, path where documents are files, else
    content.

    **Raises:** `UserError` for an unknown kind, where official splits are asked for and there are none, and for "auto"
    where some files' names say a split and it is not clear what the others are.
    """
    if kind not in ("auto", "official", "content", "path"):
        raise UserError(f"--split {kind!r}: allowed is auto, official, content or path")
    unclear = getattr(source, "unclear", "")
    if kind in ("auto", "official") and unclear:
        raise UserError(f"{source.name}: {unclear}")
    if kind == "official" and not source.official:
        raise UserError(
            f"{source.name} has no official splits: its files' names do not say train, valid and test; "
            "give --split content or --split path"
        )
    if kind in ("auto", "official") and source.official:
        return SplitRule("official", valid, test, getattr(source, "split_rule", "official"))
    if kind == "path" or (kind == "auto" and source.whole_files):
        return SplitRule("path", valid, test)
    return SplitRule("content", valid, test)


def split_of_name(name: str) -> str:
    """The split that a path says, or "": `wiki.train.tokens`, `val/00.jsonl.zst`, `test-00001-of-00002.parquet`.

    The word stands first or last in the file's name, numbering and endings aside, or in that of one of its folders;
    where they say different splits, none is said.
    """
    said = set()
    for part in re.sub("h[eo]ld[-_]?out", "heldout", name.lower()).split("/"):
        while (ending := os.path.splitext(part)[1][1:]) in _DATA and ending:
            part = part[: -len(ending) - 1]
        words = re.split(r"[^a-z0-9]+", part)
        while len(words) > 1 and _NUMBERING.fullmatch(words[-1]):
            words.pop()
        said |= {split for split, word in _WORDS.items() if word.fullmatch(words[0]) or word.fullmatch(words[-1])}
    return said.pop() if len(said) == 1 else ""


def _by_difference(names: Sequence[str]) -> dict[str, str]:
    """The split of each name that differs from one of training in that word alone, wherever it stands:
    data_train_clean.txt and data_test_clean.txt, bookTrain.txt and bookTest.txt, wikitrain.txt and wikitest.txt."""
    alike: dict[str, dict[str, str]] = {}
    if not re.search("(?i)trn|train", "\n".join(names)):  # of millions of names, mostly
        return {}
    for name in names:
        words = re.split(r"([^a-zA-Z0-9]+|(?<=[a-z0-9])(?=[A-Z]))", name)
        for i, word in enumerate(words):
            for split, known in _WORDS.items() if re.search("(?i)tr|val|vld|dev|heldout|tst|test", word) else ():
                if left := _without(word.lower(), known.pattern):
                    rest = re.sub(r"\d+", "0", "".join((*words[:i], left, *words[i + 1 :])))
                    alike.setdefault(rest, {})[name] = split
    found = [same for rest, same in alike.items() if {"train", *(["valid"] if "*~" in rest else [])} < {*same.values()}]
    return {name: split for same in found for name, split in same.items()}


def _without(word: str, known: str) -> str:
    """A word with a star in place of the split in it, "" where there is none. What begins with one is marked: trained
    and tested are words."""
    if re.fullmatch(known, word):
        return "*"
    if found := re.fullmatch(f"(.{{2,}}?)({known})", word):
        return f"{found[1]}*"
    found = re.fullmatch(f"({known})(.{{2,}})", word)
    return f"*~{found[found.re.groups]}" if found else ""


def _is_data(file: InputFile) -> bool:
    """Whether a split's word in its name means a split: records, and text without the ending of a source or markup."""
    word = re.split(r"[^a-z0-9]+", file.ending[1:])[0]  # of .en-00001-of-00100 too
    return file.records or word in TEXT or word.isdigit() or bool(split_of_name(word))


def _said(files: Sequence[InputFile], names: Sequence[str]) -> list[str]:
    """The split that each name says; none in a tree of source code, where a `test/notes.txt` is no split.

    Where all files say one, by one ending, that ending may be any: `dev.conllu`, `test.md`; of programs valid must be
    among them, since train.py and test.py are two. What is called training_notes.txt, and no other a split, are notes.
    """
    bare, endings = [split_of_name(os.path.splitext(name)[0]) for name in names], {file.ending for file in files}
    if len(endings) == 1 and all(bare) and {"train"} < {*bare} and ("valid" in bare or not endings & _CODE):
        return bare
    data, pairs = [_is_data(file) for file in files], _by_difference(names)
    said = [
        split_of_name(name) or pairs.get(name, "") if there else "" for name, there in zip(names, data, strict=True)
    ]
    if {*said} == {"train", ""} and all(_NOTES.search(name) for name, split in zip(names, said, strict=True) if split):
        return [""] * len(said)
    records = any(file.records and split for file, split in zip(files, said, strict=True))
    if not records and not all(data) and not {"train"} < {*said} - {""}:
        return [""] * len(said)
    return said


def without_companions(files: Sequence[InputFile], named: Collection[str]) -> tuple[InputFile, ...]:
    """Files less README, LICENSE, dataset_info.json and their like, where records or splits are beside them.

    In a tree of text they are text; so is a file whose path is among those `named`, and in the folder of a split, but
    for README and LICENSE, one that has the ending of a text in such a folder: train/state.txt beside train/ohio.txt.
    """
    data = [file for file in files if not file.companion or file.path in named]
    beside = any(file.records for file in data) or any(_said(data, [file.name for file in data]))
    if not beside:
        return tuple(files)
    kept = {file.path for file in data}
    inside = [file for file in files if split_of_name(os.path.dirname(file.name))]
    texts = {file.ending for file in inside if file.path in kept and not file.records}
    notes = re.compile("(?i)(.*/)?(readme|licen[cs]e)[^/]*")
    kept |= {file.path for file in inside if file.ending in texts and not notes.fullmatch(file.name)}
    return tuple(file for file in files if file.path in kept)


def official_splits(files: Sequence[InputFile], names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """What the names of files say: the split of each file, or nothing; and why that is not clear, or "".

    They say splits where each of them says one, with train and valid among them. Where all say the same one, or none
    says any, they say nothing.
    """
    said = _said(files, names)
    kinds = {*said} - {""}
    if not kinds or (all(said) and len(kinds) == 1):
        return (), ""
    do = "name the files to train on alone (a glob)"
    if not all(said):
        named, stray = (shown(names[[*map(bool, said)].index(there)]) for there in (True, False))
        return (), (
            f"{named} is named as a split and {stray} is not, so that it is not clear what to train on: {do}, give "
            "every file the name of its split, or prepare them with --split content"
        )
    if {"train", "valid"} <= kinds:
        return tuple(said), ""
    missing = "valid" if "train" in kinds else "train"
    return (), (
        f"files are named {' and '.join(sorted(kinds, reverse=True))}, but none {missing}; split anew, the test text "
        f"would be trained on: add {missing} files, {do}, or prepare them with --split content"
    )
