"""The tables, from the result files alone.

``python -m experiments.fidelity.tables`` writes them beside the results that are kept, and puts
those that the README shows between its markers.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fidelity.analysis import CHEATS
from experiments.fidelity.config import FULL, UPDATE_CHEATS
from experiments.fidelity.estimators import FAMILIES, family
from experiments.pages import Records, distinct, fill_page, read, table, write_page
from vcca_jax.runs.records import Record

HERE = Path(__file__).parent

TITLES = {
    "digits": "Digits",
    "heart": "Heart disease",
    "fashion": "Fashion-MNIST",
    "adult": "Adult, Adam",
    "digits, Adam": "Digits, Adam",
    "adult, SGD": "Adult, SGD",
}

TOLERANCES = {"gap": 0.01, "null": 0.0, "asymmetry": 1e-3, "split_gain": 0.01}
"""Up to which an axiom counts as holding, in every seed; the null agent's credit must be 0."""


def ordered(records: Records) -> list[str]:
    """The estimators, family by family."""
    names = distinct(records, "estimator")
    places = list(FAMILIES)
    return sorted(names, key=lambda name: places.index(family(name)))


def numbers(records: Iterable[Record], field: str, **chosen: Any) -> list[float]:
    """A field over the records that match, without those in which it is not defined."""
    return [
        record[field]
        for record in records
        if record[field] is not None and all(record[k] == v for k, v in chosen.items())
    ]


