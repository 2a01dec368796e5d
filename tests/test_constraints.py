import math

import pytest

from vcca_jax.constraints import (
    AngleCone,
    Freeze,
    HalfSpace,
    MaxNorm,
    TrustRegion,
    forbid,
    freeze,
    max_norm,
    preserve,
    protect,
    trust_region,
    within_angle,
)


def test_the_constructors_say_what_was_said():
    assert protect("old") == HalfSpace("protect", "old", 0.0, math.inf)
    assert forbid("old", -1, price=2) == HalfSpace("forbid", "old", -1.0, 2.0)
    assert preserve("old", 0.5) == HalfSpace("preserve", "old", 0.5)
    assert max_norm(2) == MaxNorm(2.0)
    assert within_angle("old", 60) == AngleCone("old", 60.0)
    assert trust_region(["old", "men"], 1) == TrustRegion(("old", "men"), 1.0)
    assert trust_region("old", 1) == TrustRegion(("old",), 1.0)
    assert freeze("body") == Freeze("body")


@pytest.mark.parametrize("make", [protect, forbid, preserve])
@pytest.mark.parametrize("margin", [math.nan, math.inf, -math.inf, 1e39])
def test_a_margin_is_finite_in_single_precision(make, margin):
    with pytest.raises(ValueError, match=r"margin=.* must be a finite number"):
        make("old", margin)


@pytest.mark.parametrize("make", [protect, forbid, preserve])
@pytest.mark.parametrize("price", [0.0, -1.0, math.nan, 1e-60, 1e60])
def test_a_price_is_above_zero_in_single_precision(make, price):
    with pytest.raises(ValueError, match=r"price=.* must be above zero"):
        make("old", price=price)


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf, 1e-60, 1e60])
def test_a_limit_and_a_radius_are_above_zero_and_finite(number):
    with pytest.raises(ValueError, match=r"limit=.* must be a finite number above zero"):
        max_norm(number)
    with pytest.raises(ValueError, match=r"radius=.* must be a finite number above zero"):
        trust_region(["old"], number)


@pytest.mark.parametrize("degrees", [0.0, 90.0, -10.0, 120.0, math.nan])
def test_an_angle_is_above_0_and_below_90(degrees):
    with pytest.raises(ValueError, match=r"degrees=.* protect\('old'\) is 90"):
        within_angle("old", degrees)


@pytest.mark.parametrize("names", [[], ["old", "old"]])
def test_a_region_names_each_value_once(names):
    with pytest.raises(ValueError, match=r"names=.* at least one value, each once"):
        trust_region(names, 1.0)
