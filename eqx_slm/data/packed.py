"""The bytes of a file, unpacked: all of them up to any damage, which is then told."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Generator, Iterator
from typing import Any

from .files import InputFile, need

Readable = Any  # binary files; what fsspec opens has the methods and not the type
BLOCK = 1 << 17
_PACKED = 1 << 14  # bytes of a gzip file at once: at most 16 MiB of text


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
        return io.BufferedReader(_Pieces(raw, _gzip(raw) if zstandard is None else _zstandard(raw, zstandard)), BLOCK)
    return raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, BLOCK)


def skip_to(stream: Readable, file: InputFile, offset: int) -> None:
    """Moves to a byte of the unpacked text: at once in a plain file, by unpacking in a packed one."""
    if not file.packing:
        stream.seek(offset)
        return
    while offset > 0 and (block := stream.read(min(offset, BLOCK))):
        offset -= len(block)


class _Pieces(io.RawIOBase):
    """Pieces of bytes, as a file."""

    def __init__(self, raw: Readable, pieces: Iterator[bytes]) -> None:
        self._raw, self._pieces, self._ready = raw, pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._ready = memoryview(piece)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _gzip(raw: Readable) -> Iterator[bytes]:
    """Member after member; zeros between them are padding."""
    member, members = None, 0
    while packed := raw.read(_PACKED):
        while packed := packed.lstrip(b"\0") if members and member is None else packed:
            member = member or zlib.decompressobj(wbits=31)
            before = member.copy()  # an error takes all that its call has unpacked with it
            try:
                piece = member.decompress(packed)
            except zlib.error as error:
                left = yield from _before_damage(before, packed)
                reason = str(error).rsplit(": ", 1)[-1]
                raise Damaged(f"the gzip data is damaged ({reason})", raw.tell() - left) from None
            yield piece
            packed = member.unused_data
            if member.eof:
                member, members = None, members + 1
    if member or not members:
        raise Damaged("the gzip data is truncated", raw.tell())


def _before_damage(member: Any, packed: bytes) -> Generator[bytes, None, int]:
    """What bytes with damage among them unpack to before it: by halves, at last by bytes of text.

    Returns how many packed bytes are left.
    """
    left = len(packed)
    while len(packed) > 1:
        trial, half = member.copy(), packed[: len(packed) // 2]
        try:
            piece = trial.decompress(half)
        except zlib.error:
            packed = half
            continue
        yield piece
        member, packed, left = trial, packed[len(half) :], left - len(half)
    with contextlib.suppress(zlib.error):
        while piece := member.decompress(packed, 1):
            yield piece
            packed = member.unconsumed_tail
    return left


def _zstandard(raw: Readable, zstandard: Any) -> Iterator[bytes]:
    """Frame after frame, each block for itself (RFC 8878).

    A block unpacks to at most 128 KiB, and an error in one takes nothing with it. The package's stream reader would end
    silently where a file is cut off.
    """

    def take(count: int) -> bytes:
        data = raw.read(count)
        if len(data) < count:
            raise Damaged("the zstandard data is truncated", raw.tell())
        return data

    start = take(4)
    while start:
        if start[1:] == b"\x2a\x4d\x18" and start[0] >> 4 == 5:  # a frame of the user's own, to be passed over
            left = int.from_bytes(take(4), "little")
            while left:
                left -= len(take(min(left, BLOCK)))
        elif start != b"\x28\xb5\x2f\xfd":
            what = "truncated" if len(start) < 4 else "damaged (no frame begins here)"
            raise Damaged(f"the zstandard data is {what}", raw.tell())
        else:
            frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
            try:
                flags = take(1)[0]
                single = flags >> 5 & 1
                header = (1 - single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
                yield frame.decompress(start + bytes([flags]) + take(header))
                last = False
                while not last:
                    block = take(3)
                    word = int.from_bytes(block, "little")
                    last = word & 1
                    yield frame.decompress(block + take(1 if word >> 1 & 3 == 1 else word >> 3))
                if flags >> 2 & 1:
                    yield frame.decompress(take(4))  # the checksum
            except zstandard.ZstdError as error:
                reason = str(error).rsplit(": ", 1)[-1]
                raise Damaged(f"the zstandard data is damaged ({reason})", raw.tell()) from None
        start = raw.read(4)
