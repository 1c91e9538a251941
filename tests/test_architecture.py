"""The plan of the house: which file may import which, how long rooms and files may become, what docs say of it.

Read from the source: imports at the top, inside of functions and classes, and for type checkers alone all count.
"""

import ast
import re
from pathlib import Path

import pytest

import eqx_slm

ROOT = Path(eqx_slm.__file__).parent
FILES = {path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

# From the ground up: a room imports itself and what stands below it. A file beside the rooms that is not named here is
# a leaf: it imports nothing but leaves.
FLOORS = (
    ("leaf",),
    ("taper", "nn"),
    ("model",),
    ("account", "testing"),
    ("data",),
    ("train", "infer"),
    ("study",),
    ("__main__",),
)
# A named tuple's own, the exit at once, and what tiktoken shows under no other name.
PUBLIC_UNDERSCORES = {"_replace", "_asdict", "_fields", "_exit", "_pat_str", "_mergeable_ranks", "_special_tokens"}
LINES = {"data": 4690, "study": 8185, "": 24850}  # what they may not grow beyond; "" is the whole house
LONGEST = 350


def imports(name):
    """(file, name taken from it or None) of every import of this package in a file."""
    found = []
    here = ["eqx_slm", *name.split("/")]
    for node in ast.walk(ast.parse(FILES[name].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            found += [target for alias in node.names if (target := resolve(module, alias.name))]
        elif isinstance(node, ast.Import):
            found += [target for alias in node.names if (target := resolve(alias.name.split("."), None))]
    return found


def resolve(module, taken):
    if module[0] != "eqx_slm":
        return None
    path = "/".join(module[1:])
    inside = f"{path}/{taken}".strip("/")
    if taken is not None and (inside in FILES or f"{inside}/__init__" in FILES):  # `from . import file`
        path, taken = inside, None
    return (path if path in FILES else f"{path}/__init__".strip("/"), taken)


GRAPH = {name: {target for target, _ in imports(name)} - {name} for name in FILES}


def room(name):
    first = name.split("/")[0]
    named = {room for floor in FLOORS for room in floor}
    return first if first in named else "leaf"


def floor(name):
    return next(height for height, rooms in enumerate(FLOORS) if room(name) in rooms)


def circles(graph):
    """The files that reach themselves."""

    def reached(start):
        seen, todo = set(), [*graph[start]]
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    return {name for name in graph if name in reached(name)}


def test_the_reader_of_imports_reads_them_all():
    assert set().union(*GRAPH.values()) <= FILES.keys()
    assert "nn/attention" in GRAPH["model"] and "nn/titans/__init__" in GRAPH["model"]  # inside of a class
    assert "nn/titans/rule" in GRAPH["nn/titans/loop"] and "nn/ops" in GRAPH["nn/titans/rule"]  # one level up
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"b", "c"}


def test_no_file_imports_itself_by_a_detour():
    """The package's own `__init__` is left out: it names everything, and nothing imports it."""
    assert circles(GRAPH) == set()


def test_arrows_point_down():
    bad = {
        f"{name} -> {target}"
        for name in FILES
        if name != "__init__"
        for target in GRAPH[name]
        if room(name) != room(target) and floor(target) >= floor(name)
    }
    assert bad == set()


def test_nothing_private_is_taken_from_another_file():
    bad = {name for name in FILES for _, taken in imports(name) if taken and taken[0] == "_" and taken[:2] != "__"}
    assert bad == set()


def test_nobody_reaches_into_an_object():
    """`thing._private` of anything but self, cls and super()."""
    bad = set()
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            private = isinstance(node, ast.Attribute) and node.attr[0] == "_" and node.attr[:2] != "__"
            if private and node.attr not in PUBLIC_UNDERSCORES:
                owner = ast.unparse(node.value)
                if owner not in ("self", "cls", "super()"):
                    bad.add(f"{name}: {owner}.{node.attr}")
    assert bad == set()


def lines(name):
    return FILES[name].read_text("utf-8").count("\n")


def test_no_file_is_too_long():
    assert {name: lines(name) for name in FILES if lines(name) > LONGEST} == {}


@pytest.mark.parametrize("part", LINES)
def test_no_room_is_too_large(part):
    total = sum(lines(name) for name in FILES if not part or room(name) == part)
    assert total <= LINES[part]


PAGE = ROOT.parent / "docs" / "architecture.md"


def tree():
    """A line a file, by room: its name and the first sentence of its docstring."""
    told = []
    for name, path in sorted(FILES.items(), key=lambda each: (each[0].rpartition("/")[0], each[0])):
        folder, _, file = name.rpartition("/")
        said = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].replace("\n", " ")
        if file not in ("__init__", "__main__") and said:
            if not told or told[-1][0] != folder:
                told.append((folder, []))
            told[-1][1].append(f"- `{file}` {said}")
    parts = [f"**eqx_slm/{folder}**".replace("/**", "**") + "\n\n" + "\n".join(files) for folder, files in told]
    return "\n\n".join(parts)


def test_the_page_has_every_file():
    """`python tests/test_architecture.py` writes the tree anew."""
    assert between_marks(PAGE.read_text("utf-8"))[1].strip() == tree()


def test_what_the_page_names_is_there():
    """Every `room/file` in the page's walks."""
    text = PAGE.read_text("utf-8")
    rooms = "|".join(sorted({name.split("/")[0] for name in FILES if "/" in name}))
    named = set(re.findall(rf"`((?:{rooms})/\w+)`", text))
    assert len(named) > 20 and named <= FILES.keys(), named - FILES.keys()


def between_marks(text):
    before, _, rest = text.partition("<!-- tree -->\n")
    inside, _, after = rest.partition("<!-- /tree -->")
    return before, inside, after


if __name__ == "__main__":
    start, _, end = between_marks(PAGE.read_text("utf-8"))
    PAGE.write_text(f"{start}<!-- tree -->\n\n{tree()}\n\n<!-- /tree -->{end}", "utf-8")
