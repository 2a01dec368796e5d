"""What all commands share: where they print, how they find a run, how they fail.

Exit codes, the same for every command:

    0    done, and all that was checked is sound
    1    a check failed, a ledger or a run is damaged or in the way, or the machine gave out
    2    what was asked for cannot be: an unknown option, run or setting
    130  interrupted (Ctrl-C); what was settled and checkpointed is kept
"""

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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

# Names of principals and values may look like emoji: team:rocket: is one.
out = Console(emoji=False)
err = Console(stderr=True, emoji=False)

FAILED, MISTAKEN, INTERRUPTED = 1, 2, 130
EXIT_CODES = (
    "Exit codes: 0 done and sound; 1 a check failed, or something is damaged; 2 bad input;"
    " 130 interrupted."
)


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The runs that a shell offers when it completes a name."""
    runs = Path(ctx.params.get("runs") or "runs")
    return sorted(
        found.parent.name
        for found in runs.glob("*/config.json")
        if found.parent.name.startswith(incomplete)
    )


Folder = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
Name = Annotated[
    str, typer.Argument(help="Name of the run, a folder in --runs.", autocompletion=_names)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and no table; errors too.")
]

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
def errors(*, as_json: bool = False) -> Iterator[None]:
    """Turn what a user can mend into one message and an exit code: 2 for bad input, 1 else.

    Args:
        as_json: Say it on standard output, too, as an object with "ok", "error" and "exit_code".
    """
    from vcca_jax.ledger import LedgerError
    from vcca_jax.runs import RunError

    try:
        yield
    except (LedgerError, RunError, ModuleNotFoundError) as error:
        fail(str(error), FAILED, as_json=as_json)
    except ValueError as error:
        fail(str(error), MISTAKEN, as_json=as_json)
    except OSError as error:
        words = f"{error.strerror or error}: {error.filename or ''}".rstrip(": ")
        if error.errno in _FULL:
            words = (
                f"the disk is full ({error.filename or 'while writing'}): free some room and start"
                " the same command again; what was settled and checkpointed is kept"
            )
        fail(words, FAILED, as_json=as_json)


def tell(content: dict[str, Any]) -> None:
    """Print one JSON object on one line; it says that all went well, unless "ok" says otherwise."""
    typer.echo(json.dumps({"ok": True, **content}, ensure_ascii=False, allow_nan=False))


def tell_whole(
    verification: "Verification", *, as_json: bool = False, headless: bool = False
) -> None:
    """Print what a verification that found nothing wrong went through.

    Args:
        verification: What it went through.
        as_json: As one JSON object.
        headless: Whether there was no head to look for.
    """
    note = "no head was given: a cut at the end would not be seen" if headless else ""
    if as_json:
        tell({**verification._asdict(), **({"note": note} if note else {})})
        return
    out.print(
        f"[green]sound[/green]: {verification.entries} entries,"
        f" {verification.settlements} settlements, head {verification.head}",
        soft_wrap=True,
    )
    if note:
        out.print(f"{note}; keep this one, and give it next time with --head", soft_wrap=True)


def fail(words: str, code: int, *, as_json: bool = False) -> NoReturn:
    """Print why the command ends here, and exit."""
    if as_json:
        typer.echo(json.dumps({"ok": False, "error": words, "exit_code": code}, ensure_ascii=False))
    begin = "" if code == INTERRUPTED else "[bold red]error:[/bold red] "
    err.print(begin + escape(words), soft_wrap=True, highlight=False)
    raise typer.Exit(code)
