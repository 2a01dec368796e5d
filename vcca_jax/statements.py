"""A principal's statement in plain words: what it was paid, for what, why not more, how to check.

Built from the ledger and, where there are any, from the run's own records; host only. A document is
made once and rendered as plain text or as a page that needs nothing beside it.
"""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from vcca_jax.ledger import Statement, StatementLine
from vcca_jax.pages import render


class Screening(NamedTuple):
    """What became of an agent's updates in one period.

    Attributes:
        first: First epoch of the period.
        last: Last epoch of the period.
        steps: Steps in which the agent had a sample.
        admissible: Of them, those whose update was admissible as it came.
        dropped: Of them, those whose update was dropped.
        removed: Share of the update's norm that was removed, summed over steps.
        conflicts: value -> steps in which the update ran against a constraint on it.
    """

    first: int
    last: int
    steps: int
    admissible: int
    dropped: int
    removed: float
    conflicts: dict[str, int]


class Section(NamedTuple):
    """A part of a document: a heading, paragraphs, and a table whose first row is its head."""

    heading: str
    paragraphs: tuple[str, ...]
    table: tuple[tuple[str, ...], ...] = ()


def screenings(
    records: Iterable[Mapping[str, Any]], principal: str, epochs_per_period: int
) -> dict[str, Screening]:
    """Sum up a run's records of one agent, of the run that is paid (seed 0), period by period.

    Args:
        records: Records with "epoch" (from 1), "seed", "agent", "steps", "admissible_steps",
            "dropped_steps", "removed" (mean over steps) and "conflicts" (value -> steps).
        principal: The agent's name.
        epochs_per_period: How many epochs make a period; periods are named "1", "2", ...

    Returns:
        period -> what became of the agent's updates.
    """
    found: dict[str, Screening] = {}
    for record in records:
        if record["seed"] != 0 or record["agent"] != principal:
            continue
        number = (record["epoch"] - 1) // epochs_per_period + 1
        last = number * epochs_per_period
        so_far = found.get(
            str(number), Screening(last - epochs_per_period + 1, last, 0, 0, 0, 0, {})
        )
        conflicts = Counter(so_far.conflicts)
        conflicts.update(record["conflicts"])
        found[str(number)] = so_far._replace(
            steps=so_far.steps + record["steps"],
            admissible=so_far.admissible + record["admissible_steps"],
            dropped=so_far.dropped + record["dropped_steps"],
            removed=so_far.removed + record["removed"] * record["steps"],
            conflicts=dict(conflicts),
        )
    return found


def money(minor_units: int, currency: str = "", decimals: int = 2) -> str:
    """Write an integer of minor units in the currency's own unit, exactly."""
    return f"{Decimal(minor_units).scaleb(-decimals):,f} {currency}".rstrip()


def document(
    statement: Statement,
    screened: Mapping[str, Screening],
    *,
    rule: str,
    checks: Sequence[tuple[str, str]],
    decimals: int = 2,
) -> list[Section]:
    """Say in words all that a statement holds.

    Args:
        statement: The ledger's; its rule and its rounding decide what is said of credit.
        screened: period -> what became of the agent's updates; empty if there are no records.
        rule: Name by which the share rule is called.
        checks: What can be checked, and the command that does.
        decimals: Digits of a minor unit.

    Returns:
        The sections in order.
    """
    undone = {line.of for line in statement.lines if line.kind == "reverse"}
    settled = [line for line in statement.lines if line.kind == "settle" and line.seq not in undone]
    return [
        _summary(statement, settled, decimals),
        _periods(statement, screened, decimals),
        _screened(statement.principal, screened),
        _checking(statement, settled, rule, checks, decimals),
    ]


