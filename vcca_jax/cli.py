"""The command line: run, resume, report and verify a cooperative, and read its profiles.

The ledger's own commands are in ``ledger_cli``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vcca_jax.console import (
    Folder,
    Name,
    checked_name,
    err,
    errors,
    existing,
    out,
    tell_whole,
    typer,
)
from vcca_jax.ledger_cli import app as ledger_app
from vcca_jax.profiles_cli import profiles

if TYPE_CHECKING:
    from vcca_jax.runs import RunConfig

app = typer.Typer(
    help="Cooperatives that train one model, screen every update by their principals' values,"
    " credit it and settle revenue.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(ledger_app, name="ledger")
app.command(epilog="Example: vcca-jax profiles experiments/heart/config.toml")(profiles)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no table.")]


@app.command(epilog="Example: vcca-jax run experiments/heart/config.toml --name heart")
def run(
    config: Annotated[Path, typer.Argument(help="Configuration, a TOML file.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the file's by default.")
    ] = None,
    runs: Folder = Path("runs"),
    quiet: Quiet = False,
) -> None:
    """Run a cooperative from a configuration, or go on with it where it stopped."""
    from vcca_jax.runs import load_config

    with errors():
        _run(load_config(config), runs / checked_name(name or config.stem), quiet)


@app.command(epilog="Example: vcca-jax resume heart")
def resume(name: Name, runs: Folder = Path("runs"), quiet: Quiet = False) -> None:
    """Go on with a run that was stopped, from its own configuration."""
    from vcca_jax.runs import stored_config

    with errors():
        folder = existing(name, runs)
        _run(stored_config(folder), folder, quiet)


@app.command(epilog="Example: vcca-jax report heart")
def report(name: Name, runs: Folder = Path("runs")) -> None:
    """Print the tables of a finished run."""
    from vcca_jax.runs import read_results
    from vcca_jax.runs.tables import print_results

    with errors():
        folder = existing(name, runs)
        print_results(out, read_results(folder), folder)


@app.command(epilog="Example: vcca-jax verify heart")
def verify(name: Name, runs: Folder = Path("runs")) -> None:
    """Replay a run's ledger: the chain, every sum, every payment, and the heads kept elsewhere."""
    from vcca_jax.runs import verify_run

    with errors():
        tell_whole(verify_run(existing(name, runs)))


def _run(config: "RunConfig", folder: Path, quiet: bool) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from vcca_jax.compilation import keep_compiled
    from vcca_jax.runs import run
    from vcca_jax.runs.tables import print_results

    keep_compiled()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=quiet,
    )
    with bar:
        task = bar.add_task(f"{folder}: compiling", total=config.training.epochs)

        def progress(done: int) -> None:
            words = str(folder) if done else f"{folder}: compiling"
            bar.update(task, completed=done, description=words)

        try:
            results = run(config, folder, progress=progress)
        except KeyboardInterrupt:
            bar.stop()
            err.print(f"stopped; go on with: vcca-jax resume {folder.name} --runs {folder.parent}")
            raise typer.Exit(130) from None
    if not quiet:
        print_results(out, results, folder)


def main() -> None:
    """Entry point of ``vcca-jax``."""
    app()


if __name__ == "__main__":
    main()
