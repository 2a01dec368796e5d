"""The ledger's promises: exact money, one record a period, clear refusals, corrections."""

import math
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from vcca_jax.ledger import (
    Ledger,
    LedgerError,
    SettlementConflictError,
)
from vcca_jax.share_rules import ShareRule, accumulated, bounded, per_period, power, softmax

ONE = 2**40
names = ("ann", "bob", "cy")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def opened(path, **terms):
    return Ledger.open(path, **{"run": "r1", "principals": names, **terms})


# Settling


def test_revenue_goes_to_credit_above_the_high_water_mark(path):
    with opened(path) as ledger:
        first = ledger.settle(0, {"ann": 0.5, "bob": 0.25, "cy": -0.25}, 1000)
        assert first.outcome == "paid"
        assert first.payouts == {"ann": 667, "bob": 333, "cy": 0}
        second = ledger.settle(1, {"ann": -0.5, "bob": 0.25, "cy": 0.5}, 1000)
        assert second.payouts == {"ann": 0, "bob": 500, "cy": 500}
        third = ledger.settle(2, {"ann": 0.75, "bob": 0.0, "cy": 0.25}, 100)
        assert third.payouts == {"ann": 50, "bob": 0, "cy": 50}
        assert ledger.balances() == {"ann": 717, "bob": 833, "cy": 550}
        assert ledger.scores() == {"ann": 3 * ONE // 4, "bob": ONE // 2, "cy": ONE // 2}
        assert ledger.accounts()["revenue"] == -2100
        assert ledger.reserve() == 0


def test_without_a_gain_revenue_is_carried_and_the_credit_is_paid_on_later(path):
    with opened(path) as ledger:
        waiting = ledger.settle(0, {"ann": 1.0, "bob": -3.0}, 100, gain=-2.0)
        assert (waiting.outcome, waiting.carried, waiting.payouts["ann"]) == ("carried", 100, 0)
        assert ledger.settle(1, {"bob": 4.0}, 0, gain=0.0).outcome == "carried"
        paid = ledger.settle(2, {"cy": 2.0}, 300, gain=2.0)
        assert paid.payouts == {"cy": 200, "ann": 100, "bob": 100}
        assert ledger.accounts()["carried"] == 0


def test_where_nobody_has_a_share_the_reserve_has_it_and_no_revenue_moves_no_mark(path):
    with opened(path) as ledger:
        assert ledger.settle(0, {"ann": -1.0, "bob": 0.0}, 70).outcome == "reserved"
        assert ledger.reserve() == 70
        assert ledger.settle(1, {"bob": 1.0}, 0).outcome == "unfunded"
        assert ledger.settle(2, {}, 30).payouts == {"bob": 30}
        assert ledger.settle(3, {}, 30).reserve == 30


def test_the_optimizers_memory_is_the_reserves_score(path):
    with opened(path) as ledger:
        receipt = ledger.settle(0, {"ann": 1.0, "bob": 2.0}, 100, gain=3.0, carry_over=1.0)
        assert receipt.payouts == {"ann": 25, "bob": 50}
        assert receipt.reserve == ledger.reserve() == 25
        # Its debt is carried forward like anyone's.
        assert ledger.settle(1, {"ann": 1.0}, 100, carry_over=-1.0).reserve == 0
        assert ledger.settle(2, {"ann": 1.0}, 100, carry_over=1.0).reserve == 0
        assert ledger.settle(3, {"ann": 1.0}, 100, carry_over=1.0).reserve == 50


def test_a_period_settled_again_with_the_same_content_is_recorded_once(path):
    credits = {"ann": 0.1, "bob": np.float32(0.2)}
    with opened(path) as ledger:
        receipt = ledger.settle(7, credits, 100, gain=0.3, evidence="ab12")
        ledger.settle(8, credits, 100)
        before = path.read_bytes()
        again = {"bob": np.float32(0.2), "ann": 0.1}
        assert ledger.settle("7", again, 100, gain=0.3, evidence="ab12") == receipt
        for change, words in (
            ({"credits": {"ann": 0.1}}, "other credits"),
            ({"revenue": 101}, "another revenue"),
            ({"gain": 0.4}, "another gain"),
            ({"carry_over": 0.0}, "another carry_over"),
            ({"evidence": "ab13"}, "other evidence"),
        ):
            asked = {"credits": credits, "revenue": 100, "gain": 0.3, "evidence": "ab12", **change}
            with pytest.raises(SettlementConflictError, match=f"with {words} "):
                ledger.settle(7, **asked)
        assert path.read_bytes() == before
    with opened(path) as ledger:
        assert ledger.settle(7, credits, 100, gain=0.3, evidence="ab12") == receipt


credit = st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 1.0, -1.0, 1 / 3]))
period = st.fixed_dictionaries(
    {
        "credits": st.dictionaries(st.sampled_from(names), credit),
        "revenue": st.integers(0, 10**9),
        "gain": st.sampled_from([None, -1.0, 1.0]),
        "carry_over": st.sampled_from([None, 0.5, -0.5]),
    }
)
rules = {
    "high_water_mark": None,
    "per_period": per_period(),
    "accumulated": accumulated(),
    "softmax": softmax(Fraction(1, 2)),
    "power": power(0.5),
    "bounded": bounded(power(2), floor=0.125, cap=0.5),
}


