"""Revenue by beneficiary: every stream exact and by itself, all of them one settlement."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vcca_jax.ledger import Ledger, LedgerError, Period, settle_streams
from vcca_jax.share_rules import per_period

ONE = 2**40
names = ("ann", "bob", "cy")
beneficiaries = ("north", "south", "west")
credit = st.one_of(st.floats(-2, 2), st.sampled_from([0.0, 1.0, -1.0, 1 / 3]))
row = st.dictionaries(st.sampled_from(names), credit)
stream = st.tuples(row, st.integers(0, 10**9), st.sampled_from([None, -1.0, 1.0]))
history = st.lists(
    st.dictionaries(st.sampled_from(beneficiaries), stream, min_size=1), min_size=1, max_size=4
)


def settled(ledger, period, asked, **options):
    return settle_streams(
        ledger,
        period,
        {b: credits for b, (credits, _, _) in asked.items()},
        {b: revenue for b, (_, revenue, _) in asked.items()},
        gains={b: gain for b, (_, _, gain) in asked.items() if gain is not None},
        **options,
    )


@pytest.mark.parametrize("rounding", ["largest_remainder", "running_floor"])
@pytest.mark.parametrize("lag", [0, 2])
@settings(max_examples=15)
@given(history)
def test_every_stream_sums_exactly_and_all_of_them_to_the_whole(
    tmp_path_factory, rounding, lag, periods
):
    path = tmp_path_factory.mktemp("streams") / "ledger"
    with Ledger.open(path, principals=names, rounding=rounding, release_lag=lag) as ledger:
        waiting = dict.fromkeys(beneficiaries, 0)
        for t, asked in enumerate(periods):
            dust = ledger.accounts().get("dust", 0)
            receipt = settled(ledger, t, asked)
            for b, (_, revenue, gain) in asked.items():
                own = receipt.streams[b]
                kept = own.reserve + own.dust + own.carried
                assert own.carried_in == waiting[b]
                assert sum(own.payouts.values()) + kept == revenue + waiting[b]
                waiting[b] = waiting[b] + revenue if gain == -1.0 else 0
                assert ledger.accounts().get(f"carried:{b}", 0) == waiting[b]
                assert all(paid >= 0 for paid in own.payouts.values())
            for name in names:
                parts = [own.payouts.get(name, 0) for own in receipt.streams.values()]
                assert receipt.payouts.get(name, 0) == sum(parts)
            assert receipt.revenue == sum(revenue for _, revenue, _ in asked.values())
            if rounding == "largest_remainder":
                assert ledger.accounts().get("dust", 0) == dust == 0
        accounts = ledger.accounts()
        assert sum(accounts.values()) == 0
        assert all(v >= 0 for account, v in accounts.items() if account[:7] != "revenue")
        for b in beneficiaries:
            came = sum(asked[b][1] for asked in periods if b in asked)
            assert accounts.get(f"revenue:{b}", 0) == -came
        head = ledger.verify(ledger.head()).head
    with Ledger.open(path, read_only=True) as ledger:
        assert (ledger.head(), ledger.accounts()) == (head, accounts)


@settings(max_examples=20)
@given(history)
def test_a_stream_is_paid_as_if_it_were_alone(tmp_path_factory, periods):
    folder = tmp_path_factory.mktemp("streams")
    with Ledger.open(folder / "all", principals=names) as together:
        receipts = [settled(together, t, asked) for t, asked in enumerate(periods)]
    for b in beneficiaries:
        with Ledger.open(folder / b, principals=names) as alone:
            for t, asked in enumerate(periods):
                if b in asked:
                    own = settled(alone, t, {b: asked[b]}).streams[b]
                    assert own[1:-1] == receipts[t].streams[b][1:-1]


def test_debt_in_one_stream_lowers_no_pay_in_another(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        first = settle_streams(
            ledger, 0, {"north": {"ann": -5.0}, "south": {"ann": 1.0}}, {"north": 10, "south": 20}
        )
        assert first.payouts == {"ann": 20}
        assert (first.reserve, ledger.reserve()) == (10, 10)
        assert ledger.scores() == {"ann": -4 * ONE}
        statement = ledger.statement("ann")
        assert statement.standings() == {"north": (-5 * ONE, 0), "south": (ONE, ONE)}
        assert [line.stream for line in statement.lines] == ["north", "south"]
        # Nor does credit in one stream make up for a debt in another: north's is still 5.
        second = settle_streams(
            ledger, 1, {"north": {"ann": 5.0}, "south": {"ann": 1.0}}, {"north": 10, "south": 20}
        )
        assert (second.payouts, second.reserve) == ({"ann": 20}, 10)
        third = settle_streams(ledger, 2, {"north": {"ann": 1.0}}, {"north": 10})
        assert third.payouts == {"ann": 10}


def test_the_matrix_says_who_earns_whose_revenue(tmp_path):
    credits = {"ann": {"ann": 1.0, "bob": 3.0}, "bob": {"ann": 2.0}}
    with Ledger.open(tmp_path / "ledger", rule=per_period()) as ledger:
        receipt = settle_streams(ledger, "jan", credits, {"ann": 100, "bob": 7})
        assert receipt.streams["ann"].payouts == {"ann": 25, "bob": 75}
        assert receipt.streams["bob"].payouts == {"ann": 7}
        assert receipt.payouts == {"ann": 32, "bob": 75}
        # A plain settlement is a stream of its own, without a name.
        assert ledger.settle("jan", {"bob": 1.0}, 5).payouts == {"bob": 5}
        assert ledger.settle("feb", {"bob": 1.0}, 5, stream="ann").payouts == {"bob": 5}
        assert ledger.balances() == {"ann": 32, "bob": 85}


def test_order_changes_no_byte_and_repeating_records_nothing(tmp_path):
    credits = {b: dict.fromkeys(names, 1.0) for b in beneficiaries}
    revenues = dict.fromkeys(beneficiaries, 100)
    for name, turn in (("a", 1), ("b", -1)):
        with Ledger.open(tmp_path / name) as ledger:
            turned = {b: dict(list(credits[b].items())[::turn]) for b in list(credits)[::turn]}
            receipt = settle_streams(ledger, 0, turned, revenues)
            before = (tmp_path / name).read_bytes()
            assert settle_streams(ledger, 0, credits, revenues) == receipt
            assert (tmp_path / name).read_bytes() == before
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_ties_do_not_favour_the_same_principal_in_every_stream(tmp_path):
    streams = [f"s{i}" for i in range(30)]
    with Ledger.open(tmp_path / "ledger") as ledger:
        rows = {s: dict.fromkeys(names, 1.0) for s in streams}
        receipt = settle_streams(ledger, 0, rows, dict.fromkeys(streams, 1))
    assert sum(receipt.payouts.values()) == 30
    assert all(paid > 3 for paid in receipt.payouts.values())


def test_one_stream_is_reversed_or_clawed_back_without_the_others(tmp_path):
    credits = {b: {"ann": 1.0, "bob": 1.0} for b in ("north", "south")}
    revenues = {"north": 101, "south": 60}
    with Ledger.open(tmp_path / "ledger", release_lag=3, rounding="running_floor") as ledger:
        receipt = settle_streams(ledger, 0, credits, revenues)
        ledger.settle(1, {"ann": 1.0}, 10, stream="south")
        ledger.reverse(receipt.streams["north"].seq, "a mistake")  # the last one of its stream
        with pytest.raises(LedgerError, match="latest first"):
            ledger.reverse(receipt.streams["south"].seq, "not the last of its stream")
        assert ledger.accounts()["revenue:north"] == 0
        assert ledger.statement("ann").standings()["north"] == (0, 0)
        assert ledger.accounts()["escrow:ann"] == 40
        ledger.claw_back(0, "bob", "its data was a copy", stream="south")
        with pytest.raises(LedgerError, match="nothing in escrow"):
            ledger.claw_back(0, "ann", "there is no such stream")
        assert ledger.reserve() == 30
        again = settle_streams(ledger, "0 again", {"north": credits["north"]}, {"north": 101})
        assert again.payouts == {"ann": 50, "bob": 50}  # as if the reversed one had not been
        ledger.verify()
    Ledger.open(tmp_path / "ledger").close()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"credits": {}}, "credits is empty"),
        ({"revenues": {"north": 1}}, r"revenues lacks \['south'\]"),
        ({"revenues": {"north": 1, "south": 1, "east": 1}}, r"revenues names \['east'\]"),
        ({"gains": {"east": 1.0}}, r"gains names \['east'\]"),
        ({"carry_overs": {"east": 1.0}}, r"carry_overs names \['east'\]"),
        ({"revenues": {"north": 1, "south": -1}}, "never negative"),
        ({"credits": {"north": {"ann": float("nan")}, "south": {}}}, r"credits\['ann'\] is nan"),
        ({"credits": {"north": {"eve": 1.0}, "south": {}}}, "'eve' is unknown"),
        ({"credits": {"": {}, 3: {}}, "revenues": {"": 1, 3: 1}}, "stream is ''"),
        ({"carry_overs": {"south": float("inf")}}, "^carry_over is inf"),
    ],
)
def test_bad_streams_are_refused_and_none_is_recorded(tmp_path, asked, message):
    path = tmp_path / "ledger"
    good = {
        "credits": {"north": {"ann": 1.0}, "south": {"bob": 1.0}},
        "revenues": {"north": 1, "south": 1},
    }
    with Ledger.open(path, principals=names) as ledger:
        before = path.read_bytes()
        with pytest.raises(ValueError, match=message):
            settle_streams(ledger, 0, **{**good, **asked})
        assert path.read_bytes() == before
        assert settle_streams(ledger, 0, **good).payouts == {"ann": 1, "bob": 1}


def test_a_period_names_its_stream(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        one, two = ledger.settle_many(
            [Period(0, {"ann": 1.0}, 1, stream="a"), Period(0, {"ann": 1.0}, 2, stream="b")]
        )
        assert (one.payouts["ann"], two.payouts["ann"]) == (1, 2)
