"""What `import eqx_slm` loads, and that every public name is there."""

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


def test_importing_loads_no_more_than_equinox_does():
    theirs, with_ours, with_a_name = loaded(
        "import equinox, jaxtyping, numpy", "import eqx_slm", "from eqx_slm import OptimizerConfig"
    )
    assert with_ours - theirs - sys.stdlib_module_names == {"eqx_slm"}
    assert with_ours & HEAVY <= theirs
    assert "optax" in with_a_name  # the probe sees what is loaded


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
