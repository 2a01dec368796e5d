"""The figures, from the result files alone."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.lossless.analysis import by_seed, chosen, interval, paired
from experiments.lossless.methods import CENTRALIZED, DEEPER, EXACT, TRAVERSAL, VISITED
from experiments.lossless.tables import MEASURE_NAMES, SHORT, TITLES, unrolled
from experiments.pages import Records, distinct, read
from vcca_jax.plotting import save_figure
from vcca_jax.plotting.parts import FAINT, INK, PALETTE, STYLE, set_note, set_title, settle

COLOURS = {
    CENTRALIZED: INK,
    TRAVERSAL: PALETTE[0],
    DEEPER: PALETTE[4],
    VISITED: PALETTE[2],
    EXACT: PALETTE[3],
    "FedAvg": PALETTE[5],
    "FedProx": PALETTE[1],
    "FedAdam": PALETTE[7],
    "SCAFFOLD": PALETTE[3],
    "split learning": PALETTE[2],
    "SplitFed v1": FAINT,
    "SplitFed v2": "#8A8AD0",
}
DASHED = (CENTRALIZED, "SplitFed v1", "SplitFed v2")
SKEWED = "one label"


def differences(finals: Records, data: str, measure: str) -> Figure:
    """The difference to centralized training by method, a panel a partition."""
    own = chosen(finals, data=data)
    hows = distinct(own, "partition")
    methods = [method for method in distinct(own, "method") if method != CENTRALIZED]
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(
            figsize=(2.15 * len(hows) + 1.9, 0.42 * len(methods) + 2.3), layout="constrained"
        )
        axes = figure.subplots(1, len(hows), sharex=True, sharey=True, squeeze=False)[0]
        for ax, how in zip(axes, hows, strict=True):
            ax.axvline(0, color=INK, linewidth=1.2)
            for at, marker, filled, shift in (
                ("last", "o", True, -0.14),
                ("chosen", "D", False, 0.14),
            ):
                here = chosen(own, partition=how, at=at)
                theirs = by_seed(here, measure, method=CENTRALIZED)
                for place, method in enumerate(methods):
                    found = interval(paired(by_seed(here, measure, method=method), theirs))
                    ax.errorbar(
                        100 * found.mean,
                        place + shift,
                        xerr=100 * found.half if np.isfinite(found.half) else 0,
                        fmt=marker,
                        color=COLOURS[method],
                        markerfacecolor=COLOURS[method] if filled else "white",
                        markersize=6,
                        elinewidth=1.6,
                        capsize=3,
                    )
            ax.set_title(how, loc="left")
        # Room on either side of 0, so that a tenth of a point does not look like much.
        low, high = axes[0].get_xlim()
        axes[0].set_xlim(min(low, -2), max(high, 2))
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].invert_yaxis()
        set_title(
            figure,
            f"{TITLES[data]}: {MEASURE_NAMES[measure]} on test rows less that of centralized"
            " training, points",
        )
        set_note(
            figure,
            "Mean over seeds and 95 % interval of the paired difference. Filled: last epoch. Open:"
            " epoch chosen on validation rows.",
        )
        settle(figure)
    return figure


def curves(records: Records, scores: dict[str, str], how: str) -> Figure:
    """Validation score by epoch under one partition, a panel a data set."""
    own = chosen(records, partition=how)
    sets = distinct(own, "data")
    columns = min(3, len(sets))
    lines = -(-len(sets) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * columns + 1.4, 3.5 * lines + 1.2), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax, data in zip(grid, sets, strict=False):
            for method in distinct(own, "method"):
                if method == DEEPER:
                    continue
                here = chosen(own, data=data, method=method)
                epochs = sorted({r["epoch"] for r in here})
                mean = [np.mean([r["score"] for r in chosen(here, epoch=e)]) for e in epochs]
                ax.plot(
                    epochs,
                    mean,
                    color=COLOURS[method],
                    label=method,
                    linestyle=(0, (4, 2)) if method in DASHED else "-",
                    linewidth=4 if method == TRAVERSAL else 1.8,
                    alpha=0.6 if method == TRAVERSAL else 1,
                    marker="o" if len(epochs) < 12 else None,
                    markersize=4,
                    zorder=3 if method in (TRAVERSAL, CENTRALIZED) else 2,
                )
            ax.set_title(TITLES[data], loc="left")
            ax.set(xlabel="epoch or round", ylabel=MEASURE_NAMES[scores[data]])
        for ax in grid[len(sets) :]:
            ax.set_visible(False)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=10)
        set_title(figure, f"Learning with {how} an agent: validation rows")
        set_note(figure, "Mean over seeds.")
        settle(figure)
    return figure


def apart(records: Records) -> Figure:
    """How far traversal's parameters and outputs are from centralized training's."""
    methods, sets = distinct(records, "method"), distinct(records, "data")
    rounding, smallest = float(np.finfo(np.float32).eps), 1e-17
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "y"}):
        figure = Figure(figsize=(2.2 * len(sets) + 4.6, 4.6), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for ax, field in zip(axes, ("parameters", "outputs"), strict=True):
            for offset, method in zip((-0.33, -0.11, 0.11, 0.33), methods, strict=False):
                for place, data in enumerate(sets):
                    worst = worst_epochs(chosen(records, data=data, method=method), field)
                    ax.plot(
                        place + offset + np.linspace(-0.07, 0.07, len(worst)),
                        np.maximum(worst, smallest),
                        "o",
                        color=COLOURS[method],
                        markersize=5,
                        alpha=0.7,
                        label=method if place == 0 else None,
                    )
            for height, text, at in (
                (rounding, "float32 rounding", rounding / 8),
                (smallest, "no bit differs", smallest * 1.8),
            ):
                ax.axhline(height, color=INK, linewidth=1, linestyle="--")
                ax.annotate(text, (-0.45, at), size=9)
            ax.set_yscale("log")
            ax.set_xlim(-0.5, len(sets) - 0.5)
            ax.set_xticks(range(len(sets)), [SHORT[data] for data in sets])
            ax.set_title(field, loc="left")
        axes[0].set_ylim(smallest / 2, max(1e-3, axes[0].get_ylim()[1]))
        axes[0].set_ylabel("largest relative difference")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=10)
        set_title(figure, "How far traversal is from centralized training")
        set_note(figure, "max |a − b| / max |b|; the worst epoch of each partition and seed.")
        settle(figure)
    return figure


def worst_epochs(records: Records, field: str) -> np.ndarray:
    """The largest over epochs, one number a partition and seed."""
    cells: dict[tuple[str, int], float] = {}
    for record in records:
        key = record["partition"], record["seed"]
        value = np.nan if record[field] is None else record[field]
        cells[key] = max(cells.get(key, 0.0), value)
    return np.array(list(cells.values()))


def draw_figures(results: Path, folder: Path) -> None:
    """Draw every figure from the result files."""
    finals = read(results, "finals")
    records, gaps = (unrolled(read(results, name)) for name in ("curves", "differences"))
    config = json.loads((results / "summary.json").read_text(encoding="utf-8"))["config"]
    scores = {data: task["score"] for data, task in config["tasks"].items()}
    figures = {
        f"difference_{data}": differences(finals, data, scores[data])
        for data in distinct(finals, "data")
    }
    figures["curves"] = curves(records, scores, SKEWED)
    figures["apart"] = apart(gaps)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
