"""A statement says in words what the ledger and the records hold, no more and no less."""

import re
from html.parser import HTMLParser

import pytest

from vcca_jax.ledger import Ledger, settle_streams
from vcca_jax.plotting.statement import png, statement_figure
from vcca_jax.share_rules import accumulated, bounded, per_period, power, softmax
from vcca_jax.statements import Screening, as_page, as_text, document, money, screenings

CHECKS = [("all is sound", "vcca-jax ledger verify demo")]


def told(ledger, principal="ann", screened=None, **options):
    return document(
        ledger.statement(principal),
        screened or {},
        rule=ledger.terms.rule["rule"],
        checks=CHECKS,
        **options,
    )


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger", principals=["ann", "bob", "cy", "<b>"]) as ledger:
        ledger.settle(1, {"ann": 1.0, "bob": 2.0}, 10_000)
        ledger.settle(2, {"ann": 0.5, "bob": -1.0}, 10_000, gain=-1.0)
        ledger.settle(3, {"ann": -1.0, "bob": 3.0}, 100_000_00)
        yield ledger


def record(epoch, agent="ann", seed=0, **changes):
    return {
        "epoch": epoch,
        "seed": seed,
        "agent": agent,
        "steps": 10,
        "admissible_steps": 6,
        "dropped_steps": 1,
        "removed": 0.25,
        "conflicts": {"women": 3, "men": 1, "none": 0},
        **changes,
    }


def test_what_was_paid_for_which_periods_and_what_is_owed(ledger):
    words = as_text(told(ledger))
    assert "ann was paid 33.33 EUR in all, for 1 of 3 periods" in words
    assert "credit adds up to +0.5; it has been paid on +1." in words
    assert "The difference, +0.5, is a debt that is carried forward" in words
    assert "paid for period 2: the period's steps gained nothing together" in words
    assert "paid for period 3: its credit did not rise above" in words
    assert "entry 1 divided 100.00 EUR; the share was 33.333333%, and the payout 33.33" in words
    assert "vcca-jax ledger verify demo" in words
    assert "no records of a run" in words
    rows = [line.split() for line in words.splitlines() if line.startswith("  ")]
    assert ["2", "settled", "2", "+0.5", "+0", "0.00", "33.33"] in rows


def test_the_carried_revenue_is_part_of_what_was_divided(ledger):
    (line,) = [line for line in ledger.statement("bob").lines if line.period == "3"]
    assert line.divided == 100_000_00 + 10_000
    assert (line.share, line.paid) == (1, 100_000_00 + 10_000)
    assert "The difference" not in as_text(told(ledger, "bob"))


def test_credit_that_waits_and_payouts_too_small_are_told(tmp_path):
    with Ledger.open(tmp_path / "ledger", release_lag=2) as ledger:
        ledger.settle("a", {"ann": 1.0, "bob": 9.0}, 2)
        ledger.settle("b", {"ann": 5.0}, 0)
        words = as_text(told(ledger))
        assert "for 0 of 2 periods" in words
        assert "period a: its share came to less than a unit" in words
        assert "period b: there was no revenue" in words
        assert "+5, is credit that counts at the next division" in words
        receipt = ledger.settle("c", {}, 500)
        assert "5.00 EUR more wait in escrow" in as_text(told(ledger))
        ledger.reverse(receipt.seq, "a mistake")
        again = as_text(told(ledger))
        assert "in escrow until" not in again
        assert "1 settlement was taken back by a later entry" in again
        assert "+5, is credit that counts" in again


def test_debt_is_told_under_the_rule_that_knows_it_only(tmp_path):
    for name, rule, why in (
        ("per_period", per_period(), "its credit of the period was not above zero"),
        ("accumulated", accumulated(), "its credit did not add up to more than zero"),
        ("softmax", bounded(softmax(), cap=0.5), ""),
        ("marks", bounded(power(2), cap=0.5), "its credit did not rise above what it had been"),
    ):
        with Ledger.open(tmp_path / name, rule=rule) as ledger:
            for period, credit in enumerate((5.0, -5.5, 0.25)):
                ledger.settle(period, {"ann": credit, "bob": 1.0}, 100)
            statement = ledger.statement("ann")
            words = as_text(told(ledger))
            title = statement_figure(statement, {}).get_suptitle()
        for told_of in ("is a debt", "it has been paid on", "“Paid on”", "  paid on"):
            assert (told_of in words) == (name == "marks")
        assert ("debt" in title) == bool(statement.debts()) == (name == "marks")
        assert "adds up to -0.25" in words
        assert ("“Share” is its part" in words) == (name != "marks")
        assert why in words
        assert ("Nothing was paid" in words) == bool(why)


def test_the_rounding_is_told_as_it_is(tmp_path):
    with Ledger.open(tmp_path / "ledger", rounding="running_floor") as ledger:
        for period in range(1, 3):
            ledger.settle(period, {"ann": 1.0, "bob": 2.0}, 1)
            words = as_text(told(ledger))
            assert "largest" not in words
            assert "the fractions are kept for it" in words
        assert "for periods 1-2: its share, with what was left of earlier ones" in words
        ledger.settle(3, {"ann": 1.0, "bob": 2.0}, 1)
        assert "for 1 of 3 periods" in as_text(told(ledger))


