"""Dealing rows to splits and agents, and columns of tables: laws for free inputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcca_jax.datasets import columns
from vcca_jax.datasets.study import deal, divide, sample

AGENTS = ("a", "b", "c")
FRACTIONS = (0.55, 0.15, 0.15, 0.15)


@st.composite
def owned_rows(draw):
    """Owners and strata of 30 to 150 rows; every agent has at least five."""
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    n = draw(st.integers(30, 150))
    owners = np.concatenate([np.repeat(np.arange(3), 5), rng.integers(0, 3, n - 15)])
    return rng.permutation(owners), rng.integers(0, draw(st.integers(1, 4)), n)


@given(rows=owned_rows(), seed=st.integers(0, 99))
def test_each_agent_and_each_of_its_strata_keep_the_fractions(rows, seed):
    owners, strata = rows
    split = deal(owners, strata, agents=AGENTS, fractions=FRACTIONS, split_seed=seed)
    for agent in range(3):
        mine = owners == agent
        counts = np.bincount(split[mine], minlength=4)
        assert counts.sum() == mine.sum()
        assert np.all(np.abs(counts - np.array(FRACTIONS) * mine.sum()) <= 1)
        for stratum in np.unique(strata[mine]):
            cell = mine & (strata == stratum)
            counts = np.bincount(split[cell], minlength=4)
            assert np.all(np.abs(counts - np.array(FRACTIONS) * cell.sum()) <= 2)


@given(rows=owned_rows(), seed=st.integers(0, 99))
def test_an_agent_is_dealt_out_alike_whoever_comes_after_it(rows, seed):
    owners, strata = rows
    dealt = deal(owners, strata, agents=AGENTS, fractions=FRACTIONS, split_seed=seed)
    first = owners == 0
    alone = deal(owners[first], strata[first], agents="a", fractions=FRACTIONS, split_seed=seed)
    assert np.array_equal(dealt[first], alone)


@given(rows=owned_rows(), seed=st.integers(0, 99))
def test_rows_of_one_unit_go_where_its_first_row_goes(rows, seed):
    owners, strata = rows
    units = np.arange(len(owners)) // 2 + 2 * len(owners) * owners  # pairs of one agent
    options = {"agents": AGENTS, "fractions": FRACTIONS, "split_seed": seed}
    plain = deal(owners, strata, **options)
    together = deal(owners, strata, units=units, **options)
    for unit in np.unique(units):
        members = np.flatnonzero(units == unit)
        assert together[members].tolist() == [plain[members[0]]] * len(members)


@given(
    rows=owned_rows(),
    seed=st.integers(0, 99),
    rows_limit=st.none() | st.integers(1, 200),
    per_agent=st.none() | st.integers(1, 80),
)
def test_sampling_keeps_to_its_limits_and_draws_nested_subsets(rows, seed, rows_limit, per_agent):
    owners, _ = rows
    kept = sample(owners, rows_limit=rows_limit, per_agent=per_agent, split_seed=seed)
    assert np.all(np.diff(kept) > 0)
    sizes = np.minimum(np.bincount(owners, minlength=3), per_agent or len(owners))
    assert len(kept) == min(sizes.sum(), rows_limit or len(owners))
    assert np.all(np.bincount(owners[kept], minlength=3) <= sizes)
    fewer = sample(owners, rows_limit=max(1, len(kept) // 2), per_agent=per_agent, split_seed=seed)
    assert set(fewer) <= set(kept)


def test_sampling_draws_by_its_seed():
    owners = np.zeros(50, int)
    draws = [
        sample(owners, rows_limit=10, per_agent=None, split_seed=s).tolist() for s in (0, 0, 1)
    ]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows_limit": 0}, "rows_limit=0 must be at least 1"),
        ({"per_agent": -2}, "per_agent=-2 must be at least 1"),
        ({"split_seed": -1}, "split_seed=-1"),
    ],
)
def test_bad_limits_are_refused_by_name(arguments, message):
    options = {"rows_limit": None, "per_agent": None, "split_seed": 0} | arguments
    with pytest.raises(ValueError, match=message):
        sample(np.zeros(4, int), **options)


def test_divided_rows_keep_their_company_and_come_in_the_agents_order():
    owners = np.array([1, 0, 1, 0, 0, 1, 1, 0])
    split = np.array([0, 0, 0, 0, 1, 1, 2, 3])
    parts = divide(
        split,
        agents=("a", "b"),
        inputs=np.arange(8.0, dtype=np.float32)[:, None],
        targets=owners + 10,
        owners=owners,
        attributes={"ten": 10 * np.arange(8)},
        groups={"even": np.arange(8) % 2 == 0},
        rows=np.arange(8),
    )
    assert parts.pooled_train.rows.tolist() == [1, 3, 0, 2]
    assert parts.pooled_train.attributes["ten"].tolist() == [10, 30, 0, 20]
    assert parts.pooled_train.groups["even"].tolist() == [False, False, True, True]
    assert [shard.inputs[:, 0].tolist() for shard in parts.train] == [[1, 3], [0, 2]]
    assert [shard.targets.tolist() for shard in parts.train] == [[10, 10], [11, 11]]
    held_out = (parts.values, parts.validation, parts.test)
    assert [part.rows.tolist() for part in held_out] == [[4, 5], [6], [7]]


def test_numbers_are_standardised_and_imputed_by_training_rows():
    is_train = np.array([True, True, True, False])
    column, missing = columns.number(
        "x", np.array([1.0, np.nan, 3.0, 9.0]), is_train, indicator=True
    )
    deviation = np.sqrt(2 / 3)  # of 1, 2, 3 with divisor 3; the median of 1 and 3 fills in
    np.testing.assert_allclose(column.values, np.array([-1, 0, 1, 7]) / deviation)
    assert missing == ("x missing", pytest.approx([0, 1, 0, 0]))
    (constant,) = columns.number("y", np.array([5.0, 5, 5, 7]), is_train)
    assert constant.values[:3].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="no training row has 'z'"):
        columns.number("z", np.array([np.nan, np.nan, np.nan, 1.0]), is_train)


def test_categories_are_one_hot_and_refuse_unknown_words():
    found = columns.category("c", ["No", "?", "Yes"], ("Yes", "No"), missing="?")
    assert [column.name for column in found] == ["c: yes", "c: no"]
    assert [column.values.tolist() for column in found] == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"'c' holds \['Perhaps'\]"):
        columns.category("c", ["No", "Perhaps"], ("Yes", "No"))
