"""Revenue turned into payouts: credits made integers, amounts divided exactly.

Everything here is host Python on integers and fractions; no floating-point number survives
`quantise`, so a payment can be derived again, bit for bit, on any machine. The formulas are our
reading of arXiv:2606.28217, which asks that revenue be settled on accumulated credit and fixes no
share rule (`vcca_jax.share_rules` has several). The largest-remainder method is Hamilton's
(Balinski and Young, "Fair Representation", 1982).
"""

import hashlib
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final, SupportsFloat, overload

import numpy as np

LARGEST_AMOUNT: Final = 2**63 - 1
Number = int | float | Fraction | Decimal | SupportsFloat


def exact(value: Number, name: str) -> Fraction | int:
    """Return `value` as the integer or fraction it stands for, floats taken exactly.

    Args:
        value: An int, float, Fraction, Decimal, or a NumPy or JAX scalar.
        name: What to call the value in an error.

    Raises:
        ValueError: If the value is NaN, infinite or no number; True and False are none.
    """
    if is_truth(value):
        raise ValueError(f"{name} is {value}, which is true or false; give a number")
    if isinstance(value, int | Fraction):
        return value
    if isinstance(value, str | bytes):
        raise ValueError(f"{name} is {value!r}; give a number, not text")
    if isinstance(value, Decimal):
        number: float | Decimal = value
    else:
        try:
            return operator.index(value)  # type: ignore[arg-type]  # NumPy integers, exactly
        except TypeError:
            try:
                number = float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{name} is {value!r}; give a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; give a finite number")
    return Fraction(number)


def is_truth(value: object) -> bool:
    """Tell whether a value is True or False, of Python or of an array library.

    They count as 1 and 0 nearly everywhere, and as "True" where an integer is written as text.
    """
    return isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_


def quantised(value: Number, name: str, scale_bits: int) -> int:
    """Quantise one number as `quantise` does; `name` says what it is in an error."""
    return round(exact(value, name) * 2**scale_bits)


@overload
def quantise(credits: Mapping[str, Number], scale_bits: int = 40) -> dict[str, int]: ...
@overload
def quantise(credits: Iterable[Number], scale_bits: int = 40) -> list[int]: ...
def quantise(
    credits: Mapping[str, Number] | Iterable[Number], scale_bits: int = 40
) -> dict[str, int] | list[int]:
    """Turn credits into integers once: q = round_half_even(credit * 2^scale_bits).

    Args:
        credits: Credits in units of the utility, as a mapping or as a sequence.
        scale_bits: k, the number of binary digits kept after the point.

    Returns:
        Python integers in units of 2^-k, as a dict or a list like `credits`.

    Raises:
        ValueError: If a credit is NaN, infinite or no number, and the error names it; or if
            `scale_bits` is negative.

    Example:
        >>> quantise({"ana": 0.5, "ben": -0.25}, scale_bits=2)
        {'ana': 2, 'ben': -1}
    """
    if scale_bits < 0:
        raise ValueError(f"scale_bits is {scale_bits}; give a number of binary digits, 0 or more")
    if isinstance(credits, Mapping):
        numbers = _quantised(credits, list(credits.values()), scale_bits)
        return dict(zip(credits, numbers, strict=True))
    values = list(credits)
    return _quantised(range(len(values)), values, scale_bits)


def _quantised(names: Iterable[object], values: Sequence[Number], scale_bits: int) -> list[int]:
    if set(map(type, values)) == {float} and 0 <= scale_bits < 1024:
        with np.errstate(over="ignore"):
            # Exact, a change of exponent; a NaN or an infinite number fails the comparison.
            scaled = np.ldexp(np.array(values), scale_bits)
        if np.abs(scaled).max() < 2.0**63:
            return np.rint(scaled).astype(np.int64).tolist()
    return [
        quantised(value, f"credits[{name!r}]", scale_bits)
        for name, value in zip(names, values, strict=True)
    ]


def allocate(
    amount: int, shares: Iterable[Number], *, ids: Sequence[str | int] | None = None
) -> list[int]:
    """Divide an integer amount in proportion to shares, by largest remainder.

    Everyone gets floor(amount * s_i / sum s); the units left go, one each, to the largest
    remainders. A negative amount (a refund) is divided as its absolute value and negated.

    | guarantee | holds |
    | --- | --- |
    | the parts sum to `amount` | exactly |
    | a part differs from amount * s_i / sum s | by less than 1 |
    | a share of zero | gets zero |
    | no part has the sign opposite to `amount` | always |
    | allocate(-a) = -allocate(a) | always |
    | multiplying all shares by one number | changes nothing |
    | reordering the parties reorders the parts, and does nothing else | given `ids` |
    | a larger amount never gives anyone less | **no** (Alabama paradox) |

    The last line is why it must never be applied to a running total.

    Args:
        amount: Integer minor units, between -(2^63 - 1) and 2^63 - 1.
        shares: Non-negative numbers, any mix of int, float and Fraction; floats are taken exactly.
        ids: One distinct id a party. Equal remainders are ordered by the SHA-256 of the id;
            without ids, by position.

    Returns:
        One int a share, in order.

    Raises:
        ValueError: On an amount that is no integer or too large; on a negative, NaN or infinite
            share; on ids that repeat or do not match; on an amount with no positive share to take
            it (book that amount to the reserve).

    Example:
        >>> allocate(100, [2, 1, 0])
        [67, 33, 0]
        >>> allocate(-100, [2, 1, 0])
        [-67, -33, 0]
    """
    amount = _amount(amount)
    weights = integer_weights(shares)
    if ids is None:
        return largest_remainder(amount, weights, None)
    names = list(map(str, ids))
    _check_ids(names, len(weights))
    return largest_remainder(amount, weights, names.__getitem__)


