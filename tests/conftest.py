"""What every test file shares: data, keys, hypothesis profiles, and caches that live as long as the session."""

import itertools
import os
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

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# Broadcasting over ranks has to be written out. Not in the environment: a user's own process has jax's default.
jax.config.update("jax_numpy_rank_promotion", "raise")

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


def pytest_unconfigure() -> None:
    if _OWNS_SESSION:
        shutil.rmtree(_session, ignore_errors=True)


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
