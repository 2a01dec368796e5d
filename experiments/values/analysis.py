"""From runs to tidy records: one measurement a record, seeds kept apart or summed up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.values.problems import Problem, Reported
from experiments.values.settings import stated_signs
from experiments.values.training import Traced

Record = dict[str, Any]
KINDS = {1.0: "protect", -1.0: "forbid", 0.0: "measured"}


def number(value: Any) -> float | None:
    """A float of seven digits; None where it is not finite."""
    value = float(value)
    return float(f"{value:.7g}") if np.isfinite(value) else None


def share(part: Any, whole: Any) -> float | None:
    """part / whole, or None of nothing."""
    return number(part / whole) if whole > 0 else None


def auc(scores: np.ndarray, targets: np.ndarray) -> float:
    """Chance that a positive row scores above a negative one; ties count half."""
    positive = targets == 1
    ranks = stats.rankdata(scores)
    count = int(positive.sum())
    below = ranks[positive].sum() - count * (count + 1) / 2
    return float(below / (count * (len(targets) - count)))


def accuracies(outputs: Any, reported: Reported) -> Record:
    """How good a run's answers are on its test rows [n].

    The least served agent's accuracy weighs every row by how much it is like the agent's own.
    """
    targets, outputs = reported.targets, outputs[: len(reported.targets)]
    if not np.isfinite(outputs).all():
        return dict.fromkeys(("accuracy", "balanced_accuracy", "auc", "least_served"))
    decided = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    right = decided == targets
    served = reported.audience @ right
    return {
        "accuracy": number(right.mean()),
        "balanced_accuracy": number(np.mean([right[targets == c].mean() for c in set(targets)])),
        "auc": number(auc(outputs[:, 0], targets)) if outputs.shape[1] == 1 else None,
        "least_served": number(served[reported.audience.sum(axis=1) > 0].min()),
    }


def final_records(setting: str, condition: str, problem: Problem, traced: Traced) -> list[Record]:
    """One record a seed: what screening took, what it left, how good the model is."""
    sums, found = traced.sums, []
    for seed, reported in enumerate(problem.reported):
        live = sums.live[seed].sum()
        group = {
            f"accuracy: {name}": None
            if not np.isfinite(traced.outputs[seed]).all()
            else number(_accuracy(traced.outputs[seed], reported, mask))
            for name, mask in reported.groups.items()
            if name in problem.values.names
        }
        found.append(
            {
                "setting": setting,
                "condition": condition,
                "seed": int(problem.data[seed].seed),
                "validation": number(traced.validation[seed, -1]),
                **accuracies(traced.outputs[seed], reported),
                **group,
                "admissible": share(sums.admissible[seed].sum(), sums.present[seed].sum()),
                "dropped": share(sums.dropped[seed].sum(), sums.present[seed].sum()),
                "removed": share(sums.removed[seed].sum(), sums.norm[seed].sum()),
                "worst_rise": number(np.max(sums.rise[seed])),
                "steps_beyond": share(sums.beyond[seed].sum(), live),
                "verified": share(sums.verified[seed].sum(), live),
                "shortened": share(sums.shortened[seed].sum(), live),
                "violation": number(sums.violation[seed].max()),
            }
        )
    return found


def _accuracy(outputs: Any, reported: Reported, mask: np.ndarray) -> float:
    outputs = outputs[: len(mask)]
    decided = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return float((decided == reported.targets)[mask].mean())


def value_records(setting: str, condition: str, problem: Problem, traced: Traced) -> list[Record]:
    """One record a seed and value: the loss before and after, and the value's price."""
    found = []
    for seed, data in enumerate(problem.data):
        for m, name in enumerate(problem.values.names):
            bought = traced.sums.bought[seed, :, m].sum()
            binding = traced.sums.binding[seed, :, m].sum()
            found.append(
                {
                    "setting": setting,
                    "condition": condition,
                    "seed": int(data.seed),
                    "value": name,
                    "kind": KINDS[float(stated_signs(problem)[m])],
                    "seen_before": number(traced.seen[seed, 0, m]),
                    "seen_after": number(traced.seen[seed, -1, m]),
                    "fresh_before": number(traced.fresh[seed, 0, m]),
                    "fresh_after": number(traced.fresh[seed, -1, m]),
                    "price": share(bought, binding),
                    "binding": share(binding, traced.sums.present[seed].sum()),
                    "worst_rise": number(traced.sums.rise[seed, :, m].max()),
                }
            )
    return found


def epoch_records(setting: str, condition: str, problem: Problem, traced: Traced) -> list[Record]:
    """One record an epoch and value: mean and standard deviation over seeds of the change."""
    found = []
    for m, name in enumerate(problem.values.names):
        for rows in ("seen", "fresh"):
            losses = getattr(traced, rows)[:, :, m].astype(float)
            change = losses - losses[:, :1]
            named = {"setting": setting, "condition": condition, "value": name, "rows": rows}
            found += [
                {**named, "epoch": epoch, **spread_of(each)} for epoch, each in enumerate(change.T)
            ]
    return found


def spread_of(values: Any) -> Record:
    """Mean and standard deviation over seeds."""
    values = np.asarray(values, float)
    deviation = values.std(ddof=1) if len(values) > 1 else float("nan")
    return {"mean": number(values.mean()), "sd": number(deviation)}


def by_records(setting: str, problem: Problem, traced: Traced) -> list[Record]:
    """Who was screened by whom, summed over steps: mean over seeds of length a live step."""
    lengths = traced.sums.by.sum(axis=1) / traced.sums.live.sum(axis=1)[:, None, None]
    return [
        {
            "setting": setting,
            "agent": problem.agents[i],
            "by": problem.agents[j],
            **spread_of(lengths[:, i, j]),
        }
        for i in range(len(problem.agents))
        for j in range(len(problem.agents))
    ]


def step_records(
    setting: str, etas: Sequence[float], rises: np.ndarray, names: Sequence[str]
) -> list[Record]:
    """Of single steps' rises [R, T, N, W], the worst of a seed's batches, by learning rate."""
    worst = rises.max(axis=1)
    return [
        {"setting": setting, "step": name, "seed": seed, "eta": eta, "rise": number(found)}
        for seed, each in enumerate(worst)
        for eta, row in zip(etas, each, strict=True)
        for name, found in zip(names, row, strict=True)
    ]