def test_what_was_taken_back_or_clawed_back_is_not_told_as_paid(tmp_path):
    with Ledger.open(tmp_path / "ledger", release_lag=5) as ledger:
        for _ in range(2):
            ledger.reverse(ledger.settle(1, {"ann": 1.0}, 100).seq, "a mistake")
        ledger.settle(1, {"ann": 1.0}, 100)
        words = as_text(told(ledger))
        assert "for 1 of 1 period in which" in words
        assert "2 settlements were taken back by a later entry" in words
        assert "Nothing was paid" not in words
        ledger.claw_back(1, "ann", "a copy")
        for period in (*range(2, 6), 8, "last"):
            ledger.settle(period, {"ann": 0.0}, 10)
        ledger.settle(6, {"ann": 0.0}, 10, stream="north")
        words = as_text(told(ledger))
        assert "was paid 0.00 EUR in all, for 0 of 8 periods" in words
        assert "Nothing was paid for period 1: the payout was clawed back from escrow" in words
        assert "Nothing was paid for periods 2-5, 8, last, period 6 of north: its credit" in words


def test_credit_is_read_in_its_own_unit_and_the_head_is_that_of_the_last_entry(ledger):
    statement = ledger.statement("bob")
    assert [statement.units(line.credit) for line in statement.lines] == [2.0, -1.0, 3.0]
    assert statement.head == ledger.head()


def test_streams_are_told_apart(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        ledger.join("ann")
        rows = {"north": {"ann": 1.0}, "south": {"ann": -1.0}}
        settle_streams(ledger, 0, rows, {"north": 10, "south": 5})
        words = as_text(told(ledger))
    assert "in the stream of north adds up to +1; it has been paid on +1" in words
    assert "in the stream of south adds up to -1; it has been paid on +0" in words
    assert "paid for period 0 of south" in words
    assert words.count("adds up to") == 2


def test_screenings_sum_the_paid_runs_records_by_period():
    records = [record(1), record(2, removed=0.5, steps=30), record(3), record(3, seed=1)]
    records += [record(1, agent="bob", dropped_steps=9), record(4, conflicts={"women": 2})]
    found = screenings(records, "ann", 2)
    assert found["1"] == Screening(1, 2, 40, 12, 2, 17.5, {"women": 6, "men": 2, "none": 0})
    assert found["2"] == Screening(3, 4, 20, 12, 2, 5.0, {"women": 5, "men": 1, "none": 0})
    assert list(found) == ["1", "2"]


def test_what_was_screened_out_is_told_by_value(ledger):
    screened = screenings([record(1), record(2), record(3, conflicts={"women": 0})], "ann", 1)
    words = as_text(told(ledger, screened=screened))
    assert "a sample in 30 steps of the run that is paid. In 18 of them its update was" in words
    assert "in 12 a constraint stood against it, and in 3 of these it was dropped" in words
    assert "On average 25.0% of the update's length" in words
    assert re.search(r"women +6 +20\.0% +1, 2$", words, re.M)
    assert re.search(r"men +2 +6\.7% +1, 2$", words, re.M)
    assert "none" not in words
    clean = screenings([record(1, conflicts={"women": 0})], "ann", 1)
    assert "No value stood against" in as_text(told(ledger, screened=clean))
    limited = {"1": clean["1"]._replace(admissible=0)}
    assert "No value stood against any of them. A limit" in as_text(told(ledger, screened=limited))


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.open, self.words, self.sources = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_beside_it_and_says_the_same(ledger):
    ledger.settle(4, {"<b>": 1.0, "cy": 1.0}, 5_000)
    sections = told(ledger, "<b>")
    page = Reader(as_page(sections, png(statement_figure(ledger.statement("<b>"), {}))))
    assert page.open == []
    (picture,) = page.sources
    assert picture.startswith("data:image/png;base64,iVBOR")
    shown = " ".join(page.words)
    assert "Statement of <b>" in shown
    for section in sections:
        assert all(words in shown for words in section.paragraphs)
        assert all(cell in shown for row in section.table for cell in row)


def test_the_picture_shows_debt_and_values_and_is_the_same_twice(ledger):
    screened = screenings([record(1), record(2), record(3)], "ann", 1)
    figures = [statement_figure(ledger.statement("ann"), screened) for _ in range(2)]
    assert png(figures[0]) == png(figures[1])
    money_axes, score_axes, value_axes = figures[0].axes[:3]
    assert [bar.get_height() for bar in money_axes.patches] == [33.33, 0, 0]
    paid_on, score = (line.get_ydata().tolist() for line in score_axes.lines[:2])
    assert (paid_on, score) == ([1, 1, 1], [1, 1.5, 0.5])
    assert [label.get_text() for label in value_axes.get_yticklabels()] == ["men", "women"]
    assert "debt of 0.5 credit" in figures[0].get_suptitle()
    without = statement_figure(ledger.statement("bob"), {})
    assert len(without.axes) == 2
    assert "debt" not in without.get_suptitle()
    with pytest.raises(ValueError, match="cy has no entry yet"):
        statement_figure(ledger.statement("cy"), {})


@pytest.mark.parametrize(
    ("minor", "decimals", "words"),
    [
        (5, 2, "0.05 EUR"),
        (-123456, 2, "-1,234.56 EUR"),
        (7, 0, "7 EUR"),
        (2**63 - 1, 3, "9,223,372,036,854,775.807 EUR"),
    ],
)
def test_money_is_written_exactly(minor, decimals, words):
    assert money(minor, "EUR", decimals) == words
