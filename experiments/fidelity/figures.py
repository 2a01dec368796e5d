"""The figures, from the result files alone.

``python -m experiments.fidelity.figures`` draws those of the results that are kept.
"""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from experiments.fidelity.config import FULL, UPDATE_CHEATS
from experiments.fidelity.estimators import family
from experiments.fidelity.tables import TITLES, numbers
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
LINES = {
    "Banzhaf": ("Banzhaf",),
    "leave-one-out": ("leave-one-out",),
    "kernel 40, 80": ("kernel, 40", "kernel, 80"),
    "leverage 40, 80": ("leverage, 40", "leverage, 80"),
    "stratified 40, 80": ("stratified, 40", "stratified, 80"),
    "permutation 8, 32 orders": ("permutation, 8 orders", "permutation, 32 orders"),
    "influence of the run": ("influence of the run",),
    "Aumann-Shapley of the run 2, 4, 8": tuple(
        f"Aumann-Shapley of the run, {nodes}" for nodes in (2, 4, 8)
    ),
    "online leave-one-out": ("online leave-one-out",),
    "online influence": ("online influence",),
    "online in-run 1": ("online in-run 1",),
    "online in-run 2": ("online in-run 2",),
    "online Aumann-Shapley, 4": ("online Aumann-Shapley, 4",),
    "gradient norm": ("gradient norm",),
    "size": ("size",),
    "random": ("random",),
}
"""One line an estimator, through its budgets."""

USED = {
    "SGD": ("Aumann-Shapley of the run 2, 4, 8", "stratified 40, 80"),
    "Adam": ("online influence", "stratified 40, 80"),
}
"""What the README says to use, by optimizer: drawn strong."""

CURVES = {"Shapley": INK, "online influence": PALETTE[2], "gradient norm": PALETTE[5]}
"""The truth, what ranks well under every optimizer, and what is not to be used."""

PANELS = [(d, s) for s in ("label noise", "cheats") for d in ("fashion", "digits, Adam")]
"""Of the removal curves: a data set of each optimizer, where there is somebody to exclude."""

COSTS = {"runs": "training runs, by matrix products", "clock": "training runs, by the clock"}

LOWEST = 0.66
"""Of the planes' axis; what lies below is named."""


def _place(ax: Axes, labels: list[Annotation]) -> None:
    """Moves every label to the nearest free place around its point, with a thread if it is far."""
    renderer, scale = ax.figure.canvas.get_renderer(), ax.transData.transform
    frame = ax.get_window_extent(renderer)
    (left, one), (right, _) = scale([(ax.get_xlim()[0], 1), (ax.get_xlim()[1], 1)])
    taken = [Bbox.from_bounds(left, one - 2, right - left, 4)]
    for line in ax.lines[:-1]:  # the last is that of what is perfect
        at = scale(np.column_stack(line.get_data()).astype(float))
        for x, y in np.concatenate([np.linspace(a, b, 40) for a, b in pairwise(at)] or [at]):
            taken.append(Bbox.from_bounds(x - 5, y - 5, 10, 10))
    around = [np.deg2rad(angle) for angle in (0, 90, 270, 180, 45, 315, 135, 225)]
    for label in sorted(labels, key=lambda each: each.get_weight() != "bold"):
        x, y = scale(label.xy)
        size = label.get_window_extent(renderer)
        for far, angle in ((far, angle) for far in range(12, 300, 8) for angle in around):
            middle = (
                x + np.cos(angle) * (far + size.width / 2),
                y + np.sin(angle) * (far + size.height / 2),
            )
            box = Bbox.from_bounds(
                middle[0] - size.width / 2, middle[1] - size.height / 2, size.width, size.height
            )
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if inside and not any(box.padded(2).overlaps(other) for other in taken):
                break
        taken.append(box)
        label.set_position(ax.transData.inverted().transform(middle))
        label.arrow_patch.set_visible(far > 30)
        if far > 30:
            thread = np.linspace((x, y), middle, 12)[1:-1]
            taken += [Bbox.from_bounds(a - 2, b - 2, 4, 4) for a, b in thread]


