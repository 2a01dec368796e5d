"""From device arrays to records: one epoch's metrics, agents' records and the final results."""

from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from vcca_jax.datasets import Split
from vcca_jax.ledger import Ledger
from vcca_jax.runs.config import RunConfig
from vcca_jax.runs.epochs import EpochSummary, Evaluation
from vcca_jax.runs.problem import Problem
from vcca_jax.runs.records import Record


def metric_records(
    problem: Problem,
    epoch: int,
    evaluations: dict[str, Evaluation],
    summary: EpochSummary | None,
) -> list[Record]:
    """One record a trainer and seed; epoch 0 is before training and has no summary."""
    targets = problem.study.validation.targets
    records = []
    for trainer, measured in evaluations.items():
        for seed in range(len(measured.validation_loss)):
            outputs = np.asarray(measured.validation_outputs[seed])
            records.append(
                {
                    "epoch": epoch,
                    "trainer": trainer,
                    "seed": seed,
                    "train_loss": None
                    if summary is None
                    else float(summary.train_loss[trainer][seed]),
                    "validation_loss": float(measured.validation_loss[seed]),
                    "validation_auc": float(roc_auc_score(targets, outputs)),
                    "value_losses": _by_name(problem, measured.value_losses[seed]),
                    "fresh_value_losses": _by_name(problem, measured.fresh_value_losses[seed]),
                }
            )
    return records


def _by_name(problem: Problem, losses: Any) -> dict[str, float]:
    return {name: float(losses[m]) for m, name in enumerate(problem.values.names)}


def agent_records(problem: Problem, epoch: int, summary: EpochSummary) -> list[Record]:
    """One record an agent and seed."""
    records = []
    seeds = len(summary.gain)
    for seed in range(seeds):
        for i, agent in enumerate(problem.study.agents):
            steps = int(summary.steps[seed, i])
            records.append(
                {
                    "epoch": epoch,
                    "seed": seed,
                    "agent": agent,
                    "samples": int(problem.members.sizes[i]),
                    "steps": steps,
                    "admissible_steps": int(summary.admissible[seed, i]),
                    "dropped_steps": int(summary.dropped[seed, i]),
                    "conflicts": {
                        name: int(summary.conflicts[seed, i, m])
                        for m, name in enumerate(problem.values.names)
                    },
                    "removed": float(summary.removed[seed, i]) / max(steps, 1),
                    "credit": float(summary.credits[seed, i]),
                }
            )
    return records


def game_records(epoch: int, summary: EpochSummary) -> list[Record]:
    """One record a seed: what the epoch's steps were worth, and what no agent was credited with."""
    return [
        {
            "epoch": epoch,
            "seed": seed,
            "gain": float(summary.gain[seed]),
            "carry_over": float(summary.carry_over[seed]),
            "residual": float(summary.residual[seed]),
        }
        for seed in range(len(summary.gain))
    ]


def payout_records(ledger: Ledger) -> list[Record]:
    """What every entry of a ledger moved, one record an entry and account.

    A settlement has a record for every principal and for the reserve; any other entry, such as a
    release, a claw-back or a reversal, for those whose money it moves, under the period of the
    settlement that it is about. "paid" went into the account, "held" into escrow for it, each with
    a minus where it was taken from there; "balance" is the account's afterwards.
    """
    balances = dict.fromkeys((*ledger.principals, "reserve"), 0)
    periods: dict[str, str] = {}
    records: list[Record] = []
    for seq, kind, content, _ in ledger.entries():
        if kind == "settle":
            periods[str(seq)] = content["period"]
        moved = content.get("postings", {})
        for account in balances:
            name = account if account == "reserve" else f"principal:{account}"
            paid, held = int(moved.get(name, 0)), int(moved.get(f"escrow:{account}", 0))
            balances[account] += paid
            if kind == "settle" or paid or held:
                records.append(
                    {
                        "entry": seq,
                        "kind": kind,
                        "period": content.get("period") or periods.get(content.get("of", ""), ""),
                        "principal": account,
                        "paid": paid,
                        "held": held,
                        "balance": balances[account],
                    }
                )
    return records


def money(ledger: Ledger) -> Record:
    """Where all the money of a ledger is, in minor units; but for payouts, which sum to the rest.

    "revenue" is all that came in and was not taken back; it is the sum of the principals'
    balances and of "reserve", "carried", "escrow" and "dust".
    """
    totals = dict.fromkeys(("revenue", "reserve", "carried", "escrow", "dust"), 0)
    for account, balance in ledger.accounts().items():
        kind = account.partition(":")[0]
        if kind in totals:
            totals[kind] += -balance if kind == "revenue" else balance
    return totals


def agent_table(
    problem: Problem, config: RunConfig, agents: list[Record], ledger: Ledger
) -> list[Record]:
    """One row an agent: what it brought, what was screened, its credit, its pay.

    Credit is of the paid run (seed 0), with its mean and standard deviation over all seeds. Shares
    are of the steps of all seeds. The payout is the balance; what waits in escrow is beside it.
    """
    balances, accounts = ledger.balances(), ledger.accounts()
    rows = []
    for agent in problem.study.agents:
        own = [r for r in agents if r["agent"] == agent]
        steps = sum(r["steps"] for r in own)
        credits = [
            sum(r["credit"] for r in own if r["seed"] == seed)
            for seed in range(config.training.seeds)
        ]
        rows.append(
            {
                "agent": agent,
                "samples": own[0]["samples"],
                "admissible_share": sum(r["admissible_steps"] for r in own) / max(steps, 1),
                "dropped_share": sum(r["dropped_steps"] for r in own) / max(steps, 1),
                "removed_share": sum(r["removed"] * r["steps"] for r in own) / max(steps, 1),
                "credit": credits[0],
                "credit_mean": float(np.mean(credits)),
                "credit_sd": float(np.std(credits, ddof=1)) if len(credits) > 1 else None,
                "payout": balances[agent],
                "held": accounts.get(f"escrow:{agent}", 0),
            }
        )
    return rows


def test_table(problem: Problem, outputs: dict[str, Any], losses: dict[str, Any]) -> list[Record]:
    """One row a trainer: how its final model does on the test rows, mean and sd over seeds.

    Args:
        problem: the run's.
        outputs: {trainer: logits [seeds, n]} on the test rows.
        losses: {trainer: per-example losses [seeds, n]}.
    """
    test: Split = problem.study.test
    rows = []
    for trainer, logits in outputs.items():
        measures: dict[str, list[float]] = {
            "loss": [float(np.mean(row)) for row in losses[trainer]],
            "auc": [float(roc_auc_score(test.targets, row)) for row in logits],
            "balanced_accuracy": [
                float(balanced_accuracy_score(test.targets, row > 0)) for row in logits
            ],
        }
        for group, members in test.groups.items():
            measures[f"loss of {group}"] = [float(np.mean(row[members])) for row in losses[trainer]]
        row: Record = {"trainer": trainer}
        for name, values in measures.items():
            row[name] = {
                "mean": float(np.mean(values)),
                "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            }
        rows.append(row)
    return rows
