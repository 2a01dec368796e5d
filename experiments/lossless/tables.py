"""The tables, from the result files alone.

``python -m experiments.lossless.tables`` writes them beside the results that are kept, and puts
those that the README shows between its markers.
"""

import json
from pathlib import Path

import numpy as np

from experiments.lossless.analysis import (
    Interval,
    by_seed,
    chosen,
    interval,
    margins,
    paired,
)
from experiments.lossless.methods import CENTRALIZED, POOLED, TRAVERSAL, VISITED
from experiments.pages import Records, distinct, fill_page, read, table, write_page

HERE = Path(__file__).parent

TITLES = {
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "heart": "Heart disease (medical)",
    "credit": "Credit default (financial)",
    "sentiment": "Sentiment (text)",
    "digits": "Digits",
}
SHORT = {
    "mnist": "MNIST",
    "fashion": "Fashion-MNIST",
    "heart": "heart",
    "credit": "credit",
    "sentiment": "text",
    "digits": "digits",
}
MEASURE_NAMES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "auc": "AUC"}

# What arXiv:2504.07471 claims over other distributed methods, in points: the claim, the measure,
# the data sets, whether of skewed partitions alone (None: of every partition), and the claim.
CLAIMS = (
    ("images, IID", "accuracy", ("mnist", "fashion"), ("iid",), 7.85),
    ("images, not IID", "macro_f1", ("mnist", "fashion"), None, 1.06),
    ("text, IID", "accuracy", ("sentiment",), ("iid",), 2.60),
    ("text, natural", "accuracy", ("sentiment",), ("natural",), 2.60),
    ("text, not IID", "accuracy", ("sentiment",), None, 2.60),
    ("medical, IID", "auc", ("heart",), ("iid",), 3.88),
    ("medical, natural", "auc", ("heart",), ("natural",), 3.88),
    ("medical, not IID", "auc", ("heart",), None, 3.88),
    ("financial, IID", "auc", ("credit",), ("iid",), 4.54),
    ("financial, natural", "auc", ("credit",), ("natural",), 4.54),
    ("financial, not IID", "auc", ("credit",), None, 4.54),
)

# Flower's published FedAvg with one label a client: theirs, of another model and client number.
FLOWER = {"mnist": "19.3 ± 11.8", "fashion": "28.4 ± 17.1"}


def unrolled(records: Records) -> Records:
    """One record an epoch, counted from 1, of runs whose fields are lists by epoch."""
    found = []
    for run in records:
        lists = {key: value for key, value in run.items() if isinstance(value, list)}
        named = {key: value for key, value in run.items() if key not in lists}
        for epoch, values in enumerate(zip(*lists.values(), strict=True), start=1):
            found.append({**named, "epoch": epoch, **dict(zip(lists, values, strict=True))})
    return found


def points(found: Interval, *, sign: str = "", spread: str = "deviation") -> str:
    """A mean in points (hundredths) with its deviation or interval."""
    width = getattr(found, spread)
    text = f"{100 * found.mean:{sign}.1f}"
    if np.isfinite(width):
        text += f" ± {100 * width:.1f}"
    return text.replace("-", "−").replace("+0.0 ± 0.0", "0.0 ± 0.0").replace("−0.0 ", "0.0 ")


def rivals_of(finals: Records) -> list[str]:
    """The methods that are neither centralized training nor traversal."""
    return [method for method in distinct(finals, "method") if method not in POOLED]


def value_table(finals: Records, data: str, measure: str, at: str) -> str:
    """Methods down, partitions across: mean and standard deviation over seeds."""
    own = chosen(finals, data=data, at=at)
    hows = distinct(own, "partition")
    rows = [
        [
            method,
            *(
                points(interval(list(by_seed(own, measure, method=method, partition=how).values())))
                for how in hows
            ),
        ]
        for method in distinct(own, "method")
    ]
    return table([f"{MEASURE_NAMES[measure]}, %", *hows], rows)


def difference_table(finals: Records, data: str, measure: str, at: str) -> str:
    """Methods down, partitions across: the paired difference to centralized training."""
    own = chosen(finals, data=data, at=at)
    hows = distinct(own, "partition")
    rows = []
    for method in distinct(own, "method"):
        if method == CENTRALIZED:
            continue
        cells = []
        for how in hows:
            theirs = by_seed(own, measure, method=CENTRALIZED, partition=how)
            ours = by_seed(own, measure, method=method, partition=how)
            cells.append(points(interval(paired(ours, theirs)), sign="+", spread="half"))
        rows.append([method, *cells])
    return table([f"{MEASURE_NAMES[measure]}, points", *hows], rows)


def apart_table(differences: Records, field: str) -> str:
    """The largest relative difference to centralized training, over seeds and epochs."""
    hows = distinct(differences, "partition")
    rows = [
        [
            f"{SHORT[data]}: {method}",
            *(
                largest(chosen(differences, data=data, method=method, partition=how), field)
                for how in hows
            ),
        ]
        for data in distinct(differences, "data")
        for method in distinct(differences, "method")
    ]
    return table([f"{field}, relative", *hows], rows)


