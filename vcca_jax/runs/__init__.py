"""A run from a configuration file to a folder: train, screen, credit, settle, record, resume."""

from vcca_jax.runs.config import ConfigError, RunConfig, load_config, stored_config
from vcca_jax.runs.errors import RunError
from vcca_jax.runs.run import run
from vcca_jax.runs.stored import read_results, verify_run

__all__ = [
    "ConfigError",
    "RunConfig",
    "RunError",
    "load_config",
    "read_results",
    "run",
    "stored_config",
    "verify_run",
]
