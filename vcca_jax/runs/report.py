"""A finished run as one page for readers: what was taught, paid, kept and removed, and why.

Money is read from the ledger, which is verified first; all else from the run's own records.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from vcca_jax.ledger import Ledger
from vcca_jax.pages import anchors, render
from vcca_jax.plotting.statement import png, statement_figure
from vcca_jax.runs.config import RunConfig, stored_config
from vcca_jax.runs.errors import RunError
from vcca_jax.runs.measures import money as money_of
from vcca_jax.runs.records import Record, read_records, write_text
from vcca_jax.runs.rules import Rule
from vcca_jax.runs.stored import latest_note, read_results, verify_run
from vcca_jax.runs.tables import constraint_cells, with_deviation
from vcca_jax.runs.value_tables import outcome, value_rows
from vcca_jax.statements import Section, checks, document, money, screenings

Rows = list[tuple[Any, ...]]


class Amount(NamedTuple):
    """Money on the page, and the ledger's integer that it stands for."""

    text: str
    minor_units: int
    what: str

    def __str__(self) -> str:
        return self.text


class PrincipalStatement(NamedTuple):
    """One principal's part of the page: its name, sections, picture, and where a link finds it."""

    principal: str
    sections: list[Section]
    png: bytes | None
    anchor: str = ""


class Picture(NamedTuple):
    """A figure with its heading, what stands below it, and what it says to who can't see it."""

    heading: str
    caption: str
    png: bytes
    alt: str


def write_report(folder: str | Path, path: str | Path, *, decimals: int | None = None) -> None:
    """Write a finished run's page, whole or not at all.

    Args:
        folder: The run's.
        path: Of the page, which needs nothing beside it; its folder is made if absent.
        decimals: Digits of a minor unit; None takes the run's own.

    Raises:
        ValueError: ``path`` does not end in ".html".
        RunError: The run has not finished, or a file of it is damaged.
        LedgerError: The ledger is damaged, foreign, or lacks a head it should hold.
    """
    if Path(path).suffix != ".html":
        raise ValueError(f"path={str(path)!r} must end in '.html'")
    page = report_page(folder, decimals=decimals)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(Path(path), page)


def report_page(folder: str | Path, *, decimals: int | None = None) -> str:
    """Return a finished run's page: the same text for the same run in the same folder.

    See ``write_report``.
    """
    folder = Path(folder)
    results, config = read_results(folder), stored_config(folder)
    decimals = config.settlement.decimals if decimals is None else decimals
    verification = verify_run(folder)
    records = {name: read_records(folder / f"{name}.jsonl") for name in ("metrics", "agents")}
    for name, found in records.items():
        if not found:
            raise RunError(f"{folder / name}.jsonl is absent or empty; restore it from a copy")
    with Ledger.open(
        folder / "ledger.sqlite", config=config.digest(), create=False, read_only=True
    ) as ledger:
        balances, accounts, totals = ledger.balances(), ledger.accounts(), money_of(ledger)
        currency = ledger.terms.currency
        place = (folder.name, "--runs", str(folder.parent))
        told = [
            _statement(ledger, name, records["agents"], config, place, decimals)
            for name in ledger.principals
        ]

    def amount(units: int, what: str) -> Amount:
        return Amount(money(units, decimals=decimals), units, what)

    values = value_rows(records["metrics"], config, results["test"])
    ids = anchors("statement", (each.principal for each in told))
    note = latest_note(folder) or {}
    return render(
        "report.html",
        title=f"Report of the run {folder.name}",
        lead=_lead(results, config),
        facts=_facts(results, balances, totals, currency, decimals),
        agents={
            "rows": _agent_rows(results, balances, currency, amount),
            "totals": [
                (what, amount(totals[what], what), *[""] * 5)
                for what in ("escrow", "dust", "reserve", "carried")
                if totals[what] or what in ("reserve", "carried")
            ],
            "note": "Payout: the principal's balance in the ledger; carried: revenue of periods"
            " whose steps gained nothing together, which waits for the next. Credit: fall of the"
            " validation loss, in nats, of the run that is paid (seed 0), and mean ± standard"
            " deviation over all seeds. Admitted: share of its steps, over all seeds, whose update"
            " was admissible as it came. Removed: mean share of the update's norm, over all seeds.",
        },
        values={
            "rows": values,
            "lead": outcome(results["test"], config),
            "note": "Mean over seeds; less is better for a protected value, more for a forbidden"
            " one. Unscreened: after the same training without a screen. Screen's: the rows that"
            " the screen measures on, which are trained on in effect."
            " Validation: rows that no screen sees, but on which credit is measured, and on which"
            " settings are chosen. Test: rows that were looked at once, after training, where a"
            " value is a group's loss.",
        },
        screen={
            "rows": _screen_rows(records["agents"], config),
            "note": "Of all seeds' steps. Under a value's name: the agent's own update, before it"
            " was screened, ran against a constraint on it. Admissible: it was taken as it came."
            " Dropped: nothing being admissible, the whole of it was.",
        },
        models={
            "rows": _model_rows(results),
            "note": "Mean ± standard deviation over seeds; losses in nats.",
        },
        figures=list(_pictures(folder, results, values, config, balances, decimals)),
        verification=verification,
        accounts=_account_rows(accounts, currency, amount),
        checks=checks(place, verification.head),
        settings=_settings(config),
        measured=[
            ("value", "measured as"),
            *((name, " of ".join(value.kind())) for name, value in config.values.items()),
        ],
        profiles=_profile_rows(config),
        configuration=config.canonical(),
        digest=config.digest(),
        machine=[("what", "version"), *note.get("environment", {}).items()]
        if "environment" in note
        else [],
        statements=[each._replace(anchor=ids[each.principal]) for each in told],
    )


