"""The commands of a ledger: verify, replay, statement, export."""

import re
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from rich.markup import escape

from vcca_jax.cli.console import (
    EXIT_CODES,
    Folder,
    Json,
    errors,
    existing,
    out,
    tell,
    tell_whole,
    typer,
)

if TYPE_CHECKING:
    from vcca_jax.ledger import Entry, Ledger, Statement
    from vcca_jax.statements import Screening

app = typer.Typer(
    help="Check a ledger, derive it again, read one principal's account, take the money elsewhere.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
)

Where = Annotated[str, typer.Argument(help="Name of a run in --runs, or the path of a ledger.")]
Decimals = Annotated[
    int | None,
    typer.Option(min=0, max=18, help="Digits of a minor unit; a run's own, or 2 (cents)."),
]


class Form(StrEnum):
    """The formats of an export."""

    CSV = "csv"
    BEANCOUNT = "beancount"
    PARQUET = "parquet"


class _Found(NamedTuple):
    ledger: Path
    run: Path | None


@app.command(epilog="Example: vcca-jax ledger verify heart")
def verify(
    where: Where,
    head: Annotated[
        str | None,
        typer.Option(help="A head hash kept elsewhere, all 64 digits, which the chain must hold."),
    ] = None,
    runs: Folder = Path("runs"),
    as_json: Json = False,
) -> None:
    """Check the file, its chain, every sum and payment, and the heads kept elsewhere."""
    from vcca_jax.runs import verify_run

    with errors(as_json=as_json):
        if head is not None and not re.fullmatch("[0-9a-fA-F]{64}", head):
            raise ValueError(
                f"--head {head} is no head hash; give all of its 64 hexadecimal digits"
            )
        found = _find(where, runs)
        if found.run is not None:
            verification = verify_run(found.run, head=head)
        else:
            with _opened(found) as ledger:
                verification = ledger.verify(head)
    # A run keeps heads in its checkpoints and results.
    tell_whole(verification, as_json=as_json, headless=head is None and found.run is None)


@app.command(epilog="Example: vcca-jax ledger replay heart --last 5")
def replay(
    where: Where,
    last: Annotated[int, typer.Option(min=0, help="How many entries to print.")] = 20,
    runs: Folder = Path("runs"),
    decimals: Decimals = None,
    as_json: Json = False,
) -> None:
    """Derive every payment again and print it; for a run, from the run's own records, too.

    With --json amounts are whole numbers of minor units.
    """
    with errors(as_json=as_json):
        found = _find(where, runs)
        decimals = _decimals(decimals, found)
        with _opened(found) as ledger:  # opening it derives every entry again
            entries = list(ledger.entries())
            currency = ledger.terms.currency
        shown = [_derived(entry) for entry in entries[len(entries) - min(last, len(entries)) :]]
        if not as_json:
            for each in shown:
                line = _line(each, currency, decimals)
                out.print(escape(line), soft_wrap=True, highlight=False)
            out.print(f"{len(entries)} entries derived again, byte for byte", highlight=False)
        again = None if found.run is None else _settled_again(found.run, found.ledger, entries)
        if as_json:
            settled = {} if again is None else {"settled_again": again}
            tell(
                {
                    "entries": len(entries),
                    **settled,
                    "head": entries[-1].hash,
                    "currency": currency,
                    "last": [each._asdict() for each in shown],
                }
            )
        elif again is not None:
            later = len(entries) - again
            out.print(
                f"{again} entries settled again from the run's records: the same hashes"
                + (f"; {later} later ones are not of the run" if later else ""),
                highlight=False,
                soft_wrap=True,
            )


