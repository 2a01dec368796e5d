"""What all commands share: where they print, how they find a run, how they fail."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

if TYPE_CHECKING:
    import typer

    from vcca_jax.ledger import Verification
else:
    try:
        import typer
    except ModuleNotFoundError:
        sys.exit(
            "vcca-jax needs what the experiments need; install it with:"
            ' pip install "vcca_jax[experiments]"'
        )

from rich.console import Console
from rich.markup import escape

out = Console()
err = Console(stderr=True)

Folder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
Name = Annotated[str, typer.Argument(help="Name of the run, a folder in --runs.")]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def checked_name(name: str) -> str:
    """Return a run's name if it can be one.

    Raises:
        ValueError: It is a path, or empty.
    """
    if not name or Path(name).name != name or name in {".", ".."}:
        raise ValueError(f"name={name!r} must be a plain folder name, without separators")
    return name


def existing(name: str, runs: Path) -> Path:
    """Return the folder of a run.

    Raises:
        ValueError: There is no such run; the message names those that there are.
    """
    folder = runs / checked_name(name)
    if not (folder / "config.json").is_file():
        found = sorted(p.parent.name for p in runs.glob("*/config.json"))
        raise ValueError(f"there is no run {name!r} in {runs}; the runs there are {found}")
    return folder


@contextmanager
def errors() -> Iterator[None]:
    """Turn what a user can mend into one message and an exit code: 2 for bad input, 1 else."""
    from vcca_jax.ledger import LedgerError
    from vcca_jax.runs import RunError

    try:
        yield
    except (LedgerError, RunError) as error:
        fail(str(error), 1)
    except ValueError as error:
        fail(str(error), 2)
    except OSError as error:
        if error.errno in _FULL:
            fail(
                f"the disk is full ({error.filename or 'while writing'}): free some room and start"
                " the same command again; what was settled and checkpointed is kept",
                1,
            )
        fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)


def tell_whole(verification: "Verification") -> None:
    """Print what a verification that found nothing wrong went through."""
    out.print(
        f"[green]whole[/green]: {verification.entries} entries,"
        f" {verification.settlements} settlements, head {verification.head}",
        soft_wrap=True,
    )


def fail(words: str, code: int) -> NoReturn:
    """Print an error and exit."""
    err.print(f"[bold red]error:[/bold red] {escape(words)}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)
