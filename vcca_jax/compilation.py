"""Compiled programs kept on disk, so that the next process starts where this one did."""

import os
import platform
from pathlib import Path

import jax

FOLDER = "VCCA_COMPILED"
"""Environment variable that names another folder; empty, it keeps nothing."""


def keep_compiled(folder: str | Path | None = None, *, least_seconds: float = 0.3) -> Path | None:
    """Keep what this process compiles, and take what an earlier one has kept.

    Switches on JAX's persistent compilation cache, for the whole process: nothing in the library
    calls this, the command line and scripts do. A program is found again by its operations, its
    shapes, the compiler's version and its options; the numbers it computes are the same. A folder
    that JAX was told before (``JAX_COMPILATION_CACHE_DIR``, or its configuration) stays.

    Args:
        folder: where to keep them; by default ``VCCA_COMPILED``, else ``vcca_jax/jax-VERSION``
            with the machine's name in the user's own cache folder: programs are run as they are
            found, so a folder that others may write to is no place for them, nor one that is
            shared by machines of unlike processors.
        least_seconds: programs that compile faster are not kept.

    Returns:
        The folder in use, or None where ``VCCA_COMPILED`` is set and empty, or the user's cache
        folder cannot be written: then nothing is kept.
    """
    told = jax.config.values["jax_compilation_cache_dir"]
    if told:
        return Path(told)
    asked = os.environ.get(FOLDER) if folder is None else folder
    if asked == "":
        return None
    folder = Path(asked).expanduser().resolve() if asked else _own_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        if asked:
            raise
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    return folder


def _own_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vcca_jax" / f"jax-{jax.__version__}-{platform.node()}"