def score_table(differences: Records) -> str:
    """What single precision makes of the validation score, visit by visit, at the last epoch."""
    hows, rows = distinct(differences, "partition"), []
    for data in distinct(differences, "data"):
        own = chosen(differences, data=data, method=VISITED)
        last = max(record["epoch"] for record in own)
        cells = [
            ", ".join(
                f"{100 * r['score']:+.2f}".replace("-", "−") if r["score"] else "0"
                for r in chosen(own, partition=how, epoch=last)
            )
            for how in hows
        ]
        rows.append([SHORT[data], *cells])
    return table(["points, float32", *hows], rows)


def largest(records: Records, field: str) -> str:
    """The largest difference, with two digits; 0 if there was none at all."""
    numbers = [record[field] for record in records]
    if not numbers:
        return ""
    if any(number is None for number in numbers):
        return "diverged"
    return f"{max(numbers):.1e}".replace("e-0", "e−").replace("e-", "e−") if max(numbers) else "0"


def margin_rows(finals: Records, at: str) -> list[list[str]]:
    """Traversal's margins beside what its paper claims."""
    rows, rivals = [], rivals_of(finals)
    for name, measure, sets, hows, claim in CLAIMS:
        own = [
            r
            for r in chosen(finals, at=at)
            if r["data"] in sets and (r["partition"] in hows if hows else r["partition"] != "iid")
        ]
        cells = list(dict.fromkeys((r["data"], r["partition"]) for r in own))
        if not cells or not rivals:
            continue
        found = [
            margins(chosen(own, data=data, partition=how), TRAVERSAL, rivals, measure)
            for data, how in cells
        ]
        best = interval(np.mean([each.over_best for each in found], axis=0).tolist())
        mean = interval(np.mean([each.over_mean for each in found], axis=0).tolist())
        rows.append(
            [
                name,
                MEASURE_NAMES[measure],
                f"+{claim:.2f}",
                points(best, sign="+", spread="half"),
                points(mean, sign="+", spread="half"),
                ", ".join(dict.fromkeys(each.best for each in found)),
            ]
        )
    return rows


def margin_table(finals: Records, at: str) -> str:
    """Traversal's margins beside what its paper claims."""
    head = ["", "measure", "TL's paper", "over the best rival", "over the mean of rivals", "best"]
    return table(head, margin_rows(finals, at))


def flower_table(finals: Records) -> str:
    """FedAvg with one label an agent, beside Flower's published numbers."""
    rows = []
    for data, theirs in FLOWER.items():
        own = chosen(finals, data=data, partition="one label", method="FedAvg")
        if own:
            ours = [
                points(interval(list(by_seed(chosen(own, at=at), "accuracy").values())))
                for at in ("last", "chosen")
            ]
            rows.append([TITLES[data], theirs, *ours])
    return table(["FedAvg, accuracy, %", "Flower's", "ours, last", "ours, chosen epoch"], rows)


def tuning_table(tunings: Records) -> str:
    """What every method chose, of how many configurations, and what lay at an edge."""
    rows = [
        [
            f"{SHORT[each['data']]}, {each['partition']}: {each['method']}",
            ", ".join(
                f"{name} {value:g}"
                for name, value in zip(each["names"], each["chosen"], strict=True)
            ),
            str(len(each["tried"])),
            ", ".join(each["at_edge"]) or "–",
        ]
        for each in tunings
    ]
    return table(["", "chosen", "tried", "at an edge"], rows)


def parts(results: Path) -> dict[str, str]:
    """All tables by their titles."""
    finals, tunings = read(results, "finals"), read(results, "tuning")
    config = json.loads((results / "summary.json").read_text(encoding="utf-8"))["config"]
    found = {}
    for data in distinct(finals, "data"):
        first = config["tasks"][data]["score"]
        others = [m for m in MEASURE_NAMES if m != first and chosen(finals, data=data)[0][m]]
        for at, words in (("last", "last epoch"), ("chosen", "epoch chosen on validation rows")):
            title = f"{TITLES[data]}, {words}"
            found[f"{title}: difference to centralized"] = difference_table(finals, data, first, at)
            for measure in (first, *others):
                name = MEASURE_NAMES[measure]
                found[f"{title}: {name}"] = value_table(finals, data, measure, at)
    differences = unrolled(read(results, "differences"))
    for field in ("parameters", "outputs"):
        found[f"How far traversal's {field} are apart"] = apart_table(differences, field)
    found["Validation score, visit by visit"] = score_table(differences)
    for at, words in (("last", "last epoch"), ("chosen", "chosen epoch")):
        found[f"Margins of TL, {words}"] = margin_table(finals, at)
    found["One label, and Flower's bar"] = flower_table(finals)
    found["Choices"] = tuning_table(tunings)
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
