import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from tests.constraint_examples import NAMES
from vcca_jax.constraints import (
    HalfSpace,
    forbid,
    freeze,
    max_norm,
    preserve,
    protect,
    trust_region,
    within_angle,
)
from vcca_jax.contradictions import contradictions

margins = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0])
half_space = st.builds(
    lambda make, name, margin: make(name, margin),
    st.sampled_from([protect, forbid, preserve]),
    st.sampled_from(NAMES[:2]),
    margins,
)
profile = st.lists(half_space, max_size=3, unique_by=lambda c: (c.kind, c.value))


def feasible(constraints):
    """Whether some rates p of the values meet all half-spaces, by a linear program."""
    sides = {"protect": [-1], "forbid": [1], "preserve": [-1, 1]}
    rows, bounds = [], []
    for c in constraints:
        for side in sides[c.kind]:
            rows.append(side * (np.array(NAMES) == c.value))
            sign = -1 if c.kind != "preserve" else side
            bounds.append(sign * c.margin)
    if not rows:
        return True
    free = [(None, None)] * len(NAMES)
    return linprog(np.zeros(len(NAMES)), np.array(rows), np.array(bounds), bounds=free).success


@given(st.lists(profile, min_size=1, max_size=3))
def test_half_spaces_contradict_each_other_where_a_linear_program_is_infeasible(stated):
    profiles = {f"p{i}": each for i, each in enumerate(stated)}
    apart = contradictions(profiles)
    for name, each in profiles.items():
        assert feasible(each) == (not any(c.principals == (name,) for c in apart))
    together = contradictions(profiles, together=True)
    assert feasible([c for each in stated for c in each]) == (not together)
    assert together[: len(apart)] == apart
    assert len(set(together)) == len(together)
    assert all(c.consequence == "nothing" for c in together)


def only(profiles, **options):
    (found,) = contradictions(profiles, **options)
    return found


def test_a_contradiction_names_the_principals_the_value_and_what_they_ask():
    found = only({"a": [protect("old", 0.5), forbid("old", 0.25)]})
    assert found.principals == ("a",)
    assert found.values == ("old",)
    assert found.words == (
        "'old': a (protect) asks to lower it by at least 0.5,"
        " a (forbid) asks to raise it by at least 0.25"
    )
    between = {"a": [protect("old", 0.5)], "b": [preserve("old")]}
    assert contradictions(between) == []
    found = only(between, together=True)
    assert found.principals == ("a", "b")
    assert "b (preserve) asks not to lower it" in found.words


@pytest.mark.parametrize(
    ("low", "words"),
    [
        (protect("old", 3.0), "to lower it by at least 3"),
        (preserve("old", 3.0), "(preserve) asks to lower it by at least 3"),
        (protect("old"), "not to raise it"),
        (protect("old", -0.5), "to raise it by at most 0.5"),
        (within_angle("old", 30.0), "(within_angle) asks to lower it with every step"),
    ],
)
def test_the_words_say_what_a_constraint_asks(low, words):
    assert words in only({"a": [low], "b": [forbid("old", 1.0)]}, together=True).words


def test_an_angle_leaves_only_the_zero_update_where_its_value_may_not_fall():
    assert only({"a": [within_angle("old", 30.0), forbid("old")]}).consequence == "zero"
    assert only({"a": [within_angle("old", 30.0), forbid("old", 0.1)]}).consequence == "nothing"
    assert not contradictions({"a": [within_angle("old", 30.0), forbid("old", -0.1)]})
    assert not contradictions({"a": [within_angle("old", 30.0), protect("old", 0.1)]})


def test_what_has_a_price_gives_way():
    assert only({"a": [protect("old", 1.0, price=2.0), forbid("old")]}).consequence == "sale"
    assert only({"a": [within_angle("old", 30.0), forbid("old", price=1.0)]}).consequence == "sale"


def test_a_region_contradicts_margins_that_reach_beyond_it():
    margins_of = [protect("old", 0.3), forbid("men", 0.4)]
    assert not contradictions({"a": [*margins_of, trust_region(["old", "men"], 0.5)]})
    found = only({"a": [*margins_of, trust_region(["old", "men"], 0.45)]})
    assert found.consequence == "nothing"
    assert found.words == (
        "'old', 'men': a (trust_region) asks to move by at most 0.45 in all,"
        " a (protect), a (forbid) by at least 0.5"
    )
    assert not contradictions({"a": [*margins_of, trust_region(["old", "women"], 0.45)]})
    apart = {"a": margins_of, "b": [trust_region(["old", "men"], 0.45)]}
    assert not contradictions(apart)
    assert only(apart, together=True).principals == ("b", "a")


def test_a_price_counts_against_a_region_only_where_it_is_needed():
    region = trust_region(["old"], 0.2)
    assert only({"a": [protect("old", 0.3, price=1.0), region]}).consequence == "sale"
    both = {"a": [protect("old", 0.9, price=1.0), region], "b": [protect("old", 0.3)]}
    assert [c.consequence for c in contradictions(both, together=True)] == ["sale", "nothing"]
    assert only({"a": [preserve("old", -0.3), region]}).consequence == "nothing"


def test_rounding_is_no_contradiction():
    assert not contradictions({"a": [protect("old", 0.1), forbid("old", -0.1)]})
    both = [protect("old", 0.1), protect("men", 0.1)]
    region = trust_region(["old", "men"], math.sqrt(0.02) * (1 - 1e-12))
    assert not contradictions({"a": [*both, region]})


def test_what_only_the_gradients_can_tell_is_not_told():
    profiles = {
        "a": [protect("old", 5.0), max_norm(1e-6), freeze("body")],
        "b": [within_angle("men", 1.0), within_angle("old", 1.0)],
        "c": [HalfSpace("protect", "women", -1.0)],
        "d": [],
    }
    assert contradictions(profiles, together=True) == []
