"""The examples of CONTRIBUTING.md, carried out in a copy of the tree: files written, lines added, commands run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)


def apply(folder: Path, block: str) -> None:
    """A block of lines that begin with " ", "-" or "+" after the name of their file."""
    name, *lines = block.splitlines()
    path = folder / name.removeprefix("# ")
    before, after = ("\n".join(line[1:] for line in lines if line[0] in kept) + "\n" for kept in (" -", " +"))
    text = path.read_text("utf-8")
    assert text.count(before) == 1, f"{path.name}: {before}"
    path.write_text(text.replace(before, after), "utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contributing")
    for part in ("eqx_slm", "experiments", "benchmarks", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, block in BLOCKS:
        if kind == "python" and block.startswith("# "):
            (folder / block.splitlines()[0].removeprefix("# ")).write_text(block.partition("\n")[2], "utf-8")
        elif kind == "diff":
            apply(folder, block)
    (folder / "talk.tsv").write_text("id\ttext\n1\thello there\n2\tand again\n", "utf-8")  # the printf
    return folder


COMMANDS = [
    line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if line.startswith("python ")
]
EXPECTED = {"experiments/pair.py": "hashed", "experiments/hashes.py": "hashed-256", "-m benchmarks.hashed": "hashed"}
EXPECTED["-m eqx_slm.data"] = "talk.tsv"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page(copy: Path, command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(copy)}
    ran = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    (word,) = (word for start, word in EXPECTED.items() if command.startswith(f"python {start}"))
    assert word in ran.stdout


def test_the_page_has_what_it_promises() -> None:
    assert len(COMMANDS) == len(EXPECTED)
    assert sum(kind == "diff" for kind, _ in BLOCKS) >= 6
