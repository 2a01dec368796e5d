"""What became of the values in a run: on the rows the screen sees, and on others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vcca_jax.runs.config import RunConfig, Value
from vcca_jax.runs.records import Record

Rows = list[tuple[Any, ...]]


def value_rows(metrics: Sequence[Record], config: RunConfig, test: Sequence[Record] = ()) -> Rows:
    """Value losses before and after, mean over seeds, on the screen's, validation and test rows.

    Args:
        metrics: The run's records.
        config: The run's.
        test: What its results tell of the test rows, which were looked at once, after training.
    """
    last = max(record["epoch"] for record in metrics)
    compared = ("change", "unscreened", "its change")
    rows: Rows = [("value", "asked for", "rows", "before", "after", *compared)]

    def mean(trainer: str, epoch: int, field: str, value: str) -> float:
        found = [
            record[field][value]
            for record in metrics
            if record["trainer"] == trainer and record["epoch"] == epoch
        ]
        return float(np.mean(found))

    for name, value in config.values.items():
        asked = _asked(name, config)
        for where, field in (("screen's", "value_losses"), ("validation", "fresh_value_losses")):
            before, after = (mean("cooperative", epoch, field, name) for epoch in (0, last))
            free = [mean("unscreened", epoch, field, name) for epoch in (0, last)]
            changes = (f"{after - before:+.4f}", f"{free[1]:.4f}", f"{free[1] - free[0]:+.4f}")
            rows.append((name, asked, where, f"{before:.4f}", f"{after:.4f}", *changes))
        tested = _tested(value, test)
        if tested is not None:
            after, unscreened = tested
            rows.append((name, asked, "test", "", f"{after:.4f}", "", f"{unscreened:.4f}", ""))
    return rows


def _tested(value: Value, test: Sequence[Record]) -> tuple[float, float] | None:
    """A value's loss on test rows, with and without screening, where the results tell it."""
    kind, of = value.kind()
    told = {row["trainer"]: row.get(f"loss of {of}") for row in test}
    with_screen, without = told.get("cooperative"), told.get("unscreened")
    if kind != "group" or with_screen is None or without is None:
        return None
    return with_screen["mean"], without["mean"]


def outcome(test: Sequence[Record], config: RunConfig) -> str:
    """In a sentence, what screening did to the values on rows that nothing was chosen on."""
    better: list[str] = []
    worse: list[str] = []
    for name, value in config.values.items():
        tested = _tested(value, test)
        if tested is None or not any(
            name in profile.protect for profile in config.profiles.values()
        ):
            continue
        told = f"{name} ({tested[0]:.3f}, unscreened {tested[1]:.3f})"
        (better if tested[0] < tested[1] else worse).append(told)
    if not better and not worse:
        return ""
    ends = [
        f"{len(some)} ended {what}: {', '.join(some)}"
        for what, some in (
            ("lower with screening than without", better),
            ("no lower with screening than without", worse),
        )
        if some
    ]
    return (
        f"Of {len(better) + len(worse)} protected groups' losses on the test rows, "
        + "; ".join(ends)
        + ". The screen's own rows say whether its promise was kept; other rows, what it was worth."
    )


def _asked(value: str, config: RunConfig) -> str:
    kinds = ("protect", "forbid", "preserve")
    counts = {k: sum(value in getattr(p, k) for p in config.profiles.values()) for k in kinds}
    asked = [
        f"{kind}, {count} principal{'s' * (count > 1)}" for kind, count in counts.items() if count
    ]
    return "; ".join(asked) or "nothing"
