"""A finished run's folder made by hand, in which principals and values may have any names."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from vcca_jax.ledger import Ledger
from vcca_jax.runs import RunConfig
from vcca_jax.runs.records import write_json, write_records, write_text
from vcca_jax.runs.settling import terms

EPOCHS, SEEDS = 3, 2
TRAINERS = ("centralized", "unscreened", "cooperative")
FIGURES = (
    "cumulative_credit",
    "cumulative_payout",
    "value_losses",
    "value_losses_on_validation_rows",
    "admissibility",
    "loss_against_centralized",
)


def made_run(folder: Path, agents: Sequence[str], values: Sequence[str], **settlement) -> Path:
    """Write a run of three epochs that lacks nothing but checkpoints; numbers are drawn."""
    folder.mkdir(parents=True)
    config = RunConfig.model_validate(
        {
            "values": {name: {"group": name} for name in values},
            "profiles": {
                agent: {
                    "protect": {values[0]: 0.0},
                    "forbid": {name: {"margin": 0.1, "price": 2.0} for name in values[1:]},
                    "max_norm": 0.5,
                }
                for agent in agents
            },
            "training": {"epochs": EPOCHS, "seeds": SEEDS},
            "settlement": settlement,
        }
    )
    draw = np.random.default_rng(0)
    metrics = [
        {
            "epoch": epoch,
            "trainer": trainer,
            "seed": seed,
            "train_loss": None if epoch == 0 else float(draw.random()),
            "validation_loss": float(draw.random()),
            "validation_auc": float(draw.random()),
            "value_losses": {name: float(draw.random()) for name in values},
            "fresh_value_losses": {name: float(draw.random()) for name in values},
        }
        for epoch in range(EPOCHS + 1)
        for trainer in TRAINERS
        for seed in range(SEEDS)
    ]
    records = [
        {
            "epoch": epoch,
            "seed": seed,
            "agent": agent,
            "samples": 10,
            "steps": 8,
            "admissible_steps": 3,
            "dropped_steps": 1,
            "conflicts": {name: int(draw.integers(6)) for name in values},
            "removed": 0.25,
            "credit": float(draw.uniform(0.1, 0.2)),
        }
        for epoch in range(1, EPOCHS + 1)
        for seed in range(SEEDS)
        for agent in agents
    ]
    write_text(folder / "config.json", config.canonical())
    write_records(folder / "metrics.jsonl", metrics)
    write_records(folder / "agents.jsonl", records)
    with Ledger.open(folder / "ledger.sqlite", principals=list(agents), **terms(config)) as ledger:
        for epoch in range(1, EPOCHS + 1):
            own = [r for r in records if r["epoch"] == epoch and r["seed"] == 0]
            ledger.settle(epoch, {r["agent"]: r["credit"] for r in own}, 1_000_000)
        head = ledger.head()
    spread = {"mean": 0.5, "sd": 0.1}
    write_json(
        folder / "results.json",
        {
            "agents": [
                {
                    "agent": agent,
                    "samples": 10,
                    "admissible_share": 3 / 8,
                    "dropped_share": 1 / 8,
                    "removed_share": 0.25,
                    "credit": 0.4,
                    "credit_mean": 0.5,
                    "credit_sd": 0.1,
                    "payout": 0,  # the page is to tell what the ledger holds
                }
                for agent in agents
            ],
            "test": [
                {"trainer": t, "loss": spread, "auc": spread, f"loss of {values[0]}": spread}
                for t in TRAINERS
            ],
            "value_names": list(values),
            "currency": config.settlement.currency,
            "decimals": config.settlement.decimals,
            "revenue": 1_000_000 * EPOCHS,
            "reserve": 0,
            "carried": 0,
            "settlements": EPOCHS,
            "ledger_head": head,
        },
    )
    (folder / "figures").mkdir()
    image = io.BytesIO()
    Figure(figsize=(8, 5)).savefig(image, dpi=10)
    for name in FIGURES:
        (folder / "figures" / f"{name}.png").write_bytes(image.getvalue())
    return folder
