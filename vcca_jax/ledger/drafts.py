"""What passes in and out of the books: a request, a draft of an entry, a receipt.

Entries hold numbers as text (`chain.canonical` writes them so); the small functions at the end read
them back.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from vcca_jax.ledger import chain
from vcca_jax.ledger.errors import LedgerError, SettlementConflictError
from vcca_jax.ledger.tally import Tally
from vcca_jax.settlement import (
    Number,
    quantise,
    quantised,
    whole_number,
)
from vcca_jax.share_rules import RESERVE

REVENUE: Final = "revenue"
CARRIED: Final = "carried"
RESERVE_ACCOUNT: Final = "reserve"
DUST: Final = "dust"


def of_stream(account: str, stream: str | None) -> str:
    """Name the account that belongs to a stream of revenue; None is the one without a name."""
    return account if stream is None else f"{account}:{stream}"


class Period(NamedTuple):
    """What one settlement is asked with.

    Attributes:
        period: The period's name, unique in the ledger (in the stream, if there is one); 3 and "3"
            are the same.
        credits: principal -> credit of the period, signed, in units of the utility.
        revenue: The period's revenue in minor units, at least 0.
        gain: v(1) - v(0) of the period. If it is not positive after quantisation, nothing is paid
            and the revenue is carried to the next period; the credits still count. None does not
            ask: the revenue of a period in which nobody has a share goes to the reserve.
        carry_over: Credit of the optimizer's memory, v(0): the reserve's score. The reserve takes
            part in the division with it as any principal does with its own. None leaves the
            reserve out.
        evidence: Digest of whatever the credits were computed from.
        stream: Whose revenue it is, or None where there is one revenue only. Scores, marks, debts
            and carried revenue of one stream are nothing to another.
    """

    period: int | str
    credits: Mapping[str, Number]
    revenue: int
    gain: Number | None = None
    carry_over: Number | None = None
    evidence: str | None = None
    stream: str | None = None


class Settlement(NamedTuple):
    """The receipt of a settled period, the same whenever it is asked for.

    revenue + carried_in = sum of payouts + reserve + dust + carried, exactly.

    Attributes:
        seq: Number of the entry.
        period: Name of the period.
        outcome: "paid"; "carried" (no gain: the revenue waits); "reserved" (nobody had a share: the
            reserve has it); or "unfunded" (there was no revenue to divide).
        revenue: The period's revenue, in minor units.
        payouts: principal -> minor units, of all principals that were credited or had a share.
        reserve: Minor units that went to the reserve.
        carried: Minor units that wait for the next period, those of earlier periods included.
        carried_in: Of them, or of what was divided, minor units that came from earlier periods.
        dust: Minor units held back as fractions of units; negative where earlier fractions made
            up a unit that is paid now. Not 0 under "running_floor" only.
        hash: The entry's hash, in hexadecimal.
    """

    seq: int
    period: str
    outcome: str
    revenue: int
    payouts: dict[str, int]
    reserve: int
    carried: int
    carried_in: int
    dust: int
    hash: str


class Request(NamedTuple):
    """What a settlement is asked with, everything already an integer or text."""

    period: str
    credits: Mapping[str, int]
    revenue: int
    gain: int | None
    carry_over: int | None
    evidence: str | None
    stream: str | None = None

    @property
    def key(self) -> tuple[str | None, str]:
        """What no two standing settlements of a ledger have in common."""
        return self.stream, self.period

    def content(self) -> dict[str, Any]:
        """Return the part of the entry that the asker determines."""
        content = self._asdict()
        if self.stream is None:
            del content["stream"]
        return content


def request(scale_bits: int, asked: Period) -> Request:
    """Quantise what a settlement is asked with.

    Raises:
        ValueError: If a number is NaN, infinite or no number, which the error names, or the credits
            are no mapping.
        LedgerError: If the period, the revenue, the evidence or the stream can't be.
    """
    period, credits, revenue, gain, carry_over, evidence, stream = asked
    if not isinstance(credits, Mapping):
        raise ValueError(
            f"credits are of type {type(credits).__name__}, and money goes to names; give a"
            " mapping, such as members.named(earned.credits)"
        )
    number = whole_number(period)
    if number is None and (not isinstance(period, str) or not period):
        raise LedgerError(f"period is {period!r}; give a number or a name")
    if evidence is not None and not isinstance(evidence, str):
        raise LedgerError(f"evidence is {evidence!r}; give a digest as text")
    if stream is not None and (not isinstance(stream, str) or not stream):
        raise LedgerError(f"stream is {stream!r}; give the name of whose revenue it is")
    whole = whole_number(revenue)
    if whole is None:
        raise LedgerError(f"revenue is {revenue!r}; give an integer number of minor units")
    return Request(
        str(period if number is None else number),
        quantise(credits, scale_bits),
        whole,
        None if gain is None else quantised(gain, "gain", scale_bits),
        None if carry_over is None else quantised(carry_over, "carry_over", scale_bits),
        evidence,
        stream,
    )


class Draft(NamedTuple):
    """An entry not yet posted.

    Attributes:
        content: All that it will say, numbers still numbers.
        postings: account -> what it changes by.
        newcomers: Principals that it registers.
        stream: The stream that it concerns.
        tally: That stream's tally afterwards, or None to leave it as it is.
        payouts: principal -> minor units, of those that a settlement pays.
    """

    content: dict[str, Any]
    postings: Mapping[str, int]
    newcomers: tuple[str, ...] = ()
    stream: str | None = None
    tally: Tally | None = None
    payouts: Mapping[str, int] = {}


def receipt(content: Mapping[str, Any], carried: int, digest: bytes) -> Settlement:
    """Return the receipt of a settlement, just drafted or read back.

    Args:
        content: The entry's, its numbers as numbers or as text.
        carried: What its stream carried on from it; an entry tells only what it changed.
        digest: The entry's hash.
    """
    postings = integers(content["postings"])
    stream = content.get("stream")
    shares = content["shares"]
    named = [*content["credits"], *(content["above_mark"] if shares is None else shares)]
    payouts = {name: 0 for name in named if name != RESERVE}
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
        carried=carried,
        carried_in=carried - postings.get(of_stream(CARRIED, stream), 0),
        dust=postings.get(DUST, 0),
        hash=digest.hex(),
    )


def check_same(asked: Request, stored: Mapping[str, Any]) -> None:
    """Refuse a settlement that is asked otherwise than it was settled.

    Raises:
        SettlementConflictError: Naming the first part that differs.
    """
    for name, value in chain.parse(chain.canonical(asked.content())).items():
        if value != stored[name]:
            other = {"credits": "other credits", "evidence": "other evidence"}.get(
                name, f"another {name}"
            )
            raise SettlementConflictError(
                f"period {asked.period!r} is settled already, with {other} (entry "
                f"{stored['seq']}); settle under a new period, or reverse({stored['seq']}, reason) "
                "first"
            )


def checked_reason(reason: str) -> str:
    """Return what is given as a reason if it says anything.

    Raises:
        LedgerError: If it is no text, or blank.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise LedgerError(f"reason is {reason!r}; say in words why")
    return reason


def number_or_none(text: str | None) -> int | None:
    """Read an integer written as text, None as None."""
    return None if text is None else int(text)


def integers(texts: Mapping[str, str]) -> dict[str, int]:
    """Read a mapping of integers written as text."""
    return {key: int(text) for key, text in texts.items()}
