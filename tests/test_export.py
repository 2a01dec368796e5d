"""Exports tell the same money as the ledger."""

import csv
import io
import re
from collections import Counter
from decimal import Decimal

import pytest

from vcca_jax.export import to_beancount, to_csv
from vcca_jax.ledger import Ledger, LedgerError

names = ("ann", "Ann", "a-n", 'a"\\,\nn', "zoë", "a.n")


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger", principals=names, release_lag=1) as ledger:
        for i in range(4):
            credits = {name: (i + j) % 3 - 0.5 for j, name in enumerate(names)}
            ledger.settle(f'"{i}"', credits, 10_000 + i, gain=i - 1.0)
        ledger.claw_back('"3"', next(n for n in names if ledger.accounts()[f"escrow:{n}"]), "why")
        yield ledger


def test_csv_has_every_posting_and_sums_to_the_balances(ledger):
    rows = list(csv.DictReader(io.StringIO(to_csv(ledger))))
    totals: Counter[str] = Counter()
    entries: Counter[str] = Counter()
    for row in rows:
        totals[row["account"]] += int(row["amount"])
        entries[row["seq"]] += int(row["amount"])
        assert row["currency"] == "EUR"
    assert dict(totals) == ledger.accounts()
    assert set(entries.values()) == {0}
    assert rows[-1]["hash"] == ledger.head()


def test_beancount_opens_balances_and_asserts_every_account(ledger):
    text = to_beancount(ledger)
    opened = re.findall(r"^\S+ open (\S+) EUR$", text, re.M)
    assert len(set(opened)) == len(opened) == len(ledger.accounts())
    totals: Counter[str] = Counter()
    for block in text.split("\n\n")[1:]:
        postings = re.findall(r"^  ([A-Z]\S+)  (-?\d+\.\d\d) EUR$", block, re.M)
        assert sum(Decimal(amount) for _, amount in postings) == 0
        for account, amount in postings:
            assert re.fullmatch(r"(Assets|Income)(:[A-Z][A-Za-z0-9-]*)+", account)
            totals[account] += Decimal(amount)
    stated = re.findall(r"^\S+ balance (\S+)  (\S+) EUR$", text, re.M)
    assert {account: Decimal(amount) for account, amount in stated} == dict(totals)
    assert sorted(100 * t for t in totals.values()) == sorted(ledger.accounts().values())


def test_beancount_itself_finds_no_error(ledger):
    loader = pytest.importorskip("beancount.loader")
    entries, errors, _ = loader.load_string(to_beancount(ledger))
    assert errors == []
    assert len(entries) > 10


def test_a_currency_that_beancount_cannot_read_is_refused(tmp_path):
    with (
        Ledger.open(tmp_path / "ledger", currency="euro") as ledger,
        pytest.raises(LedgerError, match="'euro'"),
    ):
        to_beancount(ledger)
