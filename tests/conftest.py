"""Test environment: eight virtual CPU devices and a compilation cache, set before JAX is imported."""

import gc
import os
import tempfile
from importlib.metadata import version

import pytest

# FLOWGUIDE_TESTS=quick, as `make test` says: most of what the tests do is to compile what then runs for milliseconds.
# LLVM need not optimise it, and the emitter of whole fusions, twice as slow, can be left out in older versions.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
QUICK += "--xla_cpu_parallel_codegen_split_count=1 "
if version("jaxlib").startswith("0.10."):
    QUICK += "--xla_cpu_use_fusion_emitters=false --xla_cpu_opt_preset=FAST_COMPILE "

# Eight virtual devices on few cores starve XLA's thread pool and dead-lock in collectives unless it is told
# of more processors than there are.
os.environ.update(
    JAX_PLATFORMS="cpu",
    NPROC="16",
    XLA_FLAGS=(QUICK if os.environ.get("FLOWGUIDE_TESTS") == "quick" else "")
    + f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    # Processes side by side do not share a cache: one may read what another is still writing.
    JAX_COMPILATION_CACHE_DIR=os.path.join(
        tempfile.gettempdir(), f"flowguide-jax-cache-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"
    ),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_collection_modifyitems(items):
    """The files that take longest go first, so that processes side by side end together."""
    longest = (
        "test_checkpoint_damage.py",
        "test_checkpoint.py",
        "test_processes.py",
        "test_loop.py",
        "test_draw.py",
        "test_rules.py",
    )
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Every compiled program holds memory maps; those of a thousand tests are more than a kernel allows a process."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """One folder of prepared data for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def digits(data_dir, tmp_path_factory):
    """The folder of a tiny run on the digits, for tests that sample from a run."""
    from tests.support.runs import train_digits

    workdir = tmp_path_factory.mktemp("digits") / "run"
    train_digits(data_dir, workdir)
    return workdir