def _summary(statement: Statement, settled: Sequence[StatementLine], decimals: int) -> Section:
    name, currency = statement.principal, statement.currency
    clawed = {line.of for line in statement.lines if line.kind == "claw_back"}
    paid = [line for line in settled if (line.paid or line.held) and line.seq not in clawed]
    words = [
        f"{name} was paid {money(statement.paid, currency, decimals)} in all, for {len(paid)} of "
        f"{_count(len(settled), 'period')} in which it was credited or paid."
    ]
    if statement.held:
        words.append(
            f"{money(statement.held, currency, decimals)} more wait in escrow until their lag is "
            "over; only from there can a payout be clawed back."
        )
    if taken_back := sum(line.kind == "reverse" for line in statement.lines):
        words.append(
            f"{_count(taken_back, 'settlement')} {'was' if taken_back == 1 else 'were'} taken back "
            "by a later entry and, where that was a correction, settled anew; the table shows both."
        )
    words += _standings(statement)
    unpaid: dict[str, list[StatementLine]] = {}
    for line in settled:
        if line.seq in clawed:
            unpaid.setdefault("the payout was clawed back from escrow", []).append(line)
        elif not line.paid and not line.held:
            unpaid.setdefault(_reason(line, statement), []).append(line)
    words += [f"Nothing was paid for {_named(lines)}: {why}." for why, lines in unpaid.items()]
    return Section(f"Statement of {name}", tuple(words))


def _standings(statement: Statement) -> Iterator[str]:
    for stream, (score, mark) in statement.standings().items():
        of = f" in the stream of {stream}" if stream else ""
        words = f"Its credit{of} adds up to {_credit(score, statement)}"
        if not statement.marked:
            yield f"{words}."
            continue
        yield f"{words}; it has been paid on {_credit(mark, statement)}."
        if score < mark:
            yield (
                f"The difference, {_credit(mark - score, statement)}, is a debt that is carried "
                "forward: new credit makes up for it first, and nothing is taken back."
            )
        elif score > mark:
            yield (
                f"The difference, {_credit(score - mark, statement)}, is credit that counts at the "
                "next division of revenue."
            )


def _reason(line: StatementLine, statement: Statement) -> str:
    if line.outcome == "carried":
        return "the period's steps gained nothing together, so its revenue waits for the next"
    if line.outcome == "unfunded":
        return "there was no revenue to divide"
    if line.share and statement.rounding == "running_floor":
        return "its share, with what was left of earlier ones, has not come to a whole unit yet"
    if line.share:
        return "its share came to less than a unit and others had the larger remainder"
    if statement.marked:
        return "its credit did not rise above what it had been paid on already"
    if statement.base_rule == "per_period":
        return "its credit of the period was not above zero"
    if statement.base_rule == "accumulated":
        return "its credit did not add up to more than zero"
    return "the rule gave it no share"


def _named(lines: Sequence[StatementLine]) -> str:
    """Name the periods of some settlements, those that follow each other by the first and last."""
    streams: dict[str, list[str]] = {}
    for line in lines:
        streams.setdefault(line.stream, []).append(line.period)
    told = []
    for stream, periods in streams.items():
        noun = "period" if len(periods) == 1 else "periods"
        told.append(f"{noun} {_listed(_runs(periods))}" + (f" of {stream}" if stream else ""))
    return ", ".join(told)


def _runs(periods: Sequence[str]) -> list[str]:
    """Join numbers that follow each other: 1, 2, 3, 7 are 1-3 and 7."""
    found: list[list[str]] = []
    for period in periods:
        last = found[-1][-1] if found else ""
        if last.isdecimal() and period == str(int(last) + 1):
            found[-1].append(period)
        else:
            found.append([period])
    return [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found]


def _periods(statement: Statement, screened: Mapping[str, Screening], decimals: int) -> Section:
    streams = any(line.stream for line in statement.lines)
    head = ("entry", "what", *(("stream",) if streams else ()), "period")
    counted = "paid on" if statement.marked else "share"
    head += (("epochs", "steps") if screened else ()) + ("credit", counted, "paid", "balance")
    rows = [head]
    for line in statement.lines:
        own = screened.get(line.period) if line.kind == "settle" else None
        steps = ("", "") if own is None else (_span(own.first, own.last), str(own.steps))
        rows.append(
            (
                str(line.seq),
                _WHAT[line.kind],
                *((line.stream,) if streams else ()),
                line.period,
                *(steps if screened else ()),
                _credit(line.credit, statement),
                _credit(line.counted, statement) if statement.marked else _share(line),
                money(line.paid + line.held, decimals=decimals),
                money(line.balance, decimals=decimals),
            )
        )
    explained = (
        "“Paid on” is the credit that rose above the highest score paid on before"
        if statement.marked
        else "“Share” is its part of what was divided"
    )
    words = (
        f"Credit is in units of the run's utility, money in {statement.currency}. {explained}; "
        "“paid” includes what went into escrow (and, with a minus, what left it), “balance” does "
        "not.",
    )
    return Section("Period by period", words, tuple(rows))


