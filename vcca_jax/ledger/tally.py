"""What the parties have accumulated, as arrays: a thousand of them are credited at once."""

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import compress
from typing import Any, NamedTuple

import numpy as np

from vcca_jax.settlement import integer_array, roomy
from vcca_jax.share_rules import RESERVE


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

    def without(self, settlement: Mapping[str, Any], *, running: bool) -> "Tally":
        """Return the tally as if one settlement had not been.

        Args:
            settlement: The entry's content, its numbers as text.
            running: Whether entitlements are kept, and have to be lowered, too.
        """
        rises = {party: int(text) for party, text in settlement["above_mark"].items()}
        credits = {party: int(text) for party, text in settlement["credits"].items()}
        if settlement["carry_over"] is not None:
            credits[RESERVE] = int(settlement["carry_over"])
        tally = self.credited({party: -credit for party, credit in credits.items()})
        falls = Tally(tally.places, tally.marks, tally.marks, {}).credited(
            {party: -rise for party, rise in rises.items()}
        )
        entitlements = tally.entitlements.copy()
        if running and settlement["outcome"] == "paid":
            shares = settlement["shares"]
            shares = rises if shares is None else {p: Fraction(text) for p, text in shares.items()}
            total = sum(shares.values())
            amount = -sum(
                int(delta)
                for account, delta in settlement["postings"].items()
                if account.partition(":")[0] in ("revenue", "carried")
            )
            for party, share in shares.items():
                entitlements[party] -= Fraction(amount * share) / total
        return tally._replace(marks=falls.scores, entitlements=entitlements)

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
