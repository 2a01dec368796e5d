"""What a ledger says about one principal."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vcca_jax.ledger.chain import Entry


class StatementLine(NamedTuple):
    """One entry as one principal sees it.

    Attributes:
        seq: Number of the entry.
        kind: Its kind.
        period: The period it settles, or "".
        credit: Quantised credit booked.
        counted: Quantised credit that rose above the high-water mark and was paid on.
        paid: Minor units into the principal's account.
        held: Minor units into escrow for it.
        score: Its score afterwards.
        balance: Its balance afterwards.
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


class Statement(NamedTuple):
    """All entries that concern one principal.

    Attributes:
        principal: Its name.
        currency: Code of the currency whose minor units are counted.
        scale_bits: A credit of 1 is 2^scale_bits quantised units.
        lines: The entries in order.
    """

    principal: str
    currency: str
    scale_bits: int
    lines: tuple[StatementLine, ...]


def lines(principal: str, entries: Iterable[Entry]) -> Iterator[StatementLine]:
    """Pick the entries that concern a principal, with running totals.

    Args:
        principal: Its name.
        entries: All of a ledger's entries, in order.
    """
    settlements: dict[str, tuple[str, int, int]] = {}
    score = balance = 0
    for seq, kind, content, _ in entries:
        of = content.get("of", "")
        period = content.get("period", settlements.get(of, ("", 0, 0))[0])
        credit = counted = 0
        concerned = kind == "join" and content["principal"] == principal
        if kind == "settle":
            credit = int(content["credits"].get(principal, 0))
            counted = int(content["above_mark"].get(principal, 0))
            settlements[str(seq)] = (period, credit, counted)
            concerned = principal in content["credits"]
        elif kind == "reverse":
            _, credit, counted = settlements[of]
            credit, counted = -credit, -counted
        postings = content.get("postings", {})
        paid = int(postings.get(f"principal:{principal}", 0))
        held = int(postings.get(f"escrow:{principal}", 0))
        score += credit
        balance += paid
        if concerned or credit or counted or paid or held:
            yield StatementLine(seq, kind, period, credit, counted, paid, held, score, balance)