def _statement(
    ledger: Ledger,
    principal: str,
    agents: Sequence[Record],
    config: RunConfig,
    place: Sequence[str],
    decimals: int,
) -> PrincipalStatement:
    told = ledger.statement(principal)
    screened = screenings(agents, principal, config.settlement.epochs_per_period)
    sections = document(
        told,
        screened,
        rule=ledger.terms.rule["rule"],
        checks=checks(place, ledger.head()),
        decimals=decimals,
    )
    drawn = any(line.kind != "join" for line in told.lines)
    with matplotlib.rc_context({"text.parse_math": False}):  # a name may hold dollar signs
        picture = png(statement_figure(told, screened, decimals=decimals)) if drawn else None
    return PrincipalStatement(principal, sections, picture)


def _lead(results: Record, config: RunConfig) -> str:
    training = config.training
    return (
        f"{len(results['agents'])} principals' agents trained one model for"
        f" {training.epochs} epochs; each update was screened against the principals' values"
        f" ({config.screening.method}, scope {config.screening.scope}) first and credited second,"
        f" and revenue was settled on the credit. {training.seeds} seeds were run; seed 0 is paid."
    )


def _facts(
    results: Record,
    balances: dict[str, int],
    totals: Record,
    currency: str,
    decimals: int,
) -> list[tuple[str, str]]:
    cooperative = next(row for row in results["test"] if row["trainer"] == "cooperative")
    held = [("in escrow", money(totals["escrow"], currency, decimals))] if totals["escrow"] else []
    return [
        ("paid to principals", money(sum(balances.values()), currency, decimals)),
        *held,
        ("kept in reserve", money(totals["reserve"], currency, decimals)),
        ("settlements", str(results["settlements"])),
        ("AUC on test rows", with_deviation(cooperative["auc"])),
    ]


def _agent_rows(results: Record, balances: dict[str, int], currency: str, amount: Any) -> Rows:
    head = ("credit", "credit over seeds", "samples", "admitted", "removed")
    rows: Rows = [("agent", f"payout, {currency}", *head)]
    for row in results["agents"]:
        rows.append(
            (
                row["agent"],
                amount(balances[row["agent"]], "balance"),
                f"{row['credit']:+.3f}",
                with_deviation({"mean": row["credit_mean"], "sd": row["credit_sd"]}),
                str(row["samples"]),
                f"{row['admissible_share']:.1%}",
                f"{row['removed_share']:.1%}",
            )
        )
    return rows


