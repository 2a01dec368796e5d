"""What each agent did and got: conflicts with values, credit, payout."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from decimal import Decimal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vcca_jax.plotting.parts import (
    INK,
    PALETTE,
    STYLE,
    Record,
    check,
    distinct,
    label_ends,
    seeds_note,
    set_note,
    set_title,
    settle,
    signed,
    summary,
)

RESERVE = "reserve"


def admissibility_heatmap(agents: Sequence[Record]) -> Figure:
    """How often each agent's own update runs against each value, before screening.

    A cell is (steps in conflict) / (steps in which the agent was visited), summed over epochs
    and seeds; the last column is the share of steps not admissible as a whole.

    Args:
        agents: records with "epoch", "seed", "agent", "samples", "steps",
            "admissible_steps" and "conflicts" (value name -> steps). A value that an agent's
            records do not name is drawn as a dash.

    Returns:
        A figure of one axes, agents down and values across.

    Raises:
        ValueError: no records, or a record without one of these keys.
    """
    keys = ("epoch", "seed", "agent", "samples", "steps", "admissible_steps", "conflicts")
    check("agents", agents, keys)
    names = distinct(record["agent"] for record in agents)
    values = distinct(value for record in agents for value in record["conflicts"])
    shares = np.full((len(names), len(values) + 1), np.nan)
    samples = []
    for row, name in enumerate(names):
        own = [record for record in agents if record["agent"] == name]
        samples.append(own[-1]["samples"])
        for column, value in enumerate(values):
            told = [record for record in own if value in record["conflicts"]]
            steps = sum(record["steps"] for record in told)
            if steps:
                shares[row, column] = sum(r["conflicts"][value] for r in told) / steps
        steps = sum(record["steps"] for record in own)
        if steps:
            shares[row, -1] = 1 - sum(record["admissible_steps"] for record in own) / steps
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        width = max(2.2 + 1.45 * (len(values) + 1), 6.5)
        figure = Figure(figsize=(width, 1.9 + 0.72 * len(names)), layout="constrained")
        ax = figure.subplots()
        # The whole-profile column stands apart from the values by half a cell.
        edges = np.array([*range(len(values) + 1), len(values) + 0.25, len(values) + 1.25])
        drawn = np.insert(shares, len(values), np.nan, axis=1)
        colours = matplotlib.colormaps["Blues"]
        ax.pcolormesh(
            edges, np.arange(len(names) + 1), drawn, cmap=colours, vmin=0, vmax=1, edgecolor="white"
        )
        centres = [*(edges[: len(values)] + 0.5), len(values) + 0.75]
        for (row, column), share in np.ndenumerate(shares):
            text = "–" if np.isnan(share) else f"{100 * share:.0f} %"
            ink = "white" if share > 0.65 else INK
            ax.text(centres[column], row + 0.5, text, ha="center", va="center", color=ink, size=13)
        labels = [*(textwrap.fill(value, 14) for value in values), "any of these"]
        ax.set_xticks(centres, labels)
        ax.set_yticks(
            np.arange(len(names)) + 0.5,
            [f"{name}\n{count} samples" for name, count in zip(names, samples, strict=True)],
        )
        ax.invert_yaxis()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.xaxis.tick_top()
        ax.xaxis.set_label_position("top")
        ax.set_xlabel("value", labelpad=6)
        ax.set_ylabel("agent")
        known = np.nan_to_num(shares[:, :-1], nan=-1.0)
        title = "Share of an agent's steps whose raw update runs against each value"
        if known.size and known.max() > 0:
            worst, against = divmod(int(known.argmax()), len(values))
            title = (
                f"The raw updates of {names[worst]} run against “{values[against]}” most "
                f"often: in {100 * known.max():.0f} % of its steps"
            )
        set_title(figure, title)
        seeds = len({record["seed"] for record in agents})
        set_note(
            figure,
            "Before screening; all epochs of "
            f"{'one seed' if seeds == 1 else f'{seeds} seeds'}. Last column: steps in "
            "conflict with at least one.",
        )
        settle(figure)
    return figure


def cumulative_credit(
    agents: Sequence[Record], *, unit: str = "validation loss removed, nats"
) -> Figure:
    """Each agent's credit, summed from the first epoch on.

    Args:
        agents: records with "epoch" (>= 1), "seed", "agent" and "credit" (that epoch's).
        unit: what one unit of credit is; it stands on the vertical axis.

    Returns:
        A figure of one axes with a line and a band for each agent.

    Raises:
        ValueError: no records, or a record without one of these keys.
    """
    check("agents", agents, ("epoch", "seed", "agent", "credit"))
    names = distinct(record["agent"] for record in agents)
    start = min(record["epoch"] for record in agents) - 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.8), layout="constrained")
        ax = figure.subplots()
        ax.axhline(0, color=INK, linewidth=1)
        finals = []
        for k, name in enumerate(names):
            points = []
            for seed in sorted({r["seed"] for r in agents if r["agent"] == name}):
                own = [r for r in agents if r["agent"] == name and r["seed"] == seed]
                total = 0.0
                points.append((start, seed, total))
                for record in sorted(own, key=lambda r: r["epoch"]):
                    total += record["credit"]
                    points.append((record["epoch"], seed, total))
            epochs, mean, low, high = summary(points)
            colour = PALETTE[k % len(PALETTE)]
            ax.plot(epochs, mean, color=colour, label=name)
            ax.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
            finals.append(float(mean[-1]))
        label_ends(
            ax,
            max(record["epoch"] for record in agents),
            finals,
            [f"{name}  {signed(final)}" for name, final in zip(names, finals, strict=True)],
        )
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"cumulative credit\n({unit})")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        best = int(np.argmax(finals))
        together = f"all agents together {signed(sum(finals))}"
        set_title(figure, f"Most credit goes to {names[best]}: {signed(finals[best])} ({together})")
        set_note(figure, seeds_note(agents))
        settle(figure)
    return figure


def cumulative_payout(payouts: Sequence[Record], currency: str, scale: int) -> Figure:
    """Money paid to each principal so far, stacked, one step a settlement period.

    Args:
        payouts: records with "period", "principal" and "paid" (integer minor units). A
            principal called "reserve" is drawn in grey.
        currency: the name of the major unit, such as "EUR".
        scale: minor units in one major unit, such as 100.

    Returns:
        A figure of one axes; the top edge of the stack is all money paid.

    Raises:
        ValueError: no records, a record without one of these keys, or `scale` below 1.
    """
    check("payouts", payouts, ("period", "principal", "paid"))
    if scale < 1:
        raise ValueError(f"scale={scale!r} must be at least 1, e.g. 100 cents to the euro")
    names = distinct(record["principal"] for record in payouts)
    periods = sorted({record["period"] for record in payouts})
    paid = np.zeros((len(names), len(periods)), dtype=np.int64)
    for record in payouts:
        paid[names.index(record["principal"]), periods.index(record["period"])] += record["paid"]
    totals = paid.cumsum(axis=1)
    places = max(0, round(math.log10(scale)))

    def money(minor: int) -> str:
        return f"{Decimal(minor) / scale:,.{places}f} {currency}"

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 4.8), layout="constrained")
        ax = figure.subplots()
        # Every period is as wide as its tick is far from the next, and centred on it.
        edges = np.array([*periods, periods[-1] + 1]) - 0.5
        floor = np.zeros(len(edges))
        middles = []
        colours = [
            "#A6A6A6" if name == RESERVE else PALETTE[k % len(PALETTE)]
            for k, name in enumerate(names)
        ]
        for name, row, colour in zip(names, totals, colours, strict=True):
            top = floor + np.array([*row, row[-1]]) / scale
            ax.fill_between(
                edges, floor, top, step="post", color=colour, alpha=0.85, linewidth=0, label=name
            )
            ax.step(edges, top, where="post", color="white", linewidth=1.2)
            middles.append(float(floor[-1] + top[-1]) / 2)
            floor = top
        ax.set_xlim(edges[0], edges[-1])
        ax.set_ylim(0, max(1.04 * float(floor[-1]), 1 / scale))
        ax.set_xticks(periods[:: math.ceil(len(periods) / 12)])
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        label_ends(
            ax,
            edges[-1],
            middles,
            [f"{name}  {money(int(row[-1]))}" for name, row in zip(names, totals, strict=True)],
            colours,
        )
        ax.set_xlabel("settlement period")
        ax.set_ylabel(f"cumulative payout ({currency})")
        kept = sum(int(row[-1]) for name, row in zip(names, totals, strict=True) if name == RESERVE)
        count = len(periods)
        set_title(
            figure,
            f"{money(int(totals[:, -1].sum()) - kept)} paid out in {count} "
            f"{'period' if count == 1 else 'periods'}"
            + (f", {money(kept)} kept in reserve" if kept else ""),
        )
        settle(figure)
    return figure
