"""Adult and credit default, on rows made here: what is an input, and what reaches whom."""

import importlib
import inspect

import numpy as np
import pytest

from vcca_jax import datasets

POOLED = ("pooled_train", "values", "validation", "test")
OCCUPATIONS = (
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
    "?",
    "Priv-house-serv",
    "Armed-Forces",
)
WORKCLASSES = (
    "Private",
    "Self-emp-not-inc",
    "Local-gov",
    "State-gov",
    "Self-emp-inc",
    "Federal-gov",
    "?",
    "Without-pay",
    "Never-worked",
)
RACES = ("White", "Black", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other")


def adult_rows():
    rng = np.random.default_rng(0)
    rows = []
    for number in range(450):
        female = rng.random() < 0.4
        married = rng.random() < 0.5
        spouse = "Wife" if female else "Husband"
        rows.append(
            {
                "age": str(rng.integers(17, 91)),
                "workclass": WORKCLASSES[number // 3 % len(WORKCLASSES)],
                "fnlwgt": str(rng.integers(10_000, 10**6)),
                "education": "Bachelors",
                "education-num": str(rng.integers(1, 17)),
                "marital-status": "Married-civ-spouse" if married else "Divorced",
                "occupation": OCCUPATIONS[number % len(OCCUPATIONS)],
                "relationship": spouse if married else "Unmarried",
                "race": str(rng.choice(RACES)),
                "sex": "Female" if female else "Male",
                "capital-gain": str(rng.choice([0, 0, 0, 7000, 99999])),
                "capital-loss": str(rng.choice([0, 0, 1900])),
                "hours-per-week": str(rng.integers(1, 100)),
                "native-country": str(rng.choice(["United-States", "Mexico", "?"])),
                "income": ">50K" if rng.random() < 0.3 else "<=50K",
            }
        )
    rows[440] = dict(rows[5])
    rows[441] = dict(rows[20])
    return rows


def credit_rows():
    rng = np.random.default_rng(1)
    rows = []
    for number in range(420):
        row = {
            "ID": str(number + 1),
            "LIMIT_BAL": f"{rng.choice([10, 50, 60, 100, 140, 190, 230, 290, 310, 1000])}000.0",
            "SEX": str(rng.integers(0, 2)),
            "AGE": str(rng.integers(21, 80)),
            "default-payment-next-month": str(rng.integers(0, 2)),
        }
        row |= {f"PAY_{month}": str(rng.integers(-2, 4)) for month in (0, 2, 3, 4, 5, 6)}
        row |= {f"BILL_AMT{month}": f"{rng.integers(-500, 90_000)}.0" for month in range(1, 7)}
        row |= {f"PAY_AMT{month}": f"{rng.integers(0, 9_000)}.0" for month in range(1, 7)}
        education, marriage = rng.integers(0, 7), rng.integers(0, 4)
        row |= {f"EDUCATION_{code}": str(int(code == education)) for code in range(7)}
        row |= {f"MARRIAGE_{code}": str(int(code == marriage)) for code in range(4)}
        rows.append(row)
    rows[400] = {**rows[7], "ID": "401"}
    return rows


ADULT = adult_rows()
CREDIT = credit_rows()
LOADERS = {
    "adult by occupation": (lambda **options: datasets.adult(**options), ADULT),
    "adult by workclass": (
        lambda **options: datasets.adult(owner="workclass", **options),
        ADULT,
    ),
    "credit default": (lambda **options: datasets.credit_default(**options), CREDIT),
}
every_loader = pytest.mark.parametrize("name", LOADERS)


def position(name, split):
    """The place in the list of rows of each row of a split."""
    return split.rows - 1 if name == "credit default" else split.rows


@pytest.mark.parametrize("name", ["adult", "credit_default", "heart_disease", "sentiment"])
def test_a_loader_is_a_function_also_after_the_file_of_its_name_is_imported(name):
    importlib.import_module(f"vcca_jax.datasets.{name}")
    assert inspect.isfunction(getattr(datasets, name))


@every_loader
def test_every_row_is_in_one_split_with_its_own_owner_and_twins_stay_together(name):
    load, rows = LOADERS[name]
    study = load(rows=rows)
    splits = [getattr(study, part) for part in POOLED]
    home = {}
    for part, split in zip(POOLED, splits, strict=True):
        assert np.all(np.diff(split.owners) >= 0)
        for row in position(name, split).tolist():
            assert row not in home
            home[row] = part
    assert sorted(home) == list(range(len(rows)))
    twins = [(400, 7)] if name == "credit default" else [(440, 5), (441, 20)]
    for again, first in twins:
        assert home[again] == home[first]
    total = np.bincount(np.concatenate([split.owners for split in splits]))
    for split, share in zip(splits, (0.55, 0.15, 0.15, 0.15), strict=True):
        counts = np.bincount(split.owners, minlength=len(study.agents))
        assert np.all(np.abs(counts - share * total) <= 2)
    shards = [len(shard.targets) for shard in study.train]
    assert shards == np.bincount(study.pooled_train.owners).tolist()


@every_loader
def test_inputs_are_standardised_on_training_rows_and_typed(name):
    load, rows = LOADERS[name]
    study = load(rows=rows)
    train = study.pooled_train
    assert train.inputs.dtype == np.float32
    assert train.inputs.shape == (len(train.targets), len(study.feature_names))
    assert (train.targets.dtype, train.owners.dtype) == (np.int32, np.int32)
    assert len(set(study.feature_names)) == len(study.feature_names)
    for column, values in enumerate(train.inputs.T):
        if set(np.unique(values)) <= {0.0, 1.0}:
            continue
        assert study.feature_names[column] != ""
        np.testing.assert_allclose(values.mean(), 0, atol=1e-5)
        np.testing.assert_allclose(values.std(), 1, atol=1e-4)


@every_loader
@pytest.mark.parametrize("held_out", ["values", "validation", "test"])
def test_no_measurement_of_a_held_out_row_reaches_any_other_row(name, held_out):
    load, rows = LOADERS[name]
    study = load(rows=rows, include_protected=True)
    if name == "credit default":
        changed = {"AGE": "79", "BILL_AMT1": "1e6", "PAY_AMT3": "77.0", "PAY_0": "8"}
    else:
        changed = {"age": "90", "hours-per-week": "99", "capital-gain": "1", "education-num": "16"}
    altered = list(rows)
    # A row and its twin would part if one of them changed alone, and their split with them.
    twins = {7, 400} if name == "credit default" else {5, 20, 440, 441}
    for row in set(position(name, getattr(study, held_out)).tolist()) - twins:
        altered[row] = {**rows[row], **changed}
    again = load(rows=altered, include_protected=True)
    for part in POOLED:
        before, after = getattr(study, part), getattr(again, part)
        assert np.array_equal(before.rows, after.rows)
        assert np.array_equal(before.inputs, after.inputs) == (part != held_out)
    assert again.oldest_third_from == study.oldest_third_from


@every_loader
def test_what_is_protected_is_an_input_only_on_request(name):
    load, rows = LOADERS[name]
    plain, protected = load(rows=rows), load(rows=rows, include_protected=True)
    count = len(plain.feature_names)
    assert protected.feature_names[:count] == plain.feature_names
    assert np.array_equal(protected.test.inputs[:, :count], plain.test.inputs)
    speaking = ("sex", "age", "race", "native-country", "education:", "marriage")
    assert not [f for f in plain.feature_names if f.startswith(speaking)]
    column = protected.feature_names.index("sex: male")
    assert np.array_equal(protected.test.inputs[:, column], plain.test.attributes["sex"])


@every_loader
def test_groups_follow_the_attributes(name):
    load, rows = LOADERS[name]
    study = load(rows=rows)
    for split in (getattr(study, part) for part in POOLED):
        assert tuple(split.groups) == study.groups
        source = [rows[row] for row in position(name, split)]
        if name == "credit default":
            # In the carrier's file 1 is a woman: the source's 1 and 2, counted from 0.
            women = [row["SEX"] == "1" for row in source]
            ages = [float(row["AGE"]) for row in source]
            high_school = [row["EDUCATION_3"] == "1" for row in source]
            assert split.groups["high school"].tolist() == high_school
            others = [any(row[f"EDUCATION_{k}"] == "1" for k in (0, 4, 5, 6)) for row in source]
            assert (split.attributes["education"] == 3).tolist() == others
            married = [row["MARRIAGE_1"] == "1" for row in source]
            assert (split.attributes["marriage"] == 0).tolist() == married
        else:
            women = [row["sex"] == "Female" for row in source]
            ages = [float(row["age"]) for row in source]
            races = [datasets.ADULT_RACES[k] for k in split.attributes["race"]]
            assert races == [row["race"].lower() for row in source]
            assert split.groups["black"].tolist() == [race == "black" for race in races]
            covered = sum(split.groups[group] for group in ("white", "black", "other races"))
            assert np.all(covered == 1)
            born = [row["native-country"] == "United-States" for row in source]
            assert split.attributes["born in the united states"].tolist() == born
        assert split.groups["women"].tolist() == women
        assert np.array_equal(split.groups["men"], ~split.groups["women"])
        assert split.attributes["age"].tolist() == ages
        old = split.attributes["age"] >= study.oldest_third_from
        assert np.array_equal(split.groups["oldest third"], old)


@every_loader
def test_limits_leave_fewer_rows_of_the_same_agents(name):
    load, rows = LOADERS[name]
    study = load(rows=rows, per_agent=12)
    counts = sum(np.bincount(getattr(study, part).owners) for part in POOLED)
    assert counts.tolist() == [12] * len(study.agents)
    ages = [float(row.get("AGE") or row.get("age")) for row in rows]
    expected = [ages[row] for row in position(name, study.test)]
    assert study.test.attributes["age"].tolist() == expected
    whole = load(rows=rows)
    assert (study.agents, study.feature_names) == (whole.agents, whole.feature_names)
    limited = load(rows=rows, rows_limit=300)
    assert sum(len(getattr(limited, part).rows) for part in POOLED) == 300


@every_loader
def test_the_same_arguments_give_the_same_bits_and_another_seed_another_split(name):
    load, rows = LOADERS[name]
    first, again, other = (load(rows=rows, split_seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.test.inputs, again.test.inputs)
    assert np.array_equal(first.test.rows, again.test.rows)
    assert not np.array_equal(first.test.rows, other.test.rows)


def test_small_occupations_and_employers_join_a_larger_agent():
    joined = {"Priv-house-serv": "Other-service", "Armed-Forces": "Protective-serv"}
    joined |= dict.fromkeys(("?", "Without-pay", "Never-worked"), "not stated")
    for owner, agents in (("occupation", 13), ("workclass", 7)):
        study = datasets.adult(owner=owner, rows=ADULT)
        assert len(study.agents) == agents
        assert not [f for f in study.feature_names if f.startswith(f"{owner}:")]
        for split in (getattr(study, part) for part in POOLED):
            words = [ADULT[row][owner] for row in split.rows]
            expected = [joined.get(word, word).lower() for word in words]
            assert [study.agents[k] for k in split.owners] == expected


def test_relationship_does_not_tell_a_husband_from_a_wife():
    swap = {"Husband": "Wife", "Wife": "Husband"}
    swapped = [{**row, "relationship": swap.get(row["relationship"], "Unmarried")} for row in ADULT]
    before, after = datasets.adult(rows=ADULT), datasets.adult(rows=swapped)
    assert np.array_equal(before.test.inputs, after.test.inputs)
    assert "relationship: husband or wife" in before.feature_names


def test_an_unknown_owner_or_word_is_refused():
    with pytest.raises(ValueError, match=r"owner='race' is unknown; choose one of occupation"):
        datasets.adult(owner="race", rows=ADULT)
    with pytest.raises(ValueError, match=r"'occupation' holds \['Wizard'\]"):
        datasets.adult(rows=[{**ADULT[0], "occupation": "Wizard"}, *ADULT[1:]])
    with pytest.raises(ValueError, match="per_agent=0"):
        datasets.credit_default(rows=CREDIT, per_agent=0)


def test_a_limit_at_the_end_of_a_band_belongs_to_it():
    study = datasets.credit_default(rows=CREDIT)
    assert len(study.agents) == 7
    for split in (getattr(study, part) for part in POOLED):
        for row, owner in zip(split.rows, split.owners, strict=True):
            limit = float(CREDIT[row - 1]["LIMIT_BAL"]) / 1000
            assert owner == sum(limit > upper for upper in (50, 100, 150, 200, 250, 300))


def test_account_columns_are_the_documented_functions_of_the_file():
    study = datasets.credit_default(rows=CREDIT)
    train = study.pooled_train

    def raw(column):
        return np.array([float(CREDIT[row - 1][column]) for row in train.rows])

    def column(name):
        return train.inputs[:, study.feature_names.index(name)]

    def standardised(values):
        return (values - values.mean()) / values.std()

    bill = raw("BILL_AMT2")
    due = np.where(bill > 0, bill, np.nan)
    share = np.nan_to_num(np.clip(raw("PAY_AMT1") / due, 0, 1), nan=1.0)
    expected = {
        "log of limit": np.log(raw("LIMIT_BAL")),
        "month 1: months late": np.maximum(raw("PAY_0"), 0),
        "month 2: months late": np.maximum(raw("PAY_2"), 0),
        "month 2: bill": np.sign(bill) * np.log1p(np.abs(bill)),
        "month 6: payment": np.log1p(raw("PAY_AMT6")),
        "month 1: share paid": share,
        "bill as share of limit": raw("BILL_AMT1") / raw("LIMIT_BAL"),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(column(name), standardised(values), atol=1e-5)
    assert np.array_equal(column("month 3: paid in full"), raw("PAY_3") == -1)
    assert np.array_equal(column("month 3: not used"), raw("PAY_3") == -2)