@app.command(epilog="Example: vcca-jax ledger statement cleveland heart --out cleveland.html")
def statement(
    principal: Annotated[str, typer.Argument(help="Name of the principal.")],
    where: Where,
    target: Annotated[
        Path | None,
        typer.Option("--out", help="Also write it here: .html (words and picture), .png or .txt."),
    ] = None,
    runs: Folder = Path("runs"),
    decimals: Decimals = None,
    as_json: Json = False,
) -> None:
    """Tell a principal what it was paid, for what, what was screened out, and how to check it.

    With --json money is whole numbers of minor units, credit whole numbers of 2^-scale_bits.
    """
    from vcca_jax.runs import stored_config
    from vcca_jax.runs.records import read_records, write_text
    from vcca_jax.statements import as_page, as_text, checks, document, screenings

    with errors(as_json=as_json):
        if target is not None and target.suffix not in {".html", ".png", ".txt"}:
            raise ValueError(f"--out {target} must end in .html, .png or .txt")
        found = _find(where, runs)
        decimals = _decimals(decimals, found)
        _check_free(target, found)
        with _opened(found) as ledger:
            if principal not in (known := ledger.balances()):
                raise ValueError(
                    f"principal {principal!r} is unknown (registered: {', '.join(sorted(known))});"
                    " correct the name"
                )
            told = ledger.statement(principal)
        screened: dict[str, Screening] = {}
        if found.run is not None:
            screened = screenings(
                read_records(found.run / "agents.jsonl"),
                principal,
                stored_config(found.run).settlement.epochs_per_period,
            )
        place = (where,) if found.run is None else (where, "--runs", str(runs))
        sections = document(
            told,
            screened,
            rule=told.rule["rule"],
            checks=checks(place, told.head),
            decimals=decimals,
        )
        text = as_text(sections)
        if as_json:
            page = {} if target is None else {"page": str(target)}
            tell({**page, **_statement_fields(told, screened)})
        else:
            out.print(escape(text), soft_wrap=True, highlight=False, end="")
        if target is None:
            return
        if target.suffix == ".txt":
            write_text(target, text)
            return
        import matplotlib

        from vcca_jax.plotting import save_figure
        from vcca_jax.plotting.statement import png, statement_figure

        with matplotlib.rc_context({"text.parse_math": False}):  # a name may hold dollar signs
            figure = statement_figure(told, screened, decimals=decimals)
        if target.suffix == ".png":
            save_figure(figure, target)
        else:
            write_text(target, as_page(sections, png(figure)))


@app.command(epilog="Example: vcca-jax ledger export heart --out heart.beancount")
def export(
    where: Where,
    target: Annotated[
        Path | None, typer.Option("--out", help="The file; the terminal if not given.")
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="By default what --out ends in, or csv.")
    ] = None,
    runs: Folder = Path("runs"),
    decimals: Decimals = None,
    as_json: Json = False,
) -> None:
    """Write every posting as CSV, as a beancount file or as Parquet; with --json, tell them.

    With --out it says what was written where.
    """
    from vcca_jax.export import postings, snapshot, to_beancount, to_csv, to_parquet
    from vcca_jax.runs.records import write_text

    with errors(as_json=as_json):
        if as_json and target is None:
            if form is not None:
                raise ValueError(f"--json without --out is a format already; leave out {form}")
            with _opened(_find(where, runs)) as ledger:
                tell({"postings": [each._asdict() for each in postings(ledger)]})
            return
        form = _form(form, target)
        if form is Form.PARQUET and target is None:
            raise ValueError("Parquet is no text; say where to write it with --out")
        found = _find(where, runs)
        decimals = _decimals(decimals, found)
        _check_free(target, found)
        with _opened(found) as ledger:
            read = snapshot(ledger)
        count = sum(1 for _ in postings(read))
        if form is Form.PARQUET and target is not None:
            to_parquet(read, target)
        else:
            beans = form is Form.BEANCOUNT
            text = to_beancount(read, decimals=decimals) if beans else to_csv(read)
            if target is None:
                typer.echo(text, nl=False)
                return
            write_text(target, text)
        if as_json:
            tell({"file": str(target), "format": form.value, "postings": count})
        else:
            words = f"{count} postings are in {target}"
            out.print(words, markup=False, highlight=False, soft_wrap=True)


class _Derived(NamedTuple):
    """What one entry is and what it paid, in minor units."""

    seq: int
    kind: str
    period: str
    outcome: str
    to_principals: int
    to_reserve: int
    hash: str


def _derived(entry: "Entry") -> _Derived:
    from vcca_jax.ledger.drafts import RESERVE_ACCOUNT, integers

    moved = integers(entry.content.get("postings", {}))
    return _Derived(
        entry.seq,
        entry.kind,
        entry.content.get("period", ""),
        entry.content.get("outcome", ""),
        sum(d for account, d in moved.items() if account.startswith(("principal:", "escrow:"))),
        moved.get(RESERVE_ACCOUNT, 0),
        entry.hash,
    )