@pytest.mark.parametrize("rounding", ["largest_remainder", "running_floor"])
@pytest.mark.parametrize("rule", rules)
@settings(max_examples=6)
@given(periods=st.lists(period, min_size=1, max_size=6), lag=st.integers(0, 2))
def test_under_every_rule_money_is_exact_never_negative_and_derived_again(
    tmp_path_factory, rule, rounding, periods, lag
):
    path = tmp_path_factory.mktemp("ledger") / "l"
    terms = {"rule": rules[rule], "rounding": rounding, "release_lag": lag}
    with opened(path, **terms) as ledger:
        receipts = [ledger.settle(i, **asked) for i, asked in enumerate(periods)]
        for entry in ledger.entries():
            assert sum(map(int, entry.content.get("postings", {}).values())) == 0
        accounts = ledger.accounts()
        assert sum(accounts.values()) == 0
        assert accounts.get("revenue", 0) == -sum(asked["revenue"] for asked in periods)
        assert all(balance >= 0 for name, balance in accounts.items() if name != "revenue")
        assert all(paid >= 0 for receipt in receipts for paid in receipt.payouts.values())
        if rounding == "largest_remainder":
            assert accounts.get("dust", 0) == 0
        assert accounts.get("dust", 0) <= len(names) + 1
        assert all(
            asked["gain"] != -1.0 or not any(r.payouts.values())
            for asked, r in zip(periods, receipts, strict=True)
        )
        head, verified = ledger.head(), ledger.verify(ledger.head())
        assert (verified.head, verified.settlements) == (head, len(periods))
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.head() == head
        assert ledger.accounts() == accounts


huge = st.one_of(
    credit,
    st.sampled_from([2.0**21, 2.0**22, -(2.0**22), 2.0**23, 1e30, -1e30, 2.0**22 - 1]),
    st.integers(-(2**70), 2**70),
)


@settings(max_examples=15)
@given(
    periods=st.lists(st.dictionaries(st.sampled_from(names), huge), min_size=1, max_size=6),
    back=st.integers(0, 5),
)
def test_credit_of_any_size_is_counted_exactly(tmp_path_factory, periods, back):
    """Against plain integers; and a rule that reads the standings finds the same numbers."""

    def shares(credits, standings):
        scores, marks = dict(standings.scores), dict(standings.marks)
        assert all(scores.get(name) == standings.scores[name] for name in standings.scores)
        assert "nobody" not in standings.scores
        return {p: max(0, score - marks[p]) for p, score in scores.items()}

    rule = ShareRule({"rule": "mine"}, shares)
    folder = tmp_path_factory.mktemp("ledgers")
    scores, marks = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    with opened(folder / "default") as ledger, opened(folder / "mine", rule=rule) as mine:
        for i, credits in enumerate(periods):
            receipt = ledger.settle(i, credits, 1000)
            assert mine.settle(i, credits, 1000).payouts == receipt.payouts
            for name, value in credits.items():
                scores[name] += round(Fraction(value) * ONE)
            rises = {name: max(0, scores[name] - marks[name]) for name in names}
            marks = {name: max(scores[name], marks[name]) for name in names}
            whole = sum(rises.values())
            assert ledger.scores() == mine.scores() == scores
            assert receipt.outcome == ("paid" if whole else "reserved")
            for name, paid in receipt.payouts.items():
                assert not whole or abs(paid - Fraction(1000 * rises[name], whole)) < 1
        if back < len(periods):
            receipt = ledger.settle(back, periods[back], 1000)
            ledger.reverse(receipt.seq, "a test")
            for name, value in periods[back].items():
                scores[name] -= round(Fraction(value) * ONE)
            assert ledger.scores() == scores
        ledger.verify()


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_grow_beyond_64_bits(path, sign):
    with opened(path) as ledger:
        for i in range(1, 6):
            ledger.settle(i, {"ann": sign * (2.0**22 - 1), "bob": 1.0}, 100)
            assert ledger.scores()["ann"] == sign * i * (2**62 - ONE)
        paid = ledger.settle(6, {"ann": 7 * 2.0**22, "bob": 0.0}, 100).payouts
        assert paid == {"ann": 100, "bob": 0}
    opened(path).close()


