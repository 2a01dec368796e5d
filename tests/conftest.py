"""What every test runs under: eight CPU devices, strict ranks, repeatable examples.

Most of the suite's time is the compiler's, on programs that run for a millisecond. So they are
compiled without optimization, unless ``VCCA_TEST_OPTIMIZED=1`` asks for programs as users get them;
CI runs a sample of all modules that way, and `make test-slow` does.
"""

import gc
import os
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import jax
import pytest

from vcca_jax.compilation import keep_compiled

OPTIMIZED = os.environ.get("VCCA_TEST_OPTIMIZED", "0") not in ("", "0")
if not OPTIMIZED:
    flags = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
    if jax.__version_info__ < (0, 11):  # the compiler ends a process that names a flag it lost
        flags.append("--xla_cpu_use_fusion_emitters=false")
    # Read when the first array is made, by this process and by those that tests start.
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()
    # Tracing makes millions of objects that live on; looking through them often finds nothing.
    gc.set_threshold(200_000, 50, 1000)

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that several tests compile alike are compiled once and shared by all workers, and by the
# processes that tests start.
COMPILED = keep_compiled(Path(tempfile.gettempdir()) / f"vcca_jax-{jax.__version__}")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, max_examples=25, deadline=None, database=None
)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    """``--every N`` runs a sample: each N-th test of every module, the first of each included."""
    parser.addoption("--every", type=int, default=1, help="run each N-th test of every module")


def pytest_collection_modifyitems(config, items):
    """Leave out what is not in the sample."""
    step, seen, kept, left = config.getoption("--every"), Counter(), [], []
    for item in items:
        (left if seen[item.path] % step else kept).append(item)
        seen[item.path] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Drop compiled programs after a module that leaves the process above four gibibytes."""
    yield
    pages = Path("/proc/self/statm")  # where there is none, memory grows to some six
    if pages.exists() and int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > 4 << 30:
        jax.clear_caches()
