"""Exact allocation: its guarantees, and the money bugs of other libraries as properties."""

import math
import random
from decimal import Decimal
from fractions import Fraction

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from vcca_jax.settlement import LARGEST_AMOUNT, allocate, quantise, running_floor

amounts = st.integers(-LARGEST_AMOUNT, LARGEST_AMOUNT)
share = st.one_of(
    st.integers(0, 2**70),
    st.floats(0, 1e12),
    st.fractions(0, 10**6, max_denominator=10**6),
    st.sampled_from([0, 1, 1, 2]),
)
shares = st.lists(share, min_size=1, max_size=12)
some = settings(max_examples=100)


def positive(values):
    return any(value > 0 for value in values)


@some
@given(amounts, shares.filter(positive))
def test_parts_sum_to_the_amount_and_lie_within_one_unit_of_the_exact_share(amount, values):
    parts = allocate(amount, values)
    total = sum(map(Fraction, values))
    assert sum(parts) == amount
    for part, value in zip(parts, values, strict=True):
        assert type(part) is int
        assert abs(part - amount * Fraction(value) / total) < 1
        assert part * amount >= 0


@some
@given(amounts, shares.filter(positive))
def test_a_refund_mirrors_the_payment(amount, values):
    ids = [f"p{i}" for i in range(len(values))]
    assert allocate(-amount, values, ids=ids) == [-p for p in allocate(amount, values, ids=ids)]


@some
@given(amounts, shares.filter(positive), st.randoms(use_true_random=False))
def test_reordering_the_parties_reorders_the_parts_and_does_nothing_else(amount, values, shuffle):
    ids = [f"p{i}" for i in range(len(values))]
    order = list(range(len(values)))
    shuffle.shuffle(order)
    parts = allocate(amount, values, ids=ids)
    moved = allocate(amount, [values[i] for i in order], ids=[ids[i] for i in order])
    assert moved == [parts[i] for i in order]


@some
@given(
    amounts, shares.filter(positive), st.fractions(min_value=Fraction(1, 10**6), max_value=10**6)
)
def test_only_the_proportions_of_the_shares_matter(amount, values, factor):
    ids = [f"p{i}" for i in range(len(values))]
    scaled = [Fraction(value) * factor for value in values]
    assert allocate(amount, values, ids=ids) == allocate(amount, scaled, ids=ids)


@some
@given(amounts, st.lists(share, min_size=1, max_size=8).filter(positive), st.integers(0, 8))
def test_a_share_of_zero_gets_zero(amount, values, place):
    values = [*values[:place], 0, *values[place:]]
    for value, part in zip(values, allocate(amount, values), strict=True):
        assert value > 0 or part == 0


def test_a_hundred_thousand_random_settlements_are_exact():
    draw = random.Random(0)
    for _ in range(100_000):
        weights = [draw.choice((0, 1, draw.getrandbits(40))) for _ in range(draw.randint(1, 6))]
        amount = draw.randint(-(10**9), 10**9)
        total = sum(weights)
        if total == 0:
            continue
        parts = allocate(amount, weights)
        assert sum(parts) == amount
        assert all(
            abs(p * total - amount * w) < total and (w or not p) and p * amount >= 0
            for p, w in zip(parts, weights, strict=True)
        )


def test_largest_remainders_are_served_first():
    assert allocate(10, [5, 3, 2]) == [5, 3, 2]
    assert allocate(7, [5, 3, 2]) == [4, 2, 1]  # exact: 3.5, 2.1, 1.4
    assert allocate(2, [0.1, Fraction(1, 10), 1]) == [0, 0, 2]
    assert allocate(3, (1, 3, 3)) == [1, 1, 1]
    assert allocate(4, (1, 3, 3)) == [0, 2, 2]  # the Alabama paradox, as documented


