"""Arms of one's own on the command line: `--arm learned=dense,positions=learned`, and grids of them."""

import itertools
import re
from collections.abc import Iterable, Sequence

from ..errors import UserError

FORM = "write --arm NAME=ARM,FIELD=VALUE,..., such as learned=dense,positions=learned"


def own_arms(texts: Iterable[str], known: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(arms, settings) of a study's config: `NAME=ARM` for each arm, and `NAME.FIELD=VALUE` for each of its fields.

    Values between slashes are an arm each: `rank=leviathan,embedding.rank=8/16` are the arms rank-8 and rank-16; two
    fields with slashes are every pair. A comma before a blank belongs to the value.

    **Arguments:** `texts` as they were given; `known`, the named arms.

    **Raises:** `UserError` for what has another form, and an arm that is not named.
    """
    arms: list[str] = []
    settings: list[str] = []
    for text in texts:
        head, *fields = re.split(r",(?!\s)", text)
        name, equals, base = head.partition("=")
        if not equals or not re.fullmatch(r"[\w+-]+", name) or name == "all":
            raise UserError(f"--arm {text!r}: {FORM}; a name has letters, digits, _, + and -, and is not 'all'")
        if base not in known:
            raise UserError(f"--arm {text!r}: no arm {base!r} to begin with; there are {', '.join(known)}")
        if broken := [field for field in fields if not re.fullmatch(r"\w+(\.\w+)*=.+", field, re.DOTALL)]:
            raise UserError(f"--arm {text!r}: {broken[0]!r} is no FIELD=VALUE; {FORM}")
        pairs = [field.partition("=")[::2] for field in fields]
        choices = [value.split("/") for _, value in pairs]
        for picked in itertools.product(*choices):
            several = [value for value, values in zip(picked, choices, strict=True) if len(values) > 1]
            own = "-".join([name, *(re.sub(r"[^\w+-]", "_", value) for value in several)])
            arms.append(f"{own}={base}")
            settings += [f"{own}.{field}={value}" for (field, _), value in zip(pairs, picked, strict=True)]
    names = [arm.partition("=")[0] for arm in arms]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--arm {twice[0]}: two arms have this name; give each its own")
    return tuple(arms), tuple(settings)
