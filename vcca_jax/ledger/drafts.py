"""What passes in and out of the books: a request, a draft of an entry, a receipt.

Entries hold numbers as text (`chain.canonical` writes them so); the small functions at the end read
them back.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import compress
from typing import Any, Final, NamedTuple

import numpy as np

from vcca_jax.ledger.errors import LedgerError
from vcca_jax.settlement import Number, integer_array, quantise, roomy

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
            and the revenue is carried to the next period; the credits still count.
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
            f"credits are a {type(credits).__name__}, and money goes to names; give a mapping, such"
            " as members.named(state.credits)"
        )
    if isinstance(period, bool) or not isinstance(period, int | str) or period == "":
        raise LedgerError(f"period is {period!r}; give a number or a name")
    if evidence is not None and not isinstance(evidence, str):
        raise LedgerError(f"evidence is {evidence!r}; give a digest as text")
    if stream is not None and (not isinstance(stream, str) or not stream):
        raise LedgerError(f"stream is {stream!r}; give the name of whose revenue it is")
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
        stream,
    )


class Tally(NamedTuple):
    """What the parties have accumulated in one stream of revenue.

    Attributes:
        places: party -> its place in the arrays, in their order; the reserve is a party.
        scores: [P] sums of quantised credits; see `settlement.integer_array`.
        marks: [P] the scores that were paid on.
        entitlements: party -> exact entitlement; kept under "running_floor" only.
    """

    places: dict[str, int]
    scores: np.ndarray
    marks: np.ndarray
    entitlements: dict[str, Fraction]

    def with_parties(self, names: Iterable[str]) -> "Tally":
        """Return the tally with places for all of `names`."""
        new = [name for name in names if name not in self.places]
        places = {name: place for place, name in enumerate([*self.places, *new])}
        zeros = np.zeros(len(new), np.int64)
        scores, marks = (np.concatenate([old, zeros]) for old in (self.scores, self.marks))
        return self._replace(places=places, scores=scores, marks=marks)

    def credited(self, credits: Mapping[str, int]) -> "Tally":
        """Return the tally with credits added to the scores."""
        where: slice | np.ndarray = slice(None)
        if tuple(credits) != tuple(self.places):
            if not credits.keys() <= self.places.keys():
                return self.with_parties(credits).credited(credits)
            where = np.fromiter(map(self.places.__getitem__, credits), np.intp, len(credits))
        numbers = integer_array(list(credits.values()))
        scores = self.scores.astype(np.result_type(self.scores, numbers))
        scores[where] += numbers
        return self._replace(scores=roomy(scores))

    def above(self) -> dict[str, int]:
        """Return party -> score less mark, of those whose score is above their mark."""
        gaps = self.scores - self.marks
        risen = gaps > 0
        return dict(zip(compress(self.places, risen.tolist()), gaps[risen].tolist(), strict=True))

    def paid_on(self, entitlements: dict[str, Fraction]) -> "Tally":
        """Return the tally after a division: no mark below its score."""
        marks = np.maximum(self.scores, self.marks)
        return self._replace(marks=marks, entitlements=entitlements)

    def column(self, numbers: np.ndarray) -> "Column":
        """Return one of the arrays as a mapping."""
        return Column(self.places, numbers)


class Column(Mapping[str, int]):
    """party -> integer, looked up in an array."""

    def __init__(self, places: Mapping[str, int], numbers: np.ndarray) -> None:
        self._places, self._numbers = places, numbers

    def __getitem__(self, party: str) -> int:
        return int(self._numbers[self._places[party]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


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


def receipt_of(draft: Draft, digest: bytes) -> Settlement:
    """Return the receipt of a settlement that has just been appended."""
    return _receipt(draft.content, draft.postings, draft.payouts, digest)


def receipt(content: Mapping[str, Any], digest: bytes) -> Settlement:
    """Return the receipt of a stored settlement."""
    postings = integers(content["postings"])
    payouts = {}
    for account, delta in postings.items():
        kind, _, name = account.partition(":")
        if kind in ("principal", "escrow"):
            payouts[name] = delta
    return _receipt(content, postings, payouts, digest)


def _receipt(
    content: Mapping[str, Any],
    postings: Mapping[str, int],
    payouts: Mapping[str, int],
    digest: bytes,
) -> Settlement:
    return Settlement(
        seq=int(content["seq"]),
        period=content["period"],
        outcome=content["outcome"],
        revenue=int(content["revenue"]),
        payouts={**dict.fromkeys(content["credits"], 0), **payouts},
        reserve=postings.get(RESERVE_ACCOUNT, 0),
        carried=max(0, postings.get(of_stream(CARRIED, content.get("stream")), 0)),
        hash=digest.hex(),
    )


def number_or_none(text: str | None) -> int | None:
    """Read an integer written as text, None as None."""
    return None if text is None else int(text)


def integers(texts: Mapping[str, str]) -> dict[str, int]:
    """Read a mapping of integers written as text."""
    return {key: int(text) for key, text in texts.items()}
