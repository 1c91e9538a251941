"""What a user gives and cannot be used is refused in one line."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from eqx_slm.errors import UserError


@contextlib.contextmanager
def refuses(
    match: str | None = None, error: type[Exception] | tuple[type[Exception], ...] = UserError
) -> Iterator[Any]:
    """`pytest.raises(error, match=match)`, and that the error is one line."""
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert "\n" not in str(caught.value)
