"""Value profiles: the principals' constraints as padded arrays, which may change in a run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.constraints import (
    AngleCone,
    Constraint,
    Freeze,
    HalfSpace,
    MaxNorm,
    Predicate,
    TrustRegion,
    check_constraint,
)
from vcca_jax.trainer import Params


class Limits(NamedTuple):
    """The convex constraints that are no half-spaces, for A principals and M values.

    Attributes:
        max_norm: [A], infinite where there is none.
        cosine: [A, M], of the widest angle to grad V_m; -1 where there is none.
        region: [A, R, M] bool, which values a trust region counts.
        radius: [A, R], infinite where there is none.
    """

    max_norm: Any
    cosine: Any
    region: Any
    radius: Any


class Frozen(NamedTuple):
    """The frozen parts, by the P patterns that occur.

    Attributes:
        pattern: int32 [A], which pattern a principal demands.
        leaves: a pytree like the parameters, bool [P] in each leaf: that pattern freezes it.
    """

    pattern: Any
    leaves: Params


@jax.tree_util.register_static
@dataclass(frozen=True)
class ValueNames:
    """The names of M values, known while tracing: no array, and part of a pytree's structure."""

    names: tuple[str, ...]


class ValueProfiles(NamedTuple):
    """The principals' profiles, padded: A principals, K half-spaces each.

    Attributes:
        value: int32 [A, K], which value loss a half-space speaks of; 0 in padding.
        sign: [A, K], +1 to protect, -1 to forbid.
        margin: [A, K], see ``HalfSpace``.
        mask: bool [A, K], false for padding.
        price: [A, K], see ``protect``; None: nothing is for sale.
        limits: None where nobody states one.
        frozen: None where nobody freezes anything.
        weight: [A], a principal's say under the scope "weighted"; None: all alike.
        names: of the M values, in the order that ``value`` counts them; None: not known.
    """

    value: Any
    sign: Any
    margin: Any
    mask: Any
    price: Any = None
    limits: Limits | None = None
    frozen: Frozen | None = None
    weight: Any = None
    names: ValueNames | None = None


def check_names(profiles: ValueProfiles, names: Sequence[str]) -> None:
    """Refuse profiles that speak of other values: half-spaces find theirs by place alone.

    Raises:
        ValueError: they were made for other names, or for the same in another order; what is no
            ``ValueProfiles``.
    """
    if not isinstance(profiles, ValueProfiles):
        raise ValueError(
            f"profiles is a {type(profiles).__name__}; make them with value_profiles(values.names,"
            " [[...], ...])"
        )
    if profiles.names is not None and profiles.names.names != tuple(names):
        raise ValueError(
            f"profiles speak of the values {list(profiles.names.names)} and the values are"
            f" {list(names)}; make them with value_profiles(values.names, ...)"
        )


def check_agents(profiles: ValueProfiles, agents: int) -> None:
    """Refuse profiles of another number of agents than there are slots on the agent axis.

    Raises:
        ValueError: they are not [A].
    """
    if profiles.mask.shape[0] != agents:
        raise ValueError(
            f"profiles are of {profiles.mask.shape[0]} agents and the gradients of {agents};"
            f" make them with value_profiles(..., capacity={agents})"
        )


def named_values(profiles: ValueProfiles, active: jax.Array, count: int) -> jax.Array:
    """[M] bool, the values that some active principal's profile speaks of."""
    stated = profiles.mask & active[:, None]
    named = jnp.zeros(count, bool).at[profiles.value].max(stated)
    if profiles.limits is None:
        return named
    bounded = profiles.limits.region & (profiles.limits.radius < jnp.inf)[..., None]
    limited = (profiles.limits.cosine >= 0) | bounded.any(axis=1)
    return named | (limited & active[:, None]).any(axis=0)


