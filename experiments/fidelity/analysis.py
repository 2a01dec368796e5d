"""What is measured of a cell: nearness to the truths, finding, removal, cost, axioms."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.fidelity.config import AGENTS, UPDATE_CHEATS
from experiments.fidelity.estimators import RETRAINED, RUN, family
from experiments.fidelity.problems import BREAKER, RANDOM, ZERO
from vcca_jax.runs.records import Record

TRUTHS = ("shapley", "left_out", "shapley_test", "left_out_test")
"""Exact Shapley value and leave-one-out of retraining, on validation rows and on test rows."""

DRAWN = (
    "Shapley",
    "Aumann-Shapley of the run, 2",
    "influence of the run",
    "online influence",
    "online in-run 2",
    "gradient norm",
    "size",
)
"""The estimators whose removal curves are kept and drawn."""

CHEATS = {"zero_share": ZERO, "random_share": RANDOM, "breaker_share": BREAKER}
"""Fields of a record of ``update cheats``: credit over the gain, of who cheats in which way."""

HALVED, REST, TWINS, NOBODY = 4, 7, (5, 6), 7
"""The agents of the axioms' games; ``REST`` is the half of ``HALVED`` in the second game."""


def shapley(table: np.ndarray) -> np.ndarray:
    """The Shapley value of the worths [2**A] of all coalitions, in double precision."""
    agents = int(math.log2(len(table)))
    codes = np.arange(len(table))
    sizes = np.bitwise_count(codes)
    found = []
    for agent in range(agents):
        without = codes[(codes >> agent) & 1 == 0]
        mass = np.array([1 / (agents * math.comb(agents - 1, int(s))) for s in sizes[without]])
        found.append(float(mass @ (table[without | (1 << agent)] - table[without])))
    return np.array(found)


def left_out(table: np.ndarray) -> np.ndarray:
    """v(1) - v(1 - e_i) of the worths of all coalitions."""
    everybody = len(table) - 1
    agents = int(math.log2(len(table)))
    return np.array([table[everybody] - table[everybody ^ (1 << i)] for i in range(agents)])


def nearness(scores: np.ndarray, truth: np.ndarray) -> tuple[float | None, ...]:
    """Spearman's, Kendall's (tau-b) and Pearson's correlation; None of a constant score."""
    if np.ptp(scores) == 0 or np.ptp(truth) == 0:
        return None, None, None
    return (
        float(stats.spearmanr(scores, truth).statistic),
        float(stats.kendalltau(scores, truth).statistic),
        float(stats.pearsonr(scores, truth).statistic),
    )


def auc(scores: np.ndarray, bad: Sequence[int]) -> float:
    """The share of pairs of a bad and another agent in which the bad one scores less; ties half."""
    found = np.isin(np.arange(len(scores)), bad)
    less = scores[found][:, None] < scores[~found][None, :]
    ties = scores[found][:, None] == scores[~found][None, :]
    return float(np.mean(less + 0.5 * ties))


def removal(scores: np.ndarray, table: np.ndarray, *, best_first: bool) -> np.ndarray:
    """The worth of who is left when 0, 1, ..., A agents have gone, [A + 1].

    v of nobody counts as 0 and v of the best coalition as 1: everybody's own gain may be nothing,
    or less, where most labels are wrong. Agents of equal score go in the order of the axis.
    """
    order = np.argsort(-scores if best_first else scores, kind="stable")
    left = len(table) - 1 - np.concatenate([[0], np.cumsum(1 << order)])
    most = table.max() - table[0]
    scaled: np.ndarray = (table[left] - table[0]) / (most if most > 0 else 1.0)
    return scaled


def cost(cell: Record, name: str) -> tuple[float, float]:
    """Runs by products and runs by the clock, of all that is run, the training itself included.

    Coalitions retrained count as a run each; by the clock they take their share of all of them side
    by side. A program that does not pass the full run (Aumann-Shapley through it) has one added.
    """
    seconds, products = cell["seconds"], cell["products"]
    if name in cell["asked"]:
        share = seconds[RETRAINED] / 2**AGENTS / seconds[RUN]
        return float(cell["asked"][name]), cell["asked"][name] * share
    if name not in products:
        return 1.0, 1.0
    more = 1.0 if name.startswith("Aumann-Shapley of the run") else 0.0
    return more + products[name] / products[RUN], more + seconds[name] / seconds[RUN]


