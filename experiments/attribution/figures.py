"""The figures, from the result files alone.

``python -m experiments.attribution.figures`` draws those of the results that are kept.
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.attribution.analysis import RIGHT, TRUTH
from experiments.attribution.config import TL
from experiments.fidelity.tables import numbers
from experiments.pages import Records, distinct, read
from vcca_jax.plotting import save_figure
from vcca_jax.plotting.parts import FAINT, INK, PALETTE, STYLE, set_note, set_title, settle

HERE = Path(__file__).parent

DRAWN = {
    "Aumann-Shapley": (PALETTE[0], "o"),
    "first order": (PALETTE[2], "s"),
    "leave-one-out": (PALETTE[1], "v"),
    "Shapley": (PALETTE[5], "D"),
    "FedSV": (PALETTE[3], "^"),
    "Aumann-Shapley of the run": (PALETTE[4], "*"),
    TRUTH: (INK, "P"),
}

FIELDS = {
    "spearman_shapley": "Spearman to the Shapley value\nof its own retraining",
    "pairs": "pairs in the order\nof their noise",
}

OWN_CREDIT = {True: "Aumann-Shapley", False: "Shapley"}
"""Drawn gap by gap: of TL, and of FedAvg."""


def nearness(scores: Records) -> Figure:
    """Nearness to the own truth and to the noise order, from one credit event to TL's."""
    wheres, names = distinct(scores, "partition"), distinct(scores, "substrate")
    order = [*names[:0:-1], TL]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * len(wheres) + 2.8, 7.6), layout="constrained")
        grid = figure.subplots(2, len(wheres), sharex=True, sharey="row", squeeze=False)
        for row, (field, title) in zip(grid, FIELDS.items(), strict=True):
            row[0].set_ylabel(title)
            for ax, where in zip(row, wheres, strict=True):
                _lines(ax, [r for r in scores if r["partition"] == where], order, field)
                ax.axhline(1, color=INK, linewidth=0.8)
        for ax, where in zip(grid[0], wheres, strict=True):
            ax.set_title(where, loc="left")
        events = {
            name: max(r["events"] for r in scores if r["substrate"] == name) for name in names
        }
        for ax in grid[-1]:
            ax.set_xticks(
                range(len(order)),
                [name.replace("FedAvg, ", "FedAvg\n") + f"\n[{events[name]}]" for name in order],
                fontsize=9,
            )
        handles = [
            Line2D([], [], color=colour, marker=marker, label=name)
            for name, (colour, marker) in DRAWN.items()
        ]
        figure.legend(handles=handles, loc="outside right center", fontsize=9.5)
        set_title(figure, "Credit a step and credit a round: how near to retraining and to noise")
        set_note(
            figure,
            "Mean and one standard error over seeds. FedAvg: local epochs a round; in brackets:"
            " credit events of a run.",
        )
        settle(figure)
    return figure


def _lines(ax: Axes, own: Records, order: list[str], field: str) -> None:
    """One line an estimator over the substrates that have it."""
    for place, (name, (colour, marker)) in enumerate(DRAWN.items()):
        if name == TRUTH and field == "spearman_shapley":
            continue
        xs, means, errors = [], [], []
        for x, substrate in enumerate(order):
            found = numbers(own, field, substrate=substrate, estimator=name)
            if found:
                xs.append(x + 0.07 * (place - 3))
                means.append(float(np.mean(found)))
                spread = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
                errors.append(spread / len(found) ** 0.5)
        ax.errorbar(
            xs,
            means,
            errors,
            color=colour,
            marker=marker,
            markersize=10 if marker in "*P" else 6,
            linewidth=1.4,
            elinewidth=1,
        )


def by_difference(scores: Records) -> Figure:
    """The share of pairs in order by how far apart their noise is, a line a substrate."""
    wheres, names = distinct(scores, "partition"), distinct(scores, "substrate")
    colours = dict(zip(names, (INK, *(PALETTE[i] for i in (0, 2, 1, 3))), strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9 * len(wheres) + 2.2, 4.4), layout="constrained")
        row = figure.subplots(1, len(wheres), sharey=True, squeeze=False)[0]
        for ax, where in zip(row, wheres, strict=True):
            for name in names:
                own = [r for r in scores if r["partition"] == where and r["substrate"] == name]
                for estimator, style in ((OWN_CREDIT[name == TL], "-"), (TRUTH, ":")):
                    right = np.mean(numbers(own, "right", estimator=estimator), axis=0)
                    gaps = 100 * own[0]["step"] * np.arange(1, len(right) + 1)
                    ax.plot(gaps, right, style, color=colours[name], marker="o", markersize=4)
            ax.axhline(RIGHT, color=FAINT, linewidth=0.8)
            ax.set_title(where, loc="left")
            ax.set_xlabel("difference of noise, points")
        row[0].set_ylabel("share of pairs in order")
        handles = [Line2D([], [], color=colours[name], label=name) for name in names]
        handles += [Line2D([], [], color=FAINT, linestyle=":", label="retraining, Shapley")]
        figure.legend(handles=handles, loc="outside right center", fontsize=9.5)
        set_title(figure, "Which differences of label noise a credit tells apart")
        set_note(
            figure,
            "Solid: TL by Aumann-Shapley a step, FedAvg by exact Shapley a round, with its local"
            " epochs a round; line at 95 %.",
        )
        settle(figure)
    return figure


def draw_figures(results: Path, out: Path) -> None:
    """Write every figure as PNG, a pair a data set."""
    scores = read(results, "scores")
    for data in distinct(scores, "data"):
        own = [record for record in scores if record["data"] == data]
        save_figure(nearness(own), out / f"{data}_nearness.png")
        save_figure(by_difference(own), out / f"{data}_differences.png")


if __name__ == "__main__":
    draw_figures(HERE / "results", HERE / "figures")
