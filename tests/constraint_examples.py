"""Free constraints and profiles for hypothesis."""

import math

from hypothesis import strategies as st

from vcca_jax.constraints import (
    AngleCone,
    Freeze,
    HalfSpace,
    MaxNorm,
    forbid,
    freeze,
    max_norm,
    preserve,
    protect,
    trust_region,
    within_angle,
)

NAMES = ("women", "men", "old", "probe")
PARTS = ("body", "body/0", "body/0/kernel", "head", "head/bias")

positive = st.floats(2.0**-20, 2.0**20, width=32)
margins = st.floats(-2, 2, width=32)
prices = st.just(math.inf) | positive


def subject(constraint):
    """What may stand once in a profile."""
    match constraint:
        case HalfSpace():
            return constraint.kind, constraint.value
        case AngleCone():
            return "angle", constraint.value
        case MaxNorm():
            return ("max_norm",)
        case Freeze():
            return "freeze", constraint.part
        case _:
            return "region", frozenset(constraint.values)


some_name = st.sampled_from(NAMES)
some_part = st.sampled_from(PARTS)


def profiles(names=some_name, parts=some_part):
    """One principal's constraints, of every kind and in any order."""
    half_space = st.builds(
        lambda make, name, margin, price: make(name, margin, price=price),
        st.sampled_from([protect, forbid, preserve]),
        names,
        margins,
        prices,
    )
    constraint = st.one_of(
        half_space,
        half_space,
        st.builds(max_norm, positive),
        st.builds(within_angle, names, st.floats(1, 89)),
        st.builds(trust_region, st.lists(names, min_size=1, max_size=3, unique=True), positive),
        st.builds(freeze, parts),
    )
    return st.lists(constraint, max_size=7, unique_by=subject)
