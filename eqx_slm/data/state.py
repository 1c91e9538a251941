"""Where a run is in its data: a JSON cursor, and for streaming one array of the tokens that are buffered."""

from __future__ import annotations

import glob
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..files import json_hash, sealed, write_bytes_atomic, write_json_atomic

FORMAT = 2
LARGEST = 25_000_000  # bytes of buffered tokens


@dataclass(frozen=True, eq=False)
class StreamState:
    """The state of a stream after a batch, whatever tokenizes and however many processes train.

    - `cursor`: plain JSON; says which stream it belongs to, the seed, and how many batches have been given.
    - `tokens`: int32[n], what a streaming stream has buffered; nothing for tokens that are known.
    """

    cursor: dict[str, Any]
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def batches(self) -> int:
        """Batches given so far."""
        return self.cursor["batch"]

    def to_json(self) -> dict[str, Any]:
        """The cursor with its hash and that of the tokens."""
        tokens = hashlib.sha256(np.ascontiguousarray(self.tokens, "<i4").tobytes()).hexdigest()
        content = {"format": FORMAT, "cursor": self.cursor, "tokens": len(self.tokens), "tokens_sha256": tokens}
        return sealed(content)

    @classmethod
    def from_json(cls, data: dict[str, Any], tokens: np.ndarray | None = None) -> StreamState:
        """The state of `to_json` and the tokens; `UserError` where either is not what was saved."""
        content = {key: data.get(key) for key in ("format", "cursor", "tokens", "tokens_sha256")}
        if content["format"] != FORMAT and "sha256" in data:
            raise UserError(f"a data state of format {content['format']}, this version reads {FORMAT}: start again")
        if data.get("sha256") != json_hash(content):
            raise UserError("the data cursor is damaged: its hash is another; take an older checkpoint")
        state = cls(data["cursor"], np.zeros(0, np.int32) if tokens is None else np.asarray(tokens, np.int32))
        if state.to_json()["tokens_sha256"] != content["tokens_sha256"]:
            raise UserError("the buffered tokens do not belong to the data cursor: take both from one checkpoint")
        return state

    def save(self, folder: str | Path, name: str = "data") -> None:
        """Writes `<name>.json`, and the tokens where some are buffered as `<name>-<hash>.npy`.

        Each appears whole or not at all, and what an older state left goes last: there is a state at every moment.
        """
        folder, data = Path(folder), self.to_json()
        tokens = _tokens_file(folder, name, data)
        if len(self.tokens):
            buffer = io.BytesIO()
            np.save(buffer, self.tokens.astype("<i4", copy=False))
            write_bytes_atomic(tokens, buffer.getvalue())
        write_json_atomic(folder / f"{name}.json", data)
        for old in folder.glob(f"{glob.escape(name)}-{'[0-9a-f]' * 16}.npy"):
            if old != tokens:
                old.unlink()

    @classmethod
    def load(cls, folder: str | Path, name: str = "data") -> StreamState:
        """Reads what `save` wrote; `UserError` where it is missing or damaged."""
        path = Path(folder) / f"{name}.json"
        try:
            data = json.loads(path.read_bytes())
            tokens = np.load(_tokens_file(Path(folder), name, data), allow_pickle=False) if data["tokens"] else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read the data state {path}: {type(error).__name__}: {error}") from None
        return cls.from_json(data, tokens)


def check_cursor(state: StreamState, identity: dict[str, Any]) -> None:
    """Raises `UserError` naming the first thing in which the stream that wrote a state differs from this one."""
    there = state.cursor.get("stream", {})
    for key in {**identity, **there}:
        if there.get(key) != identity.get(key):
            raise UserError(
                f"the data state belongs to another stream: {key} was {there.get(key)!r}, is {identity.get(key)!r}; "
                "open the stream as it was, or start from the beginning"
            )


def _tokens_file(folder: Path, name: str, data: dict[str, Any]) -> Path:
    return folder / f"{name}-{str(data.get('tokens_sha256'))[:16]}.npy"
