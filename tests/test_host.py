"""Memory kept between steps, and compiled programs kept on disk."""

import os
import subprocess
import sys

from eqx_slm.train import keep_freed_memory, use_compile_cache

PROGRAM = """
import jax, resource
from eqx_slm.train import keep_freed_memory
applies = keep_freed_memory() if {keep} else True
f = jax.jit(lambda x: ((x @ x.T) @ x).sum())
x = jax.numpy.ones((4200, 8))
for _ in range(2):
    f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    f(x).block_until_ready()
print(int(applies), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    ran = subprocess.run([sys.executable, "-c", PROGRAM.format(keep=keep)], capture_output=True, text=True, check=True)
    return map(int, ran.stdout.split())


def test_kept_memory_is_not_mapped_again():
    applies, few = faults(True)
    if applies:
        _, many = faults(False)
        assert few < 0.2 * many  # more than 64 MiB of temporaries a call
    assert keep_freed_memory() == keep_freed_memory()


def test_a_cache_that_is_set_stays(tmp_path):
    # The session's own cache (conftest.py).
    assert str(use_compile_cache(tmp_path)) == os.environ["JAX_COMPILATION_CACHE_DIR"]


def test_programs_are_found_again(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"EQX_SLM_CACHE": str(tmp_path)}
    code = "from eqx_slm.train import use_compile_cache as u; import jax; print(u()); jax.jit(lambda x: x * 3)(1.0)"
    folders = set()
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        folders.add(ran.stdout.strip())
    (folder,) = folders
    assert folder.startswith(str(tmp_path)) and len(os.listdir(folder)) > 0
