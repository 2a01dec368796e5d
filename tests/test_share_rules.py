"""Every guarantee that a share rule's docstring states."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vcca_jax.share_rules import (
    RESERVE,
    ShareRule,
    Standings,
    accumulated,
    bounded,
    high_water_mark,
    per_period,
    power,
    rule_from_spec,
    softmax,
)

ONE = 2**40
names = ("a", "b", "c", "d")
credit = st.one_of(st.integers(-(2**45), 2**45), st.sampled_from([0, ONE, -ONE]))
streams = st.lists(st.fixed_dictionaries(dict.fromkeys(names, credit)), min_size=1, max_size=8)
period = st.fixed_dictionaries(dict.fromkeys(names, credit))
some = settings(max_examples=100)


def run(rule, stream, divided=None):
    """Settle a stream of credits; return each period's shares (None: nothing was divided)."""
    scores: dict[str, int] = {}
    marks: dict[str, int] = {}
    given_shares = []
    for i, credits in enumerate(stream):
        scores = {p: scores.get(p, 0) + credits.get(p, 0) for p in {**scores, **credits}}
        if divided is not None and not divided[i]:
            given_shares.append(None)
            continue
        given_shares.append(dict(rule.shares(credits, Standings(scores, marks))))
        marks = {p: max(marks.get(p, 0), b) for p, b in scores.items()}
    return given_shares


def once(rule, credits):
    return run(rule, [credits])[0]


@some
@given(streams, st.lists(st.booleans(), min_size=8, max_size=8))
def test_high_water_mark_pays_in_all_for_the_highest_score_at_a_division(stream, divided):
    shares = run(high_water_mark(), stream, divided)
    for name in names:
        score, best = 0, 0
        for credits, parts in zip(stream, shares, strict=True):
            score += credits[name]
            if parts is not None:
                assert parts.get(name, 0) == max(0, score - best)
                best = max(best, score)
        assert sum(parts.get(name, 0) for parts in shares if parts is not None) == best


def test_credit_that_comes_and_goes_is_paid_once_at_the_mark_and_each_time_per_period():
    stream = [{"a": 5 if i % 2 == 0 else -5} for i in range(100)]
    assert sum(s.get("a", 0) for s in run(high_water_mark(), stream)) == 5
    assert sum(s.get("a", 0) for s in run(per_period(), stream)) == 250


@pytest.mark.parametrize("rule", [high_water_mark(), per_period(), accumulated()])
@given(st.lists(credit, min_size=1, max_size=6), st.integers(1, 7))
def test_proportional_sybils_share_what_the_one_had(rule, stream, parts):
    whole = run(rule, [{"a": c * parts} for c in stream])
    split = run(rule, [{f"a{i}": c for i in range(parts)} for c in stream])
    assert [w.get("a", 0) for w in whole] == [sum(s.values()) for s in split]


def test_splitting_harm_from_use_gains_as_documented():
    for rule in (high_water_mark(), per_period(), accumulated()):
        assert once(rule, {"a": 10 - 4})["a"] < sum(once(rule, {"a1": 10, "a2": -4}).values())


@some
@given(streams, st.randoms(use_true_random=False))
def test_accumulated_pays_by_the_score_however_it_came_about(stream, order):
    last = run(accumulated(), stream)[-1]
    totals = {name: sum(credits[name] for credits in stream) for name in names}
    assert last == {name: total for name, total in totals.items() if total > 0}
    shuffled = list(stream)
    order.shuffle(shuffled)
    assert run(accumulated(), shuffled)[-1] == last
    # Who teaches nothing more keeps its share.
    assert run(accumulated(), [*stream, {}])[-1] == last


@some
@given(period)
def test_per_period_pays_the_positive_part_and_remembers_nothing(credits):
    expected = {name: c for name, c in credits.items() if c > 0}
    assert once(per_period(), credits) == expected
    assert run(per_period(), [dict.fromkeys(names, -ONE), credits])[1] == expected


@some
@given(period, credit)
def test_softmax_is_ordered_unmoved_by_a_common_credit_and_has_the_stated_ratios(credits, common):
    shares = once(softmax(2), credits)
    moved = once(softmax(2), {name: c + common for name, c in credits.items()})
    assert shares == moved
    for p in names:
        for q in names:
            if credits[p] >= credits[q]:
                assert shares[p] >= shares[q]
            difference = (credits[p] - credits[q]) / ONE / 2
            if abs(difference) < 20 and shares[q] > 10**20:
                assert shares[p] / shares[q] == pytest.approx(math.exp(difference), rel=1e-9)