@pytest.mark.parametrize("amount", [1, 2, 3, 2**62, LARGEST_AMOUNT - 1, LARGEST_AMOUNT])
@pytest.mark.parametrize(
    "weights",
    [[1], [1, 1], [1, 2], [2**31, 1, 2**31], [2**62] * 2, [2**62] * 3, [2**63 - 1, 1], [2**63, 3]],
)
def test_at_the_edge_of_64_bits_the_parts_are_those_of_exact_arithmetic(amount, weights):
    total = sum(weights)
    exact = [Fraction(amount * weight, total) for weight in weights]
    expected = [math.floor(part) for part in exact]
    order = sorted(range(len(weights)), key=lambda i: (expected[i] - exact[i], i))
    for i in order[: amount - sum(expected)]:
        expected[i] += 1
    assert allocate(amount, weights) == expected


def test_ties_go_by_position_without_ids_and_by_hash_with_ids():
    assert allocate(1, [1, 1, 1]) == [1, 0, 0]
    # Fixed for ever: SHA-256 of "b" (3e23...) comes before that of "a" (ca97...).
    assert allocate(1, [1, 1], ids=["a", "b"]) == [0, 1]
    assert allocate(1, [1, 1], ids=["b", "a"]) == [1, 0]


# One test for each bug found in another money library.


def test_negative_shares_are_refused():  # a share of -3 of 5 once gave parts (-3, 8)
    with pytest.raises(ValueError, match=r"shares\[0\] is -3"):
        allocate(5, [-3, 7])
    with pytest.raises(ValueError, match=r"shares\[1\] is -0.5"):
        allocate(5, [1, -0.5])


def test_a_zero_ratio_never_receives_the_odd_cent():
    for amount in range(-50, 51):
        assert allocate(amount, [0, 1, 0, 1, 1, 0])[::2][0] == 0
        assert allocate(amount, [0, 50, 50])[0] == 0


def test_fewer_units_than_parties_is_no_error():
    assert sum(allocate(2, [1] * 7)) == 2
    assert allocate(1, [1, 1, 2]) == [0, 0, 1]


def test_the_order_of_ratios_does_not_change_what_each_gets():  # 70:30 of 5 was 4/1, 30:70 was 2/3
    assert allocate(5, [70, 30], ids=["a", "b"]) == allocate(5, [30, 70], ids=["b", "a"])[::-1]


def test_a_negative_amount_has_as_many_parts_as_parties():
    assert len(allocate(-19, [1] * 10)) == 10
    assert sorted(allocate(-19, [1] * 10)) == [-2] * 9 + [-1]


def test_all_zero_shares_are_refused_with_the_remedy_unless_there_is_nothing_to_divide():
    for amount in (1, -1):
        with pytest.raises(ValueError, match="book the amount to the reserve"):
            allocate(amount, [0, 0])
        with pytest.raises(ValueError, match="book the amount to the reserve"):
            allocate(amount, [])
    assert allocate(0, [0, 0.0]) == [0, 0]
    assert allocate(0, []) == []


def test_large_amounts_are_not_computed_in_floating_point():
    assert allocate(2**53 + 1, [1]) == [2**53 + 1]
    assert sum(allocate(LARGEST_AMOUNT, [0.1, 0.2, 0.7])) == LARGEST_AMOUNT
    assert allocate(LARGEST_AMOUNT, [1e300, 1e-300]) == [LARGEST_AMOUNT, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan"), Decimal("nan")])
def test_shares_that_are_no_number_are_refused(bad):
    with pytest.raises(ValueError, match=r"shares\[1\]"):
        allocate(5, [1, bad])


@pytest.mark.parametrize("amount", [2**63, -(2**63), 10**30])
def test_amounts_beyond_64_bits_are_refused(amount):
    with pytest.raises(ValueError, match=r"2\^63"):
        allocate(amount, [1])


@pytest.mark.parametrize("amount", [1.0, "5", None, Fraction(1, 2)])
def test_an_amount_that_is_no_integer_is_refused(amount):
    with pytest.raises(ValueError, match="minor units"):
        allocate(amount, [1])


def test_ids_must_be_distinct_and_match():
    with pytest.raises(ValueError, match="ids repeat"):
        allocate(5, [1, 1], ids=["a", "a"])
    with pytest.raises(ValueError, match="one id a share"):
        allocate(5, [1, 1], ids=["a"])


def test_numbers_of_other_libraries_are_taken_exactly():
    values = [np.float32(0.1), jnp.float32(0.1), Fraction(float(np.float32(0.1))), np.int64(0)]
    assert allocate(np.int64(9), values) == [3, 3, 3, 0]
    with pytest.raises(ValueError, match="not text"):
        allocate(9, ["1"])


@some
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 60))
def test_quantise_rounds_the_exact_product_half_to_even(credit, bits):
    assert quantise([credit], bits) == [round(Fraction(credit) * 2**bits)]


