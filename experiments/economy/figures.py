"""The figures, from the result files alone."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.economy.config import DEFAULT_ESTIMATOR, DEFAULT_RULE
from experiments.economy.tables import Rows, read, with_screen
from vcca_jax.plotting import save_figure
from vcca_jax.plotting.parts import (
    FAINT,
    INK,
    PALETTE,
    STYLE,
    label_ends,
    set_note,
    set_title,
    settle,
)


def gain_matrix(rows: Rows, column: str, title: str, note: str) -> Figure:
    """Cheats down, one column a rule or an estimator; each cell a gain with its interval."""
    names = list(dict.fromkeys(row[column] for row in rows))
    cheats = list(
        dict.fromkeys((r["scenario"], with_screen(r["shown"], r["screen"])) for r in rows)
    )
    means, halves = np.zeros((2, len(cheats), len(names)))
    for row in rows:
        at = [c for c, _ in cheats].index(row["scenario"]), names.index(row[column])
        means[at], halves[at] = float(row["gain_percent"]), float(row["gain_half_width"])
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(4.2 + 1.35 * len(names), 2.2 + 0.46 * len(cheats)), layout="constrained"
        )
        ax = figure.subplots()
        # Gains in orange, losses in blue; what the interval does not tell from 0 stays white.
        known = np.where(np.abs(means) > halves, means, 0)
        shade = np.sign(known) * np.minimum(np.abs(known) / 100, 1) ** 0.5
        ax.pcolormesh(
            np.arange(len(names) + 1),
            np.arange(len(cheats) + 1),
            shade,
            cmap=_diverging(),
            vmin=-1,
            vmax=1,
            edgecolor="white",
            linewidth=1.5,
        )
        for (row, place), mean in np.ndenumerate(means):
            dark = shade[row, place] < -0.75
            ax.text(
                place + 0.5,
                row + 0.5,
                _cell(mean, halves[row, place]),
                ha="center",
                va="center",
                color="white" if dark else INK,
                size=10,
            )
        ax.set_xticks(np.arange(len(names)) + 0.5, [COLUMNS.get(n, n) for n in names])
        ax.set_yticks(np.arange(len(cheats)) + 0.5, [shown for _, shown in cheats])
        ax.invert_yaxis()
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        set_title(figure, title)
        set_note(figure, note)
        settle(figure)
    return figure


def cumulative_payouts(rows: Rows, rule: str, title: str, note: str) -> Figure:
    """One line a kind of agent: what one principal of it has been paid so far."""
    rows = [row for row in rows if row["rule"] == rule]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    colours = [*PALETTE, FAINT, "#5B3A8C", "#8A9A00"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.6, 6.4), layout="constrained")
        ax = figure.subplots()
        finals = []
        for kind, colour in zip(kinds, colours, strict=True):
            own = [row for row in rows if row["kind"] == kind]
            periods = np.array([0, *(int(row["period"]) for row in own)])
            mean, low, high = (
                np.array([0, *(float(row[field]) / 1e6 for row in own)])
                for field in ("mean", "low", "high")
            )
            ax.plot(periods, mean, color=colour, label=kind)
            if kind == "honest":
                ax.fill_between(periods, low, high, color=colour, alpha=0.15, linewidth=0)
            finals.append(float(mean[-1]))
        ax.set_xlim(0, periods[-1])
        ax.set_ylim(0, None)
        texts = [f"{kind}  {final:.2f}" for kind, final in zip(kinds, finals, strict=True)]
        label_ends(ax, float(periods[-1]), finals, texts, colours)
        ax.set_xlabel("settlement period")
        ax.set_ylabel("paid so far to one principal, in periods' revenues")
        set_title(figure, title)
        set_note(figure, note)
        settle(figure)
    return figure


def defences(pairs: Sequence[tuple[str, dict[str, str], dict[str, str]]], note: str) -> Figure:
    """Each pair's gain without and with its defence, with intervals."""
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(10.2, 1.7 + 0.72 * len(pairs)), layout="constrained")
        ax = figure.subplots()
        ax.axvline(0, color=INK, linewidth=1)
        for place, (_, before, after) in enumerate(pairs):
            ends = []
            for row, colour, label, shift in (
                (before, PALETTE[5], "undefended", -0.14),
                (after, PALETTE[0], "defended", 0.14),
            ):
                mean, half = float(row["gain_percent"]), float(row["gain_half_width"])
                ends.append(mean)
                ax.errorbar(
                    mean,
                    place + shift,
                    xerr=half,
                    fmt="o",
                    color=colour,
                    capsize=3,
                    markersize=7,
                    label=label if place == 0 else None,
                )
                ax.annotate(
                    _cell(mean, half).replace("\n", " "),
                    (max(mean + half, 0), place + shift),
                    xytext=(8, 0),
                    textcoords="offset points",
                    va="center",
                    color=colour,
                    size=9.5,
                )
        ax.set_yticks(range(len(pairs)), [label for label, _, _ in pairs])
        ax.invert_yaxis()
        ax.set_xlabel("gain over honesty, % of an even share of the revenue")
        ax.margins(x=0.16)
        ax.legend(loc="upper right")
        ax.tick_params(axis="y", length=0)
        set_title(figure, "What a defence takes from a cheat")
        set_note(figure, note)
        settle(figure)
    return figure


