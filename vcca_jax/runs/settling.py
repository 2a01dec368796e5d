"""A run's periods settled: on which terms, on what credit, and again from the records alone."""

from fractions import Fraction
from pathlib import Path
from typing import Any

from vcca_jax.ledger import Entry, Ledger
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

    Entries that were made by hand before the run's last settlement are made again between them, as
    they stand in the run's ledger.

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
    left = [str(n + 1) for n in range(epochs_done // config.settlement.epochs_per_period)]
    with Ledger.open(
        folder / "ledger.sqlite", config=config.digest(), create=False, read_only=True
    ) as ledger:
        kept, entries = ledger.terms, list(ledger.entries())
    with Ledger.open(path, principals=kept.principals, **terms(config)) as again:
        for entry in entries[1:]:
            if not left:
                break
            # A period that is settled once more was corrected by hand; the first time is the run's.
            own = entry.kind == "settle" and "stream" not in entry.content
            if own and entry.content["period"] == left[0]:
                settle_period(config, again, int(left.pop(0)), records)
            else:
                _enter(again, entry, kept.scale_bits)
        for period in left:  # the ledger lacks them, which the hashes will tell
            settle_period(config, again, int(period), records)
        return [entry.hash for entry in again.entries()]


def _enter(ledger: Ledger, entry: Entry, scale_bits: int) -> None:
    """Make an entry of another ledger again; releases whose lag is over make themselves."""
    content = entry.content
    stream = content.get("stream")

    def credit(quantised: str | None) -> Fraction | None:
        return None if quantised is None else Fraction(int(quantised), 2**scale_bits)

    if entry.kind == "settle":
        credits = {name: Fraction(int(c), 2**scale_bits) for name, c in content["credits"].items()}
        ledger.settle(
            content["period"],
            credits,
            int(content["revenue"]),
            gain=credit(content["gain"]),
            carry_over=credit(content["carry_over"]),
            evidence=content["evidence"],
            stream=stream,
        )
    elif entry.kind == "join":
        ledger.join(content["principal"])
    elif entry.kind == "reverse":
        ledger.reverse(int(content["of"]), content["reason"])
    elif entry.kind == "claw_back":
        period, principal = content["period"], content["principal"]
        ledger.claw_back(period, principal, content["reason"], stream=stream)
    elif "reason" in content:
        ledger.release(content["reason"])
