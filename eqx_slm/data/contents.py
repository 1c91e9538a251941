"""What a file holds by its first bytes, where that is not what its name says."""

from __future__ import annotations

import json
import re
from typing import Any

from ..checks import shown
from .files import TEXT, InputFile
from .records import leaves

BOM = b"\xef\xbb\xbf"  # some editors write it before the first line; `cat` brings it to the start of any
_MAGIC = {
    **{b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstandard data"},
    **{b"BZh91AY": "bzip2 data", b"\xfd7zXZ": "xz data", b"PK\x03\x04": "a zip archive", b"%PDF-": "a PDF"},
    **{b"PAR1": "parquet", b"ARROW1": "an Arrow file", b"\x93NUMPY": "a NumPy array", b"\x89HDF": "an HDF5 file"},
}
_PAGE = re.compile(
    rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!doctype\s+html|<(html|head|body|center)[\s>]|<error>)",
    re.IGNORECASE | re.DOTALL,
)
# All of a file, as GitHub, the Hugging Face hub and others say that they do not give what was asked for.
_NO = re.compile(
    rb"(\d{3}\W{1,2})?(([a-z]+ )?not found|access denied|access to \w+ \S+ is restricted.*|forbidden|unauthorized"
    rb"|bad gateway|service unavailable|too many requests|internal server error|invalid username or password)\.?"
    rb'|\{\s*"error"\s*:\s*"[^"]*"\s*\}|\{[^{}]*"documentation_url"[^{}]*\}',
    re.IGNORECASE,
)
_LINES = 8  # of a text that are looked at


def stand_in(file: InputFile, head: bytes, *, packed: bool = False) -> str:
    """What the first bytes of a file (`packed`: as stored) are in place of its content, with what to do; or "".

    A pointer of Git LFS or git-annex, and what a server gave with an error under a name of anything but a page.
    """
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "this is a pointer of Git LFS, not the file: run git lfs pull"
    if re.match(rb"/?(\S*/)?annex/objects/\S+\s*\Z", head):
        return "this is a pointer of git-annex, not the file: run git annex get"
    if packed or file.records or file.ending[1:] in TEXT:
        given = head.removeprefix(BOM).strip()
        do = "download it again" + ("" if packed or file.records else ", or name it .html where its markup is meant")
        if _PAGE.match(given):
            return f"this is an HTML or XML page, as a server gives with an error, not what its name says: {do}"
        if _NO.fullmatch(given):
            return f"a server gave {shown(given.decode('utf-8', 'replace'))} in place of the file: download it again"
    return ""


def misnamed(file: InputFile, head: bytes) -> str:
    """Why a file with these first bytes is not read as its name says, with what to do; "" where it is."""
    if said := stand_in(file, head):
        return said
    what = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")
    if what:
        do = "convert it to UTF-8" if what == "UTF-16" else "give it the ending of what it is, or leave it out"
        return f"this is {what}, not text in UTF-8; {do}"
    if not file.records and b"\0" in head[:8000]:
        return "holds zero bytes, as binary data and UTF-16 do; give text in UTF-8, or leave it out"
    if not file.records and like_records(head):
        return "JSON lines by what it holds: name it .jsonl, so that its records are read"
    return ""


def like_records(head: bytes) -> bool:
    """Whether most of the first lines of a text are JSON objects, or arrays of more than numbers.

    Blank lines and comments do not count, nor brackets around the records and commas between them. A last line that
    the first bytes cut off counts by its beginning.
    """
    lines = re.sub(rb"(?m)^(\xef\xbb\xbf)+", b"", head).split(b"\n")
    whole = [line.strip().removesuffix(b",").rstrip() for line in lines]
    found = [
        (line, number == len(lines) - 1)
        for number, line in enumerate(whole)
        if line not in (b"", b"[", b"]") and not line.startswith((b"#", b"//"))
    ][:_LINES]
    if len(found) > 1 and found[-1][1]:  # it may be cut off, and there are others to go by
        found = found[:-1]
    return 2 * sum(_is_record(line, cut) for line, cut in found) > len(found)


def _is_record(line: bytes, cut: bool) -> bool:
    text = line.decode("latin-1")  # all marks of JSON are ASCII
    if not re.match(r'\{\s*"|\[\s*[\[{"]', text):
        return False
    try:
        return _holds(json.loads(text))
    except json.JSONDecodeError as error:
        return cut and (error.msg.startswith("Unterminated string") or error.pos >= len(text) - 8)
    except (ValueError, RecursionError):
        return False


def _holds(record: Any) -> bool:
    if isinstance(record, list):
        return any(isinstance(item, str | list | dict) and item for item in record)
    return any(leaves(record))
