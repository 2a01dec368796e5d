"""What passes in and out of the books: a request, a draft of an entry, a receipt.

Entries hold numbers as text; the small functions at the end go from one to the other.
"""

import operator
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final, NamedTuple

from vcca_jax.ledger.errors import LedgerError
from vcca_jax.settlement import Number, quantise

REVENUE: Final = "revenue"
CARRIED: Final = "carried"
RESERVE_ACCOUNT: Final = "reserve"
DUST: Final = "dust"


class Settlement(NamedTuple):
    """The receipt of a settled period.

    Attributes:
        seq: Number of the entry.
        period: Name of the period.
        outcome: "paid"; "carried" (no gain: the revenue waits); "reserved" (nobody had a share: the
            reserve has it); or "unfunded" (there was no revenue to divide).
        revenue: The period's revenue, in minor units.
        payouts: principal -> minor units, of all principals that were credited or paid.
        reserve: Minor units that went to the reserve.
        carried: Minor units that wait for the next period.
        hash: The entry's hash, in hexadecimal.
    """

    seq: int
    period: str
    outcome: str
    revenue: int
    payouts: dict[str, int]
    reserve: int
    carried: int
    hash: str


class Request(NamedTuple):
    """What a settlement is asked with, everything already an integer or text."""

    period: str
    credits: Mapping[str, int]
    revenue: int
    gain: int | None
    carry_over: int | None
    evidence: str | None

    def content(self) -> dict[str, Any]:
        """Return the part of the entry that the asker determines."""
        return {
            "carry_over": text_or_none(self.carry_over),
            "credits": {name: str(credit) for name, credit in self.credits.items()},
            "evidence": self.evidence,
            "gain": text_or_none(self.gain),
            "period": self.period,
            "revenue": str(self.revenue),
        }


def request(
    scale_bits: int,
    period: int | str,
    credits: Mapping[str, Number],
    revenue: int,
    gain: Number | None,
    carry_over: Number | None,
    evidence: str | None,
) -> Request:
    """Quantise what `Ledger.settle` was asked.

    Raises:
        ValueError: If a number is NaN, infinite or no number; the error names it.
        LedgerError: If the period, the revenue or the evidence can't be.
    """
    if isinstance(period, bool) or not isinstance(period, int | str) or period == "":
        raise LedgerError(f"period is {period!r}; give a number or a name")
    if evidence is not None and not isinstance(evidence, str):
        raise LedgerError(f"evidence is {evidence!r}; give a digest as text")
    try:
        whole = operator.index(revenue)
    except TypeError:
        raise LedgerError(
            f"revenue is {revenue!r}; give an integer number of minor units"
        ) from None
    scores = {"gain": gain, "carry_over": carry_over}
    given = quantise({k: v for k, v in scores.items() if v is not None}, scale_bits)
    return Request(
        str(period),
        quantise(credits, scale_bits),
        whole,
        given.get("gain"),
        given.get("carry_over"),
        evidence,
    )


class Draft(NamedTuple):
    """An entry not yet posted: its content, and what it changes (None: leave as it is)."""

    content: dict[str, Any]
    postings: Mapping[str, int]
    scores: dict[str, int] | None = None
    marks: dict[str, int] | None = None
    entitlements: dict[str, Fraction] | None = None
    newcomers: tuple[str, ...] = ()
    held: Mapping[str, int] | None = None


def receipt(
    content: Mapping[str, Any], digest: bytes, postings: Mapping[str, int] | None = None
) -> Settlement:
    """Return the receipt of a settlement's entry; its postings are read if not given."""
    if postings is None:
        postings = integers(content["postings"])
    payouts = dict.fromkeys(content["credits"], 0)
    for account, delta in postings.items():
        kind, _, name = account.partition(":")
        if kind in ("principal", "escrow"):
            payouts[name] = delta
    return Settlement(
        seq=int(content["seq"]),
        period=content["period"],
        outcome=content["outcome"],
        revenue=int(content["revenue"]),
        payouts=payouts,
        reserve=postings.get(RESERVE_ACCOUNT, 0),
        carried=max(0, postings.get(CARRIED, 0)),
        hash=digest.hex(),
    )


def text_or_none(number: int | None) -> str | None:
    """Write a number as text, None as None."""
    return None if number is None else str(number)


def number_or_none(text: str | None) -> int | None:
    """Read an integer written as text, None as None."""
    return None if text is None else int(text)


def texts(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Write a mapping's numbers as text."""
    return {key: str(number) for key, number in numbers.items()}


def integers(texts: Mapping[str, str]) -> dict[str, int]:
    """Read a mapping of integers written as text."""
    return {key: int(text) for key, text in texts.items()}