def test_the_reserve_is_no_principal_even_when_it_has_a_score(path):
    with opened(path) as ledger:
        ledger.settle(0, {"ann": 1.0}, 100, carry_over=1.0)
        with pytest.raises(LedgerError, match="'@reserve'"):
            ledger.settle(1, {"ann": 1.0, "@reserve": 1.0}, 100)


def test_the_order_in_which_principals_are_named_changes_no_byte(tmp_path):
    credits = {f"p{i}": 1.0 for i in range(7)}
    for name, order in (("a", sorted(credits)), ("b", sorted(credits, reverse=True))):
        with Ledger.open(tmp_path / name) as ledger:
            for i in range(5):
                ledger.settle(i, {p: credits[p] for p in order}, 10)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_ties_do_not_favour_the_same_principal_for_ever(path):
    with opened(path) as ledger:
        for i in range(30):
            ledger.settle(i, dict.fromkeys(names, 1.0), 1)
        assert all(balance > 3 for balance in ledger.balances().values())


# Bad input


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"credits": {"ann": math.nan}}, r"credits\['ann'\] is nan"),
        ({"credits": {"ann": math.inf}}, r"credits\['ann'\] is inf"),
        ({"credits": {"eve": 1.0}}, r"'eve' is unknown \(registered: ann, bob, cy\)"),
        ({"credits": {"@reserve": 1.0}}, "'@reserve'"),
        ({"credits": {3: 1.0}}, "principal is 3"),
        ({"revenue": -1}, "never negative"),
        ({"revenue": 1.5}, "minor units"),
        ({"revenue": 2**63}, r"2\^63"),
        ({"revenue": True}, "revenue is True"),
        ({"credits": {"ann": np.True_}}, r"credits\['ann'\] is True"),
        ({"credits": {"ann": 10**5000}}, "more than 4300 digits"),
        ({"credits": np.ones(2)}, "credits are of type ndarray"),
        ({"gain": math.nan}, "^gain is nan"),
        ({"carry_over": -math.inf}, "^carry_over is -inf"),
        ({"period": ""}, "period is ''"),
        ({"period": 1.0}, "period is 1.0"),
        ({"period": np.True_}, "period is"),
        ({"evidence": b"x"}, "evidence"),
    ],
)
def test_bad_settlements_are_refused_and_the_file_stays_as_it_was(path, asked, message):
    with opened(path) as ledger:
        ledger.settle(0, {"ann": 1.0}, 10)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            ledger.settle(**{"period": 1, "credits": {"ann": 1.0}, "revenue": 10, **asked})
        assert path.read_bytes() == before
        assert ledger.settle(1, {"ann": 1.0}, 10).payouts == {"ann": 10}


def test_principals_join_by_name_or_by_credit_where_the_ledger_says_so(path, tmp_path):
    with opened(path) as ledger:
        ledger.join("eve")
        ledger.join("eve")
        assert ledger.settle(0, {"eve": 1.0}, 5).payouts == {"eve": 5}
        with pytest.raises(LedgerError, match="principal is ''"):
            ledger.join("")
    opened(path).close()
    opened(path, principals=["eve", *names]).close()
    with Ledger.open(tmp_path / "free") as ledger:
        assert ledger.balances() == {}
        ledger.settle(0, {"zoë": 1.0}, 5)
        assert ledger.balances() == {"zoë": 5}


def test_a_share_rule_may_not_invent_a_party(path):
    rule = ShareRule({"rule": "friends"}, lambda credits, standings: {"mallory": 1})
    with (
        opened(path, rule=rule) as ledger,
        pytest.raises(LedgerError, match="'mallory', whom nobody knows"),
    ):
        ledger.settle(0, {"ann": 1.0}, 10)


# Corrections


