"""Value losses by epoch, with the unwanted side shaded, and what they show in words."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.pages import Records, distinct
from vcca_jax.plotting.parts import INK, PALETTE, STYLE, set_note, set_title, settle

LINES = {"unscreened": PALETTE[5], "own": PALETTE[1], "everyone": PALETTE[0], "verified": "#000000"}
FEW = {"everyone": PALETTE[0], "few rows": PALETTE[5], "few rows, drawn anew": PALETTE[2]}
SEEDS_NOTE = "Mean over seeds; band or bar: one standard deviation."
UNWANTED = PALETTE[5]
KINDS = {"protect": "protected: must not rise", "forbid": "forbidden: must not fall"}

MUCH = 1e-3
"""Changes up to which a mean counts as none, in titles."""


def value_losses(
    epochs: Records,
    setting: str,
    title: str,
    colours: dict[str, str],
    *,
    kinds: dict[str, str] | None = None,
) -> Figure:
    """Change of every value loss by epoch, on the rows that screens see and on test rows.

    With ``kinds``, "protect" or "forbid" by value, the unwanted side is shaded.
    """
    own = [e for e in epochs if e["setting"] == setting and e["condition"] in colours]
    names = distinct(own, "value")
    with matplotlib.rc_context({**STYLE, "font.size": 12, "axes.labelsize": 12.5}):
        figure = Figure(figsize=(max(3.1 * len(names) + 0.8, 7.6), 6.8), layout="constrained")
        grid = figure.subplots(2, len(names), sharex=True, sharey="col", squeeze=False)
        for column, name in enumerate(names):
            for row, rows in enumerate(("seen", "fresh")):
                ax = grid[row, column]
                ax.axhline(0, color=INK, linewidth=1)
                for condition, colour in colours.items():
                    line = [
                        e
                        for e in own
                        if (e["condition"], e["value"], e["rows"]) == (condition, name, rows)
                    ]
                    at = [e["epoch"] for e in line]
                    mean, sd = (np.array([_nan(e[k]) for e in line]) for k in ("mean", "sd"))
                    style: dict[str, Any] = {"linestyle": "--"} if condition == "verified" else {}
                    ax.plot(at, mean, color=colour, label=condition, **style)
                    ax.fill_between(at, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
                if row == 1:
                    ax.set_xlabel("epoch")
                    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            kind = (kinds or {}).get(name)
            grid[0, column].set_title(f"{name}\n{KINDS[kind]}" if kind else name, loc="left")
            if kind:
                _shade(grid[:, column], kind)
        for row, label in enumerate(("rows the screen sees", "fresh test rows")):
            grid[row, 0].set_ylabel(f"change of the loss,\n{label}")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), fontsize=11)
        set_title(figure, title)
        set_note(figure, SEEDS_NOTE + ("\nShaded: the unwanted side." if kinds else ""))
        settle(figure)
    return figure


def _shade(axes: Any, kind: str) -> None:
    """Shade what a value's principal does not want; some of it is always to be seen."""
    low, high = axes[0].get_ylim()
    room = 0.12 * (high - low)
    low, high = (low, max(high, room)) if kind == "protect" else (min(low, -room), high)
    for ax in axes:
        ax.set_ylim(low, high)
        ends = (0, high) if kind == "protect" else (low, 0)
        ax.axhspan(*ends, color=UNWANTED, alpha=0.08, linewidth=0, zorder=0)


def kinds_of(values: Records, setting: str) -> dict[str, str]:
    """Whether a value is protected or forbidden, by its name."""
    return {v["value"]: v["kind"] for v in values if v["setting"] == setting}


def _ends(epochs: Records, setting: str, kinds: dict[str, str]) -> dict[tuple[str, str], list]:
    """How far every value ends on the unwanted side, in mean, by condition and rows."""
    last = max(e["epoch"] for e in epochs if e["setting"] == setting)
    found: dict[tuple[str, str], list[float]] = {}
    for e in epochs:
        if (e["setting"], e["epoch"]) == (setting, last) and e["mean"] is not None:
            sign = 1 if kinds[e["value"]] == "protect" else -1
            found.setdefault((e["condition"], e["rows"]), []).append(sign * e["mean"])
    return found


def screened_title(epochs: Records, setting: str, kinds: dict[str, str]) -> str:
    """What a figure of value losses shows, in words: how many end on the unwanted side."""
    ends = _ends(epochs, setting, kinds)

    def broken(condition: str, rows: str) -> int:
        return sum(end > MUCH for end in ends.get((condition, rows), []))

    return (
        f"{setting}: {broken('unscreened', 'seen')} of {len(kinds)} values on the unwanted side at"
        f" the end unscreened, {broken('everyone', 'seen')} under “everyone”; fresh rows:"
        f" {broken('unscreened', 'fresh')} and {broken('everyone', 'fresh')}"
    )


def fresh_title(epochs: Records, setting: str, kinds: dict[str, str]) -> str:
    """What a figure of few value rows shows: for how many values they end worse on fresh rows."""
    ends = _ends(epochs, setting, kinds)
    every = ends.get(("everyone", "fresh"), [])

    def worse(condition: str) -> int:
        pairs = zip(ends.get((condition, "fresh"), []), every, strict=False)
        return sum(few > all_ + MUCH for few, all_ in pairs)

    return (
        f"{setting}, fresh rows: {worse('few rows')} of {len(kinds)} values end worse with few"
        f" value rows, {worse('few rows, drawn anew')} with few drawn anew"
    )


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