def value_profiles(
    value_names: Sequence[str],
    profiles: Sequence[Sequence[Constraint]],
    *,
    params: Params | None = None,
    weights: Sequence[float] | None = None,
    capacity: int | None = None,
    constraints: int | None = None,
    regions: int | None = None,
    patterns: int | None = None,
    prices: bool = False,
) -> ValueProfiles:
    """Write the principals' profiles as padded arrays.

    Args:
        value_names: the names of ``Values``, in its order.
        profiles: one sequence of constraints an agent, in the order of the agent axis; it may be
            empty: then every update of that principal is admissible.
        params: the model's parameters, or their shapes; needed where a part is frozen.
        weights: the principals' say under the scope "weighted", above zero; all alike by default.
        capacity: A, slots on the agent axis; the number of profiles by default.
        constraints: K, half-spaces a profile; the longest profile's by default. With all the
            capacities given, profiles may change without recompiling.
        regions: R, trust regions a profile, likewise; giving it also makes room for norms and
            angles where no profile states one yet.
        patterns: P, different sets of frozen leaves (nothing frozen is one), likewise.
        prices: make room for prices where no profile states one yet.

    Raises:
        ValueError: names that are one string, an unknown value or kind, the same constraint twice
            in a profile, a part that covers no parameter, or a capacity that is too small or below
            one.

    Example:
        >>> from vcca_jax import forbid, protect
        >>> profiles = value_profiles(["women", "men"], [[protect("women")], [forbid("men")], []])
        >>> profiles.sign.shape, profiles.mask.tolist()
        ((3, 1), [[True], [True], [False]])
    """
    if isinstance(value_names, str):
        raise ValueError(f"value_names={value_names!r} is one string; give a list of names")
    agents = len(profiles) if capacity is None else capacity
    if agents < max(len(profiles), 1):
        raise ValueError(f"capacity={capacity} is less than the {len(profiles)} profiles; raise it")
    names = list(value_names)
    if len(set(names)) < len(names):
        raise ValueError(f"value_names={names} holds a name twice; every value has one of its own")
    for i, profile in enumerate(profiles):
        _check_profile(i, profile, names)
    value, sign, margin, mask, price = _half_spaces(profiles, names, agents, constraints)
    return ValueProfiles(
        value=value,
        sign=sign,
        margin=margin,
        mask=mask,
        price=price if prices or np.isfinite(price).any() else None,
        limits=_limits(profiles, names, agents, regions),
        frozen=_frozen(profiles, agents, params, patterns),
        weight=_weights(weights, len(profiles), agents),
        names=ValueNames(tuple(names)),
    )


