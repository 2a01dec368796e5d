"""The results of a run as tables for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vcca_jax.constraints import AngleCone, Constraint, Freeze, HalfSpace, MaxNorm
from vcca_jax.runs.records import Record
from vcca_jax.statements import money


def with_deviation(measure: dict[str, Any], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds."""
    spread = "" if measure["sd"] is None else f" ± {measure['sd']:.{digits}f}"
    return f"{measure['mean']:.{digits}f}{spread}"


def _table(title: str, caption: str, columns: Sequence[str]) -> Table:
    """A table that fits 80 columns and never cuts a number short."""
    table = Table(
        title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def agent_table(results: Record, decimals: int) -> Table:
    """What each agent brought, what was screened, its credit and its pay.

    Args:
        results: of the run.
        decimals: digits of a minor unit.
    """
    table = _table(
        "What each agent taught, and earned",
        "admitted: share of its steps, over all seeds, whose update was admissible as it came;"
        " removed: mean share of the update's norm, over all seeds; credit: fall of the validation"
        " loss, in nats, of the run that is paid (seed 0), and mean ± sd over all seeds",
        (
            "agent",
            "samples",
            "admitted",
            "removed",
            "credit",
            "over seeds",
            f"payout, {results['currency']}",
        ),
    )
    for row in results["agents"]:
        table.add_row(
            row["agent"],
            str(row["samples"]),
            f"{row['admissible_share']:.1%}",
            f"{row['removed_share']:.1%}",
            f"{row['credit']:+.3f}",
            with_deviation({"mean": row["credit_mean"], "sd": row["credit_sd"]}),
            money(row["payout"], decimals=decimals),
        )
    table.add_section()
    for what in ("escrow", "dust", "reserve", "carried", "revenue"):
        if results.get(what) or what not in ("escrow", "dust"):
            table.add_row(what, *[""] * 5, money(results[what], decimals=decimals))
    return table


def trainer_table(results: Record) -> Table:
    """How the final models do on test rows, one column a trainer."""
    trainers = [row["trainer"] for row in results["test"]]
    table = _table(
        "Test rows, looked at once",
        "mean ± sd over seeds; losses in nats",
        ("measure", *trainers),
    )
    for measure in (name for name in results["test"][0] if name != "trainer"):
        table.add_row(
            measure.replace("_", " "), *(with_deviation(row[measure]) for row in results["test"])
        )
    return table


def print_results(
    console: Console, results: Record, folder: Path, *, decimals: int | None = None
) -> None:
    """Print both tables and where the rest is.

    Args:
        console: where to.
        results: of the run.
        folder: the run's.
        decimals: digits of a minor unit; None takes the run's own.
    """
    decimals = results.get("decimals", 2) if decimals is None else decimals
    console.print(agent_table(results, decimals))
    dropped = {row["agent"]: row["dropped_share"] for row in results["agents"]}
    if any(dropped.values()):
        told = ", ".join(f"{agent} {share:.1%}" for agent, share in dropped.items() if share)
        console.print(f"steps whose update was dropped, nothing being admissible: {told}")
    console.print(trainer_table(results))
    console.print(
        f"{results['settlements']} settlements, replayed and verified; ledger head"
        f" {results['ledger_head'][:16]}…\nfigures, records and ledger: {folder}",
        highlight=False,
        soft_wrap=True,
    )


def constraint_cells(constraint: Constraint) -> tuple[str, str, str, str]:
    """A constraint in words: its kind, of what, bound, price."""
    if isinstance(constraint, HalfSpace):
        price = "none" if constraint.price == float("inf") else f"{constraint.price:g}"
        word = "rate" if constraint.kind == "preserve" else "margin"
        return constraint.kind, constraint.value, f"{word} {constraint.margin:g}", price
    if isinstance(constraint, MaxNorm):
        return "max_norm", "the update", f"{constraint.limit:g}", ""
    if isinstance(constraint, AngleCone):
        return "within_angle", constraint.value, f"{constraint.degrees:g}°", ""
    if isinstance(constraint, Freeze):
        return "freeze", str(constraint.part), "", ""
    return "trust_region", ", ".join(constraint.values), f"radius {constraint.radius:g}", ""