def shown(found: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (divisor n - 1); the median of what is out of all proportion."""
    if not found:
        return "–"
    if max(map(abs, found)) >= 1000:
        return f"{np.median(found):.0e} (median)".replace("e+", "e").replace("-", "−")
    text = f"{np.mean(found):.{digits}f}"
    if len(found) > 1:
        text += f" ± {np.std(found, ddof=1):.{digits}f}"
    return text.replace("-", "−")


def middle(found: Sequence[float]) -> str:
    """The median, with two digits or all those before the point."""
    if not found:
        return "–"
    value = float(np.median(found))
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def full_table(scores: Records) -> str:
    """Everything measured, over the records given."""
    head = [
        "estimator",
        "Shapley: Spearman",
        "Kendall",
        "Pearson",
        "leave-one-out: Spearman",
        "Kendall",
        "Pearson",
        "Shapley on test: Spearman",
        "gap / gain",
        "AUC",
        "area",
        "runs, products",
        "runs, clock",
    ]
    fields = [
        *(f"{m}_{t}" for t in ("shapley", "left_out") for m in ("spearman", "kendall", "pearson")),
        "spearman_shapley_test",
        "gap",
        "auc",
        "area",
    ]
    rows = []
    for name in ordered(scores):
        own = [record for record in scores if record["estimator"] == name]
        cells = [shown(numbers(own, field)) for field in fields]
        rows.append([name, *cells, *(middle(numbers(own, f)) for f in ("runs", "clock"))])
    return table(head, rows)


def overview_table(scores: Records, field: str) -> str:
    """Estimators down, data sets and scenarios across."""
    pairs = [(d, s) for d in distinct(scores, "data") for s in distinct(scores, "scenario")]
    pairs = [(d, s) for d, s in pairs if numbers(scores, field, data=d, scenario=s)]
    rows = []
    for name in ordered(scores):
        own = [record for record in scores if record["estimator"] == name]
        rows.append([name, *(shown(numbers(own, field, data=d, scenario=s)) for d, s in pairs)])
    return table(["estimator", *(f"{d}, {s}" for d, s in pairs)], rows)


def cost_table(scores: Records) -> str:
    """Nearness over all scenarios beside the cost, data sets across."""
    sets = distinct(scores, "data")
    rows = []
    for name in ordered(scores):
        own = [record for record in scores if record["estimator"] == name]
        cells = [shown(numbers(own, "spearman_shapley", data=data)) for data in sets]
        lows = [f"{min(numbers(own, 'spearman_shapley'), default=float('nan')):.2f}"]
        spent = []
        for field in ("runs", "clock"):
            each = [np.median(numbers(own, field, data=data)) for data in sets]
            ends = dict.fromkeys(middle([float(end)]) for end in (min(each), max(each)))
            spent.append(" to ".join(ends))
        rows.append([name, *cells, *(low.replace("-", "−") for low in lows), *spent])
    heads = [*(TITLES[data] for data in sets), "lowest", "runs, products", "runs, clock"]
    return table(["estimator", *heads], rows)


def summary_table(scores: Records) -> str:
    """By optimizer and scenario, over data sets and seeds."""
    adam = [name for name, task in FULL.tasks.items() if task.adam]
    scenarios = distinct(scores, "scenario")
    rows = []
    for name in ordered(scores):
        every = [record for record in scores if record["estimator"] == name]
        momentum = [record for record in every if record["data"] not in adam]
        others = [record for record in every if record["data"] in adam]
        cells = [
            shown(numbers(own, "spearman_shapley", scenario=scenario))
            for own in (momentum, others)
            for scenario in scenarios
        ]
        for own in (momentum, others):
            gaps = numbers(own, "gap")
            sound = f"{np.median(gaps):.2f}" if gaps else "–"
            if gaps and abs(np.median(gaps)) >= 1000:
                sound = f"{np.median(gaps):.0e}".replace("e+", "e")
            cells.append(sound.replace("-0.00", "0.00").replace("-", "−"))
        cells += [shown(numbers(own, "auc")) for own in (momentum, others)]
        rows.append([name, *cells])
    head = [
        "estimator",
        *(f"{how}, {scenario}" for how in ("SGD", "Adam") for scenario in scenarios),
        *(f"gap / gain, {how}" for how in ("SGD", "Adam")),
        *(f"AUC, {how}" for how in ("SGD", "Adam")),
    ]
    return table(head, rows)


def share(found: Sequence[float]) -> str:
    """The median of credits over gains, with the least and the greatest: their tails are long."""
    if not found:
        return "–"
    if not any(found):
        return "0"
    ends = [
        f"{number:.1e}".replace("e+0", "e").replace("e+", "e")
        if abs(number) >= 1000
        else f"{number:.2g}"
        if abs(number) < 1
        else f"{number:.0f}"
        for number in (np.median(found), min(found), max(found))
    ]
    return f"{ends[0]} ({ends[1]} to {ends[2]})".replace("-", "−")


def cheats_table(scores: Records) -> str:
    """The cheats that act on updates: nearness, finding them, and what each is credited."""
    adam = [name for name, task in FULL.tasks.items() if task.adam]
    scores = [record for record in scores if record["scenario"] == UPDATE_CHEATS]
    rows = []
    for name in ordered(scores):
        every = [record for record in scores if record["estimator"] == name]
        kinds = [[r for r in every if (r["data"] in adam) == which] for which in (False, True)]
        fields = ("spearman_shapley", "spearman_left_out", "auc")
        cells = [shown(numbers(own, field)) for field in fields for own in kinds]
        cells += [share(numbers(own, field)) for field in CHEATS for own in kinds]
        rows.append([name, *cells])
    words = ("Shapley", "leave-one-out", "AUC")
    head = ["estimator", *(f"{word}, {how}" for word in words for how in ("SGD", "Adam"))]
    head += [
        f"{w} updates, {how}" for w in ("zero", "random", "breaking") for how in ("SGD", "Adam")
    ]
    return table(head, rows)


def test_table(scores: Records) -> str:
    """How far validation itself is off: its exact values against the test rows' own."""
    rows = []
    exact = [record for record in scores if record["estimator"] in ("Shapley", "leave-one-out")]
    for data in distinct(scores, "data"):
        for scenario in distinct(scores, "scenario"):
            own = [r for r in exact if r["data"] == data and r["scenario"] == scenario]
            cells = [
                shown(numbers(own, f"{measure}_{field}_test", estimator=name), 3)
                for name, field in (("Shapley", "shapley"), ("leave-one-out", "left_out"))
                for measure in ("spearman", "pearson")
            ]
            if own:
                rows.append([f"{data}, {scenario}", *cells])
    head = ["", "Shapley: Spearman", "Pearson", "leave-one-out: Spearman", "Pearson"]
    return table(head, rows)


def axiom_table(axioms: Records) -> str:
    """The largest size over seeds of each departure, and whether it is within the tolerance."""
    rows = []
    for name in ordered(axioms):
        own = [record for record in axioms if record["estimator"] == name]
        cells = []
        for field, tolerance in TOLERANCES.items():
            found = numbers(own, field)
            if not found:
                cells.append("–")
                continue
            signed = found[int(np.argmax(np.abs(found)))]
            holds = "yes" if abs(signed) <= tolerance else "no"
            told = "0" if signed == 0 else f"{signed:.1e}"
            cells.append(f"{holds} ({told})".replace("-", "−"))
        rows.append([name, *cells])
    head = ["estimator", "gap / gain", "credit of nobody", "two alike, apart", "gain by a split"]
    return table(head, rows)


def parts(results: Path) -> dict[str, str]:
    """All tables by their titles."""
    scores, axioms = read(results, "scores"), read(results, "axioms")
    pooled = [record for record in scores if record["scenario"] != UPDATE_CHEATS]
    found = {"Nearness and cost": cost_table(pooled), "By optimizer": summary_table(pooled)}
    if len(pooled) < len(scores):
        found["Cheats in updates"] = cheats_table(scores)
    for title, field in (
        ("Spearman to Shapley", "spearman_shapley"),
        ("Spearman to leave-one-out", "spearman_left_out"),
        ("Efficiency gap over gain", "gap"),
        ("Finding the bad agents, AUC", "auc"),
        ("Area between removal curves on test rows", "area"),
    ):
        found[title] = overview_table(scores, field)
    found["Validation against test"] = test_table(scores)
    for data in distinct(axioms, "data"):
        own = [record for record in axioms if record["data"] == data]
        found[f"Axioms, measured: {TITLES[data]}"] = axiom_table(own)
    for data in distinct(scores, "data"):
        for scenario in distinct(scores, "scenario"):
            own = [r for r in scores if r["data"] == data and r["scenario"] == scenario]
            if own:
                found[f"{TITLES[data]}, {scenario}"] = full_table(own)
    return found


def write_tables(results: Path) -> str:
    """All tables as Markdown; also written to ``tables.md`` beside the results."""
    return write_page(results / "tables.md", parts(results))


def insert_tables(readme: Path, results: Path) -> None:
    """Fill the README's tables; see ``fill_page``."""
    fill_page(readme, parts(results))


def main(readme: Path = HERE / "README.md", results: Path = HERE / "results") -> None:
    """Write the tables of the results that are kept, and the README's."""
    write_tables(results)
    insert_tables(readme, results)


if __name__ == "__main__":
    main()
