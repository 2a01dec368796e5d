"""Constraints: what a principal allows updates to do.

The constraints speak of an update u, the direction that is stepped against: a step of -eta u moves
a value loss V by -eta <u, grad V> to first order.

    protect, forbid, preserve   half-spaces, and the subspace where two of them meet
    max_norm                    a ball
    within_angle                a second-order cone around a value's own direction
    trust_region                an ellipsoid: how far the named values may move altogether
    freeze                      the subspace that leaves a part of the model as it is

A profile is any sequence of them; an update is admissible if it meets them all. A constraint of
one's own is a function that returns some of these, or a value loss that nobody has written yet.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

Predicate = Callable[[str], bool]
"""Of a leaf's path, such as ``"body/0/kernel"``."""


class HalfSpace(NamedTuple):
    """sign <u, grad V> >= margin; see ``protect``, ``forbid`` and ``preserve``.

    Attributes:
        kind: "protect" (sign +1), "forbid" (sign -1) or "preserve" (both).
        value: name of the value loss V.
        margin: in units of <u, grad V>: change of V per unit of learning rate.
        price: what a unit of violation costs; infinite: it is not for sale.
    """

    kind: Literal["protect", "forbid", "preserve"]
    value: str
    margin: float
    price: float = math.inf


class MaxNorm(NamedTuple):
    """|u| <= limit."""

    limit: float


class AngleCone(NamedTuple):
    """u is within ``degrees`` of grad V."""

    value: str
    degrees: float


class TrustRegion(NamedTuple):
    """The named values' first-order changes have a root of summed squares of at most ``radius``."""

    values: tuple[str, ...]
    radius: float


class Freeze(NamedTuple):
    """u is zero on the leaves whose path a subtree's name covers, or a predicate accepts."""

    part: str | Predicate


Constraint = HalfSpace | MaxNorm | AngleCone | TrustRegion | Freeze


def protect(name: str, margin: float = 0.0, *, price: float = math.inf) -> HalfSpace:
    """V must not increase: <u, grad V> >= margin.

    A step of -eta u moves V by -eta <u, grad V> to first order, so with a positive margin V must
    fall by at least eta margin, and with a negative one it may rise by at most -eta margin.

    Args:
        name: of the value loss V.
        margin: finite, in units of <u, grad V>. Profiles hold numbers in single precision.
        price: makes the constraint negotiable. Projection then minimises 1/2 |u - g|^2 + price xi
            with <u, grad V> >= margin - xi, so the multiplier, which is the value's price, never
            exceeds this one: the constraint is kept exactly while keeping it costs less.

    Raises:
        ValueError: a margin that is not finite, or a price that is not above zero.

    Example:
        >>> protect("women", margin=-0.01)
        HalfSpace(kind='protect', value='women', margin=-0.01, price=inf)
    """
    return _half_space("protect", name, margin, price)


def forbid(name: str, margin: float = 0.0, *, price: float = math.inf) -> HalfSpace:
    """The model must not get better at V: -<u, grad V> >= margin. See ``protect``."""
    return _half_space("forbid", name, margin, price)


def preserve(name: str, rate: float = 0.0, *, price: float = math.inf) -> HalfSpace:
    """V must stay as it is: <u, grad V> = rate, a hyperplane; it takes two slots of a profile.

    With a rate other than zero V must fall by exactly eta rate. See ``protect`` for the price.
    """
    return _half_space("preserve", name, rate, price)


def max_norm(limit: float) -> MaxNorm:
    """|u| <= limit, in the unit of a gradient (and in the screen's metric, if it has one).

    Raises:
        ValueError: a limit that is not above zero and finite.
    """
    return MaxNorm(_positive("limit", limit))


def within_angle(name: str, degrees: float) -> AngleCone:
    """u stays within an angle of grad V: <u, grad V> >= cos(degrees) |u| |grad V|.

    A direction of one's own is the gradient of ``linear_value(direction)``. u = 0 is within any
    angle, so this never makes a profile unsatisfiable by itself.

    Raises:
        ValueError: an angle outside (0, 90); 90 degrees is ``protect(name)``, more is no cone.
    """
    if not 0 < degrees < 90:
        raise ValueError(
            f"degrees={degrees} must be above 0 and below 90; protect({name!r}) is 90, and a wider"
            " one would not be convex"
        )
    return AngleCone(name, float(degrees))


def trust_region(names: Sequence[str], radius: float) -> TrustRegion:
    """sqrt(sum_m <u, grad V_m>^2) <= radius over the named values.

    An ellipsoid in the metric N^T N of the named values' gradients, so a step of -eta u moves them
    by at most eta radius altogether. With the model's outputs on reference rows as value losses it
    bounds what the model says; a bound in the optimizer's metric is ``max_norm`` under a screen
    that has that metric.

    Raises:
        ValueError: no name, a name twice, or a radius that is not above zero and finite.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names={names} must be at least one value, each once")
    return TrustRegion(names, _positive("radius", radius))


def freeze(part: str | Predicate) -> Freeze:
    """u is zero on a part of the parameters: a subtree's path, or a predicate of a leaf's path.

    Paths are written with slashes: ``freeze("body")`` covers ``"body"`` and all below it. To write
    a profile as TOML the part must be a path.
    """
    return Freeze(part)


def check_constraint(constraint: Constraint) -> None:
    """Refuse a constraint written without its maker that the maker would refuse.

    Raises:
        ValueError: as the maker says.
    """
    if isinstance(constraint, HalfSpace):
        if constraint.kind not in ("protect", "forbid", "preserve"):
            raise ValueError(
                f"kind={constraint.kind!r} is unknown; use protect(), forbid() or preserve()"
            )
        _half_space(*constraint)
    elif isinstance(constraint, MaxNorm):
        max_norm(*constraint)
    elif isinstance(constraint, AngleCone):
        within_angle(*constraint)
    elif isinstance(constraint, TrustRegion):
        trust_region(*constraint)


def _half_space(
    kind: Literal["protect", "forbid", "preserve"], name: str, margin: float, price: float
) -> HalfSpace:
    if not math.isfinite(_single(margin)):
        raise ValueError(f"margin={margin} must be a finite number")
    if not _single(price) > 0 or (math.isinf(_single(price)) and not math.isinf(price)):
        raise ValueError(f"price={price} must be above zero; infinite is not for sale")
    return HalfSpace(kind, name, float(margin), float(price))


def _positive(name: str, number: float) -> float:
    if not (math.isfinite(_single(number)) and _single(number) > 0):
        raise ValueError(f"{name}={number} must be a finite number above zero")
    return float(number)


def _single(number: float) -> float:
    """The number as profiles hold it, in single precision: there 1e300 is infinite, 1e-60 zero."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(number))
