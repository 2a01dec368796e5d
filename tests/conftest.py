"""What every test runs under: eight CPU devices, strict ranks, repeatable examples."""

import hypothesis
import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "repeatable", derandomize=True, max_examples=25, deadline=None, database=None
)
hypothesis.settings.load_profile("repeatable")
