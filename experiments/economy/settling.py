"""Periods settled offline, under any share rule, as the ledger settles them."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from experiments.economy.config import Config
from vcca_jax.ledger import Ledger
from vcca_jax.settlement import allocate, quantise
from vcca_jax.share_rules import (
    RESERVE,
    ShareRule,
    Standings,
    accumulated,
    bounded,
    high_water_mark,
    per_period,
    power,
    softmax,
)


class Credits(NamedTuple):
    """What a run's settlements are asked with.

    Attributes:
        by_period: one {party: credit} a period, of the period's members.
        gains: the period's v(1) - v(0), one a period.
    """

    by_period: Sequence[Mapping[str, float]]
    gains: Sequence[float]


def share_rules(config: Config) -> dict[str, ShareRule]:
    """The rules compared, by the name that tables show."""
    return {
        "high water mark": high_water_mark(),
        "per period": per_period(),
        "accumulated": accumulated(),
        "softmax": softmax(Fraction(config.temperature)),
        "power 2": power(2),
        "capped": bounded(high_water_mark(), cap=Fraction(config.cap)),
        "floor and cap": bounded(
            high_water_mark(),
            floor=Fraction(config.floor),
            cap=Fraction(config.cap),
        ),
    }


def settle(rule: ShareRule, credits: Credits, revenue: int) -> list[dict[str, int]]:
    """Payouts {party: minor units} of every period; what nobody gets is the reserve's.

    A period without a gain pays nothing and carries its revenue to the next. The same amounts as
    ``Ledger.settle`` books, without the file.
    """
    scores: dict[str, int] = {}
    marks: dict[str, int] = {}
    carried, payouts = 0, []
    for period, (given, gain) in enumerate(zip(credits.by_period, credits.gains, strict=True), 1):
        quantised = quantise(given)
        for party, credit in quantised.items():
            scores[party] = scores.get(party, 0) + credit
        amount = revenue + carried
        if quantise([gain])[0] <= 0:
            carried = amount
            payouts.append({})
            continue
        carried = 0
        standings = Standings(scores, marks)
        shares = {p: s for p, s in rule.shares(quantised, standings).items() if s}
        if not shares:
            payouts.append({})
            continue
        parts = allocate(amount, shares.values(), ids=[f"{period}/{p}" for p in shares])
        marks |= {party: scores[party] for party in standings.above}
        paid = dict(zip(shares, parts, strict=True))
        paid.pop(RESERVE, None)
        payouts.append(paid)
    return payouts


def settle_in_ledger(path: str, rule: ShareRule, credits: Credits, revenue: int) -> dict[str, int]:
    """Total payouts by the ledger itself, replayed and verified."""
    with Ledger.open(path, rule=rule) as ledger:
        for period, (given, gain) in enumerate(zip(*credits, strict=True), 1):
            ledger.settle(period, dict(given), revenue, gain=gain)
        ledger.verify()
        return ledger.balances()


def totals(payouts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Each party's payouts of all periods together."""
    sums: dict[str, int] = {}
    for period in payouts:
        for party, paid in period.items():
            sums[party] = sums.get(party, 0) + paid
    return sums


def credits_of(
    credits: np.ndarray,
    gains: np.ndarray,
    active: np.ndarray,
    owners: Sequence[int],
    *,
    withheld: Mapping[int, int] | None = None,
) -> Credits:
    """One seed's credits [P, A] as the settlements' mappings, a party a principal.

    Args:
        credits: [P, A].
        gains: [P].
        active: [P, A] bool.
        owners: slot -> principal. With the slots themselves nobody looks behind identities; with
            the owners, credit is summed by principal first: the quotient.
        withheld: slot -> first period, counted from 0, from which the slot is not credited.
    """
    withheld = {} if withheld is None else withheld
    by_period = []
    for period, (row, members) in enumerate(zip(credits, active, strict=True)):
        sums: dict[str, float] = {}
        for slot in np.flatnonzero(members):
            if period >= withheld.get(int(slot), len(credits)):
                continue
            party = f"{owners[slot]:02}"
            sums[party] = sums.get(party, 0.0) + float(row[slot])
        by_period.append(sums)
    return Credits(by_period, [float(gain) for gain in gains])
