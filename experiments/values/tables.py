"""The README's tables, from the result files alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pages import Records, distinct, read, table, write_page
from experiments.values.sweeps import slope


def collected(records: Iterable[dict[str, Any]], field: str, **chosen: Any) -> list[float]:
    """A field's numbers over the records that match; what was not finite is NaN."""
    return [
        float("nan") if record[field] is None else float(record[field])
        for record in records
        if all(record[key] == value for key, value in chosen.items()) and field in record
    ]


def changes(values: Records, rows: str, **chosen: Any) -> list[float]:
    """Change of a value loss over a run, one number a record."""
    before = collected(values, f"{rows}_before", **chosen)
    after = collected(values, f"{rows}_after", **chosen)
    return [b - a for a, b in zip(before, after, strict=True)]


def shown(numbers: Sequence[float], *, sign: str = "", digits: int = 3) -> str:
    """Mean ± standard deviation over seeds; a dash where nothing was measured."""
    array = np.asarray(numbers, float)
    if len(array) == 0:
        return "–"
    if np.isnan(array).any() or np.abs(array).max() > 1e4:
        return "diverged"
    deviation = array.std(ddof=1) if len(array) > 1 else 0.0
    return f"{array.mean():{sign}.{digits}f} ± {deviation:.{digits}f}".replace("-", "−")


def measured(numbers: Sequence[float]) -> list[float]:
    """The numbers without the NaN of what did not happen in a seed."""
    return [number for number in numbers if not np.isnan(number)]


def largest(numbers: Sequence[float]) -> str:
    """The largest over seeds, with two digits."""
    array = np.asarray(numbers, float)
    if len(array) == 0 or np.isnan(array).any():
        return "–"
    return f"{array.max():.1e}".replace("-", "−")


def accuracy_field(setting: str) -> str:
    """What is reported as a setting's accuracy."""
    return "balanced_accuracy" if setting == "heart" else "accuracy"


def outcome_table(finals: Records, values: Records, setting: str) -> str:
    """Conditions down: how good the model is, what screening took, what values did."""
    own_values = [v for v in values if v["setting"] == setting]
    names = [
        (r["value"], r["kind"])
        for r in own_values
        if r["seed"] == own_values[0]["seed"] and r["condition"] == own_values[0]["condition"]
    ]
    field = accuracy_field(setting)
    head = [
        "condition",
        field.replace("_", " "),
        "admissible",
        "norm removed",
        "worst rise in a step",
        "values beyond, a step",
        *(f"{name} ({kind})" for name, kind in names),
    ]
    rows = []
    for condition in distinct([r for r in finals if r["setting"] == setting], "condition"):
        chosen = {"setting": setting, "condition": condition}
        cells = [
            shown(collected(finals, field, **chosen)),
            shown(collected(finals, "admissible", **chosen), digits=2),
            shown(collected(finals, "removed", **chosen), digits=2),
            largest(collected(finals, "worst_rise", **chosen)),
            shown(collected(finals, "steps_beyond", **chosen), digits=2),
        ]
        for name, _ in names:
            moved = [
                shown(changes(values, rows_, value=name, **chosen), sign="+")
                for rows_ in ("seen", "fresh")
            ]
            cells.append(" / ".join(moved))
        rows.append([condition, *cells])
    return table(head, rows)


def price_table(values: Records) -> str:
    """What each value costs under ``everyone``."""
    rows = []
    for setting in distinct(values, "setting"):
        here = {"setting": setting, "condition": "everyone"}
        rows += [
            [
                f"{setting}: {name}",
                shown(measured(collected(values, "price", value=name, **here))),
                shown(collected(values, "binding", value=name, **here), digits=2),
            ]
            for name in distinct([v for v in values if v["setting"] == setting], "value")
        ]
    return table(["value", "price where it binds", "share of updates it binds"], rows)


def slope_table(steps: Records) -> str:
    """Slopes of log worst rise against log learning rate, up to 0.1."""
    rows = []
    for setting in distinct(steps, "setting"):
        cells = []
        for name in distinct(steps, "step"):
            own = [s for s in steps if s["setting"] == setting and s["step"] == name]
            etas = np.array(sorted({s["eta"] for s in own if s["eta"] <= 0.1}))
            found = [
                slope(
                    etas,
                    np.array(
                        [collected(own, "rise", seed=seed, eta=eta)[0] for eta in etas.tolist()]
                    ),
                )
                for seed in sorted({s["seed"] for s in own})
            ]
            cells.append(
                shown(measured(found), digits=2)
                if name != "verified"
                else largest(collected([s for s in own if s["eta"] <= 0.1], "rise"))
            )
        rows.append([setting, *cells])
    return table(["setting", "slope, unscreened", "slope, everyone", "largest, verified"], rows)


def verified_table(finals: Records) -> str:
    """How often an update was verified, and how often only a shortened one was."""
    rows = [
        [
            f"{setting}: {name}",
            shown(collected(finals, "verified", setting=setting, condition=name), digits=3),
            shown(collected(finals, "shortened", setting=setting, condition=name), digits=3),
        ]
        for setting in distinct(finals, "setting")
        for name in ("verified", "adam, verified")
    ]
    return table(["condition", "steps verified", "steps that took a third attempt or more"], rows)


def write_tables(results: Path) -> str:
    """All tables as Markdown; also written to ``tables.md`` beside the results."""
    finals, values = read(results, "finals"), read(results, "values")
    settings = distinct(finals, "setting")
    outcomes = {setting: outcome_table(finals, values, setting) for setting in settings}
    others = {
        "Prices": price_table(values),
        "Verification": verified_table(finals),
        "First order": slope_table(read(results, "steps")),
    }
    return write_page(results / "tables.md", outcomes | others)
