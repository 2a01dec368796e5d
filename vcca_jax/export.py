"""A ledger's money in formats that other programs read: CSV, beancount and Parquet."""

import csv
import datetime
import importlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from vcca_jax.files import replacing
from vcca_jax.ledger import Entry, Ledger, LedgerError
from vcca_jax.ledger.terms import Terms


class Posting(NamedTuple):
    """One account's part of an entry, as every format has it.

    Attributes:
        seq: Number of the entry.
        kind: Its kind.
        stream: Whose revenue it was, where revenue comes in streams, or "".
        period: The period it settles, or "".
        account: The account.
        amount: What it got, in minor units; the amounts of one entry sum to zero.
        currency: Code of the currency.
        hash: The entry's hash.
    """

    seq: int
    kind: str
    stream: str
    period: str
    account: str
    amount: int
    currency: str
    hash: str


class Snapshot(NamedTuple):
    """A ledger as it was when it was read, whatever is settled since.

    Attributes:
        path: Where the ledger is.
        terms: Its terms.
        read: Its entries.
    """

    path: Path
    terms: Terms
    read: tuple[Entry, ...]

    def entries(self) -> Iterator[Entry]:
        """Iterate over the entries."""
        return iter(self.read)


def snapshot(ledger: Ledger) -> Snapshot:
    """Read an open ledger once, for several exports of the same entries."""
    return Snapshot(ledger.path, ledger.terms, tuple(ledger.entries()))


def postings(ledger: Ledger | Snapshot) -> Iterator[Posting]:
    """Go through all postings of an open ledger, or of a snapshot, in their order."""
    currency = ledger.terms.currency
    for seq, kind, content, digest in ledger.entries():
        stream, period = content.get("stream", ""), content.get("period", "")
        for account, amount in content.get("postings", {}).items():
            yield Posting(seq, kind, stream, period, account, int(amount), currency, digest)


def to_csv(ledger: Ledger | Snapshot) -> str:
    """Write every posting as a line of comma-separated values.

    Columns are the fields of `Posting`.

    Args:
        ledger: An open ledger, or a snapshot.

    Returns:
        The text, with a header and "\\n" after each line.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Posting._fields)
    writer.writerows(postings(ledger))
    return out.getvalue()


def to_parquet(ledger: Ledger | Snapshot, path: str | os.PathLike[str]) -> None:
    """Write every posting as a row of a Parquet file, all of it or nothing.

    Columns are the fields of `Posting`; the entry's number and the amount are 64-bit integers, the
    rest is text. The file's metadata tells the ledger's head hash under "vcca_head".

    Args:
        ledger: An open ledger, or a snapshot.
        path: The file; one that is there is replaced, unless it is the ledger itself.

    Raises:
        LedgerError: If pyarrow, an optional dependency, is not installed; or the file is the
            ledger's.
    """
    path = Path(path)
    if path.exists() and path.samefile(ledger.path):
        raise LedgerError(f"{path} is the ledger that is read; give another path")
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise LedgerError(
            "Parquet needs pyarrow, which is not installed; install it with: "
            'pip install "vcca_jax[parquet]", or export to CSV'
        ) from None
    numbers = {"seq": pyarrow.int64(), "amount": pyarrow.int64()}
    types = dict.fromkeys(Posting._fields, pyarrow.string()) | numbers
    if not isinstance(ledger, Snapshot):
        ledger = snapshot(ledger)
    schema = pyarrow.schema(list(types.items()), metadata={"vcca_head": ledger.read[-1].hash})
    rows = list(postings(ledger))
    columns = {name: [getattr(row, name) for row in rows] for name in Posting._fields}
    with replacing(path) as beside:
        parquet.write_table(pyarrow.table(columns, schema=schema), beside)


def to_beancount(
    ledger: Ledger | Snapshot,
    *,
    decimals: int = 2,
    first_day: datetime.date = datetime.date(2000, 1, 1),
) -> str:
    """Write the ledger as a beancount file, one transaction an entry, balances asserted at the end.

    A ledger records no time and beancount wants dates, so entry n is dated n days after
    `first_day`. Revenue is income; principals, escrow, reserve, dust and carried revenue are assets
    held for them. Names of principals are made account names by writing what beancount does not
    allow in them as hexadecimal, so that no two names coincide; metadata tells the name itself.

    Args:
        ledger: An open ledger, or a snapshot.
        decimals: Digits of a minor unit; 2 where 100 minor units make one of the currency.
        first_day: The date of entry 0.

    Returns:
        The text of the file.

    Raises:
        LedgerError: If the currency is no beancount commodity or the dates run out.
    """
    currency = ledger.terms.currency
    if not re.fullmatch(r"[A-Z][A-Z0-9'._-]{0,22}[A-Z0-9]", currency):
        raise LedgerError(f"currency is {currency!r}; beancount needs one like 'EUR'")
    opened: dict[str, int] = {}
    balances: Counter[str] = Counter()
    body: list[str] = []
    seq = 0
    for seq, kind, content, digest in ledger.entries():
        postings = content.get("postings", {})
        if not postings:
            continue
        body.append(f'{_day(first_day, seq)} * "{kind}" {_quoted(content.get("period", ""))}')
        body.append(f'  seq: "{seq}"')
        body.append(f'  hash: "{digest}"')
        for account, amount in postings.items():
            opened.setdefault(account, seq)
            balances[account] += int(amount)
            body.append(f"  {_account(account)}  {_decimal(int(amount), decimals)} {currency}")
        body.append("")
    head = []
    for account, since in opened.items():
        head.append(f"{_day(first_day, since)} open {_account(account)} {currency}")
        head.append(f"  account: {_quoted(account)}")
    stated = [
        f"{_day(first_day, seq + 1)} balance {_account(account)}  "
        f"{_decimal(amount, decimals)} {currency}"
        for account, amount in balances.items()
    ]
    return "\n".join([*head, "", *body, *stated, ""])


def _day(first: datetime.date, seq: int) -> str:
    try:
        return (first + datetime.timedelta(days=seq)).isoformat()
    except OverflowError:
        raise LedgerError(f"entry {seq} lies beyond the last date; export to CSV") from None


def _account(account: str) -> str:
    kind, _, name = account.partition(":")
    kind = f"{'Income' if kind == 'revenue' else 'Assets'}:{kind.capitalize()}"
    if not name:
        return kind
    safe = re.sub(r"[^A-Za-z0-9]", lambda found: f"-{ord(found[0]):x}-", name)
    return f"{kind}:P-{safe}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _decimal(amount: int, decimals: int) -> str:
    return f"{Decimal(amount).scaleb(-decimals):f}"
