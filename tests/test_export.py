"""Exports tell the same money as the ledger."""

import csv
import io
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from vcca_jax.export import Posting, snapshot, to_beancount, to_csv, to_parquet
from vcca_jax.ledger import Ledger, LedgerError, settle_streams

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


def test_beancount_itself_finds_no_error(ledger, tmp_path):
    loader = pytest.importorskip(
        "beancount.loader", reason="beancount is not installed; pip install 'vcca_jax[dev]'"
    )
    text = to_beancount(ledger)
    entries, errors, _ = loader.load_string(text)
    assert errors == []
    assert len(entries) > 10
    # It would find a cent too many, in a posting or in a stated balance.
    place = text.index(".", text.index("  Assets:")) + 2
    wrong = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
    assert loader.load_string(wrong)[1] != []
    check = Path(sys.executable).with_name("bean-check")
    if check.exists():
        (tmp_path / "ledger.beancount").write_text(text, encoding="utf-8")
        done = subprocess.run([check, tmp_path / "ledger.beancount"], capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_parquet_has_the_rows_of_csv_with_numbers_as_numbers(ledger, tmp_path):
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow is not installed; pip install 'vcca_jax[parquet]'"
    )
    path = tmp_path / "ledger.parquet"
    path.write_text("what was there before")
    to_parquet(ledger, path)
    table = parquet.read_table(path)
    assert tuple(table.column_names) == Posting._fields
    rows = [[str(value) for value in row.values()] for row in table.to_pylist()]
    assert rows == list(csv.reader(io.StringIO(to_csv(ledger))))[1:]
    assert sum(table["amount"].to_pylist()) == 0
    assert table.schema.metadata[b"vcca_head"].decode() == ledger.head()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ledger", "ledger.parquet"]


def test_the_ledger_itself_is_not_written_over(ledger, tmp_path):
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    (tmp_path / "same.parquet").hardlink_to(tmp_path / "ledger")
    for path in (tmp_path / "ledger", str(tmp_path / "same.parquet")):
        with pytest.raises(LedgerError, match="is the ledger that is read"):
            to_parquet(ledger, path)
    ledger.verify()


class Busy:
    """A ledger into which somebody settles as soon as it has been read through."""

    def __init__(self, ledger):
        self.ledger, self.terms, self.path = ledger, ledger.terms, ledger.path

    def entries(self):
        yield from self.ledger.entries()
        self.ledger.settle(f"later {self.ledger.head()}", {"ann": 5.0}, 7)

    def accounts(self):
        return self.ledger.accounts()

    def head(self):
        return self.ledger.head()


def test_an_export_is_of_one_moment(ledger, tmp_path):
    wanted, head = to_beancount(ledger), ledger.head()
    assert to_beancount(Busy(ledger)) == wanted
    frozen = snapshot(ledger)
    text, beans = to_csv(frozen), to_beancount(frozen)
    ledger.settle("later", {"ann": 5.0}, 7)
    assert (to_csv(frozen), to_beancount(frozen)) == (text, beans)
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    head = ledger.head()
    to_parquet(Busy(ledger), tmp_path / "ledger.parquet")
    table = parquet.read_table(tmp_path / "ledger.parquet")
    assert table["hash"].to_pylist()[-1] == table.schema.metadata[b"vcca_head"].decode() == head


def test_an_empty_ledger_is_exported(tmp_path):
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    with Ledger.open(tmp_path / "ledger") as ledger:
        to_parquet(ledger, tmp_path / "ledger.parquet")
        assert to_csv(ledger).splitlines() == [",".join(Posting._fields)]


def test_without_pyarrow_the_remedy_is_told_and_nothing_is_written(ledger, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LedgerError, match=r"pip install \"vcca_jax\[parquet\]\", or export to CSV"):
        to_parquet(ledger, tmp_path / "ledger.parquet")
    assert not (tmp_path / "ledger.parquet").exists()


def test_streams_are_told_apart(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        rows = {"north": {"ann": 1.0}, "south 2": {"ann": 1.0}}
        settle_streams(ledger, 0, rows, {"north": 10, "south 2": 5}, gains={"north": -1.0})
        lines = list(csv.DictReader(io.StringIO(to_csv(ledger))))
        text = to_beancount(ledger)
    assert {(r["stream"], r["account"]): int(r["amount"]) for r in lines} == {
        ("north", "revenue:north"): -10,
        ("north", "carried:north"): 10,
        ("south 2", "revenue:south 2"): -5,
        ("south 2", "principal:ann"): 5,
    }
    assert "open Income:Revenue:P-north EUR" in text
    assert "open Income:Revenue:P-south-20-2 EUR" in text
    assert "open Assets:Carried:P-north EUR" in text
    loader = pytest.importorskip("beancount.loader", reason="beancount is not installed")
    assert loader.load_string(text)[1] == []


def test_a_currency_that_beancount_cannot_read_is_refused(tmp_path):
    with (
        Ledger.open(tmp_path / "ledger", currency="euro") as ledger,
        pytest.raises(LedgerError, match="'euro'"),
    ):
        to_beancount(ledger)
