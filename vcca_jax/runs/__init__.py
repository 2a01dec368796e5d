"""A run from a configuration file to a folder: train, screen, credit, settle, record, resume."""

from vcca_jax.runs.config import ConfigError, RunConfig, load_config, stored_config
from vcca_jax.runs.run import RunError, read_results, run, verify_run

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