def _share(line: StatementLine) -> str:
    return f"{float(line.share):.4%}" if line.divided else ""


def _screened(name: str, screened: Mapping[str, Screening]) -> Section:
    if not screened:
        return Section(
            "What was screened out",
            ("There are no records of a run beside this ledger, so they can't tell.",),
        )
    steps = sum(own.steps for own in screened.values())
    admissible = sum(own.admissible for own in screened.values())
    dropped = sum(own.dropped for own in screened.values())
    removed = sum(own.removed for own in screened.values()) / max(steps, 1)
    words = [
        f"{name} had a sample in {_count(steps, 'step')} of the run that is paid. In {admissible} "
        f"of them its update was taken as it came; in {steps - admissible} a constraint stood "
        f"against it, and in {dropped} of these it was dropped as a whole. On average "
        f"{removed:.1%} of the update's length was removed."
    ]
    totals: Counter[str] = Counter()
    for own in screened.values():
        totals.update(own.conflicts)
    rows = [("value", "steps against it", "of its steps", "periods")]
    for value, count in totals.most_common():
        if count:
            where = [period for period, own in screened.items() if own.conflicts.get(value)]
            rows.append((value, str(count), f"{count / max(steps, 1):.1%}", _listed(where)))
    if len(rows) == 1:
        why = "No value stood against any of them."
        if admissible < steps:
            why += " A limit on the update's length or direction held it back."
        return Section("What was screened out", (*words, why))
    return Section("What was screened out", tuple(words), tuple(rows))


def _checking(
    statement: Statement,
    settled: Sequence[StatementLine],
    rule: str,
    checks: Sequence[tuple[str, str]],
    decimals: int,
) -> Section:
    rounded = (
        "everyone gets the whole units that its shares of all periods add up to and that were not "
        "paid before, and the fractions are kept for it"
        if statement.rounding == "running_floor"
        else "everyone gets the whole units of its share, and the units left go to the largest "
        "remainders, one each"
    )
    words = [
        f"Revenue is divided by the rule “{rule}” on the credits written in each entry, in "
        f"integers: {rounded}."
    ]
    if statement.rule["rule"] == "high_water_mark":
        words.append("A principal's share is what it was “paid on”, over the same of everyone.")
    example = next((line for line in reversed(settled) if line.share), None)
    if example is not None:
        whole = money(example.divided, statement.currency, decimals)
        given = money(example.paid + example.held, statement.currency, decimals)
        words.append(
            f"For example, entry {example.seq} divided {whole}; the share was "
            f"{float(example.share):.6%}, and the payout {given}."
        )
    return Section("How to check it", tuple(words), (("to see", "run"), *checks))


_WHAT: Final = {
    "claw_back": "clawed back",
    "join": "joined",
    "release": "released",
    "reverse": "taken back",
    "settle": "settled",
}


def _credit(quantised: int, statement: Statement) -> str:
    return f"{statement.units(quantised):+.6g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _listed(periods: Sequence[str], most: int = 8) -> str:
    more = f" and {len(periods) - most} more" if len(periods) > most else ""
    return ", ".join(periods[:most]) + more


def as_text(sections: Sequence[Section]) -> str:
    """Render a document as plain text, one paragraph a line."""
    lines: list[str] = []
    for section in sections:
        lines += [section.heading, "=" * len(section.heading), *section.paragraphs]
        if section.table:
            widths = [max(map(len, column)) for column in zip(*section.table, strict=True)]
            for row in section.table:
                cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
                lines.append("  " + "  ".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines)


def as_page(sections: Sequence[Section], picture: bytes | None) -> str:
    """Render a document as one HTML page that needs nothing beside it.

    Args:
        sections: The document.
        picture: A PNG that is shown in the first section, or None.
    """
    return render("statement.html", sections=sections, png=picture)


def checks(place: Sequence[str], head: str) -> list[tuple[str, str]]:
    """What can be checked of a ledger, and the command that does.

    Args:
        place: The arguments that name the ledger, such as ("heart", "--runs", "runs").
        head: Hash of the last entry.
    """
    where = shlex.join(place)
    return [
        ("the whole ledger is sound", f"vcca-jax ledger verify {where} --head {head}"),
        ("every payment follows", f"vcca-jax ledger replay {where}"),
        ("every posting", f"vcca-jax ledger export {where} --format csv"),
    ]
