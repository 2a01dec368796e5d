"""A receipt accounts for every unit, and is the same whenever it is asked for."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vcca_jax.ledger import Ledger, settle_streams
from vcca_jax.share_rules import accumulated, per_period, softmax

ONE = 2**40
names = ("ann", "bob", "cy")
period = st.fixed_dictionaries(
    {
        "credits": st.dictionaries(st.sampled_from(names), st.sampled_from([0.0, 1.0, -1.0, 1e-6])),
        "revenue": st.integers(0, 1000),
        "gain": st.sampled_from([None, -1.0, 1.0]),
        "carry_over": st.sampled_from([None, 0.5]),
        "stream": st.sampled_from([None, "north"]),
    }
)


@pytest.mark.parametrize("rounding", ["largest_remainder", "running_floor"])
@pytest.mark.parametrize("rule", [None, per_period(), accumulated(), softmax()])
@settings(max_examples=8)
@given(periods=st.lists(period, min_size=1, max_size=6), lag=st.integers(0, 1))
def test_a_receipt_adds_up_and_is_stored(tmp_path_factory, rule, rounding, periods, lag):
    path = tmp_path_factory.mktemp("ledger") / "l"
    terms = {"rule": rule, "rounding": rounding, "release_lag": lag, "principals": names}
    with Ledger.open(path, **terms) as ledger:
        receipts = []
        for i, asked in enumerate(periods):
            account = "carried" + (f":{s}" if (s := asked["stream"]) else "")
            before = ledger.accounts()
            receipts.append(receipt := ledger.settle(i, **asked))
            after = ledger.accounts()
            assert receipt.carried_in == before.get(account, 0)
            assert receipt.carried == after.get(account, 0)
            assert receipt.dust == after.get("dust", 0) - before.get("dust", 0)
            kept = receipt.reserve + receipt.dust + receipt.carried
            assert receipt.revenue + receipt.carried_in == sum(receipt.payouts.values()) + kept
    with Ledger.open(path, rule=rule) as ledger:
        assert [ledger.settle(i, **asked) for i, asked in enumerate(periods)] == receipts


def test_who_had_a_share_and_got_nothing_is_named_each_time(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        ledger.settle(1, {"a": 1, "b": 10**6}, 0)
        for _ in range(2):
            assert ledger.settle(2, {}, 1).payouts == {"a": 0, "b": 1}


def test_what_waits_is_the_sum_of_all_that_was_carried(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        for _ in range(2):
            receipts = [
                ledger.settle(i, {}, revenue, gain=-1.0) for i, revenue in enumerate((100, 50, 0))
            ]
            assert [(r.carried_in, r.carried) for r in receipts] == [
                (0, 100),
                (100, 150),
                (150, 150),
            ]
            paid = ledger.settle(3, {"ann": 1.0}, 5, gain=1.0)
            assert (paid.carried_in, paid.carried, paid.payouts) == (150, 0, {"ann": 155})


def test_dust_is_told(tmp_path):
    with Ledger.open(tmp_path / "ledger", rounding="running_floor") as ledger:
        third = dict.fromkeys(names, 1.0)
        assert ledger.settle(1, third, 100).dust == 1
        assert ledger.settle(2, third, 101).dust == -1
        rows = {"north": third, "south": third}
        both = settle_streams(ledger, 3, rows, {"north": 10, "south": 7}, gains={"south": 0})
        assert (both.dust, both.carried, both.carried_in) == (1, 7, 0)
        assert sum(both.payouts.values()) == 9


# Escrow, counted in each stream


def test_the_lag_is_counted_in_each_stream(tmp_path):
    with Ledger.open(tmp_path / "ledger", release_lag=1) as ledger:
        for period in (1, 2):
            rows, revenues = {s: {"ana": 1} for s in "xy"}, dict.fromkeys("xy", 100)
            settle_streams(ledger, period, rows, revenues)
            assert ledger.accounts()["escrow:ana"] == 200
            assert ledger.balances() == {"ana": 200 * (period - 1)}
        ledger.claw_back(2, "ana", "bad", stream="x")
        head, accounts = ledger.head(), ledger.accounts()
        ledger.verify(head)
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert (ledger.head(), ledger.accounts()) == (head, accounts)


def test_the_last_payouts_are_released_when_somebody_says_so(tmp_path):
    path = tmp_path / "ledger"
    with Ledger.open(path, release_lag=2) as ledger:
        assert ledger.release("nothing is there") == []
        ledger.settle(1, {"ana": 1.0, "ben": 1.0}, 100)
        ledger.settle(1, {"ana": 1.0}, 30, stream="x")
        ledger.claw_back(1, "ben", "a copy")
        with pytest.raises(ValueError, match="say in words why"):
            ledger.release(" ")
        released = ledger.release("the cooperative has ended")
        assert [entry.kind for entry in released] == ["release"] * 2
        assert released[0].content["reason"] == "the cooperative has ended"
        assert ledger.balances() == {"ana": 80, "ben": 0}
        assert ledger.release("again") == []
        assert [line.paid for line in ledger.statement("ana").lines] == [0, 0, 50, 30]
        ledger.settle(2, {"ana": 1.0}, 5)  # and life may go on
        head = ledger.head()
        assert ledger.verify(head).entries == 7
    with Ledger.open(path, read_only=True) as ledger:
        assert ledger.head() == head


def test_a_ledger_of_the_first_format_replays_as_it_was_written(tmp_path, monkeypatch):
    from vcca_jax.ledger import terms

    rows, revenues = {s: {"ana": 1} for s in "xy"}, dict.fromkeys("xy", 100)
    monkeypatch.setattr(terms, "LAGGING", terms.FORMAT)
    with Ledger.open(tmp_path / "ledger", release_lag=1) as ledger:
        settle_streams(ledger, 1, rows, revenues)
        assert ledger.balances() == {"ana": 100}  # y's settlement counted for x's payout
        head = ledger.head()
    monkeypatch.undo()
    with Ledger.open(tmp_path / "ledger", release_lag=1) as ledger:
        assert ledger.verify(head).head == head


# A statement


def test_a_statement_tells_a_principal_all_that_concerns_it(tmp_path):
    with Ledger.open(tmp_path / "ledger", principals=names, release_lag=1) as ledger:
        ledger.join("eve")
        seq = ledger.settle("jan", {"ann": 1.0, "bob": 1.0}, 100).seq
        ledger.settle("feb", {"bob": 1.0}, 100)
        ledger.reverse(ledger.settle("mar", {"ann": -0.5}, 0).seq, "unsaid")
        statement = ledger.statement("ann")
        assert [line[:9] for line in statement.lines] == [
            (seq, "settle", "jan", ONE, ONE, 0, 50, ONE, 0),
            (seq + 2, "release", "jan", 0, 0, 50, -50, ONE, 50),
            (seq + 3, "settle", "mar", -ONE // 2, 0, 0, 0, ONE // 2, 50),
            (seq + 5, "reverse", "mar", ONE // 2, 0, 0, 0, ONE, 50),
        ]
        assert [line[9:] for line in statement.lines] == [
            ("paid", 100, Fraction(1, 2), "", None),
            ("", 0, 0, "", seq),
            ("unfunded", 0, 0, "", None),
            ("", 0, 0, "", seq + 3),
        ]
        assert (statement.currency, statement.scale_bits) == ("EUR", 40)
        assert (statement.paid, statement.held) == (50, 0)
        assert statement.standings() == {"": (ONE, ONE)}
        assert [line.kind for line in ledger.statement("eve").lines] == ["join"]
        with pytest.raises(ValueError, match="'zed' is unknown"):
            ledger.statement("zed")
