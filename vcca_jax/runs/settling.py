"""A run's periods settled: on which terms, on what credit, and again from the records alone."""

from pathlib import Path
from typing import Any

from vcca_jax.ledger import Ledger
from vcca_jax.runs.config import RunConfig, stored_config
from vcca_jax.runs.records import Record, digest, read_records


def terms(config: RunConfig) -> dict[str, Any]:
    """What a configuration says of its ledger, by the names of ``Ledger.open``."""
    return {
        "run": config.digest()[:16],
        "config": config.digest(),
        "currency": config.settlement.currency,
        "rule": config.settlement.rule.share_rule(),
        "rounding": config.settlement.rounding,
        "release_lag": config.settlement.release_lag,
    }


def settle_period(
    config: RunConfig, ledger: Ledger, period: int, records: dict[str, list[Record]]
) -> None:
    """Settle one period on the paid run's credit, that of seed 0.

    The entry's evidence is the digest of the records that the credit was summed from, so records
    that were changed afterwards don't settle to the same entry.
    """
    last = period * config.settlement.epochs_per_period
    first = last - config.settlement.epochs_per_period + 1
    agents, game = (
        [r for r in records[name] if r["seed"] == 0 and first <= r["epoch"] <= last]
        for name in ("agents", "game")
    )
    credits: dict[str, float] = {}
    for record in agents:
        credits[record["agent"]] = credits.get(record["agent"], 0.0) + record["credit"]
    ledger.settle(
        period,
        credits,
        config.settlement.revenue,
        gain=sum(record["gain"] for record in game),
        carry_over=sum(record["carry_over"] for record in game),
        evidence=digest([*agents, *game]),
    )


def replay_run(folder: str | Path, path: str | Path) -> list[str]:
    """Settle all of a run's periods again, from its records alone, into a new ledger.

    Args:
        folder: the run's.
        path: where the new ledger is made.

    Returns:
        The hashes of its entries, which are the first of the run's own ledger, bit for bit.

    Raises:
        RunError: the configuration or the records are damaged.
        LedgerError: the run's ledger is absent, damaged or foreign.
    """
    folder = Path(folder)
    config = stored_config(folder)
    records = {name: read_records(folder / f"{name}.jsonl") for name in ("agents", "game")}
    epochs_done = max((record["epoch"] for record in records["game"]), default=0)
    with Ledger.open(
        folder / "ledger.sqlite", config=config.digest(), create=False, read_only=True
    ) as ledger:
        principals = ledger.terms.principals
    with Ledger.open(path, principals=principals, **terms(config)) as again:
        for period in range(1, epochs_done // config.settlement.epochs_per_period + 1):
            settle_period(config, again, period, records)
        return [entry.hash for entry in again.entries()]
