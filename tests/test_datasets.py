"""The data: provenance, splits that never touch, and statistics from training rows alone."""

import sys

import numpy as np
import pytest

from vcca_jax import datasets

ROWS = datasets.read_heart_disease()
STUDY = datasets.heart_disease()
POOLED = ("pooled_train", "values", "validation", "test")


def leaves(study: datasets.Study, names: tuple[str, ...]) -> list[np.ndarray]:
    out: list[np.ndarray] = []
    for name in names:
        split = getattr(study, name)
        out += [split.inputs, split.targets, split.owners, split.rows]
        out += [*split.attributes.values(), *split.groups.values()]
    return out


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_four_hospitals_have_the_published_sizes_and_disease_counts():
    owners = np.concatenate([getattr(STUDY, name).owners for name in POOLED])
    targets = np.concatenate([getattr(STUDY, name).targets for name in POOLED])
    assert STUDY.agents == ("cleveland", "hungarian", "switzerland", "va long beach")
    assert np.bincount(owners).tolist() == [303, 294, 123, 200]
    assert np.bincount(owners, weights=targets).tolist() == [139, 106, 115, 149]


@pytest.mark.parametrize("seed", [0, 1, 17])
def test_every_patient_is_in_exactly_one_split_and_identical_rows_stay_together(seed):
    study = datasets.heart_disease(split_seed=seed)
    home = {int(row): name for name in POOLED for row in getattr(study, name).rows}
    assert sum(len(getattr(study, name).rows) for name in POOLED) == 920
    assert sorted(home) == [int(row["id"]) for row in ROWS] == list(range(1, 921))
    seen: dict[tuple[str, ...], str] = {}
    twins = 0
    for row in ROWS:
        content = tuple(value for key, value in row.items() if key != "id")
        if content in seen:
            twins += 1
            assert home[int(row["id"])] == home[int(seen[content])]
        seen[content] = row["id"]
    assert twins == 2


@pytest.mark.parametrize("seed", [0, 1, 17])
@pytest.mark.parametrize("fractions", [(0.55, 0.15, 0.15, 0.15), (0.7, 0.1, 0.1, 0.1)])
def test_hospitals_and_strata_keep_their_fractions(seed, fractions):
    study = datasets.heart_disease(split_seed=seed, fractions=fractions)
    pooled = [getattr(study, name) for name in POOLED]
    cells = np.zeros((4, 4, 4))  # split, hospital, outcome x sex
    for k, split in enumerate(pooled):
        np.add.at(cells[k], (split.owners, 2 * split.targets + split.attributes["sex"]), 1)
    share = np.array(fractions)[:, None]
    # One row of play from dealing, one more from keeping identical rows together.
    assert np.all(np.abs(cells.sum(axis=2) - share * cells.sum(axis=(0, 2))) <= 2)
    deviation = np.abs(cells - share[:, :, None] * cells.sum(axis=0))
    assert deviation.max() <= 2.5


def test_the_same_arguments_give_the_same_bits_and_another_seed_another_split():
    again = datasets.heart_disease(split_seed=0)
    assert same(leaves(STUDY, POOLED), leaves(again, POOLED))
    assert not np.array_equal(datasets.heart_disease(split_seed=1).test.rows, STUDY.test.rows)


def test_shards_are_the_pooled_training_rows_of_each_agent():
    train = STUDY.pooled_train
    assert [len(shard.targets) for shard in STUDY.train] == np.bincount(train.owners).tolist()
    assert np.array_equal(np.concatenate([shard.inputs for shard in STUDY.train]), train.inputs)
    assert np.array_equal(np.concatenate([shard.targets for shard in STUDY.train]), train.targets)
    inputs, targets = STUDY.train[2]
    assert inputs.dtype == np.float32
    assert targets.dtype == np.int32
    assert inputs.shape == (len(targets), len(STUDY.feature_names))


def test_numbers_are_imputed_and_standardised_by_training_rows():
    by_id = {int(row["id"]): row for row in ROWS}
    train_rows = [by_id[int(row)] for row in STUDY.pooled_train.rows]
    for name in ("age", "trestbps", "chol", "thalch", "oldpeak", "ca"):
        zero = {"chol", "trestbps"}

        def known(row, name=name, zero=zero):
            return row[name] != "" and not (name in zero and float(row[name]) == 0)

        median = float(np.median([float(row[name]) for row in train_rows if known(row)]))
        filled = [float(row[name]) if known(row) else median for row in train_rows]
        column = STUDY.feature_names.index(name)
        for split in (getattr(STUDY, key) for key in POOLED):
            source = [by_id[int(row)] for row in split.rows]
            raw = np.array([float(row[name]) if known(row) else median for row in source])
            expected = (raw - np.mean(filled)) / np.std(filled)
            np.testing.assert_allclose(split.inputs[:, column], expected, atol=2e-6)
            if name != "age":
                assert STUDY.feature_names[column + 1] == f"{name} missing"
                expected_missing = np.array([not known(row) for row in source])
                assert np.array_equal(split.inputs[:, column + 1], expected_missing)
        np.testing.assert_allclose(STUDY.pooled_train.inputs[:, column].mean(), 0, atol=1e-6)
        np.testing.assert_allclose(STUDY.pooled_train.inputs[:, column].std(), 1, atol=1e-5)


