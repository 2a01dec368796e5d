"""The figures, from the result files alone (and the cones, from the library's projections)."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.pages import Records, distinct, read
from experiments.values.loss_figures import (
    FEW,
    LINES,
    SEEDS_NOTE,
    fresh_title,
    kinds_of,
    screened_title,
    value_losses,
)
from experiments.values.tables import accuracy_field, changes, collected, measured
from vcca_jax.plotting import save_figure
from vcca_jax.plotting.cones import cone_plane, cone_space
from vcca_jax.plotting.parts import FAINT, INK, PALETTE, STYLE, set_note, set_title, settle

STEP_COLOURS = {"unscreened": PALETTE[5], "everyone": PALETTE[0], "verified": "#000000"}


def accuracy(finals: Records) -> Figure:
    """How good the model is under each condition, a panel a setting."""
    settings = distinct(finals, "setting")
    finals = [f for f in finals if "stating" not in f["condition"] and "pri" not in f["condition"]]
    names = distinct(finals, "condition")
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(
            figsize=(3.6 * len(settings) + 2.2, 0.36 * len(names) + 2.0), layout="constrained"
        )
        axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for ax, setting in zip(axes, settings, strict=True):
            for place, name in enumerate(names):
                own = collected(finals, accuracy_field(setting), setting=setting, condition=name)
                if not own:
                    continue
                colour = LINES.get(name, PALETTE[3] if name.startswith("adam") else FAINT)
                ax.plot(own, [place] * len(own), "o", color=colour, alpha=0.35, markersize=5)
                ax.errorbar(
                    np.mean(own),
                    place,
                    xerr=np.std(own, ddof=1) if len(own) > 1 else 0,
                    fmt="D",
                    color=colour,
                    capsize=3,
                    markersize=6,
                )
            ax.set_title(setting, loc="left")
            ax.set_xlabel(accuracy_field(setting).replace("_", " ") + " on test rows")
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        set_title(figure, "What screening costs in accuracy, by condition")
        set_note(figure, "Dots: seeds. Diamond and bar: mean and one standard deviation.")
        settle(figure)
    return figure


def prices(values: Records, title: str) -> Figure:
    """Each value's price under ``everyone`` and how often it is paid."""
    own = [v for v in values if v["condition"] == "everyone"]
    pairs = list(dict.fromkeys((v["setting"], v["value"]) for v in own))
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(10.2, 0.42 * len(pairs) + 1.9), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        fields = (("price", "mean multiplier where it binds"), ("binding", "share of updates"))
        colours = dict(zip(distinct(own, "setting"), PALETTE, strict=False))
        for ax, (field, label) in zip(axes, fields, strict=True):
            for place, (setting, name) in enumerate(pairs):
                numbers = measured(collected(own, field, setting=setting, value=name))
                if numbers:
                    # Points: a bar's length would say nothing on a logarithmic axis.
                    ax.errorbar(
                        np.mean(numbers),
                        place,
                        xerr=np.std(numbers, ddof=1) if len(numbers) > 1 else None,
                        fmt="o",
                        color=colours[setting],
                        markersize=8,
                        capsize=3,
                        elinewidth=1.6,
                    )
            ax.set_xlabel(label)
        axes[0].set_xscale("log")
        axes[1].set_xlim(0, 1)
        axes[0].set_yticks(range(len(pairs)), [f"{s}: {v}" for s, v in pairs])
        axes[0].invert_yaxis()
        set_title(figure, title)
        set_note(figure, SEEDS_NOTE)
        settle(figure)
    return figure


def first_order(steps: Records) -> Figure:
    """The worst rise of a stated value in one step, against the learning rate."""
    settings = distinct(steps, "setting")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.7 * len(settings) + 1.6, 4.6), layout="constrained")
        axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for ax, setting in zip(axes, settings, strict=True):
            for name, colour in STEP_COLOURS.items():
                own = [s for s in steps if (s["setting"], s["step"]) == (setting, name)]
                etas = np.array(sorted({s["eta"] for s in own}))
                each = np.array([collected(own, "rise", eta=eta) for eta in etas.tolist()])
                for seed in each.T:
                    up = seed > 0
                    ax.plot(etas[up], seed[up], ".", color=colour, alpha=0.4)
                mean = np.where(each > 0, each, 0).mean(axis=1)
                ax.plot(etas[mean > 0], mean[mean > 0], color=colour, label=name)
            ends = etas[[0, -1]]
            ax.plot(ends, 0.3 * ends, color=FAINT, linestyle=":", label="slope 1")
            ax.plot(ends, 0.3 * ends**2, color=FAINT, linestyle="--", label="slope 2")
            ax.set(xscale="log", yscale="log", xlabel="learning rate")
            ax.set_title(setting, loc="left")
        axes[0].set_ylabel("worst unwanted change in one step")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=10)
        set_title(
            figure, "Screening is a first-order promise: what it leaves falls with the square"
        )
        set_note(figure, "Worst over batches and values; dots: seeds, line: their mean. float64.")
        settle(figure)
    return figure