def draw_figures(results: Path, target: Path) -> None:
    """Draw all figures of a folder of results."""
    gains, payouts = read(results, "gains"), read(results, "payouts")
    note = (
        "Gain over the same agent behaving honestly in the same seed, in % of an even share of the"
        " revenue, ± half of its 95 % interval.\nOrange: cheating pays; blue: it costs; white:"
        " within noise of nothing."
    )
    plain = [row for row in gains if row["defence"] == "none"]
    drawn = {
        "gains_by_rule": gain_matrix(
            [row for row in plain if row["estimator"] == DEFAULT_ESTIMATOR],
            "rule",
            "What a cheat gains over honesty, by share rule",
            f"{note} Estimator: Aumann-Shapley.",
        ),
        "gains_by_estimator": gain_matrix(
            [row for row in plain if row["rule"] == DEFAULT_RULE],
            "estimator",
            "What a cheat gains over honesty, by estimator",
            f"{note} Rule: high-water mark.",
        ),
        "cumulative_payouts": cumulative_payouts(
            payouts,
            DEFAULT_RULE,
            "Sixteen agents, every cheat at once: what one principal of each kind is paid",
            "Means over seeds; Aumann-Shapley, high-water mark, no defence. Honest: mean of six,"
            " band from the lowest to the highest seed.",
        ),
        "defences": defences(
            defended(gains),
            "95 % intervals over seeds. Undefended: Aumann-Shapley, high-water mark, each agent"
            " screened by its own profile.",
        ),
    }
    for name, figure in drawn.items():
        save_figure(figure, target / f"{name}.png")


def defended(gains: Rows) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """The cheats that win or might, each without and with the defence meant for it."""

    def row(scenario: str, **wanted: str) -> dict[str, str]:
        terms = {
            "rule": DEFAULT_RULE,
            "estimator": DEFAULT_ESTIMATOR,
            "defence": "none",
            **wanted,
        }
        found = [r for r in gains if r["scenario"] == scenario and terms.items() <= r.items()]
        return found[0]

    quotient, report = {"defence": "quotient by principal"}, {"defence": "near-duplicate report"}
    rows = {"defence": "distinct rows"}
    audit = {"estimator": "aumann_shapley on audit rows"}
    return [
        ("value breaker:\neveryone's profile", row("value breaker"), row("breaker, everyone")),
        ("value breaker:\nreject by everyone's", row("value breaker"), row("breaker, reject")),
        ("replicator:\nnear-duplicate report", row("replicator"), row("replicator", **report)),
        ("splitter:\nquotient by principal", row("splitter"), row("splitter", **quotient)),
        (
            "splitter, nobody screened:\nquotient by principal",
            row("splitter, no values"),
            row("splitter, no values", **quotient),
        ),
        ("parks wrong rows:\nquotient by principal", row("parker"), row("parker", **quotient)),
        ("size liar:\ncap of a tenth", row("size liar"), row("size liar", rule="capped")),
        ("size liar:\ndistinct rows counted", row("size liar"), row("size liar", **rows)),
        (
            "size liar with noise:\ndistinct rows counted",
            row("jittering liar"),
            row("jittering liar", **rows),
        ),
        ("over-fitter:\ncredit on audit rows", row("over-fitter"), row("over-fitter", **audit)),
    ]


def _diverging() -> matplotlib.colors.Colormap:
    return matplotlib.colors.LinearSegmentedColormap.from_list(
        "gain", [PALETTE[0], "#FFFFFF", PALETTE[1]]
    )


def _cell(mean: float, half: float) -> str:
    if mean == 0 and half == 0:
        return "0"
    largest = max(abs(mean), half)
    digits = 0 if largest >= 10 else 1 if largest >= 0.1 else 4
    return f"{mean:+.{digits}f}\n± {half:.{digits}f}".replace("-", "−")


COLUMNS = {
    "high water mark": "high-water\nmark",
    "per period": "per\nperiod",
    "softmax": "softmax,\nT = 0.002",
    "power 2": "square of\nhigh-water mark",
    "capped": "capped\nat 1/10",
    "floor and cap": "capped, floor\nof 1/100",
    "aumann_shapley": "Aumann-\nShapley",
    "in_run order 1": "in-run,\norder 1",
    "in_run order 2": "in-run,\norder 2",
    "leave_one_out": "leave\none out",
    "permutation_shapley": "permutation\nShapley",
    "aumann_shapley on audit rows": "Aumann-Shapley,\naudit rows",
}