def test_zero_cholesterol_is_missing_for_every_swiss_patient():
    column = STUDY.feature_names.index("chol missing")
    missing = {0: 0, 1: 23, 2: 123, 3: 49 + 7}
    for agent, expected in missing.items():
        found = sum(
            getattr(STUDY, name).inputs[getattr(STUDY, name).owners == agent, column].sum()
            for name in POOLED
        )
        assert found == expected


@pytest.mark.parametrize("name", ["cp", "fbs", "restecg", "exang", "slope", "thal"])
def test_categories_are_one_hot_and_all_zero_when_missing(name):
    by_id = {int(row["id"]): row for row in ROWS}
    columns = [i for i, f in enumerate(STUDY.feature_names) if f.startswith(f"{name}: ")]
    for split in (getattr(STUDY, key) for key in POOLED):
        for row_id, inputs in zip(split.rows, split.inputs[:, columns], strict=True):
            value = by_id[int(row_id)][name]
            level = f"{name}: {value.lower()}"
            expected = [STUDY.feature_names[i] == level for i in columns]
            assert sum(expected) == (value != "")
            assert inputs.tolist() == expected


MEASURED = ("age", "cp", "trestbps", "chol", "fbs", "restecg", "thalch", "exang", "oldpeak")


@pytest.mark.parametrize("held_out", ["values", "validation", "test"])
def test_no_measurement_of_a_held_out_row_reaches_any_other_row(held_out):
    changed_ids = set(getattr(STUDY, held_out).rows.tolist())
    other = {"age": "99", "cp": "", "fbs": "", "restecg": "", "exang": ""}
    altered = [
        {**row, **{key: other.get(key, "777") for key in MEASURED}, "ca": "", "thal": ""}
        if int(row["id"]) in changed_ids
        else row
        for row in ROWS
    ]
    study = datasets.heart_disease(rows=altered)
    untouched = tuple(name for name in POOLED if name != held_out)
    assert same(leaves(study, untouched), leaves(STUDY, untouched))
    assert study.oldest_third_from == STUDY.oldest_third_from
    assert not np.array_equal(getattr(study, held_out).inputs, getattr(STUDY, held_out).inputs)


def test_groups_follow_sex_and_the_training_ages():
    train = STUDY.pooled_train
    by_id = {int(row["id"]): row for row in ROWS}
    for split in (getattr(STUDY, name) for name in POOLED):
        assert tuple(split.groups) == STUDY.groups == ("women", "men", "oldest third")
        women = [by_id[int(row)]["sex"] == "Female" for row in split.rows]
        assert split.groups["women"].tolist() == women
        assert np.array_equal(split.groups["men"], ~split.groups["women"])
        old = split.attributes["age"] >= STUDY.oldest_third_from
        assert np.array_equal(split.groups["oldest third"], old)
    share = train.groups["oldest third"].mean()
    for step in (-1, 1):
        beside = (train.attributes["age"] >= STUDY.oldest_third_from + step).mean()
        assert abs(share - 1 / 3) <= abs(beside - 1 / 3)


def test_sex_is_an_input_only_on_request():
    assert not any("sex" in name for name in STUDY.feature_names)
    study = datasets.heart_disease(include_sex=True)
    assert study.feature_names == (*STUDY.feature_names, "sex: male")
    assert np.array_equal(study.test.inputs[:, :-1], STUDY.test.inputs)
    assert np.array_equal(study.test.inputs[:, -1], study.test.attributes["sex"])


def test_an_absent_or_altered_file_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.csv.*restore"):
        datasets.read_heart_disease(tmp_path / "absent.csv")
    content = datasets.HEART_DISEASE_PATH.read_bytes()
    copy = tmp_path / "copy.csv"
    copy.write_bytes(content)
    assert datasets.read_heart_disease(copy) == ROWS
    copy.write_bytes(content.replace(b"\n", b"\r\n"))
    with pytest.raises(ValueError, match=r"copy\.csv.*altered.*expected 574f2fa2.*restore"):
        datasets.read_heart_disease(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fractions": (0.5, 0.5)}, "fractions="),
        ({"fractions": (0.5, 0.2, 0.2, 0.2)}, "sum to 1"),
        ({"fractions": (1.0, 0.0, 0.0, 0.0)}, "above 0"),
        ({"fractions": (0.7, 0.1, 0.1, float("nan"))}, "fractions="),
        ({"fractions": (0.002, 0.333, 0.333, 0.332)}, "raise fractions"),
        ({"split_seed": -1}, "split_seed=-1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.heart_disease(**arguments)


def test_unknown_words_in_a_cell_are_refused():
    rows = [{**ROWS[0], "thal": "splendid"}, *ROWS[1:]]
    with pytest.raises(ValueError, match=r"'thal' holds \['splendid'\]"):
        datasets.heart_disease(rows=rows)


def test_digits_and_breast_cancer_are_scaled_and_typed():
    inputs, targets = datasets.digits()
    assert (inputs.shape, inputs.dtype, targets.dtype) == ((1797, 64), np.float32, np.int32)
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)
    assert np.bincount(targets).min() > 150
    inputs, targets = datasets.breast_cancer()
    assert (inputs.shape, inputs.dtype, targets.dtype) == ((569, 30), np.float32, np.int32)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), 1, atol=1e-5)
    assert np.bincount(targets).tolist() == [212, 357]


@pytest.mark.parametrize("load", [datasets.digits, datasets.breast_cancer])
def test_a_missing_scikit_learn_is_named_with_the_remedy(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pip install"):
        load()
