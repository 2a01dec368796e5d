"""Contradictions: constraints that exclude each other whatever the gradients are.

With p = <u, grad V>, the rate at which a step lowers V, a half-space asks p >= margin, p <= -margin
or both, an angle p > 0 of every u but 0, and a trust region sum_m p_m^2 <= radius^2. Where these
leave no p, or none but that of u = 0, it can be said before anything is trained. Values are taken
to be independent of each other; what only the gradients' own geometry excludes (a margin beyond a
norm, two angles without a common direction, a margin on a frozen part) a screen reports as it
happens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from vcca_jax.constraints import AngleCone, Constraint, HalfSpace, TrustRegion

Consequence = Literal["nothing", "zero", "sale"]


class Contradiction(NamedTuple):
    """Constraints that cannot all be kept by an update that is not 0.

    Attributes:
        principals: whose they are, each once.
        values: names of the values they speak of.
        words: what they ask for, in one sentence.
        consequence: "nothing": no update is admissible, and every one is dropped; "zero": only
            the update 0 is; "sale": one of them has a price, so it gives way and is paid for.
    """

    principals: tuple[str, ...]
    values: tuple[str, ...]
    words: str
    consequence: Consequence


class _Bound(NamedTuple):
    """p >= limit (lower) or p <= limit, of one value."""

    principal: str
    kind: str
    limit: float
    price: float


class _Demands(NamedTuple):
    lower: list[_Bound]
    upper: list[_Bound]


def contradictions(
    profiles: Mapping[str, Sequence[Constraint]], *, together: bool = False
) -> list[Contradiction]:
    """Find what excludes what.

    Args:
        profiles: the principals' constraints, by name.
        together: also between principals, as under the scope "everyone", where every update must
            meet all profiles. Under the scopes "own" and "weighted" each profile stands for itself.

    Returns:
        The contradictions, first those within one profile.
    """
    found = [
        contradiction
        for name, profile in profiles.items()
        for contradiction in _among({name: profile})
    ]
    if together:
        known = set(found)
        found += [each for each in _among(profiles) if each not in known]
    return found


def _among(profiles: Mapping[str, Sequence[Constraint]]) -> list[Contradiction]:
    """The contradictions between the constraints of all these profiles."""
    values: dict[str, _Demands] = {}
    for principal, profile in profiles.items():
        for constraint in profile:
            for name, side, bound in _bounds(principal, constraint):
                demands = values.setdefault(name, _Demands([], []))
                (demands.lower if side == "lower" else demands.upper).append(bound)
    found = [
        _exclusion(name, low, high)
        for name, demands in values.items()
        for low in demands.lower
        for high in demands.upper
        if _excluded(low, high)
    ]
    for principal, profile in profiles.items():
        for constraint in profile:
            if isinstance(constraint, TrustRegion):
                found += _beyond_region(principal, constraint, values)
    return found


def _bounds(principal: str, constraint: Constraint) -> list[tuple[str, str, _Bound]]:
    if isinstance(constraint, AngleCone):
        name = constraint.value
        return [(name, "lower", _Bound(principal, "within_angle", 0.0, math.inf))]
    if not isinstance(constraint, HalfSpace):
        return []
    kind, name, margin, price = constraint
    bounds = []
    if kind != "forbid":
        bounds.append((name, "lower", _Bound(principal, kind, margin, price)))
    if kind != "protect":
        limit = -margin if kind == "forbid" else margin
        bounds.append((name, "upper", _Bound(principal, kind, limit, price)))
    return bounds


def _excluded(low: _Bound, high: _Bound) -> bool:
    return low.limit > high.limit or (low.kind == "within_angle" and high.limit == 0)


def _exclusion(name: str, low: _Bound, high: _Bound) -> Contradiction:
    consequence: Consequence = "nothing" if low.limit > high.limit else "zero"
    if low.kind == "within_angle" and high.limit == 0:
        consequence = "zero"
    if math.isfinite(min(low.price, high.price)):
        consequence = "sale"
    return Contradiction(
        tuple(dict.fromkeys((low.principal, high.principal))),
        (name,),
        f"{name!r}: {_lower_words(low)}, {_upper_words(high)}",
        consequence,
    )


def _lower_words(bound: _Bound) -> str:
    if bound.kind == "within_angle":
        wish = "to lower it with every step"
    elif bound.limit > 0:
        wish = f"to lower it by at least {bound.limit:g}"
    else:
        wish = f"to raise it by at most {-bound.limit:g}" if bound.limit else "not to raise it"
    return f"{bound.principal} ({bound.kind}) asks {wish}"


def _upper_words(bound: _Bound) -> str:
    if bound.limit < 0:
        wish = f"to raise it by at least {-bound.limit:g}"
    else:
        wish = f"to lower it by at most {bound.limit:g}" if bound.limit else "not to lower it"
    return f"{bound.principal} ({bound.kind}) asks {wish}"


def _beyond_region(
    principal: str, region: TrustRegion, values: Mapping[str, _Demands]
) -> list[Contradiction]:
    """The region and the bounds that ask for more movement than it allows, if any do."""
    for for_sale in (False, True):
        pressing = [_strictest(values[name], for_sale) for name in region.values if name in values]
        bounds = [bound for bound in pressing if bound is not None]
        least = math.hypot(*(bound.limit for bound in bounds))
        if least > region.radius * (1 + 1e-9):
            asked = ", ".join(f"{bound.principal} ({bound.kind})" for bound in bounds)
            names = (principal, *(bound.principal for bound in bounds))
            words = (
                f"{', '.join(map(repr, region.values))}: {principal} (trust_region) asks to move by"
                f" at most {region.radius:g} in all, {asked} by at least {least:g}"
            )
            consequence: Consequence = "sale" if for_sale else "nothing"
            return [Contradiction(tuple(dict.fromkeys(names)), region.values, words, consequence)]
    return []


def _strictest(demands: _Demands, for_sale: bool) -> _Bound | None:
    """The bound that keeps p furthest from 0, if the bounds do so on one side only."""

    def counts(bound: _Bound) -> bool:
        return for_sale or math.isinf(bound.price)

    pushes = [bound for bound in demands.lower if bound.limit > 0 and counts(bound)]
    pulls = [bound for bound in demands.upper if bound.limit < 0 and counts(bound)]
    if bool(pushes) == bool(pulls):
        return None
    return max(pushes or pulls, key=lambda bound: abs(bound.limit))