def principals(finals: Records, values: Records) -> Figure:
    """Accuracy and the worst-off stated value, by how many principals state anything."""
    settings = distinct(finals, "setting")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(settings) + 1.4, 6.0), layout="constrained")
        grid = figure.subplots(2, len(settings), sharex="col", squeeze=False)
        for column, setting in enumerate(settings):
            conditions = {
                0: "unscreened",
                **{
                    int(name.split()[0]): name
                    for name in distinct(
                        [f for f in finals if f["setting"] == setting], "condition"
                    )
                    if name.endswith("stating")
                },
            }
            everyone = {"heart": 4, "adult": 7, "fashion": 7}[setting]
            conditions[everyone] = "everyone"
            counts = sorted(conditions)
            for row, label in enumerate(
                (accuracy_field(setting).replace("_", " "), "norm removed")
            ):
                field = accuracy_field(setting) if row == 0 else "removed"
                each = np.array(
                    [
                        collected(finals, field, setting=setting, condition=conditions[count])
                        for count in counts
                    ]
                )
                ax = grid[row, column]
                ax.errorbar(
                    counts,
                    each.mean(axis=1),
                    yerr=each.std(axis=1, ddof=1) if each.shape[1] > 1 else None,
                    color=PALETTE[0],
                    marker="o",
                    capsize=3,
                )
                ax.set_ylabel(label)
                ax.set_xticks(counts)
            grid[0, column].set_title(setting, loc="left")
            grid[1, column].set_xlabel("principals who state something")
        set_title(figure, "One profile more: every update answers to all of them")
        set_note(figure, SEEDS_NOTE + " Scope “everyone”.")
        settle(figure)
    return figure


def price_sweep(finals: Records, values: Records, value: str) -> Figure:
    """What a value does, and what the model is worth, by the price that is set on it."""
    names = sorted(
        {f["condition"] for f in finals if f["condition"].startswith("price ")},
        key=lambda name: float(name.split()[1]),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        at = np.arange(len(names))
        accuracies = np.array([collected(finals, "accuracy", condition=n) for n in names])
        for rows, colour in (("seen", PALETTE[0]), ("fresh", PALETTE[5])):
            moved = np.array([changes(values, rows, condition=n, value=value) for n in names])
            _bars(left, at, moved, colour, rows)
        _bars(right, at, accuracies, PALETTE[2], "accuracy")
        for ax, label in ((left, f"change of the {value}"), (right, "accuracy on test rows")):
            ax.set_xticks(at, [name.split()[1].replace("inf", "∞") for name in names])
            ax.set(xlabel="price", ylabel=label)
        left.axhline(0, color=INK, linewidth=1)
        left.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
        set_title(figure, f"The {value} by the price that is set on it")
        set_note(figure, SEEDS_NOTE)
        settle(figure)
    return figure


def _bars(ax: Any, at: np.ndarray, each: np.ndarray, colour: str, label: str) -> None:
    ax.errorbar(
        at,
        each.mean(axis=1),
        yerr=each.std(axis=1, ddof=1) if each.shape[1] > 1 else None,
        color=colour,
        marker="o",
        capsize=3,
        label=label,
    )


def restraint(by: Records, setting: str) -> Figure:
    """Who was screened by whom."""
    own = [r for r in by if r["setting"] == setting]
    names = distinct(own, "agent")
    lengths = np.array([r["mean"] or 0.0 for r in own]).reshape(len(names), -1)
    share = 100 * lengths / max(lengths.sum(), 1e-30)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        side = 0.6 * len(names)
        # Wide enough for the title and the note of a small matrix.
        figure = Figure(figsize=(max(side + 4.0, 8.0), side + 3.4), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(share, cmap="Blues", vmin=0)
        bar = figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02)
        bar.set_label("% of all changes by the screen")
        bar.outline.set_visible(False)
        for (i, j), part in np.ndenumerate(share):
            ax.text(
                j,
                i,
                f"{part:.1f}" if part else "–",
                ha="center",
                va="center",
                size=9,
                color="white" if part > 0.6 * share.max() else INK,
            )
        ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel="for the values of this principal", ylabel="updates of this agent changed")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        columns = share.sum(axis=0)
        most = int(columns.argmax())
        set_title(
            figure,
            f"{setting}: {columns[most]:.0f} % of what the screen changed was for the values of"
            f" {names[most]}",
        )
        set_note(
            figure,
            "Length of what the screen added to the updates of an agent (row) for the values of a\n"
            "principal (column), in % of the sum of all cells. Mean over seeds. –: nothing.",
        )
        settle(figure)
    return figure


def cones() -> dict[str, Figure]:
    """Two and three value gradients, and updates around the clock."""
    angles = np.deg2rad([20, 75, 130, 205, 250, 320])
    clock = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [
        [1.0],
        [0.8],
        [1.0],
        [0.9],
        [0.7],
        [1],
    ]
    plane = np.array([[1.0, 0.35], [-0.3, 1.0]])
    space = np.array([[1.0, 0.2, 0.1], [-0.3, 1.0, 0.2], [0.1, -0.2, 1.0]])
    updates = np.array([[0.7, 0.8, 0.9], [-0.9, 0.6, 0.5], [0.6, -0.9, 0.2], [-0.5, -0.6, -0.8]])
    return {
        "cones_plane": cone_plane(plane, clock, names=["“women”", "“men”"]),
        "cones_space": cone_space(space, updates, names=["“women”", "“men”", "“oldest third”"]),
    }


def draw_figures(results: Path, folder: Path) -> None:
    """Draw every figure from the result files."""
    finals, values, epochs, steps, by = (
        read(results, name) for name in ("finals", "values", "epochs", "steps", "screened_by")
    )
    figures = {
        "accuracy": accuracy(finals),
        "prices": prices(values, "What each value costs: multipliers under “everyone”"),
        "first_order": first_order(steps),
        "principals": principals(finals, values),
        **cones(),
    }
    for setting in distinct(finals, "setting"):
        kinds = kinds_of(values, setting)
        for name, words, colours in (
            ("values", screened_title(epochs, setting, kinds), LINES),
            ("fresh", fresh_title(epochs, setting, kinds), FEW),
        ):
            figures[f"{name}_{setting}"] = value_losses(
                epochs, setting, words, colours, kinds=kinds
            )
        figures[f"restraint_{setting}"] = restraint(by, setting)
    if any(f["condition"].startswith("price ") for f in finals):
        figures["price_sweep"] = price_sweep(finals, values, "opportunity gap")
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
