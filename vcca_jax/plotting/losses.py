"""How the losses of a run went: against centralized training, and value by value."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from vcca_jax.plotting.parts import (
    FAINT,
    INK,
    STYLE,
    Record,
    check,
    check_trainers,
    distinct,
    power_of_ten,
    seeds_note,
    set_note,
    set_title,
    settle,
    summary,
)

_TRAINER_COLOURS = {"cooperative": "#0072B2", "unscreened": "#D55E00", "centralized": "#9A9A9A"}
_TRAINER_LABELS = {
    "cooperative": "cooperative (screened)",
    "unscreened": "traversal, unscreened",
    "centralized": "centralized",
}


def loss_against_centralized(metrics: Sequence[Record]) -> Figure:
    """Training and validation loss of the three trainers, and how far apart two of them are.

    Above, the losses; below, the largest absolute difference over seeds between the
    unscreened traversal and centralized training, which in exact arithmetic is zero.

    Args:
        metrics: records with "epoch" (0 = before training), "trainer" ("cooperative",
            "unscreened" or "centralized", all three), "seed", "train_loss" (nats, None where
            not measured) and "validation_loss" (nats).

    Returns:
        A figure of four axes: training loss, validation loss, and below each the difference.

    Raises:
        ValueError: no records, a record without one of these keys, or a trainer is absent.
    """
    keys = ("epoch", "trainer", "seed", "train_loss", "validation_loss")
    check("metrics", metrics, keys)
    check_trainers(metrics, _TRAINER_COLOURS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.6, 5.6), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1.1))
        largest = 0.0
        for column, (key, title) in enumerate(
            (("train_loss", "training loss"), ("validation_loss", "validation loss"))
        ):
            above, below = axes[0, column], axes[1, column]
            for trainer in ("centralized", "unscreened", "cooperative"):
                _draw_loss(above, metrics, trainer, key)
            above.set_title(title, loc="left")
            differences = _differences(metrics, key)
            below.plot(
                *differences, color=_TRAINER_COLOURS["unscreened"], marker="o", markersize=3.5
            )
            largest = max([largest, *differences[1]])
            rounding = float(np.finfo(np.float32).eps)
            below.axhline(rounding, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            below.set_xlabel("epoch")
            below.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        # Linear up to 1e-8, so that a difference of exactly 0 can be drawn; then logarithmic.
        top = 10.0 ** math.ceil(math.log10(max(largest, 1e-6)) + 0.3)
        axes[1, 0].set_yscale("symlog", linthresh=1e-8)
        axes[1, 0].set_ylim(0, top)
        axes[1, 0].set_yticks([0, 1e-7, top] if top < 1e-3 else [0, 1e-7, 1e-4, top])
        axes[1, 0].set_yticks([], minor=True)
        axes[1, 1].annotate(
            "float32 rounding of 1",
            (1, rounding),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            color=FAINT,
            fontsize=9,
        )
        axes[0, 0].set_ylabel("mean loss (nats)")
        axes[1, 0].set_ylabel("unscreened −\ncentralized")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].legend(handles[::-1], labels[::-1], loc="upper right")
        verb = "lies on" if largest <= 1e-4 else "departs from"
        by = "within" if largest <= 1e-4 else "by up to"
        set_title(
            figure,
            f"Unscreened traversal {verb} centralized training, {by} {power_of_ten(largest)}",
        )
        set_note(
            figure, seeds_note(metrics) + " Lower panels: largest difference over seeds, nats."
        )
        settle(figure)
    return figure


def value_losses(
    metrics: Sequence[Record], *, forbidden: Collection[str] = (), measured_on: str = ""
) -> Figure:
    """Change of every value loss since before training, with and without screening.

    Args:
        metrics: records with "epoch", "trainer" (at least "cooperative" and "unscreened"),
            "seed" and "value_losses" (value name -> loss in nats). Epoch 0 must be there.
        forbidden: the values that a purpose limit forbids: their loss is not to fall, while
            every other value's loss is not to rise. The unwanted side is shaded.
        measured_on: which rows the losses are of, for the title.

    Returns:
        A figure of one axes for each value.

    Raises:
        ValueError: no records, a record without one of these keys, no epoch 0 for some seed,
            or a name in `forbidden` that no record has.
    """
    check("metrics", metrics, ("epoch", "trainer", "seed", "value_losses"))
    trainers = ("unscreened", "cooperative")
    check_trainers(metrics, trainers)
    names = distinct(name for record in metrics for name in record["value_losses"])
    unknown = set(forbidden) - set(names)
    if unknown:
        raise ValueError(f"forbidden={sorted(unknown)!r} is not among the values {names!r}")
    kept = dict.fromkeys(trainers, 0)
    with matplotlib.rc_context(STYLE):
        columns = math.ceil(math.sqrt(len(names)))
        rows = math.ceil(len(names) / columns)
        figure = Figure(figsize=(max(4.3 * columns, 6.5), 2.5 * rows + 1.3), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for ax in grid.flat[len(names) :]:
            ax.remove()
        for name, ax in zip(names, grid.flat, strict=False):
            ax.axhline(0, color=INK, linewidth=1)
            for trainer in trainers:
                epochs, mean, low, high = summary(_changes(metrics, trainer, name))
                colour = _TRAINER_COLOURS[trainer]
                label = "with screening" if trainer == "cooperative" else "without screening"
                ax.plot(epochs, mean, color=colour, label=label)
                ax.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
                kept[trainer] += bool(mean[-1] >= 0 if name in forbidden else mean[-1] <= 0)
            low, high = ax.get_ylim()
            reach = 0.12 * (high - low)
            low, high = min(low, -reach), max(high, reach)
            unwanted = (low, 0) if name in forbidden else (0, high)
            ax.axhspan(*unwanted, color="#D55E00", alpha=0.07, linewidth=0, zorder=0)
            ax.set_ylim(low, high)
            ax.set_title(f"{name} ({'forbid' if name in forbidden else 'protect'})", loc="left")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        for column in range(columns):
            filled = [ax for k, ax in enumerate(grid.flat) if k < len(names)][column::columns]
            if filled:
                filled[-1].set_xlabel("epoch")
                filled[-1].tick_params(labelbottom=True)
        figure.supylabel("change of value loss (nats)", fontsize=11, color=INK)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        # Above the titles of the panels: within one, some band would lie under the words.
        above = grid[0, -1].transAxes + ScaledTranslation(0, 20 / 72, figure.dpi_scale_trans)
        grid[0, -1].legend(
            handles[::-1],
            labels[::-1],
            loc="lower right",
            bbox_to_anchor=(1, 1),
            bbox_transform=above,
            borderaxespad=0,
            ncols=2,
        )
        rows_of = f"On {measured_on}, with" if measured_on else "With"
        set_title(
            figure,
            f"{rows_of} screening {kept['cooperative']} of {len(names)} values end no worse than "
            f"they began; without, {kept['unscreened']}",
        )
        set_note(figure, seeds_note(metrics) + " Shaded: the side that the value does not want.")
        settle(figure)
    return figure


def _losses(metrics: Sequence[Record], trainer: str, key: str) -> dict[tuple[int, int], float]:
    return {
        (record["epoch"], record["seed"]): record[key]
        for record in metrics
        if record["trainer"] == trainer and record[key] is not None
    }


def _draw_loss(ax: Axes, metrics: Sequence[Record], trainer: str, key: str) -> None:
    losses = _losses(metrics, trainer, key)
    epochs, mean, low, high = summary((e, s, loss) for (e, s), loss in losses.items())
    # Two curves that coincide stay visible both: a broad line under open rings.
    style: dict[str, Any] = {
        "centralized": {"linewidth": 6, "solid_capstyle": "round", "alpha": 0.75},
        "unscreened": {
            "linestyle": "none",
            "marker": "o",
            "markersize": 5.5,
            "markerfacecolor": "white",
            "markeredgewidth": 1.5,
            "markevery": max(1, math.ceil(len(epochs) / 16)),
        },
        "cooperative": {},
    }[trainer]
    colour = _TRAINER_COLOURS[trainer]
    ax.plot(epochs, mean, color=colour, label=_TRAINER_LABELS[trainer], **style)
    if trainer != "unscreened":
        ax.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def _differences(metrics: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    """Epochs, and the largest |unscreened - centralized| over the seeds that both have."""
    first, second = (_losses(metrics, name, key) for name in ("unscreened", "centralized"))
    worst: dict[int, float] = {}
    for epoch, seed in sorted(first.keys() & second.keys()):
        difference = abs(first[epoch, seed] - second[epoch, seed])
        worst[epoch] = max(worst.get(epoch, 0.0), difference)
    if not worst:
        raise ValueError(
            f"metrics: 'unscreened' and 'centralized' share no (epoch, seed) with a {key!r}"
        )
    return list(worst), list(worst.values())


def _changes(metrics: Sequence[Record], trainer: str, name: str) -> list[tuple[int, int, float]]:
    """(epoch, seed, loss - the same seed's loss at epoch 0) of one value."""
    own = [r for r in metrics if r["trainer"] == trainer and name in r["value_losses"]]
    before = {r["seed"]: r["value_losses"][name] for r in own if r["epoch"] == 0}
    absent = sorted({r["seed"] for r in own} - set(before))
    if absent or not own:
        raise ValueError(
            f"metrics lacks epoch 0 of value {name!r} under trainer {trainer!r}"
            + (f" for seeds {absent!r}" if absent else "")
        )
    return [(r["epoch"], r["seed"], r["value_losses"][name] - before[r["seed"]]) for r in own]
