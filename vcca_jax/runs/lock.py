"""One process at a time works on a run's folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vcca_jax.runs.errors import RunError

try:
    import fcntl
except ModuleNotFoundError:  # a system without it: nothing is held there
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"


@contextlib.contextmanager
def working_on(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, until the block ends or the process does.

    What is held is the file ``.lock``, which stays behind: only the system's lock on it means
    anything, and that goes with the process, however it ends. Readers need no lock.

    Raises:
        RunError: another process works on the folder.
    """
    if fcntl is None:
        yield
        return
    with (folder / NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process is working on {folder}; wait until it has ended, or end it, and"
                " start this again"
            ) from None
        yield
