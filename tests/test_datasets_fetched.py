"""The fetched sets themselves: what is known of them, and what a plain model reaches."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from vcca_jax import datasets

POOLED = ("pooled_train", "values", "validation", "test")


def needs(name):
    return pytest.mark.skipif(
        not datasets.fetched(name), reason=f"the set {name!r} is not here; fetch it by `make data`"
    )


def counts(study, weight=lambda split: None):
    """Rows of each agent over all splits, weighted."""
    length = len(study.agents)
    return sum(
        np.bincount(split.owners, weight(split), length)
        for split in (getattr(study, name) for name in POOLED)
    )


def accuracy(train, test):
    model = LogisticRegression(C=0.1, max_iter=500).fit(*train)
    return (model.predict(test[0]) == test[1]).mean()


@needs("adult")
def test_adult_has_the_published_counts():
    rows = datasets.read_adult()
    assert len(rows) == 32561
    assert sum(row["income"] == ">50K" for row in rows) == 7841
    assert sum(row["sex"] == "Female" for row in rows) == 10771
    assert sum(row["race"] == "Black" for row in rows) == 3124
    assert sum("?" in row.values() for row in rows) == 32561 - 30162
    study = datasets.adult()
    expected = [4140, 4099, 4066, 3770, 3650, 3444, 2002, 1597, 1370, 994, 928, 658, 1843]
    assert counts(study).tolist() == expected
    assert counts(study, lambda split: split.targets).sum() == 7841
    assert counts(study, lambda split: split.groups["women"]).sum() == 10771
    employers = datasets.adult(owner="workclass", include_protected=True)
    assert counts(employers).tolist() == [22696, 2541, 2093, 1298, 1116, 960, 1857]
    assert (len(study.feature_names), len(employers.feature_names)) == (22, 36)


@needs("credit-default")
def test_credit_default_has_the_published_counts():
    study = datasets.credit_default(include_protected=True)
    assert counts(study).tolist() == [7676, 4822, 3902, 3978, 2905, 2154, 4563]
    assert counts(study, lambda split: split.targets).sum() == 6636
    # The source: 11,888 men (its code 1) and 18,112 women (2).
    assert counts(study, lambda split: split.groups["women"]).sum() == 18112
    assert counts(study, lambda split: split.groups["graduate school"]).sum() == 10585
    assert counts(study, lambda split: split.groups["university"]).sum() == 14030
    assert counts(study, lambda split: split.groups["high school"]).sum() == 4917
    assert counts(study, lambda split: split.attributes["marriage"] == 0).sum() == 13659
    assert len(study.feature_names) == 46


@needs("fashion-mnist")
def test_fashion_mnist_is_balanced():
    for (inputs, targets), size in zip(datasets.fashion_mnist(), (60000, 10000), strict=True):
        assert (inputs.shape, inputs.dtype) == ((size, 28, 28, 1), np.float32)
        assert np.bincount(targets).tolist() == [size // 10] * 10
        assert (inputs.min(), inputs.max()) == (0, 1)
    assert len(datasets.FASHION_MNIST_CLASSES) == 10


@needs("mnist")
def test_mnist_has_the_published_counts():
    (train_inputs, train_targets), (test_inputs, test_targets) = datasets.mnist()
    assert train_inputs.shape == (60000, 28, 28, 1)
    assert test_inputs.shape == (10000, 28, 28, 1)
    expected = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(train_targets).tolist() == expected
    expected = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(test_targets).tolist() == expected
    # The published mean and standard deviation of the training images.
    assert train_inputs.mean() == pytest.approx(0.1307, abs=1e-4)
    assert train_inputs.std() == pytest.approx(0.3081, abs=1e-4)


@needs("sentiment")
def test_sentiment_has_the_published_counts():
    rows = datasets.read_sentiment()
    domains = [row["domain"] for row in rows]
    assert [domains.count(name) for name in datasets.SENTIMENT_AGENTS] == [4200, 10605, 3708, 5190]
    assert all(0 <= float(row["deviation"]) < 4 for row in rows)
    assert all(-4 <= float(row["rating"]) <= 4 for row in rows)
    study = datasets.sentiment()
    assert counts(study).tolist() == [3432, 10070, 2977, 2930]
    assert study.pooled_train.inputs.shape[1] == 48
    assert study.pooled_train.inputs.max() < len(study.vocabulary) == 8192
    cut = np.mean(datasets.sentiment(length=49).pooled_train.inputs[:, 48] != 0)
    assert 0.001 < cut < 0.005


@pytest.mark.slow
@needs("adult")
def test_a_linear_model_of_incomes_reaches_the_known_accuracy():
    study = datasets.adult(owner="workclass")
    reached = accuracy(study.pooled_train[:2], study.test[:2])
    assert reached == pytest.approx(0.851, abs=0.01)


@pytest.mark.slow
@needs("credit-default")
def test_a_linear_model_of_defaults_reaches_the_known_accuracy():
    study = datasets.credit_default()
    # Yeh and Lien (2009) report an error of 0.18 for logistic regression.
    reached = accuracy(study.pooled_train[:2], study.test[:2])
    assert reached == pytest.approx(0.82, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "known"),
    [
        pytest.param("fashion_mnist", 0.831, marks=needs("fashion-mnist")),
        pytest.param("mnist", 0.900, marks=needs("mnist")),
    ],
)
def test_a_linear_model_of_images_reaches_the_known_accuracy(name, known):
    (inputs, targets), test = getattr(datasets, name)()
    train = (inputs[:8000].reshape(8000, -1), targets[:8000])
    reached = accuracy(train, (test[0].reshape(len(test[0]), -1), test[1]))
    assert reached == pytest.approx(known, abs=0.015)


@pytest.mark.slow
@needs("sentiment")
def test_a_bag_of_words_tells_sentiment_and_worse_where_raters_differ():
    study = datasets.sentiment()

    def bag(split):
        words = np.zeros((len(split.targets), len(study.vocabulary)), np.float32)
        words[np.arange(len(words))[:, None], split.inputs] = 1
        words[:, datasets.PADDING] = 0
        return words

    model = LogisticRegression(C=0.5, max_iter=300)
    model.fit(bag(study.pooled_train), study.pooled_train.targets)
    right = model.predict(bag(study.test)) == study.test.targets
    assert right.mean() == pytest.approx(0.78, abs=0.02)
    assert right[study.test.groups["contested"]].mean() < right[study.test.groups["agreed"]].mean()


@needs("world-values")
def test_world_values_has_the_counts_of_the_survey():
    answers = datasets.read_world_values()
    assert (len(answers.country), len(np.unique(answers.country))) == (175750, 80)
    assert np.unique(answers.wave).tolist() == [3, 4, 5]
    assert np.bincount(answers.bribe)[[0, 1]].tolist() == [0, int((answers.bribe == 1).sum())]
    assert (answers.bribe.min(), answers.bribe.max()) == (1, 10)
    study = datasets.world_values(answers=answers)
    most = ("South Africa", "Egypt", "Iran", "India", "Mexico", "Canada", "Nigeria", "Germany")
    assert study.agents == study.groups == most
    assert counts(study).tolist() == [8521, 5972, 4976, 4580, 4201, 3943, 3895, 3881]
    # The published shares of Mexico: 14, 45, 27 and 14 of a hundred.
    mexico = [np.bincount(s.targets[s.groups["Mexico"]], minlength=4) for s in study[2:6]]
    assert np.round(100 * sum(mexico) / 4201).tolist() == [14, 45, 27, 14]
    assert study.pooled_train.inputs.sum(axis=1).tolist() == [2.0] * len(study.pooled_train.targets)


@needs("world-values")
def test_world_values_takes_names_and_fewer_people():
    answers = datasets.read_world_values()
    study = datasets.world_values(countries=["Japan", "Peru"], per_agent=100, answers=answers)
    assert counts(study).tolist() == [100, 100]
    again = datasets.world_values(countries=["Japan", "Peru"], per_agent=100, answers=answers)
    np.testing.assert_array_equal(study.test.rows, again.test.rows)
    for wrong in (0, 81, ["Atlantis"], [], ["Peru", "Peru"]):
        with pytest.raises(ValueError, match="countries="):
            datasets.world_values(countries=wrong, answers=answers)
