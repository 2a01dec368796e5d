"""The contract of a share rule, and what it pays for."""

import copy
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from vcca_jax.ledger import Ledger
from vcca_jax.ledger.terms import rule_scale
from vcca_jax.settlement import exact
from vcca_jax.share_rules import RESERVE, ShareRule, Standings, check_rule

UNIT = 2**40
"""Quantised credit that stands for 1, at the ledger's usual scale."""


class RuleTraits(NamedTuple):
    """What a rule pays for, measured on the example, as parts of a period's revenue.

    Attributes:
        free_rider: what a party of zero credit, now and ever, is paid.
        harm: what a party of negative credit, now and ever, is paid.
        sybil_gain: what a party gains by taking part as two halves of equal credit.
        reserved: what goes to the reserve where everyone's credit is positive.
    """

    free_rider: Fraction
    harm: Fraction
    sybil_gain: Fraction
    reserved: Fraction


_PERIODS = (
    {"ana": 3 * UNIT, "ben": UNIT, "cem": 0, "dee": -2 * UNIT},
    {"ana": -4 * UNIT, "ben": 2 * UNIT, "cem": 0, "dee": -UNIT},
    {"ana": UNIT // 3, "ben": UNIT // 7, "cem": 0, "dee": -1},
    {"ana": -UNIT, "ben": -UNIT, "cem": 0, "dee": -UNIT},
)
_REVENUE = 100_003


def check_share_rule(rule: ShareRule) -> RuleTraits:
    """Check that revenue can be settled by a rule, to the last cent and again later.

        shares   finite, none negative, of parties in the credits or the standings, or the reserve
        purity   the same shares for the same arguments, whatever the order of the parties, and
                 the arguments left as they were
        spec     text that names the rule, fit to be written into a ledger; the package's names
                 are its own rules'
        ledger   four periods settled, profits and losses, every cent of them booked; the ledger
                 opens again under the rule and verifies

    Args:
        rule: the rule.

    Returns:
        What it pays for.

    Raises:
        ValueError: the law that is broken, what was seen, and the remedy.
    """
    _check_spec(rule)
    scores: dict[str, int] = dict.fromkeys(_PERIODS[0], 0)
    marks = dict(scores)
    for credits in _PERIODS:
        scores = {party: scores[party] + credits[party] for party in scores}
        divided(rule, credits, Standings(scores, marks))
        marks = {party: max(marks[party], scores[party]) for party in scores}
    _check_ledger(rule)
    first = divided(rule, _PERIODS[0], Standings(_PERIODS[0], {}))
    whole = {"ana": 2 * UNIT, "ben": 2 * UNIT, "cem": UNIT}
    halves = {"ana": UNIT, "zoe": UNIT, "ben": 2 * UNIT, "cem": UNIT}
    alone = divided(rule, whole, Standings(whole, {}))
    split = divided(rule, halves, Standings(halves, {}))
    return RuleTraits(
        free_rider=first.get("cem", Fraction(0)),
        harm=first.get("dee", Fraction(0)),
        sybil_gain=split.get("ana", Fraction(0))
        + split.get("zoe", Fraction(0))
        - alone.get("ana", Fraction(0)),
        reserved=alone.get(RESERVE, Fraction(0)),
    )


def divided(rule: ShareRule, credits: dict[str, int], standings: Standings) -> dict[str, Fraction]:
    """A period's shares as parts of 1, after they are checked; empty where nobody has any."""
    before = copy.deepcopy((credits, standings))
    told = rule.shares(credits, standings)
    if not isinstance(told, Mapping):
        raise ValueError(
            f"shares returned a {type(told).__name__}; return a mapping of parties to shares"
        )
    shares = dict(told)
    if (credits, standings) != before:
        raise ValueError("shares changed its arguments; a rule is a pure function: copy them first")
    for party, share in shares.items():
        exact(share, f"shares[{party!r}]")
    backwards = Standings(*(dict(reversed(each.items())) for each in _fields(standings)))
    if dict(rule.shares(dict(reversed(credits.items())), backwards)) != shares:
        raise ValueError(
            f"shares of {credits} change when the parties come in another order; break ties by the"
            " parties' names, and keep no state"
        )
    parts: dict[str, Fraction] = {}
    for party, share in shares.items():
        if party not in credits and party not in standings.scores and party != RESERVE:
            raise ValueError(
                f"shares name {party!r}, which is in neither credits nor standings; what nobody is"
                f" to have is the share of {RESERVE!r}"
            )
        parts[party] = Fraction(exact(share, f"shares[{party!r}]"))
        if parts[party] < 0:
            raise ValueError(
                f"shares[{party!r}] is {share}; no share may be negative: clip it at 0, and let"
                " standings carry the debt"
            )
    total = sum(parts.values(), Fraction(0))
    return {party: part / total for party, part in parts.items()} if total else {}


def _fields(standings: Standings) -> tuple[dict[str, int], ...]:
    return dict(standings.scores), dict(standings.marks), dict(standings.above)


def _check_spec(rule: ShareRule) -> None:
    def text(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and text(each) for key, each in value.items())
        return isinstance(value, str)

    spec = rule.spec
    if not isinstance(spec, dict) or not spec.get("rule") or not text(spec):
        raise ValueError(
            f"spec is {spec!r}; give a dict with the rule's name under 'rule', all of it text,"
            " since it is written into the ledger"
        )
    check_rule(rule)


def _check_ledger(rule: ShareRule) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        with Ledger.open(path, rule=rule, scale_bits=int(rule_scale(rule.spec) or 40)) as ledger:
            for period, credits in enumerate(_PERIODS):
                real = {party: Fraction(credit, UNIT) for party, credit in credits.items()}
                ledger.settle(period, real, _REVENUE)
            balances, reserve = ledger.balances(), ledger.reserve()
        paid = sum(balances.values()) + reserve
        if paid != len(_PERIODS) * _REVENUE:
            raise ValueError(f"{paid} of {len(_PERIODS) * _REVENUE} were booked under {rule.spec}")
        with Ledger.open(path, rule=rule, read_only=True) as again:
            again.verify()
            if again.balances() != balances:
                raise ValueError(
                    f"a ledger under {rule.spec} opens with other balances than it was closed with;"
                    " shares must depend on their arguments alone"
                )
