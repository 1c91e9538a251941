"""What `import eqx_slm` loads, and that every public name is there."""

import importlib
import json
import subprocess
import sys

import pytest

import eqx_slm

HEAVY = {"grain", "tyro", "matplotlib", "optax", "scipy", "rich", "tiktoken", "tokenizers", "safetensors", "pandas"}


def loaded(*statements):
    """The top-level modules that a fresh interpreter has after each statement."""
    show = "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    code = "; ".join(["import json, sys", *(f"{statement}; {show}" for statement in statements)])
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [set(json.loads(line)) for line in done.stdout.splitlines()]


def test_importing_loads_nothing_and_a_module_no_more_than_equinox_does():
    before, ours = loaded("pass", "import eqx_slm")
    assert ours - before - sys.stdlib_module_names == {"eqx_slm", "lazy_loader"}
    theirs, with_a_module, with_a_name = loaded(
        "import equinox, jaxtyping, numpy",
        "from eqx_slm import LeviathanEmbedding, build, flops",
        "from eqx_slm import OptimizerConfig",
    )
    assert with_a_module - theirs - sys.stdlib_module_names == {"eqx_slm", "lazy_loader"}
    assert with_a_module & HEAVY <= theirs
    assert "optax" in with_a_name  # the probe sees what is loaded


def test_each_public_name_stands_once():
    """Also where a submodule has the name: `eqx_slm.pair` is the function, whatever was imported before."""
    assert dir(eqx_slm) == sorted([*eqx_slm.__all__, "__version__"])
    importlib.import_module("eqx_slm.study.pair")
    assert callable(eqx_slm.pair) and callable(eqx_slm.build) and callable(eqx_slm.memory)


def test_every_public_name_is_there():
    for name in eqx_slm.__all__:
        assert getattr(eqx_slm, name) is not None
        assert name in dir(eqx_slm)
    assert len(set(eqx_slm.__all__)) == len(eqx_slm.__all__)
    names: dict[str, object] = {}
    exec("from eqx_slm import *", names)
    assert set(eqx_slm.__all__) <= names.keys()


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="levithan"):
        _ = eqx_slm.levithan