def largest_remainder(
    amount: int, weights: Sequence[int], tie: Callable[[int], str] | None
) -> list[int]:
    """Divide as `allocate` does, whose checks have passed or can't fail.

    Args:
        amount: Integer within +-(2^63 - 1).
        weights: Non-negative integers.
        tie: Position -> id; called only where remainders are equal and units run out.

    Raises:
        ValueError: If there is an amount and no positive weight.
    """
    total = sum(weights)
    if amount == 0:
        return [0] * len(weights)
    if total == 0:
        raise ValueError(
            f"amount is {amount} but no share is positive; book the amount to the reserve"
        )
    sign, magnitude = (1, amount) if amount > 0 else (-1, -amount)
    # 64-bit integers where no product can leave them, Python's where one might.
    fits = max(magnitude * max(weights), total) <= LARGEST_AMOUNT
    products = np.array(weights, np.int64 if fits else object) * magnitude
    parts, remainders = products // total, products % total
    missing = magnitude - int(parts.sum())
    if missing:
        # The remainders sum to missing * total and each is below total, so more than `missing` of
        # them are positive: a zero share is never reached.
        threshold = np.partition(remainders, -missing)[-missing]
        above = remainders > threshold
        parts[above] += 1
        left = missing - int(above.sum())
        tied = np.flatnonzero(remainders == threshold).tolist()
        if tie is not None and left < len(tied):
            tied.sort(key=lambda i: hashlib.sha256(tie(i).encode()).digest())
        parts[tied[:left]] += 1
    return (sign * parts).tolist()


def _amount(amount: int) -> int:
    value = whole_number(amount)
    if value is None:
        raise ValueError(f"amount is {amount!r}; give an integer number of minor units")
    if abs(value) > LARGEST_AMOUNT:
        raise ValueError(
            f"amount is {value}; it must lie within +-(2^63 - 1): settle it in several parts"
        )
    return value


def whole_number(value: object) -> int | None:
    """Return a value as an integer if it is one, of any library, and None otherwise."""
    if is_truth(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def integer_array(numbers: Sequence[int]) -> np.ndarray:
    """Return integers as an array whose elements can be added and subtracted in pairs.

    Of 64 bits each where all are within +-2^62, else Python's own; the numbers are the same.
    """
    try:
        return roomy(np.array(numbers, np.int64))
    except OverflowError:
        return np.array(numbers, object)


def roomy(array: np.ndarray) -> np.ndarray:
    """Turn an array of 64-bit integers to Python's where one of them is beyond +-2^62."""
    if array.dtype == object or not array.size:
        return array
    fits = array.min() > -(2**62) and array.max() < 2**62
    return array if fits else array.astype(object)


def integer_weights(shares: Iterable[Number]) -> list[int]:
    """Return non-negative integers in exactly the proportions of `shares`."""
    shares = list(shares)
    if set(map(type, shares)) <= {int}:
        weights: list[int] = shares  # type: ignore[assignment]
    else:
        fractions = [exact(share, f"shares[{i}]") for i, share in enumerate(shares)]
        common = math.lcm(*(f.denominator for f in fractions))
        weights = [f.numerator * (common // f.denominator) for f in fractions]
    if weights and min(weights) < 0:
        i = next(i for i, weight in enumerate(weights) if weight < 0)
        raise ValueError(f"shares[{i}] is {shares[i]}; shares are never negative: clip it or carry")
    return weights


def _check_ids(ids: Sequence[str], count: int) -> None:
    if len(ids) != count:
        raise ValueError(f"ids has {len(ids)} entries for {count} shares; give one id a share")
    if len(set(ids)) != count:
        raise ValueError("ids repeat; sum the shares of one party before allocating")


def running_floor(
    amount: int, shares: Mapping[str, Number], entitlements: Mapping[str, Fraction]
) -> tuple[dict[str, int], dict[str, Fraction]]:
    """Pay every party the whole units of its exact running entitlement not paid before.

    e_p <- e_p + amount * s_p / sum s; the payout is floor(e_p after) - floor(e_p before).

    | guarantee | holds |
    | --- | --- |
    | no payout is negative, whatever came before | always |
    | everything paid to a party differs from its exact entitlement, over any number of periods | by less than 1 |
    | what is held back (the dust) | at least 0 and less than one unit a party |
    | a period's payouts sum to the period's amount | **no**, only up to the dust |

    The fractions gain digits with every period, so n periods cost O(n^2) in all: right for
    thousands of periods, not for millions.

    Args:
        amount: Non-negative integer minor units.
        shares: party -> non-negative share, at least one positive.
        entitlements: party -> e_p so far; a party not named has 0.

    Returns:
        The payouts of the parties with a positive share, and all entitlements after.

    Raises:
        ValueError: As `allocate`, and on a negative amount.
    """  # noqa: E501
    amount = _amount(amount)
    if amount < 0:
        raise ValueError(f"amount is {amount}; a running total is never lowered: reverse the entry")
    weights = integer_weights(shares.values())
    total = sum(weights)
    if total == 0:
        raise ValueError(
            f"amount is {amount} but no share is positive; book the amount to the reserve"
        )
    after = dict(entitlements)
    payouts = {}
    for party, weight in zip(shares, weights, strict=True):
        if weight:
            before = after.get(party, Fraction(0))
            after[party] = before + Fraction(amount * weight, total)
            payouts[party] = math.floor(after[party]) - math.floor(before)
    return payouts, after