@pytest.mark.parametrize("bad", [None, 1j, [1], "1", object()], ids=lambda bad: type(bad).__name__)
def test_quantise_refuses_what_is_no_number_by_name(bad):
    with pytest.raises(ValueError, match=r"credits\['eve'\] is"):
        quantise({"adam": 0.0, "eve": bad})


@pytest.mark.parametrize("truth", [True, False, np.True_, jnp.array(False)])
def test_truth_is_no_number(truth):
    with pytest.raises(ValueError, match=r"credits\['a'\] is (True|False), which is true or false"):
        quantise({"a": truth})
    with pytest.raises(ValueError, match=r"shares\[1\] is (True|False)"):
        allocate(10, [1, truth])
    with pytest.raises(ValueError, match=r"amount is .*(True|False)"):
        allocate(truth, [1, 2])


def test_quantise_refuses_negative_digits():
    with pytest.raises(ValueError, match="scale_bits is -1"):
        quantise([10**20 + 1], scale_bits=-1)


def test_quantise_keeps_names_and_ties_go_to_even():
    assert quantise({"a": 0.5, "b": 1.5, "c": -0.5, "d": 2.5}, 0) == {
        "a": 0,
        "b": 2,
        "c": 0,
        "d": 2,
    }
    assert quantise({"a": 1.0, "b": Fraction(1, 3), "c": np.float32(-0.25)}, 40) == {
        "a": 2**40,
        "b": round(Fraction(2**40, 3)),
        "c": -(2**38),
    }
    assert quantise(np.array([0.5, -2.0]), 1) == [1, -4]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.integers(0, 60))
def test_quantise_rounds_each_of_many_alike(credits, bits):
    assert quantise(credits, bits) == [round(Fraction(credit) * 2**bits) for credit in credits]
    assert {type(number) for number in quantise(credits, bits)} == {int}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("inf")])
def test_quantise_refuses_what_is_not_finite_by_name(bad):
    with pytest.raises(ValueError, match=r"credits\['eve'\]"):
        quantise({"adam": 0.0, "eve": bad})


@given(st.lists(st.tuples(st.integers(0, 1000), st.lists(share, min_size=3, max_size=3))))
def test_running_floor_never_takes_back_and_never_drifts(periods):
    names = "abc"
    entitlements: dict[str, Fraction] = {}
    exact = dict.fromkeys(names, Fraction(0))
    paid = dict.fromkeys(names, 0)
    for amount, values in periods:
        if not positive(values):
            continue
        payouts, entitlements = running_floor(
            amount, dict(zip(names, values, strict=True)), entitlements
        )
        total = sum(map(Fraction, values))
        for name, value in zip(names, values, strict=True):
            exact[name] += amount * Fraction(value) / total
            paid[name] += payouts.get(name, 0)
            assert payouts.get(name, 0) >= 0
            assert value > 0 or name not in payouts
            assert 0 <= exact[name] - paid[name] < 1
        assert 0 <= sum(exact.values()) - sum(paid.values()) < len(names)


def test_running_floor_refuses_what_it_cannot_pay():
    with pytest.raises(ValueError, match="never lowered"):
        running_floor(-1, {"a": 1}, {})
    with pytest.raises(ValueError, match="reserve"):
        running_floor(1, {"a": 0}, {})
