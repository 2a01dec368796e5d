"""The tables, from the result files alone.

``python -m experiments.attribution.tables`` writes them beside the results that are kept, and puts
those that the README shows between its markers.
"""

from pathlib import Path

import numpy as np

from experiments.attribution.analysis import TRUTH, resolution
from experiments.attribution.config import TL
from experiments.fidelity.tables import middle, numbers, shown
from experiments.pages import Records, distinct, fill_page, read, table, write_page

HERE = Path(__file__).parent

PAIRS = (
    ("each its own: Aumann-Shapley and exact Shapley", "Aumann-Shapley", "Shapley"),
    ("each its own: Aumann-Shapley and FedSV", "Aumann-Shapley", "FedSV"),
    ("the same on both: Aumann-Shapley", "Aumann-Shapley", "Aumann-Shapley"),
    ("the same on both: leave-one-out", "leave-one-out", "leave-one-out"),
    ("the same on both: first order (DIG-FL)", "first order", "first order"),
    ("retraining itself, Shapley", TRUTH, TRUTH),
)
"""What is compared: a title, the estimator on TL, the estimator on FedAvg."""

COMPARED = (
    ("spearman_shapley", "Spearman to the own truth"),
    ("spearman_shapley_fixed", "Spearman, both retrained with fixed weights"),
    ("spearman_shapley_renormalised", "Spearman, both retrained renormalised"),
    ("pairs", "noise pairs in order"),
)


def rows_of(scores: Records) -> list[tuple[str, str]]:
    """Substrates and their estimators, in order."""
    return list(dict.fromkeys((r["substrate"], r["estimator"]) for r in scores))


def nearness_table(scores: Records, fields: dict[str, str]) -> str:
    """Substrates and estimators down; the fields of every partition across."""
    wheres = distinct(scores, "partition")
    rows = []
    for substrate, estimator in rows_of(scores):
        own = [r for r in scores if (r["substrate"], r["estimator"]) == (substrate, estimator)]
        cells = [
            shown(numbers(own, field, partition=where)) for where in wheres for field in fields
        ]
        rows.append([substrate, estimator, *cells])
    heads = [f"{where}: {title}" for where in wheres for title in fields.values()]
    return table(["substrate", "estimator", *heads], rows)


def cost_table(scores: Records) -> str:
    """Events, cost, and the part of the gain that the credits leave."""
    wheres = distinct(scores, "partition")
    rows = []
    for substrate, estimator in rows_of(scores):
        own = [r for r in scores if (r["substrate"], r["estimator"]) == (substrate, estimator)]
        gaps = [f"{np.median(numbers(own, 'gap', partition=where)):.2f}" for where in wheres]
        events = own[0]["events"]
        rows.append(
            [
                substrate,
                estimator,
                str(events) if events else "–",
                middle(numbers(own, "runs")),
                *(gap.replace("-0.00", "0.00").replace("-", "−") for gap in gaps),
            ]
        )
    heads = ["events", "runs, products", *(f"gap / gain, {where}" for where in wheres)]
    return table(["substrate", "estimator", *heads], rows)


def differences(
    scores: Records, field: str, where: str, other: str, ours: str, theirs: str
) -> list[float]:
    """TL less a federated substrate, seed by seed."""
    found = []
    for seed in distinct(scores, "seed"):
        pair = [
            numbers(scores, field, partition=where, seed=seed, substrate=s, estimator=e)
            for s, e in ((TL, ours), (other, theirs))
        ]
        if all(pair):
            found.append(pair[0][0] - pair[1][0])
    return found


