"""What a prepared folder says of itself: manifest.json."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_json_atomic
from .shards import Shard

FORMAT = 1
NAME = "manifest.json"
VOCABULARY = "vocabulary.json"


@dataclass
class SplitCounts:
    """Of one split: documents, characters, UTF-8 bytes and tokens (separators counted), and the same by set."""

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    sets: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, characters: int, size: int, tokens: int, group: str) -> None:
        """Counts a document."""
        self.documents += 1
        self.characters += characters
        self.bytes += size
        self.tokens += tokens
        if group:
            counts = self.sets.setdefault(group, {"documents": 0, "bytes": 0, "tokens": 0})
            counts["documents"] += 1
            counts["bytes"] += size
            counts["tokens"] += tokens


@dataclass(frozen=True)
class Manifest:
    """Everything that a prepared folder holds. Two folders with equal manifests hold equal bytes."""

    source: dict[str, Any]
    split_rule: str
    tokenizer: dict[str, Any]  # name, vocab_size, hash, separator, bytes a token on disk
    counts: dict[str, SplitCounts]
    shards: dict[str, tuple[Shard, ...]]
    skipped: dict[str, Any]
    leaks: dict[str, Any]

    @property
    def hash(self) -> str:
        """sha256 (hex) over the tokenizer's and all shards' hashes: equal hashes are equal tokens."""
        shards = {split: [[s.tokens, s.sha256] for s in shards] for split, shards in self.shards.items()}
        text = json.dumps([self.tokenizer["hash"], shards], sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def write(self, folder: Path) -> None:
        """Writes manifest.json."""
        write_json_atomic(folder / NAME, {"format": FORMAT, "hash": self.hash, **dataclasses.asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Reads manifest.json; `UserError` where there is none, or where it does not fit its own hash."""
        path = folder / NAME
        try:
            data = json.loads(path.read_text("utf-8"))
            if data["format"] != FORMAT:
                raise UserError(f"{path} has format {data['format']}, this version reads {FORMAT}")
            manifest = cls(
                source=data["source"],
                split_rule=data["split_rule"],
                tokenizer=data["tokenizer"],
                counts={split: SplitCounts(**counts) for split, counts in data["counts"].items()},
                shards={split: tuple(Shard(**s) for s in shards) for split, shards in data["shards"].items()},
                skipped=data["skipped"],
                leaks=data["leaks"],
            )
        except OSError as error:
            raise UserError(f"{folder} is no prepared data: cannot read {path} ({error.strerror})") from None
        except UserError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a manifest ({type(error).__name__}: {error}); prepare again") from None
        if manifest.hash != data["hash"]:
            raise UserError(f"{path} was changed: its shards do not make its hash; prepare again")
        return manifest


def is_prepared(path: str | Path) -> bool:
    """Whether a path is a folder that `prepare` finished."""
    return (Path(path).expanduser() / NAME).is_file()
