"""The figures of a run, from its records."""

from pathlib import Path

from vcca_jax import plotting
from vcca_jax.runs.config import RunConfig
from vcca_jax.runs.records import Record


def draw_figures(folder: Path, records: dict[str, list[Record]], config: RunConfig) -> list[Path]:
    """Draw every figure into ``folder/figures`` and return the paths."""
    forbidden = sorted({name for p in config.profiles.values() for name in p.forbid})
    fresh = [{**r, "value_losses": r["fresh_value_losses"]} for r in records["metrics"]]
    figures = {
        "loss_against_centralized": plotting.loss_against_centralized(records["metrics"]),
        "value_losses": plotting.value_losses(
            records["metrics"], forbidden=forbidden, measured_on="the screen's own rows"
        ),
        "value_losses_on_fresh_rows": plotting.value_losses(
            fresh, forbidden=forbidden, measured_on="rows no screen sees"
        ),
        "admissibility": plotting.admissibility_heatmap(records["agents"]),
        "cumulative_credit": plotting.cumulative_credit(records["agents"]),
        "cumulative_payout": plotting.cumulative_payout(
            records["payouts"], config.settlement.currency, 100
        ),
    }
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    paths = []
    for name, figure in figures.items():
        path = target / f"{name}.png"
        plotting.save_figure(figure, path)
        paths.append(path)
    return paths
