"""The figures, from the result files alone.

``python -m experiments.fidelity.figures`` draws those of the results that are kept.
"""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.fidelity.analysis import DRAWN
from experiments.fidelity.config import UPDATE_CHEATS
from experiments.fidelity.estimators import SHAPLEY, family
from experiments.fidelity.tables import TITLES, numbers, ordered
from experiments.pages import Records, distinct, read
from vcca_jax.plotting import save_figure
from vcca_jax.plotting.parts import FAINT, INK, PALETTE, STYLE, set_note, set_title, settle

HERE = Path(__file__).parent

COLOURS = {
    "retraining": INK,
    "sampled": PALETTE[0],
    "run": PALETTE[5],
    "online": PALETTE[2],
    "baseline": FAINT,
}
MARKERS = "osD^vP*X<>"

CURVES = dict(
    zip(
        DRAWN,
        (INK, PALETTE[5], PALETTE[1], PALETTE[2], PALETTE[4], FAINT, PALETTE[3]),
        strict=True,
    )
)
COSTS = {"runs": "training runs, by matrix products", "clock": "training runs, by the clock"}


LOWEST = 0.35
"""Of the planes' axis; what lies below is named."""


def _plane(ax: Axes, own: Records, names: list[str], cost: str) -> None:
    """One panel: every estimator's mean with its deviation over scenarios and seeds."""
    below = []
    for name in names:
        found = numbers(own, "spearman_shapley", estimator=name)
        if not found or name == SHAPLEY:
            continue
        kind, x = family(name), float(np.median(numbers(own, cost, estimator=name)))
        place = [each for each in names if family(each) == kind].index(name)
        y, spread = float(np.mean(found)), float(np.std(found))
        if y < LOWEST:
            below.append(f"{name} " + f"{y:.2f}".replace("-", "−"))
        ax.plot([x, x], [y - spread, min(y + spread, 1)], color=COLOURS[kind], lw=1, alpha=0.4)
        ax.plot(
            x,
            y,
            MARKERS[place % len(MARKERS)],
            color=COLOURS[kind],
            markersize=11 if MARKERS[place % len(MARKERS)] in "*XP" else 8,
            markeredgecolor="white",
            markeredgewidth=0.8,
            label=name,
            linestyle="none",
        )
    ax.set_xscale("log")
    ax.axhline(1, color=INK, linewidth=1)
    if below:
        note = "below: " + ", ".join(below)
        ax.text(
            0.02,
            0.03,
            textwrap.fill(note, 44),
            transform=ax.transAxes,
            fontsize=8.5,
            color=FAINT,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


def plane(scores: Records, cost: str) -> Figure:
    """Spearman to retraining Shapley against cost, a panel a data set and one of all.

    Without the cheats that act on updates, which have a table of their own.
    """
    scores = [each for each in scores if each["scenario"] != UPDATE_CHEATS]
    sets, names = distinct(scores, "data"), ordered(scores)
    panels = [*sets, None] if len(sets) > 1 else sets
    columns = min(len(panels), 4)
    with matplotlib.rc_context(STYLE):
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(3.9 * columns + 3.4, 4.2 * rows + 1.6), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in grid.flat[len(panels) :]:
            ax.set_axis_off()
        for place, (ax, data) in enumerate(zip(grid.flat, panels, strict=False)):
            _plane(ax, [r for r in scores if data is None or r["data"] == data], names, cost)
            ax.set_title("all together" if data is None else TITLES[data], loc="left")
            if place + columns >= len(panels):  # no panel below
                ax.set_xlabel(COSTS[cost])
                ax.tick_params(labelbottom=True)
        for ax in grid[:, 0]:
            ax.set_ylabel("Spearman to Shapley")
        grid[0, 0].set_ylim(LOWEST - 0.1, 1.02)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=9.5)
        set_title(figure, "How near to the Shapley value of retraining, and at what cost")
        set_note(
            figure,
            "Mean over scenarios and seeds; bar: one standard deviation either way. Costs: of all"
            " that is run, the training itself included. Exact Shapley: 256 runs.",
        )
        settle(figure)
    return figure


def _curve(ax: Axes, own: Records, name: str, field: str, style: str) -> None:
    found = [record[field] for record in own if record["estimator"] == name]
    if found:
        mean = np.mean(found, axis=0)
        ax.plot(range(len(mean)), mean, style, color=CURVES[name], linewidth=1.8)


def removal(curves: Records) -> Figure:
    """Utility on test rows when agents go one by one, worst first and best first."""
    sets, scenarios = distinct(curves, "data"), distinct(curves, "scenario")
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(2.9 * len(sets) + 2.6, 2.9 * len(scenarios) + 1.6), layout="constrained"
        )
        grid = figure.subplots(len(scenarios), len(sets), sharex=True, squeeze=False)
        for row, scenario in zip(grid, scenarios, strict=True):
            for ax, data in zip(row, sets, strict=True):
                own = [r for r in curves if r["data"] == data and r["scenario"] == scenario]
                for name in CURVES:
                    _curve(ax, own, name, "worst_first", "-")
                    _curve(ax, own, name, "best_first", "--")
                ax.axhline(1, color=INK, linewidth=0.8)
                ax.set_title(f"{TITLES[data]}, {scenario}", loc="left", fontsize=10.5)
                ax.set_ylim(max(ax.get_ylim()[0], -1.0), 1.05)
        for ax in grid[-1]:
            ax.set_xlabel("agents removed")
        for ax in grid[:, 0]:
            ax.set_ylabel("utility of who is left")
        shown = [name for name in CURVES if any(r["estimator"] == name for r in curves)]
        handles = [Line2D([], [], color=CURVES[name]) for name in shown]
        figure.legend(handles, shown, loc="outside right center", fontsize=9.5)
        set_title(figure, "What is left when agents go by their score")
        set_note(
            figure,
            "Solid: worst first; dashed: best first. Retrained, on test rows; 0 is nobody, 1 the"
            " best coalition; mean over seeds. No line: all scores equal.",
        )
        settle(figure)
    return figure


def draw_figures(results: Path, out: Path) -> None:
    """Write every figure as PNG."""
    scores = read(results, "scores")
    if any(each["scenario"] != UPDATE_CHEATS for each in scores):
        save_figure(plane(scores, "runs"), out / "fidelity_cost.png")
        save_figure(plane(scores, "clock"), out / "fidelity_clock.png")
    save_figure(removal(read(results, "curves")), out / "removal.png")


if __name__ == "__main__":
    draw_figures(HERE / "results", HERE / "figures")
