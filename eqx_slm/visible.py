"""Text from anywhere made fit to be shown: no byte of it may act on a terminal, a line or a file."""

import unicodedata

# Invisible or acting characters; joiners (U+200C, U+200D) are parts of words and emoji and stay.
_ACTING = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}
_KEPT = "\u200c\u200d"


def visible(text: str, *, keep: str = "") -> str:
    r"""`text` with every control, direction or formatting character as an escape such as `\x1b` or `\u202e`.

    **Arguments:** `keep`: characters that stay, such as the line breaks of a sample.
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or c in _KEPT or unicodedata.category(c) not in _ACTING else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode(
        "unicode_escape" if ord(character) < 0xD800 or ord(character) > 0xDFFF else "ascii", "backslashreplace"
    ).decode("ascii")
