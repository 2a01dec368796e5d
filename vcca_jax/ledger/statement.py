"""What a ledger says about one principal."""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from vcca_jax.ledger.chain import Entry
from vcca_jax.ledger.drafts import CARRIED, REVENUE, of_stream
from vcca_jax.ledger.terms import Terms, innermost


class StatementLine(NamedTuple):
    """One entry as one principal sees it.

    Attributes:
        seq: Number of the entry.
        kind: Its kind.
        period: The period it settles, or "".
        credit: Quantised credit booked; `Statement.units` says what it is in the utility's unit.
        counted: Quantised credit that rose above the high-water mark and was paid on.
        paid: Minor units into the principal's account.
        held: Minor units into escrow for it.
        score: Its score afterwards.
        balance: Its balance afterwards.
        outcome: Of a settlement: "paid", "carried", "reserved" or "unfunded"; else "".
        divided: Of a settlement: minor units divided among all.
        share: Of a settlement: the principal's part of what was divided, exactly.
        stream: Whose revenue it was, where revenue comes in streams, or "".
        of: Of an entry about a settlement, such as a reversal: that settlement's number; else None.
    """

    seq: int
    kind: str
    period: str
    credit: int
    counted: int
    paid: int
    held: int
    score: int
    balance: int
    outcome: str = ""
    divided: int = 0
    share: Fraction = Fraction(0)
    stream: str = ""
    of: int | None = None


class Statement(NamedTuple):
    """All entries that concern one principal.

    Attributes:
        principal: Its name.
        currency: Code of the currency whose minor units are counted.
        scale_bits: A credit of 1 is 2^scale_bits quantised units.
        lines: The entries in order.
        rule: Spec of the ledger's share rule.
        rounding: How the ledger rounds; see `Terms`.
        head: Hash of the last entry there was, in hexadecimal.
    """

    principal: str
    currency: str
    scale_bits: int
    lines: tuple[StatementLine, ...]
    rule: Mapping[str, Any] = {"rule": "high_water_mark"}
    rounding: str = "largest_remainder"
    head: str = ""

    def units(self, quantised: int) -> float:
        """Return a line's credit, or any sum of such numbers, in the utility's unit."""
        return quantised / 2**self.scale_bits

    @property
    def base_rule(self) -> str:
        """Name of the rule that looks at credit, be it bounded or raised to a power by others."""
        return innermost(self.rule)["rule"]

    @property
    def marked(self) -> bool:
        """Whether that rule pays on high-water marks; others know no debt."""
        return self.base_rule == "high_water_mark"

    @property
    def paid(self) -> int:
        """Minor units that are the principal's by now."""
        return sum(line.paid for line in self.lines)

    @property
    def held(self) -> int:
        """Minor units that wait in escrow for it."""
        return sum(line.held for line in self.lines)

    def debts(self) -> dict[str, int]:
        """Return stream -> quantised credit to be made up for first; none under most rules."""
        if not self.marked:
            return {}
        gaps = {stream: mark - score for stream, (score, mark) in self.standings().items()}
        return {stream: gap for stream, gap in gaps.items() if gap > 0}

    def standings(self) -> dict[str, tuple[int, int]]:
        """Return stream -> (score, mark): all credit, and the credit that has been paid on.

        Under a rule that pays on high-water marks (see `marked`) a score below the mark is a
        debt, which new credit has to make up for first; a score above it is credit that has not
        been paid on yet. Other rules don't look at marks.
        """
        found: dict[str, tuple[int, int]] = {}
        for line in self.lines:
            if line.kind not in ("settle", "reverse"):
                continue
            score, mark = found.get(line.stream, (0, 0))
            found[line.stream] = score + line.credit, mark + line.counted
        return found


def statement(principal: str, terms: Terms, entries: Iterable[Entry]) -> Statement:
    """Return what a ledger says about one principal.

    Args:
        principal: Its name.
        terms: The ledger's.
        entries: All of its entries, in order.
    """
    head = ""

    def read() -> Iterator[Entry]:
        nonlocal head
        for entry in entries:
            head = entry.hash
            yield entry

    found = tuple(lines(principal, read()))
    return Statement(
        principal, terms.currency, terms.scale_bits, found, terms.rule, terms.rounding, head
    )


def lines(principal: str, entries: Iterable[Entry]) -> Iterator[StatementLine]:
    """Pick the entries that concern a principal, with running totals.

    Args:
        principal: Its name.
        entries: All of a ledger's entries, in order.
    """
    settlements: dict[str | None, tuple[str, str, int, int]] = {}
    score = balance = 0
    for seq, kind, content, _ in entries:
        of = content.get("of")
        period, stream, credit, counted = settlements.get(of, ("", "", 0, 0))
        concerned = kind == "join" and content["principal"] == principal
        outcome, divided, share = "", 0, Fraction(0)
        if kind == "settle":
            period, stream = content["period"], content.get("stream", "")
            credit = int(content["credits"].get(principal, 0))
            counted = int(content["above_mark"].get(principal, 0))
            settlements[str(seq)] = period, stream, credit, counted
            outcome = content["outcome"]
            divided, share = _division(principal, content)
            concerned = principal in content["credits"]
        elif kind == "reverse":
            credit, counted = -credit, -counted
        else:
            credit = counted = 0
        postings = content.get("postings", {})
        paid = int(postings.get(f"principal:{principal}", 0))
        held = int(postings.get(f"escrow:{principal}", 0))
        score += credit
        balance += paid
        if concerned or credit or counted or paid or held:
            yield StatementLine(
                seq,
                kind,
                period,
                credit,
                counted,
                paid,
                held,
                score,
                balance,
                outcome,
                divided,
                share,
                stream,
                None if of is None else int(of),
            )


def _division(principal: str, content: dict[str, Any]) -> tuple[int, Fraction]:
    """Return what a settlement divided among all, and the principal's part of it."""
    if content["outcome"] != "paid":
        return 0, Fraction(0)
    sources = (of_stream(account, content.get("stream")) for account in (REVENUE, CARRIED))
    divided = -sum(int(content["postings"].get(account, 0)) for account in sources)
    shares = content["shares"] or content["above_mark"]
    whole = sum(map(Fraction, shares.values()))
    return divided, Fraction(shares.get(principal, 0)) / whole
