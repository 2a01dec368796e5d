import math
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import constraint_examples
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
from vcca_jax.profile_files import (
    Profile,
    parse_profiles,
    profile_of,
    profiles_toml,
    read_profiles,
)
from vcca_jax.settings import ConfigError

EVERY = [
    protect("women"),
    protect("men", 0.5, price=2.0),
    forbid("sex told", -0.1),
    preserve("old", 0.25),
    max_norm(0.5),
    within_angle("women", 60.0),
    trust_region(["women", "men"], 0.1),
    freeze("body"),
]
WRITTEN = """
[profiles.hungarian]
protect = { women = 0, men = { price = 2, margin = 0.5 } }
forbid = { "sex told" = -0.1 }
preserve = { old = { margin = 0.25, price = inf } }
max_norm = 0.5
within_angle = { women = 60 }
trust_region = [{ values = ["women", "men"], radius = 0.1 }]
freeze = ["body"]
weight = 2.0

[profiles."va long beach"]
"""


def sorted_by_kind(constraints):
    """As ``Profile.constraints`` orders them: by kind, and within a kind as they came."""
    kinds = ["protect", "forbid", "preserve", "MaxNorm", "AngleCone", "TrustRegion", "Freeze"]
    return sorted(
        constraints,
        key=lambda c: kinds.index(c.kind if isinstance(c, HalfSpace) else type(c).__name__),
    )


def test_every_kind_of_constraint_can_be_written_by_hand(tmp_path):
    path = tmp_path / "profiles.toml"
    path.write_text(WRITTEN)
    profiles = read_profiles(path)
    assert list(profiles) == ["hungarian", "va long beach"]
    assert profiles["hungarian"].constraints() == EVERY
    assert profiles["hungarian"].weight == 2.0
    assert profiles["va long beach"] == Profile()
    assert profiles["va long beach"].constraints() == []
    assert profiles["hungarian"].value_names() == ["women", "men", "sex told", "old"]


words = st.text(st.characters(codec="utf-8"), max_size=8)


@given(
    st.dictionaries(
        words,
        st.tuples(constraint_examples.profiles(words, words), constraint_examples.positive),
        max_size=3,
    )
)
def test_constraints_come_back_from_toml_as_they_were(stated):
    """Of any names, those that TOML must quote and escape included."""
    profiles = {name: profile_of(cs, weight=weight) for name, (cs, weight) in stated.items()}
    text = profiles_toml(profiles)
    again = parse_profiles(tomllib.loads(text), "the text")
    assert list(again) == list(stated)
    for name, (constraints, weight) in stated.items():
        assert again[name].constraints() == sorted_by_kind(constraints)
        assert again[name].weight == weight
    assert profiles_toml(again) == text


def test_what_says_nothing_is_not_written():
    text = profiles_toml({"a": profile_of([protect("women")]), "b": profile_of([])})
    assert text == "[profiles.a.protect]\nwomen = 0.0\n\n[profiles.b]\n"


def test_priced_and_unpriced_bounds_keep_their_order():
    profile = profile_of([protect("a", price=1.0), protect("b"), protect("c", price=2.0)])
    (again,) = parse_profiles(tomllib.loads(profiles_toml({"x": profile})), "it").values()
    assert [c.value for c in again.constraints()] == ["a", "b", "c"]
    assert [c.price for c in again.constraints()] == [1.0, math.inf, 2.0]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"protect": {"old": True}}, "protect.old: give a margin, such as 0.0, or {"),
        ({"protect": {"old": "0"}}, "protect.old: give a margin.*given: '0'"),
        ({"forbid": {"old": math.nan}}, "forbid.old.margin: Input should be a finite number"),
        ({"forbid": {"old": 1e300}}, "forbid.old: margin=1e.300 must be a finite number"),
        ({"preserve": {"old": {"margin": "0"}}}, "preserve.old.margin: .* valid number"),
        ({"protect": {"old": {"price": 0}}}, "protect.old: price=0.0 must be above zero"),
        ({"protect": {"old": {"cost": 1}}}, "protect.old.cost: no such setting"),
        ({"max_norm": 0}, "max_norm: this must be a finite number above zero .given: 0"),
        ({"max_norm": 1e-60}, "max_norm: this must be a finite number above zero"),
        ({"within_angle": {"old": 90}}, "within_angle.old: an angle must be above 0 and below 90"),
        ({"trust_region": {"values": ["old"], "radius": 1}}, "trust_region: .* give a list"),
        ({"trust_region": [{"values": [], "radius": 1}]}, "trust_region.0: names=.*at least one"),
        ({"trust_region": [{"values": ["old"], "radius": 0}]}, "trust_region.0: radius=0.0 must"),
        ({"trust_region": [{"values": ["old"]}]}, "trust_region.0.radius: Field required"),
        (
            {"trust_region": [{"values": v, "radius": 1} for v in (["a", "b"], ["b", "a"])]},
            "trust_region: two regions are of the same values",
        ),
        ({"freeze": "body"}, "freeze: .* give a list"),
        ({"freeze": ["body", "body"]}, "freeze: a part is frozen twice"),
        ({"weight": 0}, "weight: this must be a finite number above zero"),
        ({"weight": "2"}, "weight: .* valid number"),
        ({"prevent": {}}, "prevent: no such setting; remove it or correct its name"),
    ],
)
def test_a_fault_is_told_with_its_place_and_remedy(settings, fault):
    with pytest.raises(ConfigError, match=rf"it cannot be read:\n  profiles\.x\.{fault}"):
        parse_profiles({"profiles": {"x": settings}}, "it")


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as told:
        parse_profiles({"profiles": {"x": {"weight": 0}, "y": {"max_norm": -1}}}, "it")
    assert "profiles.x.weight" in str(told.value)
    assert "profiles.y.max_norm" in str(told.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file of profiles at .*none\.toml"):
        read_profiles(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a folder"):
        read_profiles(tmp_path)
    (tmp_path / "bad.toml").write_text("[profiles")
    with pytest.raises(ConfigError, match="no valid TOML"):
        read_profiles(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(ConfigError, match="profiles: Field required"):
        read_profiles(tmp_path / "empty.toml")


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ([freeze(np.isfinite)], r"freeze\(.*isfinite.* by a predicate, which cannot be written"),
        ([protect("a"), protect("a", 1.0)], r"protect\('a'\) twice"),
        ([preserve("a"), preserve("a")], r"preserve\('a'\) twice"),
        ([within_angle("a", 1), within_angle("a", 2)], r"within_angle\('a'\) twice"),
        ([max_norm(1), max_norm(2)], r"max_norm\(\) twice"),
        ([trust_region("a", 1), trust_region("a", 2)], "two regions are of the same values"),
        ([freeze("a"), freeze("a")], "a part is frozen twice"),
        (["protect"], "'protect', which is none"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(constraints, message):
    with pytest.raises(ValueError, match=message):
        profile_of(constraints)
