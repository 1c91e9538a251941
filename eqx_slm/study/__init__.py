"""Studies: arms x seeds x learning rates -> rows -> analyses -> blocks -> a report (docs/studies.md).

Importing this package loads nothing heavy; its names load what they need.
"""

import importlib
from typing import Any

_HOMES = {
    "study": ("Study", "run_study"),
    "grids": ("Grid", "grid"),
    "compare": ("Comparison", "Control", "paired"),
    "config": ("PairConfig", "StreamConfig", "preset"),
    "results": ("ArmResult", "Results", "Row"),
    "blocks": ("Code", "Folded", "Heading", "Mono", "Paragraph", "Picture", "Strong", "Table"),
    "command": ("study_main",),
    "report": ("PAIR", "budgets", "curves", "differences", "forest", "losses", "origin", "parameters", "samples")
    + ("scope", "summary", "verdicts", "what_differs"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
