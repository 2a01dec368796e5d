"""The command that reads value profiles to a person: tables, contradictions, TOML, JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from rich.markup import escape

from vcca_jax.cli.console import errors, out, tell, typer

if TYPE_CHECKING:
    from rich.table import Table

    from vcca_jax.constraints import Constraint
    from vcca_jax.contradictions import Contradiction
    from vcca_jax.profile_files import Profile

Scope = Literal["own", "everyone", "weighted"]


class _Read(NamedTuple):
    """What a file says."""

    profiles: "dict[str, Profile]"
    scope: Scope | None


_HEADINGS = {
    "nothing": "[bold red]no update is admissible[/bold red], and all are dropped unless the policy"
    " is least_violation:",
    "zero": "[bold red]only the update 0 is admissible[/bold red], so nothing is learned:",
    "sale": "[yellow]not all can be kept[/yellow], and what has a price gives way and is paid for:",
}


def profiles(
    file: Annotated[Path, typer.Argument(help="A run's configuration, or a file of profiles.")],
    scope: Annotated[
        Scope | None,
        typer.Option(help="Who screens whom; the configuration's by default, else own."),
    ] = None,
    toml: Annotated[bool, typer.Option("--toml", help="Print them as TOML, normalised.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead; errors too.")
    ] = False,
) -> None:
    """Read the principals' profiles out, and point out where they contradict each other.

    The exit code is 1, and "ok" in JSON is false, if some contradiction leaves no update to make.
    """
    from vcca_jax.contradictions import contradictions
    from vcca_jax.profile_files import profiles_toml

    with errors(as_json=as_json):
        if toml and as_json:
            raise ValueError("--toml and --json are two ways to print; choose one")
        read = _read(file)
    held: Scope = scope or read.scope or "own"
    stated = {name: profile.constraints() for name, profile in read.profiles.items()}
    found = contradictions(stated, together=held == "everyone")
    fatal = any(each.consequence != "sale" for each in found)
    if toml:
        typer.echo(profiles_toml(read.profiles), nl=False)
    elif as_json:
        tell(_fields(read.profiles, held, found, ok=not fatal))
    else:
        out.print(_table(read.profiles, stated))
        _tell(found, held, between=len(stated) > 1)
    if fatal:
        raise typer.Exit(1)


def _read(file: Path) -> _Read:
    """Profiles alone, or those of a configuration, which must then be one that can be run."""
    from vcca_jax.profile_files import parse_profiles
    from vcca_jax.runs.config import parse_config
    from vcca_jax.runs.problem import make_problem
    from vcca_jax.settings import read_toml

    content = read_toml(file, "configuration or file of profiles")
    if set(content) <= {"profiles"}:
        return _Read(parse_profiles(content, str(file)), None)
    config = parse_config(content, str(file))
    make_problem(config)
    return _Read(config.profiles, config.screening.scope)


def _table(profiles: "Mapping[str, Profile]", stated: "Mapping[str, list[Constraint]]") -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from vcca_jax.runs.tables import constraint_cells

    table = Table(
        title="Value profiles",
        caption="margins, rates and radii: change of the value loss per unit of learning rate;"
        " price: what a unit of violation costs, none: not for sale",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("principal")
    table.add_column("constraint", no_wrap=True)
    table.add_column("of")
    table.add_column("bound", justify="right", no_wrap=True)
    table.add_column("price", justify="right", no_wrap=True)
    for name, constraints in stated.items():
        weight = profiles[name].weight
        first = escape(name) + ("" if weight == 1 else f" (weight {weight:g})")
        rows = [constraint_cells(constraint) for constraint in constraints]
        for row in rows or [("anything", "", "", "")]:
            table.add_row(first, *map(escape, row))
            first = ""
        table.add_section()
    return table


def _tell(found: "list[Contradiction]", scope: Scope, *, between: bool) -> None:
    for consequence, heading in _HEADINGS.items():
        told = [each.words for each in found if each.consequence == consequence]
        if told:
            out.print(f"\n{heading}", highlight=False)
        for words in told:
            out.print(f"- {escape(words)}", highlight=False)
    if not found:
        out.print(f"no contradictions under the scope {scope!r}", highlight=False)
    if between and scope != "everyone":
        out.print(
            f"under {scope!r} each profile stands for itself; --scope everyone compares them",
            highlight=False,
        )


def _fields(
    profiles: "Mapping[str, Profile]",
    scope: Scope,
    found: "list[Contradiction]",
    *,
    ok: bool,
) -> dict[str, Any]:
    return {
        "ok": ok,
        "scope": scope,
        "profiles": {name: profile.model_dump(mode="json") for name, profile in profiles.items()},
        "contradictions": [each._asdict() for each in found],
    }