def leaf_paths(params: Params) -> list[str]:
    """The paths by which ``freeze`` names the leaves of the parameters, in the tree's order."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]


def _check_profile(i: int, profile: Sequence[Constraint], names: list[str]) -> None:
    seen: set[Any] = set()
    spoken: tuple[str, ...]
    key: tuple[Any, ...]
    for constraint in profile:
        if not isinstance(constraint, HalfSpace | MaxNorm | AngleCone | TrustRegion | Freeze):
            raise ValueError(
                f"profiles[{i}] holds {constraint!r}; use protect(), forbid(), preserve(),"
                " max_norm(), within_angle(), trust_region() or freeze()"
            )
        try:
            check_constraint(constraint)
        except ValueError as error:
            raise ValueError(f"profiles[{i}] holds {constraint!r}: {error}") from error
        if isinstance(constraint, HalfSpace):
            spoken, key = (constraint.value,), (constraint.kind, constraint.value)
        elif isinstance(constraint, AngleCone):
            spoken, key = (constraint.value,), ("within_angle", constraint.value)
        elif isinstance(constraint, TrustRegion):
            spoken, key = constraint.values, ("trust_region", *sorted(constraint.values))
        elif isinstance(constraint, MaxNorm):
            spoken, key = (), ("max_norm",)
        else:
            spoken, key = (), ("freeze", constraint.part)
        for name in spoken:
            if name not in names:
                raise ValueError(
                    f"profiles[{i}] names the value {name!r}, which is none of {names}"
                )
        if key in seen:
            words = f"{key[0]}({', '.join(repr(word) for word in key[1:])})"
            raise ValueError(f"profiles[{i}] states {words} twice; keep one")
        seen.add(key)


def _half_spaces(
    profiles: Sequence[Sequence[Constraint]], names: list[str], agents: int, width: int | None
) -> tuple[np.ndarray, ...]:
    """Value, sign, margin, mask and price, all [A, K]; see ``ValueProfiles``."""
    rows: list[list[tuple[int, float, float, float]]] = []
    for profile in profiles:
        slots = []
        for constraint in profile:
            if isinstance(constraint, HalfSpace):
                kind, index = constraint.kind, names.index(constraint.value)
                if kind != "forbid":
                    slots.append((index, 1.0, constraint.margin, constraint.price))
                if kind != "protect":
                    # To preserve V at a rate is to protect it there and to forbid going beyond.
                    margin = constraint.margin if kind == "forbid" else -constraint.margin
                    slots.append((index, -1.0, margin, constraint.price))
        rows.append(slots)
    longest = max((len(slots) for slots in rows), default=0)
    width = max(longest, 1) if width is None else width
    if width < max(longest, 1):
        raise ValueError(f"constraints={width} cannot hold a profile of {longest}; raise it")
    value = np.zeros((agents, width), np.int32)
    signs, margins = (np.zeros((agents, width), np.float32) for _ in range(2))
    price = np.full((agents, width), np.inf, np.float32)
    mask = np.zeros((agents, width), bool)
    for i, slots in enumerate(rows):
        for k, slot in enumerate(slots):
            value[i, k], signs[i, k], margins[i, k], price[i, k] = slot
            mask[i, k] = True
    return value, signs, margins, mask, price


def _limits(
    profiles: Sequence[Sequence[Constraint]], names: list[str], agents: int, regions: int | None
) -> Limits | None:
    stated = [[c for c in profile if isinstance(c, TrustRegion)] for profile in profiles]
    most = max((len(each) for each in stated), default=0)
    others = any(isinstance(c, MaxNorm | AngleCone) for profile in profiles for c in profile)
    if regions is None and most == 0 and not others:
        return None
    slots = most if regions is None else regions
    if slots < most:
        raise ValueError(f"regions={regions} cannot hold a profile of {most}; raise it")
    limits = Limits(
        max_norm=np.full(agents, np.inf, np.float32),
        cosine=np.full((agents, len(names)), -1.0, np.float32),
        region=np.zeros((agents, slots, len(names)), bool),
        radius=np.full((agents, slots), np.inf, np.float32),
    )
    for i, profile in enumerate(profiles):
        for constraint in profile:
            if isinstance(constraint, MaxNorm):
                limits.max_norm[i] = constraint.limit
            if isinstance(constraint, AngleCone):
                cosine = math.cos(math.radians(constraint.degrees))
                limits.cosine[i, names.index(constraint.value)] = cosine
        for r, region in enumerate(stated[i]):
            limits.region[i, r, [names.index(name) for name in region.values]] = True
            limits.radius[i, r] = region.radius
    return limits


def _frozen(
    profiles: Sequence[Sequence[Constraint]],
    agents: int,
    params: Params | None,
    capacity: int | None,
) -> Frozen | None:
    parts = [[c.part for c in profile if isinstance(c, Freeze)] for profile in profiles]
    if capacity is None and not any(parts):
        return None
    if params is None:
        raise ValueError("params=None, but frozen parts are found by path: give the parameters")
    paths = leaf_paths(params)
    covered = [tuple(_covered(i, each, paths)) for i, each in enumerate(parts)]
    nothing = (False,) * len(paths)
    distinct = list(dict.fromkeys([*covered, nothing]))
    count = len(distinct) if capacity is None else capacity
    if count < len(distinct):
        raise ValueError(f"patterns={capacity} cannot hold {len(distinct)} patterns; raise it")
    distinct += [nothing] * (count - len(distinct))
    pattern = [distinct.index(each) for each in covered]
    pattern += [distinct.index(nothing)] * (agents - len(profiles))
    leaves = [np.array(column) for column in zip(*distinct, strict=True)]
    tree = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return Frozen(np.array(pattern, np.int32), tree)


def _covered(i: int, parts: list[str | Predicate], paths: list[str]) -> list[bool]:
    """Which leaves a profile freezes."""
    covered = [False] * len(paths)
    for part in parts:
        if isinstance(part, str):
            here = [path == part or path.startswith(part + "/") for path in paths]
        else:
            here = [bool(part(path)) for path in paths]
        if not any(here):
            raise ValueError(
                f"profiles[{i}] freezes {part!r}, which covers no parameter; they are {paths}"
            )
        covered = [before or now for before, now in zip(covered, here, strict=True)]
    return covered


def _weights(weights: Sequence[float] | None, stated: int, agents: int) -> np.ndarray | None:
    if weights is None:
        return None
    with np.errstate(over="ignore"):
        given = np.asarray(weights, np.float32)
    if given.shape != (stated,) or not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"weights={weights} must be {stated} finite numbers above zero")
    return np.concatenate([given, np.ones(agents - stated, np.float32)])