def _screen_rows(agents: Sequence[Record], config: RunConfig) -> Rows:
    rows: Rows = [("agent", "steps", *config.values, "admissible", "dropped")]
    for name in dict.fromkeys(record["agent"] for record in agents):
        own = [record for record in agents if record["agent"] == name]
        steps = sum(record["steps"] for record in own)

        def share(count: int, steps: int = steps) -> str:
            return f"{count / max(steps, 1):.1%}"

        rows.append(
            (
                name,
                str(steps),
                *(share(sum(r["conflicts"].get(value, 0) for r in own)) for value in config.values),
                share(sum(record["admissible_steps"] for record in own)),
                share(sum(record["dropped_steps"] for record in own)),
            )
        )
    return rows


def _model_rows(results: Record) -> Rows:
    measures = [name for name in results["test"][0] if name != "trainer"]
    rows: Rows = [("measure", *(row["trainer"] for row in results["test"]))]
    for name in measures:
        cells = (with_deviation(row[name]) for row in results["test"])
        rows.append((name.replace("_", " "), *cells))
    return rows


def _account_rows(accounts: dict[str, int], currency: str, amount: Any) -> Rows:
    rows: Rows = [("account", f"balance, {currency}")]
    return rows + [(name, amount(units, "account")) for name, units in sorted(accounts.items())]


def _settings(config: RunConfig) -> Rows:
    """Every setting, those left out of the canonical text too."""
    rows: Rows = [("setting", "chosen")]
    for section, content in config:
        if section not in ("values", "profiles"):
            rows += [(f"{section}.{name}", _chosen(setting)) for name, setting in content]
    return rows


def _chosen(setting: Any) -> str:
    if isinstance(setting, Rule):
        options = setting.model_dump()
        return setting.name if len(options) == 1 else json.dumps(options)
    return ", ".join(map(str, setting)) if isinstance(setting, tuple) else str(setting)


def _profile_rows(config: RunConfig) -> Rows:
    rows: Rows = [("principal", "constraint", "of", "bound", "price")]
    for name, profile in config.profiles.items():
        weight = "" if profile.weight == 1 else f" (weight {profile.weight:g})"
        stated = [constraint_cells(each) for each in profile.constraints()]
        rows += [(name + weight, *cells) for cells in stated or [("anything", "", "", "")]]
    return rows


def _pictures(
    folder: Path,
    results: Record,
    values: Rows,
    config: RunConfig,
    balances: dict[str, int],
    decimals: int,
) -> Iterator[Picture]:
    """The run's figures that are there, with words made of the numbers that they end with."""
    over = f"by epoch, {config.training.epochs} epochs, mean over {config.training.seeds} seeds"
    losses = {row["trainer"]: f"{row['loss']['mean']:.3f}" for row in results["test"]}
    credit = _listed((row["agent"], f"{row['credit_mean']:+.3f}") for row in results["agents"])
    currency = results["currency"]
    paid = _listed((name, money(units, currency, decimals)) for name, units in balances.items())

    def changes(rows: str) -> str:
        found = (row for row in values if row[2] == rows)
        told = ((row[0], f"{row[5]}, unscreened {row[7]}") for row in found)
        return f"Change of each value loss {over}. At the end: {_listed(told, '; ')}."

    told = {
        "cumulative_credit": (
            "Credit",
            f"Lines of each agent's cumulative credit {over}. At the end: {credit}.",
        ),
        "cumulative_payout": (
            "Payouts",
            f"Stacked areas of what was paid so far, by settlement period. By now: {paid}.",
        ),
        "value_losses": ("Value losses on the screen's own rows", changes("screen's")),
        "value_losses_on_validation_rows": (
            "Value losses on validation rows",
            changes("validation"),
        ),
        "admissibility": (
            "Conflicts with values",
            "Heat map of the share of each agent's steps whose update ran against each value; the"
            " same numbers are in the table “Share of each agent's steps”.",
        ),
        "loss_against_centralized": (
            "Losses against centralized training",
            f"Lines of the training and the validation loss {over}, of three trainers, and the"
            " difference of unscreened traversal from centralized training. Losses on test rows:"
            f" {_listed(losses.items())}.",
        ),
    }
    for name, (heading, words) in told.items():
        path = folder / "figures" / f"{name}.png"
        if path.is_file():
            yield Picture(heading, "", path.read_bytes(), words)


def _listed(pairs: Any, between: str = ", ") -> str:
    return between.join(f"{name} {text}" for name, text in pairs)
