"""Adult: incomes in the United States census of 1994, owned by occupations or employers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from vcca_jax.datasets.columns import Column, category, number, stack
from vcca_jax.datasets.folder import read_fetched
from vcca_jax.datasets.study import Row, Study, deal, divide, oldest_third_from, sample

ADULT_RACES = ("white", "black", "asian-pac-islander", "amer-indian-eskimo", "other")
ADULT_GROUPS = ("women", "men", "white", "black", "other races", "oldest third")

_COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
)
_MISSING = "?"

# Levels too small to be an agent join the nearest one; what is not stated is an agent too.
_JOINED = {
    "occupation": {
        "Priv-house-serv": "Other-service",
        "Armed-Forces": "Protective-serv",
        _MISSING: "not stated",
    },
    "workclass": {
        "Without-pay": "not stated",
        "Never-worked": "not stated",
        _MISSING: "not stated",
    },
}
_OWNERS = {
    "occupation": (
        "Prof-specialty",
        "Craft-repair",
        "Exec-managerial",
        "Adm-clerical",
        "Sales",
        "Other-service",
        "Machine-op-inspct",
        "Transport-moving",
        "Handlers-cleaners",
        "Farming-fishing",
        "Tech-support",
        "Protective-serv",
        "not stated",
    ),
    "workclass": (
        "Private",
        "Self-emp-not-inc",
        "Local-gov",
        "State-gov",
        "Self-emp-inc",
        "Federal-gov",
        "not stated",
    ),
}
_MARITAL = (
    "Married-civ-spouse",
    "Never-married",
    "Divorced",
    "Separated",
    "Widowed",
    "Married-spouse-absent",
    "Married-AF-spouse",
)
_RELATIONSHIP = (
    "Husband or wife",
    "Not-in-family",
    "Own-child",
    "Unmarried",
    "Other-relative",
)
_HEAVY_TAILED = ("capital-gain", "capital-loss")


def read_adult() -> list[dict[str, str]]:
    """Reads the fetched file as text rows, after verifying that it is that very file.

    Returns:
        32,561 rows in the file's order, each a mapping from column name to the text in the
        cell, "?" where it is not known.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: the SHA-256 of the file is not the recorded one.
    """
    text = read_fetched("adult", "adult.data").decode("ascii")
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    return [dict(zip(_COLUMNS, cells, strict=True)) for cells in reader if cells]


def adult(
    *,
    owner: str = "occupation",
    split_seed: int = 0,
    fractions: Sequence[float] = (0.55, 0.15, 0.15, 0.15),
    include_protected: bool = False,
    rows_limit: int | None = None,
    per_agent: int | None = None,
    rows: Sequence[Row] | None = None,
) -> Study:
    """UCI Adult: 32,561 people, and whether they earn more than 50,000 dollars a year.

    The target is 1 for more than 50,000 dollars: 24.1 % of the rows, so report AUC or
    balanced accuracy beside accuracy.

    Agents. With `owner="occupation"`, thirteen occupations as guilds that hold their members'
    records: 649 to 4,140 rows, rates of the target from 0.05 (services) to 0.48
    (executives), shares of women from 0.05 (crafts) to 0.67 (clerks). Private households
    (149 rows) count to other services, and the armed forces (9) to protective services. With
    `owner="workclass"`, seven kinds of employer: 960 to 22,696 rows, most of them private;
    rates from 0.10 to 0.56. The few without pay and who never worked count to "not stated".
    Neither owner is an input; the other one is.

    Splitting. As in `heart_disease`: each agent on its own, dealt out in strata of outcome
    and sex. Rows that are identical (24 repeat an earlier one) stay in one split. The
    published test file is not used.

    Features, F = 22 by occupation and 28 by workclass (8 more with `include_protected`), in
    the order of `feature_names`: the years of education, hours a week, and log(1 + x) of
    capital gain and loss, standardised by training rows alone; one 0/1 column a level of
    workclass or occupation, marital status and relationship, all zeros where it is not
    stated. The census weight `fnlwgt` and the words of `education`, which say the same as
    its years, are left out.

    Sex, age, race and origin are by default attributes and no inputs, and husband and wife
    are one level of relationship, or sex could be read off it. With `include_protected`, age
    (standardised), sex, race and birth in the United States are the last input columns.
    Others still speak of them: marital status of age, occupation of sex.

    Args:
        owner: "occupation" or "workclass".
        split_seed: seed of the sampling and of the shuffle, an integer >= 0.
        fractions: shares of train, values, validation and test; all above 0, sum 1.
        include_protected: whether age, sex, race and origin are inputs.
        rows_limit: at most so many rows in all, drawn by the seed; None = all.
        per_agent: at most so many rows of each agent, drawn by the seed; None = all.
        rows: text rows as `read_adult` returns them, which is called when None.

    Returns:
        The study. Attributes are "sex", "age", "race" (int32, index into `ADULT_RACES`) and
        "born in the united states" (int32, 0 also where not stated); groups are
        `ADULT_GROUPS`. The same arguments give the same arrays, bit for bit.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: the file was altered, an argument is out of range, or a cell holds an
            unknown word.

    Source: Becker, Kohavi (1996), Adult, UCI Machine Learning Repository,
    https://doi.org/10.24432/C5XW20, CC BY 4.0.
    """
    if owner not in _OWNERS:
        raise ValueError(f"owner={owner!r} is unknown; choose one of {', '.join(_OWNERS)}")
    rows = read_adult() if rows is None else rows
    owners = _owners([row[owner] for row in rows], owner)
    kept = sample(owners, rows_limit=rows_limit, per_agent=per_agent, split_seed=split_seed)
    rows, owners = [rows[row] for row in kept], owners[kept]

    targets = category("income", [row["income"] for row in rows], ("<=50K", ">50K"))[1].values
    male = category("sex", [row["sex"] for row in rows], ("Female", "Male"))[1]
    races = category("race", [row["race"].lower() for row in rows], ADULT_RACES)
    native = Column(
        "native-country: united-states",
        np.array([row["native-country"] == "United-States" for row in rows], np.float64),
    )
    sex = male.values.astype(np.int32)
    age = np.array([float(row["age"]) for row in rows], np.float32)
    race = np.argmax([column.values for column in races], axis=0).astype(np.int32)

    agents = tuple(name.lower() for name in _OWNERS[owner])
    contents = ["\n".join(row[name] for name in _COLUMNS) for row in rows]
    split = deal(
        owners,
        2 * targets.astype(np.int64) + sex,
        agents=agents,
        fractions=fractions,
        split_seed=split_seed,
        units=np.unique(contents, return_inverse=True)[1],
    )
    columns = _columns(rows, split == 0, owner)
    if include_protected:
        columns += [*number("age", age.astype(np.float64), split == 0), male, *races, native]
    inputs, names = stack(columns)
    old_from = oldest_third_from(age[split == 0])
    masks = (sex == 0, sex == 1, race == 0, race == 1, race > 1, age >= old_from)
    parts = divide(
        split,
        agents=agents,
        inputs=inputs,
        targets=targets,
        owners=owners,
        attributes={
            "sex": sex,
            "age": age,
            "race": race,
            "born in the united states": native.values.astype(np.int32),
        },
        groups=dict(zip(ADULT_GROUPS, masks, strict=True)),
        rows=kept,
    )
    return Study(agents, *parts, names, ADULT_GROUPS, old_from)


def _owners(words: Sequence[str], owner: str) -> np.ndarray:
    """The owner of each row, int32 [n]."""
    joined = [_JOINED[owner].get(word, word) for word in words]
    levels = category(owner, joined, _OWNERS[owner])
    return np.argmax([column.values for column in levels], axis=0).astype(np.int32)


def _columns(rows: Sequence[Row], is_train: np.ndarray, owner: str) -> list[Column]:
    """The input columns without the protected ones."""
    columns: list[Column] = []
    for name in ("education-num", "hours-per-week", *_HEAVY_TAILED):
        observed = np.array([float(row[name]) for row in rows])
        if name in _HEAVY_TAILED:
            observed = np.log1p(observed)
        columns += number(name, observed, is_train)
    (other,) = set(_OWNERS) - {owner}
    words = [_JOINED[other].get(row[other], row[other]) for row in rows]
    columns += category(other, words, _OWNERS[other][:-1], missing="not stated")
    columns += category("marital-status", [row["marital-status"] for row in rows], _MARITAL)
    spouses = {"Husband": _RELATIONSHIP[0], "Wife": _RELATIONSHIP[0]}
    words = [spouses.get(row["relationship"], row["relationship"]) for row in rows]
    columns += category("relationship", words, _RELATIONSHIP)
    return columns
