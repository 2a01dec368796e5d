"""The rules that say who has what share of a period's revenue.

A rule is a pure function of the period's quantised credits and of what everyone has accumulated;
each docstring holds the table of what the rule guarantees and what it does not. The formulas are
our reading of arXiv:2606.28217, which asks that revenue be settled on accumulated credit and fixes
no rule. Everything is host Python on integers, fractions and correctly rounded decimals.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any, Final, NamedTuple

from vcca_jax.settlement import Number, exact

RESERVE: Final = "@reserve"
"""The party that stands for the reserve in credits and shares; no principal may bear this name."""

# Every operation in this context is correctly rounded, so exp and ln give the same digits on every
# machine, which the C library's do not; replay depends on it.
_DIGITS = Context(prec=40)
_UNIT: Final = 10**30

LONGEST: Final = 4000
"""Digits that a share may have, in its numerator and its denominator; Python refuses to write, and
to read, integers of more than 4300."""


@dataclass(frozen=True)
class Standings:
    """What all parties have accumulated, in quantised credit.

    Attributes:
        scores: party -> B, the sum of its credits, the present period's included.
        marks: party -> H, its high-water mark: the score it has been paid on so far.
        above: party -> B - H, of the parties whose score is above their mark; follows from the
            two others, and is computed if not given.
    """

    scores: Mapping[str, int]
    marks: Mapping[str, int]
    above: Mapping[str, int] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.above is None:
            mark = self.marks.get
            above = {p: b - h for p, b in self.scores.items() if b > (h := mark(p, 0))}
            object.__setattr__(self, "above", above)


class ShareRule(NamedTuple):
    """A rule that says in what proportions a period's revenue is divided.

    Attributes:
        spec: The rule's name under "rule" and its options, text all of it (or the spec of another
            rule); it is written into the ledger, so that the ledger can be replayed.
        shares: Pure function (credits, standings) -> {party: share}. `credits` are the period's
            quantised credits; shares are non-negative numbers, and a party not named has none. The
            share of the party `RESERVE` goes to the reserve. All zero: so does everything.

    A rule outside this package is one line, under a name that none in it has:
    `ShareRule({"rule": "equal"}, lambda credits, standings: {p: 1 for p in credits})`.
    """

    spec: Mapping[str, Any]
    shares: Callable[[Mapping[str, int], Standings], Mapping[str, Number]]


def high_water_mark() -> ShareRule:
    """Pay on what a party's score rises above its highest paid score; the default rule.

    B <- B + credit; share = max(0, B - H); H <- max(H, B) whenever revenue is divided (a period
    whose revenue is nothing or is carried leaves H alone, so its credit is paid on later).

    | guarantee | holds |
    | --- | --- |
    | the shares of a party over all periods sum to | its highest score at a division |
    | +5 and -5 in turns, for ever | 5, once |
    | debt is carried forward, nothing is taken back | always |
    | never above zero in total credit: never paid | always |
    | zero credit, no earlier unpaid credit: no share | always |
    | splitting an agent in parts proportional to its credit | changes nothing |
    | splitting harm from use (one part takes all that is negative) | **gains**: quotient by principal |
    """  # noqa: E501

    def shares(credits: Mapping[str, int], standings: Standings) -> Mapping[str, Number]:
        return standings.above

    return ShareRule({"rule": "high_water_mark"}, shares)


def per_period() -> ShareRule:
    """Pay on the positive part of the period's own credit: share = max(0, credit).

    | guarantee | holds |
    | --- | --- |
    | zero or negative credit in a period: no share of it | always |
    | a period's shares depend on that period alone | always |
    | splitting an agent in parts proportional to its credit | changes nothing |
    | +5 and -5 in turns, for ever | **5 every other period**: harm costs nothing |
    """

    def shares(credits: Mapping[str, int], standings: Standings) -> Mapping[str, Number]:
        return {party: credit for party, credit in credits.items() if credit > 0}

    return ShareRule({"rule": "per_period"}, shares)


def accumulated() -> ShareRule:
    """Divide each period's revenue by all credit so far: share = max(0, B), B the party's score.

    What a party taught stays in the model, and goes on being paid. Few periods are decided by
    noise, since a score is a sum over all periods.

    | guarantee | holds |
    | --- | --- |
    | a score of zero or below: no share | always |
    | a party's share does not depend on when it earned its credit | always |
    | who has left, or teaches nothing more, is paid | **yes**, from its score |
    | who joins late | shares by what it has taught since |
    | splitting an agent in parts proportional to its credit | changes nothing |
    | splitting harm from use (one part takes all that is negative) | **gains**: quotient by principal |
    """  # noqa: E501

    def shares(credits: Mapping[str, int], standings: Standings) -> Mapping[str, Number]:
        return {party: score for party, score in standings.scores.items() if score > 0}

    return ShareRule({"rule": "accumulated"}, shares)


def softmax(temperature: Number = 1, *, scale_bits: int = 40) -> ShareRule:
    """Share by the exponential of the period's credit: share proportional to exp(credit / T).

    | guarantee | holds |
    | --- | --- |
    | more credit, no smaller share | always |
    | the same credit added to everyone | changes nothing |
    | two parties' shares have the ratio exp(difference / T) | to 30 digits of the largest |
    | zero or negative credit: no share | **no**: a free rider is paid |
    | splitting an agent in parts | **gains** |

    Args:
        temperature: T > 0, in units of the utility.
        scale_bits: The ledger's, which says what one quantised unit is worth; a ledger of another
            scale refuses the rule.

    Raises:
        ValueError: If the temperature is not a positive number.
    """
    t = Fraction(exact(temperature, "temperature"))
    if t <= 0:
        raise ValueError(f"temperature is {temperature}; give a positive number")
    one = t * 2**scale_bits  # quantised credit that weighs a factor of e

    def shares(credits: Mapping[str, int], standings: Standings) -> Mapping[str, Number]:
        most = max(credits.values(), default=0)
        return {p: _scaled_exp(_decimal((c - most) / one)) for p, c in credits.items()}

    return ShareRule(
        {"rule": "softmax", "temperature": str(t), "scale_bits": str(scale_bits)}, shares
    )


def power(exponent: Number, of: ShareRule | None = None) -> ShareRule:
    """Share by a power of another rule's shares: share = s^a.

    | guarantee | holds |
    | --- | --- |
    | no share under the other rule: none here | always |
    | a larger share there: no smaller share here | always |
    | two parties' shares have the ratio (s / s')^a | exactly for integer a, else to 30 digits |
    | a = 1 is the other rule, a = 0 gives equal shares to all that have any | always |
    | splitting an agent in parts | neutral at a = 1, loses for a > 1, **gains** for a < 1 |

    Args:
        exponent: a >= 0; below 1 it evens out, above 1 it sharpens.
        of: The other rule; `high_water_mark()` if not given.

    Raises:
        ValueError: If the exponent is negative or no finite number. On settling, if it is so large
            that a share has too many digits to be written down (see `LONGEST`).
    """
    of = high_water_mark() if of is None else of
    check_rule(of)
    inner = of.shares
    a = Fraction(exact(exponent, "exponent"))
    if a < 0:
        raise ValueError(f"exponent is {exponent}; give a number of at least 0")

    def shares(credits: Mapping[str, int], standings: Standings) -> Mapping[str, Number]:
        given = _positive(inner(credits, standings))
        if a.denominator == 1:
            return {p: s ** int(a) for p, s in given.items()}
        most = max(given.values(), default=Fraction(1))
        logs = {p: _DIGITS.ln(_decimal(s / most)) for p, s in given.items()}
        return {p: _scaled_exp(_DIGITS.multiply(_decimal(a), log)) for p, log in logs.items()}

    return ShareRule({"rule": "power", "exponent": str(a), "of": of.spec}, shares)


def bounded(of: ShareRule, *, floor: Number = 0, cap: Number = 1) -> ShareRule:
    """Keep every principal's share of a period's revenue between a floor and a cap.

    With s the other rule's shares, share_p = clip(x * s_p, floor, cap), x such that they sum to 1;
    what all caps together leave goes to the reserve, which has neither floor nor cap. Where the
    other rule gives nobody anything, only the floors are paid and the rest goes to the reserve.

    | guarantee | holds |
    | --- | --- |
    | floor <= share <= cap for every principal named in the period's credits | always |
    | no share above the cap for anyone else | always |
    | shares and the reserve's part sum to 1 | exactly |
    | a larger share under the other rule: no smaller share here | among those named |
    | principals strictly between the bounds keep the other rule's proportions | always |
    | zero credit: no share | only with floor 0 |
    | splitting an agent in parts | **gains** wherever a floor or a cap binds |

    Args:
        of: The other rule.
        floor: Least share of the revenue, for each principal named in the period's credits.
        cap: Greatest share of the revenue, for each principal.

    Raises:
        ValueError: Unless 0 <= floor <= cap <= 1; on settling, if the floors exceed the whole.

    Example:
        >>> rule = bounded(per_period(), cap=Fraction(1, 2))
        >>> credits = {"ana": 3, "ben": 1}
        >>> rule.shares(credits, Standings(credits, {}))
        {'ana': Fraction(1, 2), 'ben': Fraction(1, 2)}
    """
    check_rule(of)
    inner = of.shares
    low, high = Fraction(exact(floor, "floor")), Fraction(exact(cap, "cap"))
    if not 0 <= low <= high <= 1:
        raise ValueError(f"floor is {floor} and cap is {cap}; they need 0 <= floor <= cap <= 1")

    def shares(credits: Mapping[str, int], standings: Standings) -> Mapping[str, Number]:
        given = _positive(inner(credits, standings))
        present = {party: low for party in credits if party != RESERVE}
        if sum(present.values()) > 1:
            raise ValueError(
                f"floor is {low} for each of {len(present)} principals, which exceeds the whole; "
                f"give a floor of at most 1/{len(present)}"
            )
        bounds = {p: (present.get(p, Fraction(0)), high) for p in {**present, **given}}
        if RESERVE in bounds:
            bounds[RESERVE] = (Fraction(0), Fraction(1))
        filled = _fill(given, bounds)
        left = 1 - sum(filled.values(), Fraction(0))
        return {**filled, RESERVE: filled.get(RESERVE, Fraction(0)) + left} if left else filled

    spec = {"rule": "bounded", "floor": str(low), "cap": str(high), "of": of.spec}
    return ShareRule(spec, shares)


def _fill(
    given: Mapping[str, Fraction], bounds: Mapping[str, tuple[Fraction, Fraction]]
) -> dict[str, Fraction]:
    """Return clip(x * given, *bounds) with x such that the sum is 1, or all at their limits.

    Freezing, round by round, whichever of the two bounds is overstepped by more in total is the
    way flexible boxes share a line; it ends at the one solution, as x then only moves one way.
    """
    free = {p for p in bounds if given.get(p)}
    result = {p: low for p, (low, _) in bounds.items()}
    while free:
        left = 1 - sum((result[p] for p in bounds if p not in free), Fraction(0))
        weight = sum((given[p] for p in free), Fraction(0))
        wanted = {p: left * given[p] / weight for p in free}
        clipped = {p: min(max(w, bounds[p][0]), bounds[p][1]) for p, w in wanted.items()}
        result.update(clipped)
        over = sum((clipped[p] - wanted[p] for p in free), Fraction(0))
        if over > 0:
            free = {p for p in free if clipped[p] <= wanted[p]}
        elif over < 0:
            free = {p for p in free if clipped[p] >= wanted[p]}
        else:
            break
    return result


def _positive(shares: Mapping[str, Number]) -> dict[str, Fraction]:
    fractions = {p: Fraction(exact(share, f"shares[{p!r}]")) for p, share in shares.items()}
    return {p: f for p, f in fractions.items() if f > 0}


def _decimal(value: Fraction) -> Decimal:
    return _DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))


def _scaled_exp(value: Decimal) -> int:
    return int(_DIGITS.multiply(_DIGITS.exp(value), Decimal(_UNIT)))


_NAMES: Final = frozenset(
    {"high_water_mark", "per_period", "accumulated", "softmax", "power", "bounded"}
)


def check_rule(rule: object) -> None:
    """Refuse what is no share rule, or one that goes by the name of another.

    Whoever replays a ledger builds the package's rules from their names, so a rule of one's own
    under such a name would be replayed as what it is not.

    Raises:
        ValueError: Naming the rule and the remedy.
    """
    if not isinstance(rule, ShareRule):
        raise ValueError(
            f"rule is {rule!r}; give a ShareRule, such as share_rules.per_period() or one of your"
            " own"
        )
    name = rule.spec.get("rule") if isinstance(rule.spec, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"the rule's spec is {rule.spec!r}; give a mapping with its name at 'rule'"
        )
    if name in _NAMES and getattr(rule.shares, "__module__", None) != __name__:
        raise ValueError(
            f"the rule's name is {name!r}, which is a rule of this package, and its shares are not;"
            " give yours another name"
        )


def rule_from_spec(spec: Mapping[str, Any]) -> ShareRule:
    """Build one of this module's rules again from its spec.

    Raises:
        ValueError: If the spec names a rule that is not of this module (pass the rule itself).
    """
    name = spec.get("rule")
    if name == "high_water_mark":
        return high_water_mark()
    if name == "per_period":
        return per_period()
    if name == "accumulated":
        return accumulated()
    if name == "softmax":
        return softmax(Fraction(spec["temperature"]), scale_bits=int(spec["scale_bits"]))
    if name == "power":
        return power(Fraction(spec["exponent"]), rule_from_spec(spec["of"]))
    if name == "bounded":
        of = rule_from_spec(spec["of"])
        return bounded(of, floor=Fraction(spec["floor"]), cap=Fraction(spec["cap"]))
    raise ValueError(
        f"rule is {name!r}, which this package does not define; pass rule=... to Ledger.open"
        " in Python: the command line knows the package's own rules only"
    )