def _plane(ax: Axes, own: Records, cost: str, used: Sequence[str]) -> tuple[str, list[Annotation]]:
    """One panel: every estimator's mean over scenarios, data sets and seeds; what is best used."""
    below, labels, finding = [], [], ""
    for label, names in LINES.items():
        found = [numbers(own, "spearman_shapley", estimator=name) for name in names]
        points = [
            (float(np.median(numbers(own, cost, estimator=name))), float(np.mean(each)))
            for name, each in zip(names, found, strict=True)
            if each
        ]
        if not points:
            continue
        if max(y for _, y in points) < LOWEST:
            below.append(f"{label} " + f"{points[0][1]:.2f}".replace("-", "−"))
            continue
        colour, strong = COLOURS[family(names[0])], label in used
        ax.plot(
            *zip(*points, strict=True),
            marker="o",
            markersize=11 if strong else 6,
            linewidth=2.4 if strong else 1.2,
            color=colour,
            markeredgecolor="white",
            zorder=3 if strong else 2,
        )
        if label == used[0]:
            finding = f"{names[0]}: {points[0][1]:.2f} for {points[0][0]:.0f} runs"
        at = points[-1]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
        style = {"weight": "bold" if strong else "normal", "size": 10 if strong else 9}
        centred = {"ha": "center", "va": "center", "color": colour}
        labels.append(
            ax.annotate(label, at, xytext=at, arrowprops=arrow, **style, **centred, zorder=4)
        )
    ax.set_xscale("log")
    ax.set_ylim(LOWEST - 0.03, 1.04)
    low, high = ax.get_xlim()
    ax.set_xlim(low / 1.3, high * 2)
    ax.axhline(1, color=INK, linewidth=1)
    if below:
        ax.text(
            0.02,
            0.02,
            textwrap.fill("below: " + ", ".join(below), 60),
            transform=ax.transAxes,
            fontsize=9,
            color=FAINT,
        )
    return finding, labels


def plane(scores: Records, cost: str) -> Figure:
    """Spearman to retraining Shapley against cost, a panel an optimizer.

    Without the cheats that act on updates, which have a table of their own.
    """
    scores = [each for each in scores if each["scenario"] != UPDATE_CHEATS]
    adam = [name for name, task in FULL.tasks.items() if task.adam]
    panels = {how: [r for r in scores if (r["data"] in adam) == (how == "Adam")] for how in USED}
    panels = {how: own for how, own in panels.items() if own}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2 * len(panels) + 0.4, 6.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        labels = []
        for ax, (how, own) in zip(axes, panels.items(), strict=True):
            finding, named = _plane(ax, own, cost, USED[how])
            labels.append(named)
            ax.set_title(f"{how}. Use {finding}" if finding else how, loc="left")
            ax.set_xlabel(COSTS[cost])
            ax.set_xticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
            ax.set_xticks([], minor=True)
        axes[0].set_ylabel("Spearman to the Shapley value of retraining")
        set_title(figure, "How near to the Shapley value of retraining, and at what cost")
        sets = ", ".join(f"{len(distinct(own, 'data'))} under {how}" for how, own in panels.items())
        set_note(
            figure,
            f"Mean over data sets ({sets}), scenarios and seeds; deviations and single data sets:"
            " see the tables. Bold: to be used.\nCosts: of all that is run, the training itself"
            " included. Exact Shapley: 256 runs.",
        )
        settle(figure)
        for ax, named in zip(axes, labels, strict=True):
            _place(ax, named)
    return figure


def _curve(ax: Axes, own: Records, name: str, field: str, style: str) -> None:
    found = [record[field] for record in own if record["estimator"] == name]
    if found:
        mean = np.mean(found, axis=0)
        wide = 4 if name == "Shapley" else 2
        ax.plot(range(len(mean)), mean, style, color=CURVES[name], linewidth=wide)


def removal(curves: Records) -> Figure:
    """Utility on test rows when agents go one by one, worst first and best first."""
    there = [(d, s) for s in distinct(curves, "scenario") for d in distinct(curves, "data")]
    panels = [pair for pair in PANELS if pair in there] or there[:4]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * min(2, len(panels)) + 0.2, 8.2), layout="constrained")
        grid = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False)
        for ax, (data, scenario) in zip(grid.flat, panels, strict=False):
            own = [r for r in curves if (r["data"], r["scenario"]) == (data, scenario)]
            for name in CURVES:
                _curve(ax, own, name, "worst_first", "-")
                _curve(ax, own, name, "best_first", "--")
            ax.axhline(1, color=INK, linewidth=0.8)
            ax.set_title(f"{TITLES[data]}, {scenario}", loc="left")
            ax.set_ylim(max(ax.get_ylim()[0], -0.5), 1.08)
            ax.margins(x=0.02)
        for ax in grid[-1]:
            ax.set_xlabel("agents removed")
        for ax in grid[:, 0]:
            ax.set_ylabel("utility of those who are left")
        shown = [name for name in CURVES if any(r["estimator"] == name for r in curves)]
        handles = [Line2D([], [], color=CURVES[name]) for name in shown]
        ways = [Line2D([], [], color=FAINT, linestyle=style) for style in ("-", "--")]
        grid[0, 0].legend(
            [*handles, *ways], [*shown, "worst first", "best first"], loc="lower left", fontsize=9.5
        )
        set_title(figure, "What is left when agents are removed in the order of their credit")
        set_note(
            figure,
            "Retrained, on test rows; 0 is nobody, 1 the best coalition; mean over seeds."
            " All data sets, scenarios and estimators: results/tables.md, areas.",
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
