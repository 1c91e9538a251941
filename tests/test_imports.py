"""What `import eqx_slm` loads, and that every public name is there."""

import importlib
import json
import signal
import subprocess
import sys
import time

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


@pytest.mark.parametrize("words", ["data prepare", "report", "compare", "generate", "eval", "export", "import"])
def test_help_is_answered_without_jax(words):
    """`pair --help` shows what its preset says, for which configs are made."""
    run = f"import sys\nsys.argv[1:] = {[*words.split(), '--help']!r}\nfrom eqx_slm.__main__ import main\n"
    code = f"{run}try:\n    main()\nexcept SystemExit:\n    pass\nprint(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "show this help message" in done.stdout and "'tyro'" in done.stderr
    assert "'jax'" not in done.stderr and "{None}" not in done.stdout
    assert "examples:" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_modules_are_imported_is_one_line(number, tmp_path):
    """From the moment that our own code runs; before it Python itself starts, some 40 ms."""
    script = "import sys, time; from eqx_slm.study.command import main; print('here', flush=True); sys.exit(main())"
    for seconds in (0.0, 0.1, 0.4, 0.8):
        words = [sys.executable, "-c", script, "--steps", "1", "--seeds", "1", "--data", "nowhere.txt"]
        running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
        assert running.stdout.readline() == b"here\n"
        time.sleep(0.03 + seconds)  # main has set its handlers
        running.send_signal(number)
        said = running.communicate(timeout=60)[1].decode()
        assert "Traceback" not in said and said.count("\n") == 1, (seconds, said)
        assert running.returncode in (75, 2), (seconds, said)  # 2: the file is not there, found before the signal
