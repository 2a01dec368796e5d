"""Default of credit card clients in Taiwan, 2005, owned by lenders to clients of one limit."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from vcca_jax.datasets.columns import Column, category, number, stack
from vcca_jax.datasets.folder import read_fetched
from vcca_jax.datasets.study import Row, Study, deal, divide, oldest_third_from, sample

CREDIT_EDUCATIONS = ("graduate school", "university", "high school", "other or not stated")
CREDIT_MARRIAGES = ("married", "single", "other or not stated")
CREDIT_GROUPS = ("women", "men", "graduate school", "university", "high school", "oldest third")

# The upper ends of the agents' bands of the credit limit, in thousands of Taiwan dollars.
_LIMITS = (50, 100, 150, 200, 250, 300)
_MONTHS = range(1, 7)
# The source calls the latest month's status PAY_0 and goes on with PAY_2.
_STATUS = ("PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6")
_TARGET = "default-payment-next-month"
# The carrier spread these two over 0/1 columns: code in the source -> our level.
_EDUCATION_CODES = {1: 0, 2: 1, 3: 2, 0: 3, 4: 3, 5: 3, 6: 3}
_MARRIAGE_CODES = {1: 0, 2: 1, 0: 2, 3: 2}


def read_credit_default() -> list[dict[str, str]]:
    """Reads the fetched file as text rows, after verifying that it is that very file.

    Returns:
        30,000 rows in the file's order, each a mapping from column name to the text in the
        cell.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: the SHA-256 of the file is not the recorded one.
    """
    text = read_fetched("credit-default", "UCI_Credit_Card.csv").decode("ascii")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def credit_default(
    *,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.55, 0.15, 0.15, 0.15),
    include_protected: bool = False,
    rows_limit: int | None = None,
    per_agent: int | None = None,
    rows: Sequence[Row] | None = None,
) -> Study:
    """UCI Default of Credit Card Clients: 30,000 accounts, and who defaults next month.

    The target is 1 for a default: 22.1 % of the rows, so report AUC or balanced accuracy;
    saying "no default" of everyone is right in 77.9 %.

    Agents are seven lenders, each to clients of one band of the credit limit: up to 50, 100,
    150, 200, 250, 300 thousand Taiwan dollars, and above. They hold 2,154 to 7,676 rows and
    see defaults at rates from 0.32 (lowest limits) to 0.13 (highest). The bands are ours: the
    source comes from one bank. The limit is an input too, since it varies within a band.

    Splitting. As in `heart_disease`: each agent on its own, dealt out in strata of outcome
    and sex. Rows identical in all but their ID (35 repeat an earlier one) stay in one split.

    Features, F = 37 (46 with `include_protected`), in the order of `feature_names`, all of
    the account and none of the person; numbers are standardised by training rows alone: log
    of the limit; for each of six months, the latest (September) first, how many months the
    payment is late (0 where it is not), whether the month was paid in full (code -1), whether
    the card was not used (code -2; the rest revolve), and sign(x) log(1 + |x|) of the bill,
    which can be negative, and of the payment; for each month but the earliest the share paid
    of the bill before it, within [0, 1], 1 where there was none to pay; and the latest bill
    as a share of the limit.

    Sex, age, education and marriage are attributes and no inputs, unless `include_protected`
    makes them the last input columns (age standardised, the others one 0/1 column a level).

    Args:
        split_seed: seed of the sampling and of the shuffle, an integer >= 0.
        fractions: shares of train, values, validation and test; all above 0, sum 1.
        include_protected: whether age, sex, education and marriage are inputs.
        rows_limit: at most so many rows in all, drawn by the seed; None = all.
        per_agent: at most so many rows of each agent, drawn by the seed; None = all.
        rows: text rows as `read_credit_default` returns them, which is called when None.

    Returns:
        The study. Attributes are "sex", "age", "education" (int32, index into
        `CREDIT_EDUCATIONS`) and "marriage" (into `CREDIT_MARRIAGES`); groups are
        `CREDIT_GROUPS`. The same arguments give the same arrays, bit for bit.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: the file was altered, or an argument is out of range.

    Source: Yeh (2009), Default of Credit Card Clients, UCI Machine Learning Repository,
    https://doi.org/10.24432/C55S3H, CC BY 4.0.
    """
    rows = read_credit_default() if rows is None else rows
    limit = _numbers(rows, "LIMIT_BAL")
    owners = np.searchsorted(np.array(_LIMITS) * 1000.0, limit).astype(np.int32)
    kept = sample(owners, rows_limit=rows_limit, per_agent=per_agent, split_seed=split_seed)
    rows, owners = [rows[row] for row in kept], owners[kept]

    targets = _numbers(rows, _TARGET).astype(np.int32)
    # The source has 1 = male and 2 = female; its carrier counts from 0, so 1 is a woman there.
    sex = 1 - _numbers(rows, "SEX").astype(np.int32)
    age = _numbers(rows, "AGE").astype(np.float32)
    education = _level(rows, "EDUCATION", _EDUCATION_CODES)
    marriage = _level(rows, "MARRIAGE", _MARRIAGE_CODES)

    agents = (
        *(f"limit up to {limit} thousand" for limit in _LIMITS),
        f"limit above {_LIMITS[-1]} thousand",
    )
    contents = ["\n".join(cell for name, cell in row.items() if name != "ID") for row in rows]
    split = deal(
        owners,
        2 * targets + sex,
        agents=agents,
        fractions=fractions,
        split_seed=split_seed,
        units=np.unique(contents, return_inverse=True)[1],
    )
    columns = _columns(rows, split == 0)
    if include_protected:
        columns += number("age", age.astype(np.float64), split == 0)
        columns.append(Column("sex: male", sex.astype(np.float64)))
        for name, level, levels in (
            ("education", education, CREDIT_EDUCATIONS),
            ("marriage", marriage, CREDIT_MARRIAGES),
        ):
            columns += category(name, [levels[k] for k in level], levels)
    inputs, names = stack(columns)
    old_from = oldest_third_from(age[split == 0])
    masks = (sex == 0, sex == 1, *(education == k for k in range(3)), age >= old_from)
    parts = divide(
        split,
        agents=agents,
        inputs=inputs,
        targets=targets,
        owners=owners,
        attributes={"sex": sex, "age": age, "education": education, "marriage": marriage},
        groups=dict(zip(CREDIT_GROUPS, masks, strict=True)),
        rows=_numbers(rows, "ID").astype(np.int32),
    )
    return Study(agents, *parts, names, CREDIT_GROUPS, old_from)


def _numbers(rows: Sequence[Row], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def _level(rows: Sequence[Row], name: str, levels: dict[int, int]) -> np.ndarray:
    """Our level of a category that the file spreads over 0/1 columns, int32 [n]."""
    codes = sorted(levels)
    spread = np.stack([_numbers(rows, f"{name}_{code}") for code in codes], axis=1)
    return np.array([levels[code] for code in codes], np.int32)[np.argmax(spread, axis=1)]


def _columns(rows: Sequence[Row], is_train: np.ndarray) -> list[Column]:
    """The input columns without the protected ones."""
    limit = _numbers(rows, "LIMIT_BAL")
    bills = [_numbers(rows, f"BILL_AMT{month}") for month in _MONTHS]
    payments = [_numbers(rows, f"PAY_AMT{month}") for month in _MONTHS]
    columns = number("log of limit", np.log(limit), is_train)
    for month, status in enumerate(_STATUS):
        code = _numbers(rows, status)
        ago = f"month {month + 1}"
        columns += number(f"{ago}: months late", np.maximum(code, 0), is_train)
        columns.append(Column(f"{ago}: paid in full", (code == -1).astype(np.float64)))
        columns.append(Column(f"{ago}: not used", (code == -2).astype(np.float64)))
        columns += number(f"{ago}: bill", _signed_log(bills[month]), is_train)
        columns += number(f"{ago}: payment", _signed_log(payments[month]), is_train)
    for month in range(len(_STATUS) - 1):
        due = bills[month + 1]
        share = np.where(due > 0, payments[month] / np.where(due > 0, due, 1.0), 1.0)
        columns += number(f"month {month + 1}: share paid", np.minimum(share, 1.0), is_train)
    columns += number("bill as share of limit", bills[0] / limit, is_train)
    return columns


def _signed_log(amount: np.ndarray) -> np.ndarray:
    """Amounts span five orders of magnitude and both signs."""
    return np.sign(amount) * np.log1p(np.abs(amount))
