"""One principal's account in a picture: what it was paid, on what credit, what was screened out."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from decimal import Decimal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from vcca_jax.ledger import Statement, StatementLine
from vcca_jax.plotting.parts import DPI, FAINT, INK, PALETTE, STYLE, set_note, set_title, settle
from vcca_jax.statements import Screening, money


def statement_figure(
    statement: Statement, screened: Mapping[str, Screening], *, decimals: int = 2
) -> Figure:
    """Payouts and balance, score and debt, and the steps that values stood against, by entry.

    Args:
        statement: The ledger's; entries follow each other from left to right.
        screened: period -> what became of the agent's updates; no panel is drawn if it is empty.
        decimals: Digits of a minor unit.

    Returns:
        A figure of two or three axes.

    Raises:
        ValueError: If no entry concerns the principal's credit or money.
    """
    lines = [line for line in statement.lines if line.kind != "join"]
    if not lines:
        raise ValueError(f"{statement.principal} has no entry yet; settle a period first")
    values = sorted({v for own in screened.values() for v, count in own.conflicts.items() if count})
    unit = 2**statement.scale_bits
    panels = [3.0, 3.0] + ([0.9 + 0.42 * len(values)] if values else [])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 1.6 + sum(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=panels, squeeze=False)
        _money(axes[0, 0], statement, lines, decimals)
        _score(axes[1, 0], statement, lines)
        if values:
            _values(axes[2, 0], lines, screened, values)
        last = axes[-1, 0]
        last.set_xlim(-0.6, len(lines) - 0.4)
        shown = range(0, len(lines), -(-len(lines) // 12))
        last.set_xticks(list(shown), [textwrap.shorten(lines[i].period, 12) for i in shown])
        last.set_xlabel("settlement period")
        debt = sum(statement.debts().values())
        set_title(
            figure,
            f"{statement.principal}: {money(statement.paid, statement.currency, decimals)} paid"
            + (f", a debt of {debt / unit:.3g} credit carried forward" if debt else ""),
        )
        if statement.marked:
            set_note(
                figure,
                "A debt is credit that has to be made up for before more is paid; nothing is taken "
                "back.",
            )
        settle(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Draw a figure as PNG, with the same bytes for the same figure."""
    image = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return image.getvalue()


def _money(ax: Axes, statement: Statement, lines: Sequence[StatementLine], decimals: int) -> None:
    places = np.arange(len(lines))

    def units(minor: int) -> float:
        return float(Decimal(minor).scaleb(-decimals))

    ax.bar(places, [units(r.paid + r.held) for r in lines], 0.8, color=PALETTE[4], label="paid")
    total = [units(r.balance) for r in lines]
    ax.step(places, total, where="mid", color=PALETTE[0], label="balance")
    ax.set_ylabel(f"money, {statement.currency}")
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    _legend(ax)
    ax.axhline(0, color=INK, linewidth=1)


def _score(ax: Axes, statement: Statement, lines: Sequence[StatementLine]) -> None:
    places, unit = np.arange(len(lines)), 2**statement.scale_bits
    score = np.array([r.score / unit for r in lines])
    if statement.marked:
        mark = np.cumsum([r.counted / unit for r in lines])
        ax.step(places, mark, where="mid", color=FAINT, linewidth=1.4, label="paid on so far")
    ax.step(places, score, where="mid", color=PALETTE[2], label="credit so far")
    if statement.marked:
        ax.fill_between(
            places,
            score,
            mark,
            where=(score < mark).tolist(),
            step="mid",
            color=PALETTE[5],
            alpha=0.35,
            linewidth=0,
            label="debt",
        )
    ax.axhline(0, color=INK, linewidth=1)
    ax.set_ylabel("credit")
    ax.yaxis.set_major_locator(MaxNLocator(5))
    _legend(ax)


def _legend(ax: Axes) -> None:
    """Above the panel: within it some account would lie under the words."""
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderpad=0.1)


def _values(
    ax: Axes,
    lines: Sequence[StatementLine],
    screened: Mapping[str, Screening],
    values: Sequence[str],
) -> None:
    shares = np.full((len(values), len(lines)), np.nan)
    for column, line in enumerate(lines):
        own = screened.get(line.period)
        if own is None or not own.steps or line.kind != "settle":
            continue
        for row, value in enumerate(values):
            shares[row, column] = own.conflicts.get(value, 0) / own.steps
    drawn = ax.pcolormesh(
        np.arange(len(lines) + 1) - 0.5,
        np.arange(len(values) + 1),
        shares,
        cmap=matplotlib.colormaps["Blues"],
        vmin=0,
        vmax=1,
    )
    ax.set_yticks(np.arange(len(values)) + 0.5, [textwrap.fill(value, 16) for value in values])
    ax.grid(False)
    ax.invert_yaxis()
    bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.04, pad=0.02)
    bar.set_label("share of steps\nit stood against")
