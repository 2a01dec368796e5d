"""The figures of a run, from its records."""

from pathlib import Path

from vcca_jax import plotting
from vcca_jax.runs.config import RunConfig
from vcca_jax.runs.records import Record


def draw_figures(folder: Path, records: dict[str, list[Record]], config: RunConfig) -> list[Path]:
    """Draw every figure into ``folder/figures`` and return the paths."""
    forbidden = sorted({name for p in config.profiles.values() for name in p.forbid})
    unseen = [{**r, "value_losses": r["fresh_value_losses"]} for r in records["metrics"]]
    figures = {
        "loss_against_centralized": plotting.loss_against_centralized(records["metrics"]),
        "value_losses": plotting.value_losses(
            records["metrics"], forbidden=forbidden, measured_on="the screen's own rows"
        ),
        "value_losses_on_validation_rows": plotting.value_losses(
            unseen,
            forbidden=forbidden,
            measured_on="validation rows, not seen by the screen but where credit is measured",
        ),
        "admissibility": plotting.admissibility_heatmap(records["agents"]),
        "cumulative_credit": plotting.cumulative_credit(records["agents"]),
        "cumulative_payout": plotting.cumulative_payout(
            numbered(records["payouts"]),
            config.settlement.currency,
            10**config.settlement.decimals,
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


def numbered(payouts: list[Record]) -> list[Record]:
    """Payouts whose periods are numbers: their own, or their places where some are names."""
    periods = list(dict.fromkeys(record["period"] for record in payouts))
    own = all(period.isascii() and period.isdigit() for period in periods)
    place = {period: int(period) if own else at for at, period in enumerate(periods, 1)}
    return [{**record, "period": place[record["period"]]} for record in payouts]