def test_softmax_pays_a_free_rider_and_rewards_sybils_as_documented():
    assert once(softmax(), {"a": ONE, "rider": 0})["rider"] > 0
    alone = once(softmax(), {"a": ONE, "b": ONE})
    split = once(softmax(), {"a": ONE, "b1": ONE // 2, "b2": ONE // 2})
    fraction = (split["b1"] + split["b2"]) / sum(split.values())
    assert fraction > alone["b"] / sum(alone.values())


@pytest.mark.parametrize("exponent", [0, Fraction(1, 2), 1, 2, 2.5])
@some
@given(credits=period)
def test_power_keeps_order_support_and_the_stated_ratios(exponent, credits):
    base = once(high_water_mark(), credits)
    shares = once(power(exponent), credits)
    assert set(shares) == set(base)
    for p in base:
        for q in base:
            if base[p] >= base[q]:
                assert shares[p] >= shares[q]
            ratio = float(Fraction(base[p], base[q])) ** float(exponent)
            if 1e-9 < ratio < 1e9 and shares[q] > 10**12:
                assert float(Fraction(shares[p]) / shares[q]) == pytest.approx(ratio, rel=1e-9)
    if exponent == 1:
        assert shares == base
    if exponent == 0:
        assert all(s == 1 for s in shares.values())


def test_splitting_under_a_power_loses_above_one_and_gains_below():
    def part(exponent):
        split = once(power(exponent), {"a": ONE, "b1": ONE // 2, "b2": ONE // 2})
        return (split["b1"] + split["b2"]) / sum(split.values())

    assert part(2) < part(1) == 0.5 < part(Fraction(1, 2))


bounds = st.tuples(st.fractions(0, Fraction(1, 4)), st.fractions(Fraction(1, 4), 1))


@some
@given(period, bounds)
def test_bounded_shares_lie_between_floor_and_cap_and_sum_to_one(credits, limits):
    floor, cap = limits
    base = once(per_period(), credits)
    shares = once(bounded(per_period(), floor=floor, cap=cap), credits)
    assert sum(map(Fraction, shares.values())) == 1
    for p in names:
        assert floor <= shares.get(p, 0) <= cap
        for q in names:
            if base.get(p, 0) >= base.get(q, 0):
                assert shares.get(p, 0) >= shares.get(q, 0)
            if floor < shares.get(p, 0) < cap and floor < shares.get(q, 0) < cap:
                assert shares[p] * base[q] == shares[q] * base[p]
        if floor == 0 and base.get(p, 0) == 0:
            assert shares.get(p, 0) == 0
    # The reserve has something only where every cap binds or nobody has a share.
    if shares.get(RESERVE, 0) > 0:
        assert all(shares[p] == cap for p in base)


def test_bounded_sends_to_the_reserve_what_no_one_may_take():
    rule = bounded(per_period(), cap=Fraction(1, 4))
    assert once(rule, {"a": 9, "b": 1}) == {
        "a": Fraction(1, 4),
        "b": Fraction(1, 4),
        RESERVE: Fraction(1, 2),
    }
    floors = bounded(per_period(), floor=Fraction(1, 10))
    assert once(floors, {"a": -1, "b": 0}) == {
        "a": Fraction(1, 10),
        "b": Fraction(1, 10),
        RESERVE: Fraction(4, 5),
    }
    both = bounded(per_period(), floor=Fraction(1, 10), cap=Fraction(1, 2))
    assert once(both, {"a": 98, "b": 1, "c": 1}) == {
        "a": Fraction(1, 2),
        "b": Fraction(1, 4),
        "c": Fraction(1, 4),
    }


def test_bounded_leaves_the_reserves_own_share_unbounded():
    shares = once(bounded(per_period(), cap=Fraction(1, 4)), {"a": 1, "b": 1, RESERVE: 6})
    assert shares == {"a": Fraction(1, 8), "b": Fraction(1, 8), RESERVE: Fraction(3, 4)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: softmax(0), "temperature is 0"),
        (lambda: softmax(math.nan), "temperature is nan"),
        (lambda: power(-1), "exponent is -1"),
        (lambda: bounded(per_period(), floor=0.5, cap=0.25), "floor is 0.5"),
        (lambda: once(bounded(per_period(), floor=0.5), dict.fromkeys(names, 1)), "at most 1/4"),
        (lambda: rule_from_spec({"rule": "mine"}), "pass rule="),
    ],
)
def test_rules_that_cannot_be_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "rule",
    [
        high_water_mark(),
        per_period(),
        accumulated(),
        softmax(0.3, scale_bits=20),
        power(1.5, per_period()),
        bounded(power(2), floor=0.125, cap=Fraction(1, 3)),
    ],
)
@given(stream=streams)
def test_a_rule_built_again_from_its_spec_gives_the_same_shares(rule, stream):
    again = rule_from_spec(rule.spec)
    assert again.spec == rule.spec
    assert run(again, stream) == run(rule, stream)


def test_a_rule_from_outside_is_a_function_and_a_name():
    equal = ShareRule({"rule": "equal"}, lambda credits, standings: dict.fromkeys(credits, 1))
    assert once(power(3, equal), {"a": 5, "b": -5}) == {"a": 1, "b": 1}
