"""The README's tables, from the result files alone."""

from collections.abc import Callable
from pathlib import Path

from experiments import pages
from experiments.economy.config import DEFAULT_ESTIMATOR, DEFAULT_RULE
from experiments.pages import table

Rows = list[dict[str, str]]


def read(results: Path, name: str) -> Rows:
    """The stored records of one kind, as text."""
    return [
        {key: "" if value is None else str(value) for key, value in record.items()}
        for record in pages.read(results, name)
    ]


def number(row: dict[str, str], mean: str, half: str, *, sign: str = "+") -> str:
    """Mean ± half-width of the 95 % interval; an exact 0 is shown as such."""
    value, width = float(row[mean]), float(row[half])
    if value == 0 and width == 0:
        return "0"
    digits = 4 if max(abs(value), width) < 0.01 else 1
    return f"{value:{sign}.{digits}f} ± {width:.{digits}f}".replace("-", "−")


def matrix(rows: Rows, column: str, chosen: Callable[[dict[str, str]], bool]) -> str:
    """Cheats down, the values of a column across, gains in % of an even share."""
    rows = [row for row in rows if chosen(row)]
    names = list(dict.fromkeys(row[column] for row in rows))
    cheats = list(dict.fromkeys((row["shown"], row["screen"], row["scenario"]) for row in rows))
    cells = {
        (row["scenario"], row[column]): number(row, "gain_percent", "gain_half_width")
        for row in rows
    }
    return table(
        ["cheat", *names],
        [
            [with_screen(shown, screen), *(cells.get((scenario, name), "") for name in names)]
            for shown, screen, scenario in cheats
        ],
    )


def with_screen(shown: str, screen: str) -> str:
    """A cheat's name, with the screen where it is not the default one."""
    told = {"own": "", "everyone": " (everyone's profile)", "reject": " (everyone's, reject)"}
    return shown + told[screen]


def write_tables(results: Path) -> str:
    """All tables as Markdown; also written to ``tables.md`` beside the results."""
    gains, values = read(results, "gains"), read(results, "values")
    duplicates = read(results, "duplicates")
    default = [
        r for r in gains if r["rule"] == DEFAULT_RULE and r["estimator"] == DEFAULT_ESTIMATOR
    ]
    paid = table(
        ["cheat", "payout, % of an even share", "honest twin's", "gain, %"],
        [
            [
                with_screen(r["shown"], r["screen"]),
                number(r, "payout_percent_of_fair_share", "payout_half_width", sign=""),
                f"{float(r['honest_percent_of_fair_share']):.1f}",
                number(r, "gain_percent", "gain_half_width"),
            ]
            for r in default
            if r["defence"] == "none"
        ],
    )
    screens = table(
        ["scenario", "protected loss", "validation loss", "steps in conflict", "steps dropped"],
        [
            [
                with_screen(r["shown"], r["screen"]),
                *(
                    f"{float(r[m]):.3f} ± {float(r[m + '_half_width']):.3f}"
                    for m in (
                        "protected_loss",
                        "validation_loss",
                        "share_of_steps_in_conflict",
                        "share_of_steps_dropped",
                    )
                ),
            ]
            for r in values
            if r["shown"] in ("honest", "value breaker")
        ],
    )
    copies = table(
        [
            "scenario",
            "copies",
            "found",
            "accused wrongly",
            "least cosine of a copy",
            "greatest other",
        ],
        [
            [
                with_screen(r["shown"], r["screen"]),
                r["copies"],
                r["found"],
                r["accused_wrongly"],
                r["least_cosine_of_copies"],
                r["greatest_cosine_of_others"],
            ]
            for r in duplicates
        ],
    )
    rows = table(
        ["scenario", "the agent in question", "all others"],
        [
            [
                r["shown"],
                number(r, "distinct_percent", "half_width", sign=""),
                number(r, "others_percent", "others_half_width", sign=""),
            ]
            for r in read(results, "rows")
        ],
    )
    parts = {
        "Default rule and estimator": paid,
        "Rules (default estimator)": matrix(
            gains,
            "rule",
            lambda r: r["estimator"] == DEFAULT_ESTIMATOR and r["defence"] == "none",
        ),
        "Estimators (default rule)": matrix(
            gains, "estimator", lambda r: r["rule"] == DEFAULT_RULE and r["defence"] == "none"
        ),
        "Defences (default rule and estimator)": matrix(default, "defence", lambda r: True),
        "Defences under the other rules: quotient by principal": matrix(
            gains, "rule", lambda r: r["defence"] == "quotient by principal"
        ),
        "What the value suffers": screens,
        "The near-duplicate report": copies,
        "Distinct rows, % of those sent": rows,
    }
    text = "\n\n".join(f"### {title}\n\n{body}" for title, body in parts.items()) + "\n"
    (results / "tables.md").write_text(text, encoding="utf-8")
    return text
