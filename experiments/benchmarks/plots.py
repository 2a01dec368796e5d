"""Log-log figures of the benchmarks, from stored results alone; one idea each."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.benchmarks.growth import FACTOR, POINTS, Lines, Points, told_exponent
from experiments.benchmarks.headlines import Content
from vcca_jax.plotting.parts import (
    FAINT,
    INK,
    PALETTE,
    STYLE,
    set_note,
    set_title,
    settle,
    spread,
)

SIZE = (8.2, 4.8)
DASHES = ("-", "--")


def _plain(value: float, _: object = None) -> str:
    """A tick as people write it: 0.01, 5, 12.8, 100,000."""
    return f"{value:,.6g}" if value >= 1 else f"{value:.6f}".rstrip("0").rstrip(".")


def _signed(value: float) -> str:
    """Two digits after the point with a sign, and nought without one."""
    rounded = round(value, 2)
    return f"{rounded:+.2f}".replace("-", "\u2212") if rounded else "0.00"


def _logarithmic(ax: Axes, across: str, up: str) -> None:
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(across)
    ax.set_ylabel(up)


def _at_ends(ax: Axes, ends: list[tuple[float, float]], texts: list[str], colours: list) -> None:
    """Labels right of the axes, each beside its line's end, none over another."""
    low, high = np.log(ax.get_ylim())
    heights = [(np.log(y) - low) / (high - low) for _, y in ends]
    for place, height in enumerate(spread(heights, 0.062)):
        ax.annotate(
            texts[place],
            xy=ends[place],
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            color=colours[place],
            fontsize=10,
            fontweight="bold",
            arrowprops={"arrowstyle": "-", "color": colours[place], "linewidth": 0.8},
            annotation_clip=False,
        )


def draw(lines: Lines, found: dict[str, Points], shapes: dict[float, str] | None = None) -> Figure:
    """Lines over a size, with the exponent of each beside its name; ``shapes`` are not joined."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        ax = figure.subplots()
        _logarithmic(ax, lines.across, lines.up)
        ends, texts, colours = [], [], []
        for place, (label, points) in enumerate(found.items()):
            colour = PALETTE[place % len(PALETTE)]
            dash = "" if shapes else DASHES[place // len(PALETTE) % len(DASHES)]
            style = {"linestyle": dash or "none", "markersize": 5 if dash else 9}
            ax.plot(*zip(*points, strict=True), marker="o", color=colour, **style)
            slope = told_exponent(lines, points)
            ends.append(points[-1])
            texts.append(label if np.isnan(slope) else f"{label}  ({_signed(slope)})")
            colours.append(colour)
        sizes = sorted({size for points in found.values() for size, _ in points})
        apart = np.diff(np.log(sizes)) / max(np.log(sizes[-1] / sizes[0]), 1e-9)
        if shapes:
            ax.set_xticks(sizes, [shapes[size] for size in sizes], fontsize=9)
            ax.set_xticks([], minor=True)
        elif len(sizes) <= 6 and (apart > 0.1).all():
            ax.set_xticks(sizes)
            ax.set_xticks([], minor=True)
        low, high = ax.get_ylim()
        if high / low < 100:
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        _at_ends(ax, ends, texts, colours)
        set_title(figure, lines.title)
        if shapes:
            note = "Different shapes, so no line joins them and no exponent is given."
        elif any("(" in text for text in texts):
            note = (
                "In brackets: exponent, the least-squares slope of the logarithms, of lines of"
                f" {POINTS} sizes or more,\nnone farther from it than a factor of {FACTOR:g}."
            )
        else:
            note = f"No exponent is given for fewer than {POINTS} sizes."
        set_note(figure, note)
        settle(figure)
    return figure


def draw_roofline(content: Content) -> Figure:
    """Every program at its intensity and speed, below the machine's roofs."""
    peaks = content["peaks"]
    top, slope = peaks["gigaflops"], peaks["copy_gigabytes_a_second"]
    near = peaks["copy_within_caches_gigabytes_a_second"]
    programs = content["results"]
    intensities = [r["intensity"] for r in programs]
    across = np.geomspace(min(intensities) / 3, max(*intensities, top / slope) * 3, 200)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        ax = figure.subplots()
        _logarithmic(ax, "operations a byte", "Gflop/s")
        for bandwidth, dash, words, place, side, shift in (
            (slope, "-", "memory", 6, "left", (8, -4)),
            (near, ":", "caches", 60, "right", (-8, 2)),
        ):
            ax.plot(across, np.minimum(top, bandwidth * across), dash, color=INK, linewidth=1.6)
            ax.annotate(
                f"{words}, {bandwidth:.0f} GB/s",
                (across[place], bandwidth * across[place]),
                xytext=shift,
                textcoords="offset points",
                ha=side,
                fontsize=9.5,
                color=FAINT,
            )
        ax.annotate(
            f"product, {top:.0f} Gflop/s",
            (across[-1], top),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right",
            fontsize=9.5,
            color=FAINT,
        )
        ends = []
        for place, r in enumerate(programs):
            ax.plot(r["intensity"], r["gigaflops"], "o", markersize=8, color=PALETTE[place])
            ends.append((r["intensity"], r["gigaflops"]))
        texts = [f"{r['program']}, {100 * r['share_of_the_roof']:.0f} %" for r in programs]
        _at_ends(ax, ends, texts, list(PALETTE))
        set_title(figure, "How near the main programs come to the machine's roof")
        set_note(
            figure,
            "Share of the solid roof. Bytes are the compiler's, as if nothing stayed in a cache,"
            " so programs may lie above it.",
        )
        settle(figure)
    return figure