def _line(entry: _Derived, currency: str, decimals: int) -> str:
    """One entry on one line, with the beginning of its hash."""
    from vcca_jax.statements import money

    paid, kept = entry.to_principals, entry.to_reserve
    words = [entry.outcome] if entry.outcome else []
    words += [f"{money(paid, currency, decimals)} to principals"] if paid else []
    words += [f"{money(kept, currency, decimals)} to the reserve"] if kept else []
    line = (
        f"{entry.seq:>6}  {entry.kind:9} {entry.period:>8}  {entry.hash[:16]}  {', '.join(words)}"
    )
    return line.rstrip()


def _settled_again(run: Path, place: Path, entries: "list[Entry]") -> int:
    """Settle a run's records again, and count the entries that come out the same."""
    from vcca_jax.ledger import LedgerError
    from vcca_jax.runs.settling import replay_run

    with tempfile.TemporaryDirectory() as folder:
        again = replay_run(run, Path(folder) / "ledger.sqlite")
    for mine, theirs in zip(again, entries, strict=False):
        if mine != theirs.hash:
            raise LedgerError(
                f"entry {theirs.seq} of {place} is not what the run's records settle to; restore"
                " the records or the ledger from a copy"
            )
    if len(again) > len(entries):
        raise LedgerError(
            f"{place} ends with entry {len(entries) - 1} where the run's records settle on to"
            f" entry {len(again) - 1}; go on with the run, or restore the ledger"
        )
    return len(again)


def _statement_fields(told: "Statement", screened: "dict[str, Screening]") -> dict[str, Any]:
    """A statement as JSON has it: shares, which are exact, as text."""
    return {
        **told._asdict(),
        "paid": told.paid,
        "held": told.held,
        "lines": [{**line._asdict(), "share": str(line.share)} for line in told.lines],
        "screened": {period: each._asdict() for period, each in screened.items()},
    }


def _check_free(target: Path | None, found: _Found) -> None:
    """Refuse to write over the ledger that is read, or over what its run has recorded."""
    if target is None:
        return
    if target.exists() and target.samefile(found.ledger):
        raise ValueError(f"--out {target} is the ledger that is read; give another path")
    folder = found.ledger.parent
    if not (folder / "config.json").is_file() or not target.exists():
        return
    own = [folder / "config.json", folder / "results.json", *folder.glob("*.jsonl")]
    own += [path for part in ("checkpoints", "figures") for path in (folder / part).rglob("*")]
    if any(path.exists() and target.samefile(path) for path in own):
        raise ValueError(f"--out {target} is one of the run's own files; give another path")


def _form(form: Form | None, target: Path | None) -> Form:
    if form is not None:
        return form
    if target is None:
        return Form.CSV
    try:
        return Form(target.suffix.removeprefix("."))
    except ValueError:
        raise ValueError(
            f"--out {target} ends in {target.suffix!r}; end it in .csv, .beancount or .parquet, or"
            " name the --format"
        ) from None


def _find(where: str, runs: Path) -> _Found:
    """Find a ledger by its path, or a run's by the run's name."""
    if Path(where).is_file():
        return _Found(Path(where), None)
    if Path(where).suffix and not (runs / where).exists():  # meant as a file's path
        raise ValueError(f"there is no ledger at {where}, and no run of that name in {runs}")
    folder = existing(where, runs)
    return _Found(folder / "ledger.sqlite", folder)


def _decimals(asked: int | None, found: _Found) -> int:
    """Digits of a minor unit: those asked for, a run's own, or those of cents."""
    from vcca_jax.runs import stored_config

    if asked is not None:
        return asked
    return 2 if found.run is None else stored_config(found.run).settlement.decimals


def _opened(found: _Found) -> "Ledger":
    """Open a ledger for reading; of a run, that run's."""
    from vcca_jax.ledger import Ledger
    from vcca_jax.runs import stored_config

    config = None if found.run is None else stored_config(found.run).digest()
    return Ledger.open(found.ledger, config=config, create=False, read_only=True)
