"""The command line: run, resume, report and verify a cooperative, and read its profiles.

The ledger's own commands are in ``ledger``; exit codes in ``console``.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vcca_jax.cli.console import (
    EXIT_CODES,
    INTERRUPTED,
    Folder,
    Json,
    Name,
    checked_name,
    err,
    errors,
    existing,
    fail,
    out,
    tell,
    tell_whole,
    typer,
)
from vcca_jax.cli.ledger import app as ledger_app
from vcca_jax.cli.profiles import profiles

if TYPE_CHECKING:
    from rich.progress import Progress

    from vcca_jax.runs import RunConfig


def _examples(*commands: str) -> str:
    """A help text's last paragraphs."""
    return "\n\n".join(f"Example: {command}" for command in commands)


app = typer.Typer(
    help="Cooperatives that train one model, screen every update by their principals' values,"
    " credit it and settle revenue.",
    epilog=f"{EXIT_CODES}\n\nFor completion of commands, options and runs' names in your shell:"
    " vcca-jax --install-completion",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(ledger_app, name="ledger")
app.command(
    epilog=_examples(
        "vcca-jax profiles experiments/heart/config.toml",
        "vcca-jax profiles mine.toml --scope everyone --json",
    )
)(profiles)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no table.")]
TensorBoard = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        help="Also write the losses, values and credits of every epoch here, in a folder of the"
        " run's name, for: tensorboard --logdir FOLDER",
        metavar="FOLDER",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version
        from platform import python_version

        import vcca_jax

        typer.echo(
            f"vcca-jax {vcca_jax.__version__} (jax {version('jax')}, Python {python_version()})"
        )
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Versions, and exit."),
    ] = False,
) -> None:
    """Options of no command."""


@app.command(
    epilog=_examples(
        "vcca-jax run experiments/heart/config.toml --name heart",
        "vcca-jax run mine.toml --tensorboard boards --json > results.json",
    )
)
def run(
    config: Annotated[Path, typer.Argument(help="Configuration, a TOML file.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the file's by default.")
    ] = None,
    runs: Folder = Path("runs"),
    tensorboard: TensorBoard = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a cooperative from a configuration, or go on with it where it stopped."""
    from vcca_jax.runs import load_config

    with errors(as_json=as_json):
        folder = runs / checked_name(name or config.stem)
        _run(load_config(config), folder, tensorboard, quiet, as_json)


@app.command(epilog=_examples("vcca-jax resume heart"))
def resume(
    name: Name,
    runs: Folder = Path("runs"),
    tensorboard: TensorBoard = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was stopped, from its own configuration."""
    from vcca_jax.runs import stored_config

    with errors(as_json=as_json):
        folder = existing(name, runs)
        _run(stored_config(folder), folder, tensorboard, quiet, as_json)


@app.command(
    epilog=_examples(
        "vcca-jax report heart",
        "vcca-jax report heart --out heart.html",
        "vcca-jax report heart --json",
    )
)
def report(
    name: Name,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="Write one page here instead: tables, figures, statements."),
    ] = None,
    runs: Folder = Path("runs"),
    decimals: Annotated[
        int | None,
        typer.Option(min=0, max=18, help="Digits of a minor unit; the run's own by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the tables of a finished run, or write its report as one page."""
    from vcca_jax.runs import read_results
    from vcca_jax.runs.tables import print_results

    with errors(as_json=as_json):
        if target is not None and target.suffix != ".html":
            raise ValueError(f"--out {target} must end in .html")
        folder = existing(name, runs)
        results = read_results(folder)
        if target is not None:
            from vcca_jax.runs.report import write_report

            write_report(folder, target, decimals=decimals)
        if as_json:
            page = {} if target is None else {"page": str(target)}
            tell({"run": str(folder), **page, **results})
        elif target is None:
            print_results(out, results, folder, decimals=decimals)
        else:
            out.print(f"the report is in {target}", markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=_examples("vcca-jax verify heart", "vcca-jax verify heart --json"))
def verify(name: Name, runs: Folder = Path("runs"), as_json: Json = False) -> None:
    """Replay a run's ledger: the chain, every sum, every payment, and the heads kept elsewhere."""
    from vcca_jax.runs import verify_run

    with errors(as_json=as_json):
        tell_whole(verify_run(existing(name, runs)), as_json=as_json)


def _run(
    config: "RunConfig", folder: Path, tensorboard: Path | None, quiet: bool, as_json: bool
) -> None:
    from vcca_jax.compilation import keep_compiled
    from vcca_jax.runs import run
    from vcca_jax.runs.tables import print_results

    keep_compiled()
    with contextlib.ExitStack() as stack:
        sinks = []
        if tensorboard is not None:
            from vcca_jax.runs.sinks import TensorBoardSink

            sink = TensorBoardSink(tensorboard / folder.name, about=config.canonical())
            sinks.append(stack.enter_context(contextlib.closing(sink)))
        bar = stack.enter_context(_progress(quiet))
        task = bar.add_task(f"{folder.name}: compiling", total=config.training.epochs, rate="")

        def progress(done: int) -> None:
            words = folder.name if done else f"{folder.name}: compiling"
            bar.update(task, completed=done, description=words)
            bar.update(task, rate=_rate(bar.tasks[task].speed))

        try:
            results = run(config, folder, progress=progress, sinks=sinks)
        except KeyboardInterrupt:
            bar.stop()
            words = f"stopped; go on with: vcca-jax resume {folder.name} --runs {folder.parent}"
            fail(words, INTERRUPTED, as_json=as_json)
    if as_json:
        tell({"run": str(folder), **results})
    elif not quiet:
        print_results(out, results, folder)


def _progress(quiet: bool) -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("epochs{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        disable=quiet,
    )


def _rate(speed: float | None) -> str:
    """Epochs in a second, or seconds an epoch; nothing before there are two to measure by."""
    if not speed:
        return ""
    return f", {speed:.1f}/s" if speed >= 1 else f", {1 / speed:.1f} s each"


def main() -> None:
    """Entry point of ``vcca-jax``."""
    app()
