"""Payouts that wait before they are a principal's: of which settlement, and until when."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple


class _Held(NamedTuple):
    clock: str | None
    due: int
    payouts: dict[str, int]


class Escrow:
    """What settlements have paid and nobody has yet.

    A payout waits until `lag` more settlements have been posted. They are counted in each stream of
    revenue by itself, since the streams of one period are settled one after the other.
    """

    def __init__(self, lag: int, *, apart: bool) -> None:
        """Begin with nothing held.

        Args:
            lag: Settlements for which a payout waits; 0 holds nothing.
            apart: Whether every stream has a count of its own, or all have one together.
        """
        self._lag = lag
        self._apart = apart
        self._settled: Counter[str | None] = Counter()
        self._held: dict[int, _Held] = {}

    def hold(self, seq: int, stream: str | None, payouts: Mapping[str, int]) -> None:
        """Count a settlement, and hold what it pays."""
        clock = stream if self._apart else None
        self._settled[clock] += 1
        if self._lag and (held := {name: paid for name, paid in payouts.items() if paid}):
            self._held[seq] = _Held(clock, self._settled[clock] + self._lag, held)

    def due(self) -> int | None:
        """Return the first settlement whose payouts have waited long enough, or None."""
        for seq, (clock, due, _) in self._held.items():
            if due <= self._settled[clock]:
                return seq
        return None

    def first(self) -> int | None:
        """Return the first settlement that has any payout here, or None."""
        return next(iter(self._held), None)

    def payouts(self, seq: int) -> Mapping[str, int]:
        """Return principal -> minor units, of a settlement's payouts that are here."""
        found = self._held.get(seq)
        return {} if found is None else found.payouts

    def take(self, seq: int, principal: str | None = None) -> None:
        """Take one payout of a settlement out, or all of them; nothing if there is none."""
        if principal is None:
            self._held.pop(seq, None)
            return
        payouts = self._held[seq].payouts
        del payouts[principal]
        if not payouts:
            del self._held[seq]