def difference_table(scores: Records, field: str) -> str:
    """Mean ± standard error over seeds of TL less FedAvg, and how many seeds TL is ahead in."""
    wheres = distinct(scores, "partition")
    others = [name for name in distinct(scores, "substrate") if name != TL]
    rows = []
    for title, ours, theirs in PAIRS:
        # A truth is not compared with itself.
        if ours == TRUTH and field != "pairs":
            continue
        for where in wheres:
            cells = []
            for other in others:
                found = differences(scores, field, where, other, ours, theirs)
                if not found:
                    cells.append("–")
                    continue
                text = f"{np.mean(found):+.3f}"
                if len(found) > 1:
                    text += f" ± {np.std(found, ddof=1) / len(found) ** 0.5:.3f}"
                text += f", {sum(each > 1e-9 for each in found)} of {len(found)}"
                cells.append(text.replace("-", "−"))
            rows.append([title, where, *cells])
    return table(["TL less", "partition", *others], rows)


def resolution_table(scores: Records) -> str:
    """The smallest difference of noise that is told apart from there on, in points."""
    wheres = distinct(scores, "partition")
    rows = []
    for substrate, estimator in rows_of(scores):
        cells = []
        for where in wheres:
            chosen = {"substrate": substrate, "estimator": estimator, "partition": where}
            by_gap = np.array(numbers(scores, "right", **chosen))
            found = resolution(by_gap, numbers(scores, "step", **chosen)[0])
            cells += [
                "none" if found is None else f"{100 * found:.0f}",
                shown(numbers(scores, "pairs", **chosen)),
            ]
        rows.append([substrate, estimator, *cells])
    heads = [f"{where}: {what}" for where in wheres for what in ("points", "pairs right")]
    return table(["substrate", "estimator", *heads], rows)


def learning_table(scores: Records) -> str:
    """Rates chosen, and what everybody's training gains on validation rows."""
    wheres = distinct(scores, "partition")
    rows = []
    for substrate in distinct(scores, "substrate"):
        cells = []
        for where in wheres:
            chosen = {"substrate": substrate, "partition": where, "estimator": TRUTH}
            cells += [f"{numbers(scores, 'rate', **chosen)[0]:g}"]
            cells += [shown(numbers(scores, "gain", **chosen))]
        rows.append([substrate, *cells])
    heads = [f"{where}: {what}" for where in wheres for what in ("rate", "gain")]
    return table(["substrate", *heads], rows)


def parts(results: Path) -> dict[str, str]:
    """All tables by their titles."""
    scores = read(results, "scores")
    found: dict[str, str] = {}
    for data in distinct(scores, "data"):
        own = [record for record in scores if record["data"] == data]
        credited = [r for r in own if r["estimator"] != TRUTH]
        found[f"{data}: nearness"] = nearness_table(
            credited,
            {"spearman_shapley": "own truth", "spearman_noise": "noise order"},
        )
        found[f"{data}: resolution"] = resolution_table(own)
        for field, title in COMPARED:
            found[f"{data}: TL less FedAvg, {title}"] = difference_table(own, field)
        found[f"{data}: cost"] = cost_table(own)
        found[f"{data}: learning"] = learning_table(own)
        for title, fields in {
            "Kendall and Pearson": {
                "kendall_shapley": "Kendall, own truth",
                "pearson_shapley": "Pearson, own truth",
                "kendall_noise": "Kendall, noise order",
                "pearson_noise": "Pearson, noise",
            },
            "leave-one-out and test rows": {
                "spearman_left_out": "retraining leave-one-out",
                "pearson_left_out": "Pearson to it",
                "spearman_shapley_test": "Shapley on test rows",
            },
            "both rules": {
                "spearman_shapley_fixed": "fixed weights",
                "spearman_shapley_renormalised": "renormalised",
            },
        }.items():
            found[f"{data}: {title}"] = nearness_table(own, fields)
    return found


def write_tables(results: Path) -> str:
    """All tables as Markdown; also written to ``tables.md`` beside the results."""
    return write_page(results / "tables.md", parts(results))


def main(readme: Path = HERE / "README.md", results: Path = HERE / "results") -> None:
    """Write the tables of the results that are kept, and the README's."""
    write_tables(results)
    fill_page(readme, parts(results))


if __name__ == "__main__":
    main()