def test_a_reversal_restores_scores_marks_and_money_and_frees_the_period(path):
    with opened(path) as ledger:
        ledger.settle(0, {"ann": 1.0}, 100, gain=-1.0)
        before = ledger.accounts(), ledger.scores()
        wrong = ledger.settle(1, {"ann": 2.0, "bob": -1.0}, 50, carry_over=1.0)
        entry = ledger.reverse(wrong.seq, "bob was credited by mistake")
        assert entry.kind == "reverse"
        assert {k: v for k, v in ledger.accounts().items() if v} == before[0]
        assert ledger.scores() == before[1]
        right = ledger.settle(1, {"ann": 2.0, "bob": 3.0}, 50)
        assert right.payouts == {"ann": 75, "bob": 75}
        assert ledger.settle(1, {"ann": 2.0, "bob": 3.0}, 50) == right
        ledger.verify()
        with pytest.raises(LedgerError, match="reversed already"):
            ledger.reverse(wrong.seq, "again")
        with pytest.raises(LedgerError, match="money has moved on"):
            ledger.reverse(1, "carried revenue was paid out")
        with pytest.raises(LedgerError, match="kind 'open'"):
            ledger.reverse(0, "no")
        with pytest.raises(LedgerError, match="no entry 99"):
            ledger.reverse(99, "no")
        with pytest.raises(LedgerError, match="say in words why"):
            ledger.reverse(right.seq, " ")
    opened(path).close()


@pytest.mark.parametrize("rounding", ["largest_remainder", "running_floor"])
@settings(max_examples=15)
@given(periods=st.lists(period, min_size=1, max_size=5), after=period)
def test_settling_and_reversing_leaves_the_future_as_it_would_have_been(
    tmp_path_factory, rounding, periods, after
):
    folder = tmp_path_factory.mktemp("ledgers")
    results = []
    for name in ("plain", "reversed"):
        with opened(folder / name, rounding=rounding) as ledger:
            for i, asked in enumerate(periods[:-1]):
                ledger.settle(i, **asked)
            if name == "reversed":
                ledger.reverse(ledger.settle("x", **periods[-1]).seq, "a test")
            receipt = ledger.settle("last", **after)
            money = {k: v for k, v in ledger.accounts().items() if v}
            results.append((receipt[2:-1], money, ledger.scores()))
            ledger.verify()
    assert results[0] == results[1]


def test_a_running_total_is_reversed_latest_first(path):
    with opened(path, rounding="running_floor") as ledger:
        first = ledger.settle(0, {"ann": 1.0, "bob": 2.0}, 100)
        last = ledger.settle(1, {"ann": 1.0}, 100)
        with pytest.raises(LedgerError, match="latest first"):
            ledger.reverse(first.seq, "no")
        ledger.reverse(last.seq, "yes")
        ledger.reverse(first.seq, "yes")
        assert set(ledger.accounts().values()) == {0}


def test_a_reversal_restores_running_entitlements(path):
    with opened(path, rounding="running_floor") as ledger:
        for name in ("wrong", "right"):  # half a unit each, nothing paid yet
            receipt = ledger.settle(name, {"ann": 1.0, "bob": 1.0}, 1)
            assert receipt.payouts == {"ann": 0, "bob": 0}
            assert ledger.accounts()["dust"] == 1
            if name == "wrong":
                ledger.reverse(receipt.seq, "a test")
        assert ledger.settle("next", {"ann": 1.0, "bob": 1.0}, 1).payouts == {"ann": 1, "bob": 1}
        assert ledger.accounts()["dust"] == 0


def test_escrow_is_released_after_the_lag_and_only_from_it_money_comes_back(path):
    with opened(path, release_lag=2) as ledger:
        first = ledger.settle(0, {"ann": 1.0, "bob": 3.0}, 100)
        assert first.payouts == {"ann": 25, "bob": 75}
        ledger.settle(1, {"ann": 1.0}, 10)
        assert ledger.balances() == {"ann": 0, "bob": 0, "cy": 0}
        assert ledger.accounts()["escrow:ann"] == 35
        ledger.claw_back(0, "bob", "its data was a copy")
        assert ledger.reserve() == 75
        with pytest.raises(LedgerError, match="nothing in escrow"):
            ledger.claw_back(0, "bob", "twice")
        with pytest.raises(LedgerError, match="released or clawed back"):
            ledger.reverse(first.seq, "too late")
        ledger.settle(2, {}, 0)
        assert ledger.balances() == {"ann": 25, "bob": 0, "cy": 0}
        with pytest.raises(LedgerError, match="nothing in escrow"):
            ledger.claw_back(0, "ann", "too late")
        held = ledger.settle(3, {"cy": 1.0}, 40)
        assert ledger.balances() == {"ann": 35, "bob": 0, "cy": 0}
        ledger.reverse(held.seq, "a mistake")
        assert ledger.accounts()["escrow:cy"] == 0
        ledger.verify()
    opened(path).close()
