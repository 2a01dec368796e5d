"""What all figures share: style, checks, statistics, labels (host only).

Colours are those of Okabe and Ito, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vcca_jax.files import replacing

Record = Mapping[str, Any]

# Okabe and Ito's, with brown for their yellow, in which no label can be read on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#7A4E00")
DPI = 150
INK, FAINT = "#222222", "#6B6B6B"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.labelsize": 11,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2.2,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def check(argument: str, records: Sequence[Record], keys: Iterable[str]) -> None:
    """Refuses an empty list and a record without one of the keys."""
    if not records:
        raise ValueError(f"{argument}=[] holds no records; train for at least one epoch first")
    for position, record in enumerate(records):
        absent = [key for key in keys if key not in record]
        if absent:
            raise ValueError(f"{argument}[{position}] lacks {absent!r}; it has {sorted(record)!r}")


def check_trainers(metrics: Sequence[Record], trainers: Iterable[str]) -> None:
    """Refuses metrics without one of the trainers."""
    found = distinct(record["trainer"] for record in metrics)
    absent = [trainer for trainer in trainers if trainer not in found]
    if absent:
        raise ValueError(f"metrics has no record of trainer {absent!r}, only of {found!r}")


def distinct(items: Iterable[str]) -> list[str]:
    """The items once each, in the order of their first appearance."""
    return list(dict.fromkeys(items))


def summary(
    points: Iterable[tuple[int, int, float]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, and at each the mean, lowest and highest of (epoch, seed, value) over seeds."""
    by_epoch: dict[int, list[float]] = {}
    for epoch, _, value in sorted(points):
        by_epoch.setdefault(epoch, []).append(value)
    groups = list(by_epoch.values())
    statistics = (np.array([f(group) for group in groups]) for f in (np.mean, np.min, np.max))
    return (np.array(list(by_epoch)), *statistics)  # type: ignore[return-value]


def spread(positions: Sequence[float], gap: float) -> np.ndarray:
    """The nearest positions (least squares) that keep their order and lie a gap apart."""
    order = np.argsort(positions, kind="stable")
    offsets = gap * np.arange(len(order))
    blocks: list[list[float]] = []  # [sum, count]: pooled adjacent violators
    for target in np.asarray(positions, float)[order] - offsets:
        blocks.append([target, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    fitted = np.concatenate([np.full(int(count), total / count) for total, count in blocks])
    apart = np.empty(len(order))
    apart[order] = fitted + offsets
    return apart


def label_ends(
    ax: Axes,
    end: float,
    heights: Sequence[float],
    texts: Sequence[str],
    colours: Sequence[str] = PALETTE,
) -> None:
    """Writes a label to the right of the end of each line, none over another."""
    low, high = ax.get_ylim()
    begin = ax.get_xlim()[0]
    ax.set_xlim(begin, end)
    ax.set_ylim(low, high)
    for k, height in enumerate(spread(heights, 0.07 * (high - low))):
        colour = colours[k % len(colours)]
        ax.annotate(
            texts[k],
            xy=(end, heights[k]),
            xytext=(1.03, (height - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def seeds_note(records: Sequence[Record]) -> str:
    """What the line and the band of a figure mean."""
    count = len({record["seed"] for record in records})
    return "One seed." if count == 1 else f"Mean of {count} seeds; band: lowest to highest seed."


def power_of_ten(value: float) -> str:
    """0.00000012 as 1.2 × 10⁻⁷, never broken across lines; zero as 0."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    # No-break spaces: a title is not to be wrapped within a number.
    return f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(raised)}"


def signed(value: float) -> str:
    """Three significant digits with a sign, and a minus as long as the plus."""
    return f"{value:+.3g}".replace("-", "−")


def set_title(figure: Figure, text: str) -> None:
    """Writes what is seen at the top left, wrapped to the width of the figure."""
    width = int(figure.get_figwidth() * 9.2)
    figure.suptitle(
        textwrap.fill(text, width), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK
    )


def set_note(figure: Figure, text: str) -> None:
    """Writes how to read the figure at the bottom left."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=9.5, color=FAINT)


def settle(figure: Figure) -> None:
    """Computes the layout once and for all.

    A constrained layout is otherwise computed anew at every drawing, starting from the last
    one, and moves by fractions of a pixel: the same figure saved twice would differ.
    """
    figure.set_dpi(DPI)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, all or nothing, with the same bytes for the same figure.

    The image is 150 dots an inch and carries no date and no software version. It is written
    beside its target and moved there in one step, so a reader never sees half a file.

    Args:
        figure: the figure.
        path: where to write; the folder is made if absent, a file there is replaced.

    Raises:
        ValueError: `path` does not end in ".png".
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"path={str(path)!r} must end in '.png'")
    image = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_bytes(image.getvalue())
