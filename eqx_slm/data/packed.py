"""The bytes of a file, unpacked: all of them up to any damage, which is then told."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from typing import Any

from .files import InputFile, need

Readable = Any  # binary files; what fsspec opens has the methods and not the type
BLOCK = 1 << 17
_GZIP, _ZSTANDARD = 1 << 14, 1 << 9  # packed bytes at once: at most 16 MiB of text


class Damaged(Exception):
    """Packed bytes end early or make no sense; `offset` counts bytes of the packed file."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what)
        self.offset = offset


def open_raw(file: InputFile) -> Readable:
    """The bytes as stored; raises `OSError` where they cannot be had."""
    if file.remote:
        return need("fsspec", f"reading {file.path}").open(file.path, "rb").open()
    return open(file.path, "rb", BLOCK)


def open_unpacked(file: InputFile) -> io.BufferedReader:
    """The bytes behind gzip or zstandard, buffered; after the last whole one reading raises `Damaged`."""
    zstandard = need("zstandard", f"reading {file.path}") if file.packing == "zst" else None
    raw = open_raw(file)
    if file.packing:
        return io.BufferedReader(_Pieces(raw, _unpacked(raw, zstandard)), BLOCK)
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, BLOCK)


def skip_to(stream: Readable, file: InputFile, offset: int) -> None:
    """Moves to a byte of the unpacked text: at once in a plain file, by unpacking in a packed one."""
    if not file.packing:
        stream.seek(offset)
        return
    while offset > 0 and (block := stream.read(min(offset, BLOCK))):
        offset -= len(block)


class _Pieces(io.RawIOBase):
    """Pieces of bytes, as a file; a read is short only at the end, or before damage, which the next one raises."""

    def __init__(self, raw: Readable, pieces: Iterator[bytes]) -> None:
        self._raw, self._pieces, self._ready = raw, pieces, memoryview(b"")
        self._damage: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        room = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(room):
            while not self._ready:
                try:
                    if self._damage is not None:
                        raise self._damage
                    piece = next(self._pieces, None)
                except Exception as error:
                    self._damage = error
                    if filled:
                        return filled
                    raise
                if piece is None:
                    return filled
                self._ready = memoryview(piece)
            count = min(len(room) - filled, len(self._ready))
            room[filled : filled + count] = self._ready[:count]
            self._ready, filled = self._ready[count:], filled + count
        return filled

    def close(self) -> None:
        self._raw.close()
        super().close()


def _unpacked(raw: Readable, zstandard: Any) -> Iterator[bytes]:
    """Member after member of a gzip file (zeros between them are padding), frame after frame of a zstandard file.

    Neither library says by itself that a file is cut off, and an error takes all that its call has unpacked with it.
    """
    name, size = ("gzip", _GZIP) if zstandard is None else ("zstandard", _ZSTANDARD)
    member, members, begun, unused = None, 0, 0, b""
    while packed := unused or raw.read(size):
        if member is None:  # another one begins, unless this is padding
            packed = packed.lstrip(b"\0") if members and zstandard is None else packed
            member, begun = (_new(zstandard), raw.tell() - len(packed)) if packed else (None, 0)
        try:
            piece = member.decompress(packed) if member else b""
        except Exception as error:  # zlib.error or zstandard.ZstdError, which is there where the package is
            yield from _up_to_damage(raw, zstandard, begun, raw.tell() - len(packed))
            raise Damaged(f"the {name} data is damaged ({str(error).rsplit(': ', 1)[-1]})", raw.tell()) from None
        yield piece
        unused = member.unused_data if member else b""
        if member and member.eof:
            member, members = None, members + 1
    if member or not members:
        raise Damaged(f"the {name} data is truncated", raw.tell())


def _new(zstandard: Any) -> Any:
    if zstandard is None:
        return zlib.decompressobj(wbits=31)
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _up_to_damage(raw: Readable, zstandard: Any, begun: int, known: int) -> Iterator[bytes]:
    """What a damaged member or frame that begins at a byte unpacks to from another byte on: a byte in, a byte out."""
    member = _new(zstandard)
    raw.seek(begun)
    while raw.tell() < known:
        member.decompress(raw.read(min(_ZSTANDARD, known - raw.tell())))
    with contextlib.suppress(Exception):  # the one that was met before
        while byte := raw.read(1):
            if zstandard is not None:
                yield member.decompress(byte)
                continue
            while byte:
                piece = member.decompress(byte, 1)
                yield piece
                byte = member.unconsumed_tail
