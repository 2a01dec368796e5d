"""What every test runs under: eight CPU devices, strict ranks, repeatable examples."""

import tempfile
from pathlib import Path

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Programs that several tests compile alike are compiled once and shared by all workers.
jax.config.update(
    "jax_compilation_cache_dir", str(Path(tempfile.gettempdir()) / f"vcca_jax-{jax.__version__}")
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, max_examples=25, deadline=None, database=None
)
hypothesis.settings.load_profile("repeatable")