def score_records(cell: Record) -> list[Record]:
    """One record an estimator."""
    validation, test = (np.array(cell[rows]) for rows in ("validation", "test"))
    truths = dict(
        zip(TRUTHS, (f(t) for t in (validation, test) for f in (shapley, left_out)), strict=True)
    )
    gain, records = validation[-1] - validation[0], []
    for name, credits in cell["credits"].items():
        record: Record = {
            **{key: cell[key] for key in ("data", "scenario", "seed")},
            "estimator": name,
        }
        finite = None not in credits
        scores = np.array(credits if finite else [0.0] * AGENTS, float)
        for truth, values in truths.items():
            for measure, found in zip(
                ("spearman", "kendall", "pearson"), nearness(scores, values), strict=True
            ):
                record[f"{measure}_{truth}"] = found
        record["gap"] = (
            None
            if not finite or family(name) == "baseline"
            else float((gain - scores.sum()) / gain)
        )
        for field, agent in CHEATS.items():
            told = finite and cell["scenario"] == UPDATE_CHEATS and family(name) != "baseline"
            record[field] = float(scores[agent] / gain) if told else None
        record["auc"] = None if cell["bad"] is None else auc(scores, cell["bad"])
        worst, best = (removal(scores, test, best_first=b) for b in (False, True))
        flat = np.ptp(scores) == 0
        record["area"] = None if flat else float(np.mean((worst - best)[1:-1]))
        record["runs"], record["clock"] = cost(cell, name)
        records.append(record)
    return records


def curve_records(cell: Record) -> list[Record]:
    """The removal curves on test rows of the estimators that are drawn, unless all score alike."""
    test = np.array(cell["test"])
    return [
        {
            **{key: cell[key] for key in ("data", "scenario", "seed")},
            "estimator": name,
            "worst_first": removal(scores, test, best_first=False).tolist(),
            "best_first": removal(scores, test, best_first=True).tolist(),
        }
        for name in DRAWN
        if name in cell["credits"] and None not in cell["credits"][name]
        for scores in [np.array(cell["credits"][name], float)]
        if np.ptp(scores) > 0
    ]


def axiom_records(cell: Record) -> list[Record]:
    """One record an estimator, of the two games; relative numbers, but the null agent's credit."""
    validation = np.array(cell["validation"])
    gain, records = validation[-1] - validation[0], []
    for name, credits in cell["credits"].items():
        own, split = (np.array(each, float) for each in (credits, cell["split_credits"][name]))
        if name == "random" or not (np.isfinite(own).all() and np.isfinite(split).all()):
            continue
        first, second = TWINS
        records.append(
            {
                "data": cell["data"],
                "seed": cell["seed"],
                "estimator": name,
                "gap": None if family(name) == "baseline" else float(1 - own.sum() / gain),
                "null": float(abs(own[NOBODY])),
                "asymmetry": float(abs(own[first] - own[second]) / np.abs(own).max()),
                "split_gain": float((split[HALVED] + split[REST]) / own[HALVED] - 1),
            }
        )
    return records


def results_of(cells: Iterable[Record]) -> dict[str, list[Record]]:
    """All result files' records, by the name of the file."""
    found: dict[str, list[Record]] = {"scores": [], "curves": [], "axioms": [], "games": []}
    for cell in cells:
        kept = {key: value for key, value in cell.items() if key not in ("terms", "took")}
        found["games"].append(kept)
        if cell["scenario"] == "axioms":
            found["axioms"] += axiom_records(cell)
        else:
            found["scores"] += score_records(cell)
            found["curves"] += curve_records(cell)
    return {
        name: [digits(record, 7 if name == "games" else 6) for record in records]
        for name, records in found.items()
    }


def digits(value: Any, count: int = 6) -> Any:
    """So many significant digits of every number."""
    if isinstance(value, dict):
        return {key: digits(each, count) for key, each in value.items()}
    if isinstance(value, list):
        return [digits(each, count) for each in value]
    return float(f"{value:.{count}g}") if isinstance(value, float) else value
