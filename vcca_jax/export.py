"""A ledger's money in formats that other programs read: CSV, beancount and Parquet."""

import csv
import datetime
import importlib
import io
import os
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from vcca_jax.files import replacing
from vcca_jax.ledger import Ledger, LedgerError

COLUMNS = ("seq", "kind", "stream", "period", "account", "amount", "currency", "hash")


def to_csv(ledger: Ledger) -> str:
    """Write every posting as a line of comma-separated values.

    Columns: number and kind of the entry, its stream and period, the account, the amount in integer
    minor units, the currency, and the entry's hash. The amounts of one entry sum to zero.

    Args:
        ledger: An open ledger.

    Returns:
        The text, with a header and "\\n" after each line.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_rows(ledger))
    return out.getvalue()


def _rows(ledger: Ledger) -> Iterator[tuple[int, str, str, str, str, int, str, str]]:
    currency = ledger.terms.currency
    for seq, kind, content, digest in ledger.entries():
        stream, period = content.get("stream", ""), content.get("period", "")
        for account, amount in content.get("postings", {}).items():
            yield seq, kind, stream, period, account, int(amount), currency, digest


def to_parquet(ledger: Ledger, path: str | os.PathLike[str]) -> None:
    """Write every posting as a row of a Parquet file, all of it or nothing.

    Columns are those of `to_csv`; the entry's number and the amount are 64-bit integers, the rest
    is text. The file's metadata tells the ledger's head hash under "vcca_head".

    Args:
        ledger: An open ledger.
        path: The file; one that is there is replaced.

    Raises:
        LedgerError: If pyarrow, an optional dependency, is not installed.
    """
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise LedgerError(
            "Parquet needs pyarrow, which is not installed; install it with: "
            'pip install "vcca_jax[parquet]", or export to CSV'
        ) from None
    numbers = {"seq": pyarrow.int64(), "amount": pyarrow.int64()}
    types = dict.fromkeys(COLUMNS, pyarrow.string()) | numbers
    schema = pyarrow.schema(list(types.items()), metadata={"vcca_head": ledger.head()})
    rows = list(_rows(ledger))
    columns = {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}
    with replacing(Path(path)) as beside:
        parquet.write_table(pyarrow.table(columns, schema=schema), beside)


def to_beancount(
    ledger: Ledger, *, decimals: int = 2, first_day: datetime.date = datetime.date(2000, 1, 1)
) -> str:
    """Write the ledger as a beancount file, one transaction an entry, balances asserted at the end.

    A ledger records no time and beancount wants dates, so entry n is dated n days after
    `first_day`. Revenue is income; principals, escrow, reserve, dust and carried revenue are assets
    held for them. Names of principals are made account names by writing what beancount does not
    allow in them as hexadecimal, so that no two names coincide; metadata tells the name itself.

    Args:
        ledger: An open ledger.
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
            body.append(f"  {_account(account)}  {_decimal(int(amount), decimals)} {currency}")
        body.append("")
    head = []
    for account, since in opened.items():
        head.append(f"{_day(first_day, since)} open {_account(account)} {currency}")
        head.append(f"  account: {_quoted(account)}")
    balances = [
        f"{_day(first_day, seq + 1)} balance {_account(account)}  "
        f"{_decimal(amount, decimals)} {currency}"
        for account, amount in ledger.accounts().items()
    ]
    return "\n".join([*head, "", *body, *balances, ""])


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
