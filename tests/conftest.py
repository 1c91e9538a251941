"""What every test file shares: data, keys, hypothesis profiles, and caches that live as long as the session."""

import ctypes
import gc
import importlib.metadata
import itertools
import os
import platform
import resource
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

# Environment first: jax and matplotlib read it when they are imported, and commands that tests start inherit it. The
# process that starts the session makes the folder (and removes it, below); its pytest-xdist workers find it here.
_SESSION_FOLDER = "EQX_SLM_TEST_SESSION"
_OWNS_SESSION = "PYTEST_XDIST_WORKER" not in os.environ
if _OWNS_SESSION:
    os.environ[_SESSION_FOLDER] = tempfile.mkdtemp(prefix="eqx_slm_test_")
_session = Path(os.environ[_SESSION_FOLDER])
os.environ["EQX_SLM_CACHE"] = str(_session / "tokenizers")
os.environ["MPLBACKEND"] = "Agg"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_session / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Tests compile much and run little: XLA's quick code generator, which takes a quarter of the time. What XLA is given,
# plans and counts (fusions, temporaries, FLOPs) is the same. EQX_SLM_TEST_XLA=default tests with XLA's own settings.
if os.environ.get("EQX_SLM_TEST_XLA") != "default":
    quick = ["--xla_backend_optimization_level=0"]
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that a version lacks ends the process
        quick += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    given = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*quick, *given]))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Broadcasting over ranks and conversions between types have to be written out. Not in the environment: a user's own
# process has jax's defaults.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# HYPOTHESIS_PROFILE=slow (or --hypothesis-profile=slow) searches longer; under CI the same examples come every time.
_in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
_quick = hypothesis.settings(
    max_examples=25,
    deadline=None,  # the first example of a shape compiles
    derandomize=_in_ci,
    database=None if _in_ci else hypothesis.settings.default.database,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("quick", _quick)
hypothesis.settings.register_profile("slow", _quick, max_examples=500)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With `-n`, a file's tests go to one worker: what a file computes once and keeps is computed once."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"


def _cost() -> str:
    """CPU seconds of this process with those it started, and the most memory that it has held."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return f"{seconds:.0f} CPU seconds, at most {own.ru_maxrss / 2**10:.0f} MiB"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What the worker has cost, for the line of the process that started it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cost"] = _cost()


_workers: dict[str, str] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    _workers[node.gateway.id] = getattr(node, "workeroutput", {}).get("cost", "no figures")


def pytest_terminal_summary(terminalreporter) -> None:
    """With EQX_SLM_TEST_COST=1, a line for each worker, or for the only process."""
    if os.environ.get("EQX_SLM_TEST_COST") == "1":
        for name, cost in sorted(_workers.items()) or [("tests", _cost())]:
            terminalreporter.write_line(f"{name}: {cost}")


def pytest_unconfigure() -> None:
    if _OWNS_SESSION:
        shutil.rmtree(_session, ignore_errors=True)


_MUCH = 800 * 2**20  # bytes that a process may hold between two tests


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """After a test that leaves much memory in use: compiled programs go, and freed memory goes back to the system."""
    statm = Path("/proc/self/statm")
    if not statm.exists() or int(statm.read_text().split()[1]) * resource.getpagesize() < _MUCH:
        return
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 65536), libc.mallopt(-1, 128 * 2**10)  # keep_freed_memory, which a run has called, undone
        libc.malloc_trim(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the named corpora; the test is skipped where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EQX_SLM_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no corpora at {folder} (set EQX_SLM_DATA to the folder that holds them)")
    return folder


@pytest.fixture
def getkey(request: pytest.FixtureRequest) -> Iterator[Callable[[], jax.Array]]:
    """A function that gives a fresh key at every call, and the same keys every time the test runs."""
    root = jax.random.key(zlib.crc32(request.node.nodeid.encode()))
    counter = itertools.count()
    yield lambda: jax.random.fold_in(root, next(counter))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the tests' checks of types, which would come before the library's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder prepared by the command, and the files that it was made from."""
    from text_files import some_texts, write_texts

    from eqx_slm.data.command import main

    folder = tmp_path_factory.mktemp("command")
    texts = some_texts(900)
    write_texts(folder / "in" / "a.jsonl.zst", texts[:500], ["one"] * 500)
    write_texts(folder / "in" / "b.parquet", texts[500:], ["two"] * 400)
    arguments = ["prepare", folder / "in", "--tokenizer", "bpe:300", "--out", folder / "out", "--valid-share", "0.1"]
    assert main([str(argument) for argument in arguments]) == 0
    return folder
