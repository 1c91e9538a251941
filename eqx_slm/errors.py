"""What the commands turn into a single line and exit code 2: what cannot be used, and what cannot be read."""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Any


class UserError(ValueError):
    """Something the user gave cannot be used.

    The message is one line: what was given, what is allowed, what to do. Being a `ValueError`, it reads the same in a
    user's own code.
    """


def parse(options: Any, arguments: Sequence[str] | None, prog: str) -> Any:
    """`options` (a dataclass) from a command line; exits with code 2 and one line where that cannot be read."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, args=arguments, prog=prog)
    except SystemExit as stop:
        if stop.code:
            print(f"error: {one_line(said.getvalue())} (see {prog} --help)", file=sys.stderr)
        raise


def one_line(box: str) -> str:
    """The message in tyro's box, drawn in lines or in ASCII: what follows the title, up to the next rule or gap."""
    texts = [line.strip("\u2502 ") for line in box.splitlines() if line.strip()]
    message: list[str] = []
    for text in texts[1:]:  # the first is the title
        ends = not text or re.search("[\u2500-]{3}", text) is not None
        if ends and message:
            break
        if not ends:
            message.append(text)
    return " ".join(message).rstrip(".") or "the options cannot be read"
